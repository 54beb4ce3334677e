"""Processes that are killed while they write, and what then stands; see kill_writers.py."""

import contextlib
import itertools
import os
import random
import resource
import runpy
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / 'tests')]  # small data
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = ('os.rename', 'os.remove', 'os.mkdir', 'os.rmdir', 'os.truncate')
LIMIT = 600  # seconds a tool may take; then it hangs


@dataclass(frozen=True)
class Case:
    """A tool and a folder that it works in.

    Attributes:
        argv: path of the tool in tools/, and what follows; ``out`` is in the folder.
        content: what stands under the folder's final names, by name, read as users read it.
        begin: fills the folder before the tool runs: what is there already.
        prepare: changes settings in the tool's process, such as how often it writes.
        together: the parts tell of each other, so no kill may leave some old and some new.
        over: what it says where nothing is left to do.
    """

    argv: tuple[str, ...]
    content: Callable[[Path], dict[str, Any]]
    begin: Callable[[Path], None] = lambda folder: None
    prepare: Callable[[], None] = lambda: None
    together: bool = False
    over: str = 'is there and not empty'

    @property
    def name(self) -> str:
        """Of the tool."""
        return Path(self.argv[0]).name


def start(case: Case, folder: Path, number: int = 0, bytes_: int = 0) -> int:
    """Fork a process that is the tool; its id.

    Args:
        case: the tool.
        folder: works here; what it says goes to ``folder.log``.
        number: dies when it changes a file of the folder so often; 0 counts in ``folder.count``.
        bytes_: size of the largest file that the disk takes; 0 for no limit.
    """
    if pid := os.fork():
        with contextlib.suppress(OSError):
            os.setpgid(pid, pid)
        return pid
    code = 1
    try:
        os.setpgid(0, 0)
        log = os.open(f'{folder}.log', os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        logger = None
        if bytes_:  # the limit is not for what it says
            logger = subprocess.Popen(['cat'], stdin=subprocess.PIPE, stdout=log)
            log = logger.stdin.fileno()
        os.dup2(log, 1)
        os.dup2(log, 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.stdout, sys.stderr = (os.fdopen(n, 'w', buffering=1, closefd=False) for n in (1, 2))
        os.chdir(folder)
        if bytes_:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then write() fails, as on a full disk
            resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_, bytes_))
        tqdm.set_lock(threading.RLock())  # its own is shared by forks: one killed may hold it
        case.prepare()
        script = str(ROOT / 'tools' / case.argv[0])
        sys.argv, sys.path[:0] = [script, *case.argv[1:]], [str(Path(script).parent)]
        counter = itertools.count(1)
        sys.addaudithook(lambda event, args: _count(event, args, folder, counter, number))
        runpy.run_path(script, run_name='__main__')
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        if logger:
            os.close(1)
            os.close(2)
            logger.stdin.close()
            logger.wait()
        if not number and not bytes_:
            Path(f'{folder}.count').write_text(str(next(counter)))
        os._exit(code)


def _count(event: str, args: tuple, folder: Path, counter, number: int) -> None:
    changes = event in CHANGES or (event == 'open' and len(args) == 3 and (args[2] or 0) & WRITING)
    if not changes or not isinstance(args[0], (str, bytes, Path)):
        return
    path = os.path.abspath(os.fsdecode(args[0]))
    if path.startswith(f'{folder}/') and next(counter) == number:
        os.killpg(0, signal.SIGKILL)


def end_of(pid: int, seconds: float | None = None) -> int:
    """Its exit code, negative where a signal ended it; ``seconds`` later it is killed."""
    until = time.monotonic() + (LIMIT if seconds is None else seconds)
    while not (found := os.waitpid(pid, os.WNOHANG))[0]:
        if time.monotonic() > until:
            os.killpg(pid, signal.SIGKILL)
            found = os.waitpid(pid, 0)
            break
        time.sleep(0.002)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)  # what it started
    return os.waitstatus_to_exitcode(found[1])


def same(one: Any, other: Any) -> bool:
    """Whether two parts are equal; vectors but for rounding, as other batches round otherwise."""
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return one.shape == other.shape and np.allclose(one, other, atol=1e-5, equal_nan=True)
    return type(one) is type(other) and one == other


