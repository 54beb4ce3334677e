"""Train what a config describes: python tools/train.py configs/eiclip_fashiongen_mini.py"""

import argparse
from collections.abc import Sequence

import torch
from _cli import add_common, build_runner, read_config, start_processes

import eiclip_mm  # noqa: F401  (checks the installation)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        help='go on from this checkpoint; without a value or with "auto", from the latest in the '
        'work dir, if there is one',
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
    add_common(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Read the config, apply the command line, run."""
    args = parse_args(argv)
    cfg = read_config(args)
    if args.resume:
        cfg.resume = True
        cfg.load_from = None if args.resume == 'auto' else args.resume
    if args.amp:
        set_amp(cfg, args.amp_dtype)
    if args.compile:
        set_compile(cfg)
    if args.no_validate:
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
        cfg.default_hooks.checkpoint.save_best = None
    if args.auto_scale_lr:
        cfg.auto_scale_lr.enable = True
    start_processes(cfg)
    build_runner(cfg).train()


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
    main()
