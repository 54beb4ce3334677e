"""Evaluate a checkpoint: python tools/test.py CONFIG CHECKPOINT [--out embeddings.npz]"""

import argparse
import json
from pathlib import Path

from _cli import add_common, read_config, start_processes
from mmengine.dist import is_main_process
from mmengine.runner import Runner

import eiclip_mm  # noqa: F401  (checks the installation)


def parse_args() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument(
        'checkpoint', help='checkpoint of a training run, or "none" for the towers as pretrained'
    )
    parser.add_argument('--out', help='write the embeddings to this .npz file')
    add_common(parser)
    return parser.parse_args()


def main() -> None:
    """Read the config, load the checkpoint, run, write the results beside the log."""
    args = parse_args()
    cfg = read_config(args)
    if args.checkpoint.lower() != 'none':
        if not Path(args.checkpoint).is_file():
            raise SystemExit(f'checkpoint {args.checkpoint} does not exist.')
        # The checkpoint holds all weights: where the towers came from need not exist any more.
        cfg.model.towers.pretrained = cfg.model.towers.image_weights = None
    if args.out:
        cfg.test_evaluator.out = args.out
    start_processes(cfg)
    runner = Runner.from_cfg(cfg)
    if args.checkpoint.lower() != 'none':
        # Not cfg.load_from, which only logs weights that are missing or do not fit.
        runner.load_checkpoint(args.checkpoint, strict=True)
    results = runner.test()
    if is_main_process():
        path = Path(cfg.work_dir) / 'test_results.json'
        path.write_text(json.dumps(results, indent=1), encoding='utf-8')
        runner.logger.info(f'results are in {path}')


if __name__ == '__main__':
    main()
