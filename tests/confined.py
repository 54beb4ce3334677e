"""Running what may hang or take all memory, in a process of its own that may do neither."""

import multiprocessing
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import torch


def confined(function: Callable, *args, memory: int = 2**30, seconds: int = 60) -> tuple[str, str]:
    """Class and message of what a call raises, ('', '') of none.

    Args:
        function, args: the call.
        memory: bytes it may take beside what this process has.
        seconds: of processor time; beyond it, or where it dies, the test fails.
    """
    ours, theirs = multiprocessing.get_context('fork').Pipe(duplex=False)
    child = multiprocessing.get_context('fork').Process(
        target=_call, args=(theirs, memory, seconds, function, args)
    )
    child.start()
    theirs.close()
    try:
        found = ours.recv()
    except EOFError:
        child.join()
        raise AssertionError(f'it died or hung: exit code {child.exitcode}') from None
    child.join()
    return found


def _call(pipe, memory: int, seconds: int, function: Callable, args: tuple) -> None:
    torch.set_num_threads(1)
    pages = int(Path('/proc/self/statm').read_text().split()[0])
    limit = pages * resource.getpagesize() + memory
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    signal.signal(signal.SIGXCPU, signal.SIG_DFL)
    used = int(sum(resource.getrusage(resource.RUSAGE_SELF)[:2]))
    resource.setrlimit(resource.RLIMIT_CPU, (used + seconds, used + seconds))
    try:
        function(*args)
    except Exception as error:
        pipe.send((type(error).__name__, str(error)))
    else:
        pipe.send(('', ''))
