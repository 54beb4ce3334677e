"""A checkpoint to hand on: python tools/deployment/publish.py CHECKPOINT --out NAME.safetensors

Weights, config, vocabulary and what it was chosen on stay; the state of the optimizer goes. In
safetensors no program can be hidden, so that others open it without trusting you. EICLIPInferencer,
serve.py and all other tools that take a checkpoint take it.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import eiclip_mm  # noqa: F401  (checks the installation)
from eiclip_mm.apis import EICLIPInferencer, open_checkpoint, save_checkpoint
from eiclip_mm.utils.checkpoint_file import CheckpointNotWritten


def main(argv: Sequence[str] | None = None) -> None:
    """Write, then open what was written."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('checkpoint', type=Path, help='of tools/train.py')
    parser.add_argument('--out', type=Path, required=True, metavar='NAME.safetensors', help='new')
    args = parser.parse_args(argv)
    if args.out.suffix != '.safetensors':
        parser.error(f'--out {args.out} must end in .safetensors')
    if args.out.exists():
        parser.error(f'--out {args.out} is there already; give another name, or move it away')
    try:
        opened = open_checkpoint(args.checkpoint)
        save_checkpoint(args.out, opened.state, opened.meta)
        encoder = EICLIPInferencer(args.out, device='cpu')
    except CheckpointNotWritten as error:
        raise SystemExit(error.strerror) from error
    except (ValueError, OSError, ImportError) as error:
        raise SystemExit(str(error)) from error
    sizes = [path.stat().st_size / 1e6 for path in (args.checkpoint, args.out)]
    print(f'{args.out}: {sizes[0]:.1f} MB -> {sizes[1]:.1f} MB, sha256 {encoder.sha256}')


if __name__ == '__main__':
    main()
