"""Tools run by other tools: each a process of its own, its progress shown, its output in a log."""

import multiprocessing
import os
import re
import runpy
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from eiclip_mm.utils.cores import usable_cores
from eiclip_mm.utils.whole_file import write_whole_text

_ASKED = os.environ.get('OMP_NUM_THREADS', '')
CORES = int(_ASKED) if _ASKED.isdecimal() and int(_ASKED) else usable_cores()  # for all tools
MINI = Path('data/mini_fashiongen')
LOG = 'tools.log'
SHOWN = re.compile(r'Epoch\(train\) +\[(\d+)\].*eta: ([\d:]+).* loss: ([\d.]+)')
GOES_ON = 'the same command, without --fresh, goes on from here'
# The tools' imports take as long as an epoch. A server imports once and forks for each tool, which
# CUDA does not survive.
PROCESSES = multiprocessing.get_context('spawn' if torch.cuda.is_available() else 'forkserver')
PROCESSES.set_forkserver_preload(
    [f'eiclip_mm.{room}' for room in ('datasets', 'models', 'evaluation', 'engine')]
)
ASKING = threading.Lock()  # starting one asks how all are; of two who ask, one loses the exit code


@contextmanager
def ends_at_once(then: str = GOES_ON) -> Iterator[None]:
    """Ctrl-C ends this process whatever its threads wait for, and its tools end with it.

    Args:
        then: what to do after that, for the message.
    """

    def end(*_) -> None:
        os.write(2, f'\ninterrupted; {then}\n'.encode())  # print may be at work
        os._exit(130)

    before = signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def draw_mini() -> None:
    """The mini Fashion-Gen and its entities; photos that are there are not drawn again."""
    run('tools/dataset_converters/make_mini_fashiongen.py', '--out', str(MINI))
    run('tools/dataset_converters/build_entities.py', 'configs/eiclip_fashiongen_mini.py')


def train_start(config: str) -> None:
    """Train what others start from: its own numbers are reported nowhere."""
    run('tools/train.py', config, '--no-validate', '--resume', 'auto')


def check_start(weights: Path, config: str, settings: str) -> None:
    """Refuse weights that others start from, if they are of other settings than the config's now.

    Args:
        weights: they may be missing, and so may the hash beside them, as those of the quick start.
        config: makes them.
        settings: its hash.

    Raises:
        SystemExit: says what to move away.
    """
    beside = hash_file(weights)
    if weights.is_file() and beside.is_file() and beside.read_text().strip() != settings:
        raise SystemExit(
            f'{weights} was made with other settings than {config} has now; move '
            f'{weights.parent} away and run again.'
        )


def make_start(weights: Path, config: str, settings: str) -> None:
    """Train them, and keep the hash of their settings beside them."""
    train_start(config)
    write_whole_text(hash_file(weights), f'{settings}\n')


def hash_file(weights: Path) -> Path:
    """Where the hash of their settings lies."""
    return weights.with_name(f'{weights.name}.sha256')


def work_dir(config: str) -> Path:
    """Where train.py and test.py put a config's files."""
    return Path('work_dirs') / Path(config).stem


def best_checkpoint(folder: Path) -> Path:
    """The one that validation chose.

    Raises:
        SystemExit: the folder holds none.
    """
    found = list(folder.glob('best_*.pth'))
    if not found:
        raise SystemExit(f'{folder} holds no best_*.pth; train first, with validation.')
    return max(found, key=lambda path: path.stat().st_mtime)


def run(
    *command: str, threads: int = CORES, log: Path | None = None, label: str | None = None
) -> None:
    """Run one of the project's tools.

    Args:
        command: its path and arguments, as the command line would have them.
        threads: it computes with.
        log: its output goes there; by default into the config's work dir.
        label: stands before its progress; by default the config's name.

    Raises:
        SystemExit: the tool failed; gives the end of its output.
    """
    print('\n$ python', *command, flush=True)
    if log is None:
        log = (work_dir(command[1]) if command[1].endswith('.py') else Path('work_dirs')) / LOG
    label = label or f'  {Path(command[1]).stem}'
    log.parent.mkdir(parents=True, exist_ok=True)
    process = PROCESSES.Process(target=tool, args=(command, log, threads))
    with log.open('a+', encoding='utf-8') as output:
        with ASKING:
            process.start()
        while True:
            with ASKING:
                running = process.is_alive()  # asked first: what it wrote last is read too
            for line in output:
                if found := SHOWN.search(line):
                    epoch, eta, loss = found.groups()
                    print(f'{label}: epoch {epoch}, loss {loss}, remaining {eta}', flush=True)
            if not running:
                break
            time.sleep(0.5)
    if code := process.exitcode:
        how = f'was ended by {signal.Signals(-code).name}' if code < 0 else 'failed'
        if code == -signal.SIGKILL:
            how += ' (is memory short?); give the same command again'
        sys.exit(f'{command[0]} {how}. The end of its output, all of it in {log}:\n{tail(log)}')


def tool(command: tuple[str, ...], log: Path, threads: int) -> None:
    """Be the process of a tool, as the command line would start it."""
    os.setpgrp()  # Ctrl-C is for who started it: it would end some of a pool, and the rest wait
    threading.Thread(target=end_with_parent, daemon=True).start()
    with log.open('a', encoding='utf-8') as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    torch.set_num_threads(threads)
    sys.argv = list(command)
    runpy.run_path(command[0], run_name='__main__')


def end_with_parent() -> None:
    """End where who started this ended: the next start would train beside it, in its files."""
    multiprocessing.parent_process().join()
    os.killpg(0, signal.SIGKILL)  # with the processes it started, which would wait for it


def tail(log: Path) -> str:
    """The last lines of a log."""
    return '\n'.join(log.read_text(encoding='utf-8').splitlines()[-20:])
