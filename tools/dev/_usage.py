"""What processes hold, from Linux's /proc, and whether it grows."""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np

MIB = 2**20
GONE = (FileNotFoundError, ProcessLookupError)  # a process may end while it is looked at


@dataclass(frozen=True)
class Usage:
    """What some processes hold together.

    Attributes:
        rss: resident memory in MiB; pages that several share count for each.
        pss: the same, where a shared page counts in parts.
        uss: pages of one process alone.
        files: open files, sockets and pipes.
        threads: of all.
        processes: how many there are.
    """

    rss: float = 0
    pss: float = 0
    uss: float = 0
    files: int = 0
    threads: int = 0
    processes: int = 0

    def __add__(self, other: 'Usage') -> 'Usage':
        return Usage(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


def usage_of(pid: int) -> Usage:
    """Of one process; nothing of one that has ended."""
    process = Path('/proc') / str(pid)
    with suppress(*GONE):
        lines = (process / 'smaps_rollup').read_text().splitlines()[1:]
        kib = {line.split()[0]: int(line.split()[1]) for line in lines}
        own = kib['Private_Clean:'] + kib['Private_Dirty:']
        mib = (n / 1024 for n in (kib['Rss:'], kib['Pss:'], own))
        files, threads = (len(os.listdir(process / name)) for name in ('fd', 'task'))
        return Usage(*mib, files, threads, 1)
    return Usage()


def family(pid: int) -> list[int]:
    """A process and all that come from it."""
    parents = {}
    for state in Path('/proc').glob('[0-9]*/stat'):
        with suppress(*GONE):
            parents[int(state.parent.name)] = int(state.read_text().rpartition(')')[2].split()[1])
    found = [pid]
    for one in found:  # grows while it is walked
        found += [child for child, parent in parents.items() if parent == one]
    return found


def usage_of_family(pid: int) -> Usage:
    """Of a process and all that come from it."""
    return sum(map(usage_of, family(pid)), Usage())


def peak_mib() -> float:
    """Most resident memory of this process since :func:`reset_peak`, in MiB."""
    return _status('VmHWM')


def reset_peak() -> float:
    """Begin to look for the peak anew; resident memory now, in MiB."""
    Path('/proc/self/clear_refs').write_text('5')
    return _status('VmRSS')


def _status(name: str) -> float:
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


@dataclass(frozen=True)
class Trend:
    """How a quantity went: medians of the first and the last fifth, and a line through all."""

    first: float
    last: float
    per_hour: float

    @property
    def change(self) -> float:
        """Of the last fifth against the first, as a share."""
        return self.last / self.first - 1


def trend(seconds: Sequence[float], values: Sequence[float]) -> Trend:
    """The trend of values at these times.

    >>> trend(range(0, 36000, 3600), [5.0 + i for i in range(10)])
    Trend(first=5.5, last=13.5, per_hour=1.0)
    """
    hours, values = np.asarray(seconds) / 3600, np.asarray(values, dtype=float)
    fifth = max(1, len(values) // 5)
    slope = np.polyfit(hours, values, 1)[0] if len(values) > 1 else 0.0
    first, last = float(np.median(values[:fifth])), float(np.median(values[-fifth:]))
    return Trend(first, last, round(float(slope), 6))
