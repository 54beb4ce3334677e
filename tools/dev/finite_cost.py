"""What NonFiniteHook costs a training step, in CPU time: python tools/dev/finite_cost.py

It trains configs/eiclip_fashiongen_mini.py on small synthetic data, batches of 64, one thread.
Exit code 1: more than --limit percent of the step.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.runner import Runner
from rank_faults import write_config, write_data

from eiclip_mm.engine import NonFiniteHook

WATCHED = ('before_train_iter', 'after_train_iter', '_after_forward', '_before_step')


def main(argv: Sequence[str] | None = None) -> None:
    """Train with a clock around the hook, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--batch-sizes', type=int, nargs='+', default=[16, 64])
    parser.add_argument('--steps', type=int, default=20)
    parser.add_argument('--limit', type=float, default=2.0, help='percent')
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    shares = []
    print('| batch | step, ms of CPU | the hook, ms | percent |\n|--:|--:|--:|--:|')
    with tempfile.TemporaryDirectory() as folder:
        data = write_data(Path(folder))
        for size in args.batch_sizes:
            step, hook = measured(data, size, args.steps)
            shares.append(100 * hook / step)
            print(f'| {size} | {1e3 * step:.1f} | {1e3 * hook:.2f} | {shares[-1]:.2f} |')
    sys.exit(max(shares) > args.limit)


def measured(data: Path, batch_size: int, steps: int) -> tuple[float, float]:
    """CPU seconds of a step, the hook's among them; the first two steps are left out."""
    cfg = Config.fromfile(write_config('none', data, 60))
    cfg.work_dir, cfg.log_level, cfg.default_hooks = str(data / f'{batch_size}'), 'ERROR', {}
    cfg.train_dataloader.batch_size, cfg.train_dataloader.num_workers = batch_size, 0
    cfg.train_dataloader.persistent_workers = False
    cfg.train_cfg = dict(by_epoch=False, max_iters=steps)
    cfg.param_scheduler, cfg.experiment_name = [], f'cost-{batch_size}'
    runner = Runner.from_cfg(cfg)
    spent, ends = [0.0], []
    hook = next(h for h in runner.hooks if isinstance(h, NonFiniteHook))
    for name in WATCHED:
        setattr(hook, name, clocked(getattr(hook, name), spent))
    step = runner.model.train_step

    def train_step(*given: object, **named: object) -> object:
        began = time.process_time()
        found = step(*given, **named)
        ends.append((time.process_time() - began, spent[0]))
        return found

    runner.model.train_step = train_step
    runner.train()
    return sum(s for s, _ in ends[2:]) / (steps - 2), (ends[-1][1] - ends[1][1]) / (steps - 2)


def clocked(function: Callable, spent: list[float]) -> Callable:
    """The function, adding its CPU seconds to ``spent``."""

    def call(*given: object, **named: object) -> object:
        began = time.process_time()
        try:
            return function(*given, **named)
        finally:
            spent[0] += time.process_time() - began

    return call


if __name__ == '__main__':
    main()
