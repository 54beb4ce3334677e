"""Train what a config describes: python tools/train.py configs/eiclip_fashiongen_mini.py"""

import argparse
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from _cli import add_common, add_trust, build_runner, read_config, start_processes
from _lock import alone_in
from mmengine.config import Config
from torch.distributed.elastic.multiprocessing.errors import record

from eiclip_mm.engine.checkpoint_files import check_writable, last_good
from eiclip_mm.utils.checkpoint_file import CheckpointError, check_whole
from eiclip_mm.utils.sentence import refusals_told


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        help='go on from this checkpoint; without a value or with "auto", from the newest whole '
        'one in the work dir, if there is any',
    )
    parser.add_argument(
        '--amp', action='store_true', help='bfloat16 autocast (float16 with --amp-dtype)'
    )
    parser.add_argument('--amp-dtype', choices=['bfloat16', 'float16'], default='bfloat16')
    parser.add_argument(
        '--compile', action='store_true', help='torch.compile the towers (model.towers.compile)'
    )
    parser.add_argument('--no-validate', action='store_true', help='no validation while training')
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate by batch size over auto_scale_lr.base_batch_size',
    )
    add_trust(parser)
    add_common(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Read the config, apply the command line, run."""
    args = parse_args(argv)
    cfg = read_config(args)
    checkpoint = to_resume(args.resume, cfg.work_dir) if args.resume else None
    if checkpoint is not None:
        cfg.resume, cfg.load_from = True, checkpoint
    if args.amp:
        set_amp(cfg, args.amp_dtype)
    if args.compile:
        set_compile(cfg)
    if args.no_validate:
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
        cfg.default_hooks.checkpoint.save_best = None
    if args.auto_scale_lr:
        cfg.auto_scale_lr.enable = True
    try:
        check_writable(cfg.work_dir)
    except OSError as error:
        raise SystemExit(error.strerror) from error
    with ExitStack() as stack:
        if is_first():
            stack.enter_context(alone_in(Path(cfg.work_dir), 'training'))
        train(cfg)


def is_first() -> bool:
    """Whether no other process of this training is before this one."""
    return os.environ.get('RANK', os.environ.get('SLURM_PROCID', '0')) == '0'


def train(cfg: Config) -> None:
    """Run it; what a user can mend ends it in a sentence.

    Raises:
        SystemExit: data, settings, a checkpoint, the disk or the numbers are not fit to go on.
    """
    start_processes(cfg)
    with refusals_told(cfg.work_dir, then='go on with --resume auto'):
        build_runner(cfg).train()


def to_resume(given: str, work_dir: str) -> str | None:
    """The checkpoint to go on from; ``None``: there is none, and training starts.

    Raises:
        SystemExit: there are some and none is whole, or the given one is not.
    """
    if given != 'auto':
        return given if '://' in given else checked(Path(given))
    path, passed_over = last_good(work_dir)
    if is_first():
        for reason in passed_over:
            print(f'passed over: {reason}', flush=True)
    if path is None and passed_over:
        raise SystemExit(
            f'--resume auto has nothing to go on from in {work_dir}:\n'
            + '\n'.join(passed_over)
            + '\nRestore one from a copy, or start anew without --resume in another --work-dir.'
        )
    return str(path) if path else None


def checked(path: Path) -> str:
    """The checkpoint that was named, if it is whole."""
    try:
        if not path.is_file():
            raise CheckpointError(f'checkpoint {path} does not exist.')
        check_whole(path)
    except CheckpointError as error:
        good, _ = last_good(path.parent)
        there = f'The last good one in {path.parent} is {good}' if good else 'There is no other'
        raise SystemExit(f'{error} {there}.') from error
    return str(path)


def set_amp(cfg, dtype: str) -> None:
    """Mixed precision; float16 needs a GPU and loss scaling, bfloat16 neither."""
    if dtype == 'float16' and not torch.cuda.is_available():
        raise SystemExit('--amp-dtype float16 needs a GPU; use bfloat16 here.')
    scaled = dtype == 'float16'
    cfg.optim_wrapper.type = 'AmpOptimWrapper' if scaled else 'eiclip_mm.AutocastOptimWrapper'
    cfg.optim_wrapper.dtype = dtype


def set_compile(cfg) -> None:
    """Compiled towers; what else a model has is small beside them."""
    if 'towers' not in cfg.model:
        raise SystemExit(
            f'--compile compiles model.towers, which {cfg.model.type} does not have; leave it out.'
        )
    cfg.model.towers.compile = True


if __name__ == '__main__':
    record(main)()  # torchrun then shows the error of the process that failed first
