"""Ways to do one thing, side by side: each in a process of its own, in turn, medians.

Processes of their own keep memory and caches apart; taking turns lets a loaded machine slow all
ways alike, so ratios hold where times do not.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

import torch

DONE = 'RESULT '


def add_options(parser: argparse.ArgumentParser, ways: Sequence[str], repeats: int = 3) -> None:
    """What every benchmark takes."""
    parser.add_argument('--ways', nargs='+', choices=ways, default=list(ways))
    parser.add_argument('--repeats', type=int, default=repeats)
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--run', choices=ways, help=argparse.SUPPRESS)


def run(
    ways: Mapping[str, Callable[[argparse.Namespace], dict]],
    args: argparse.Namespace,
    *more: str,
) -> dict[str, dict]:
    """Run every way of ``args.ways`` in turn, ``args.repeats`` times.

    A way takes the arguments and returns a dict; it measures itself with :class:`Meter`. It runs in
    a process that is started with this one's command line and ``more``, and that ends here.

    Returns:
        for each way the median of every number of its dicts; other values are those of its first.
    """
    if args.run:
        torch.set_num_threads(args.threads)
        print(DONE + json.dumps(ways[args.run](args)))
        sys.exit()
    # mmengine's Runner would take a GPU, whatever --device says
    environment = os.environ | (dict(CUDA_VISIBLE_DEVICES='') if args.device == 'cpu' else {})
    found = {way: [] for way in args.ways}
    for repeat in range(args.repeats):
        for way in args.ways:
            command = [sys.executable, *sys.argv, *more, '--run', way]
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            lines = [line for line in done.stdout.splitlines() if line.startswith(DONE)]
            if done.returncode or not lines:
                raise SystemExit(f'{way} failed:\n{done.stderr[-2000:]}')
            found[way].append(json.loads(lines[0].removeprefix(DONE)))
            print(f'{repeat + 1}/{args.repeats} {way}: {found[way][-1]}', file=sys.stderr)
    return {way: _median(runs) for way, runs in found.items()}


def _median(runs: Sequence[dict]) -> dict:
    return {
        key: statistics.median(r[key] for r in runs) if isinstance(first, (int, float)) else first
        for key, first in runs[0].items()
    }


class Meter:
    """CPU and wall seconds of a block, and its peak memory beyond what was there, in MB.

    >>> with Meter('cpu') as used:
    ...     _ = sum(range(1000))
    >>> sorted(used.result)
    ['cpu', 'mb', 'wall']

    On an accelerator memory is the device's, and the block's work is waited for.
    """

    def __init__(self, device: str):
        self.device = torch.device(device)
        self.result: dict[str, float] = {}

    def __enter__(self) -> 'Meter':
        if self.device.type == 'cpu':
            _reset_peak()
            self._before = _memory('VmRSS')
        else:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated() / 2**20
        self._cpu, self._wall = time.process_time(), time.perf_counter()
        return self

    def __exit__(self, *_) -> None:
        if self.device.type != 'cpu':
            torch.cuda.synchronize()
        wall, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
        if self.device.type == 'cpu':
            peak = _memory('VmHWM')
        else:
            peak = torch.cuda.max_memory_allocated() / 2**20
        self.result = dict(cpu=cpu, wall=wall, mb=peak - self._before)


def table(rows: Mapping[str, dict], columns: Mapping[str, Callable[[dict], str]]) -> str:
    """Markdown: one row a way; a column is made of the way's dict."""
    lines = [f'| way | {" | ".join(columns)} |', '|---|' + '--:|' * len(columns)]
    for way, row in rows.items():
        lines.append(f'| {way} | {" | ".join(make(row) for make in columns.values())} |')
    return '\n'.join(lines)


def _memory(name: str) -> float:
    """VmRSS, resident MB now, or VmHWM, the peak since :func:`_reset_peak` (Linux)."""
    with open('/proc/self/status', encoding='ascii') as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name)) / 1024


def _reset_peak() -> None:
    with open('/proc/self/clear_refs', 'w', encoding='ascii') as file:
        file.write('5')