def leftovers(folder: Path) -> list[str]:
    """Names of files that nothing but a kill leaves."""
    ends = ('.part', '.parts', '.tmp')
    return [str(p.relative_to(folder)) for p in folder.rglob('*') if p.name.endswith(ends)]


def problem(case: Case, found: dict, old: dict, new: dict) -> str | None:
    """What is wrong with what stands after a kill."""
    for name, part in found.items():
        if not any(name in state and same(part, state[name]) for state in (old, new)):
            return f'{name} is neither the old nor the new one'
    if case.together:
        sides = [all(n in s and same(p, s[n]) for n, p in found.items()) for s in (old, new)]
        if not any(sides):
            return f'a mix of old and new: {sorted(found)}'
    return None


class Trial:
    """A tool that has run once unbroken, to be killed.

    Args:
        case: the tool.
        scratch: an empty folder.
    """

    def __init__(self, case: Case, scratch: Path):
        self.case, self.scratch, self.counts = case, scratch, Counter[str]()
        self.problems: list[str] = []
        self.folder = scratch / 'work'  # the same each time: results may name it
        self.old = self._begin()
        began = time.monotonic()
        if end_of(start(case, self.folder)):
            raise SystemExit(f'{case.name} fails unbroken: {self.said()}')
        self.seconds = time.monotonic() - began
        self.events = int(Path(f'{self.folder}.count').read_text()) - 1
        self.new = self.read()

    def _begin(self) -> dict:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        self.case.begin(self.folder)
        return self.read()

    def read(self) -> dict:
        """What stands; of a copy, for an engine that reads may mend."""
        copy = self.scratch / 'copy'
        shutil.copytree(self.folder, copy, symlinks=True)
        try:
            return self.case.content(copy)
        finally:
            shutil.rmtree(copy)

    def said(self) -> str:
        """The end of the tool's output."""
        return Path(f'{self.folder}.log').read_text(errors='replace')[-1500:]

    def kill(self, draw: random.Random, at_a_write: bool) -> None:
        """Run from the beginning, die, look, run again, look."""
        self._begin()
        if at_a_write:
            self._died(end_of(start(self.case, self.folder, draw.randint(1, self.events))), True)
        else:
            self._died(end_of(start(self.case, self.folder), draw.random() * self.seconds), False)

    def _died(self, code: int, at_a_write: bool) -> None:
        if code != -signal.SIGKILL:
            self.counts['ended before'] += 1
            return
        self.counts['kills'] += 1
        self.counts['inside writing'] += at_a_write or bool(leftovers(self.folder))
        try:
            wrong = problem(self.case, self.read(), self.old, self.new)
        except Exception as error:
            wrong = f'after the kill it cannot be read: {error!r}'
        if (
            wrong is None
            and end_of(start(self.case, self.folder))
            and self.case.over not in self.said()
        ):
            wrong = f'the second run fails: {self.said()}'
        wrong = wrong or self._differs()
        if wrong:
            self.counts['differences'] += 1
            self.problems.append(wrong)

    def _differs(self) -> str | None:
        found = self.read()
        if found.keys() != self.new.keys():
            return f'other parts: {sorted(found.keys() ^ self.new.keys())}'
        other = [name for name in found if not same(found[name], self.new[name])]
        return f'{other} differ' if other else None or _named(leftovers(self.folder))

    def fill_the_disk(self, bytes_: int) -> None:
        """A run whose disk takes no file beyond ``bytes_``: a sentence, and the old as it was."""
        self._begin()
        code = end_of(start(self.case, self.folder, bytes_=bytes_))
        said = self.said()
        if code == 0:  # none of its files is as large
            return
        self.counts['full disks'] += 1
        if code != 1 or 'Traceback' in said:
            self.problems.append(f'full disk, {bytes_} bytes: exit code {code}: {said}')
        elif wrong := problem(self.case, self.read(), self.old, self.new):
            self.problems.append(f'full disk, {bytes_} bytes: {wrong}')
        elif end_of(start(self.case, self.folder)):
            self.problems.append(f'after a full disk the next run fails: {self.said()}')
        elif wrong := self._differs():
            self.problems.append(f'after a full disk: {wrong}')


def _named(left: list[str]) -> str | None:
    return f'{left} are left over' if left else None
