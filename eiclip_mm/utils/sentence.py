"""What a tool says where it cannot go on."""

import errno
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .checkpoint_file import CheckpointNotWritten, free_space

UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@contextmanager
def told(path: str | Path) -> Iterator[None]:
    """End the program with a sentence where the block, which writes ``path``, cannot.

    Raises:
        SystemExit: the disk is full, the folder may not be written, and the like.
    """
    try:
        yield
    except OSError as error:
        raise SystemExit(
            f'{path} cannot be written: {error.strerror or error}. What stood there is as it was.'
        ) from error


@contextmanager
def refusals_told(work_dir: str | Path = '.', then: str = 'call it again') -> Iterator[None]:
    """End the program with a sentence where this package refuses what the block was given.

    Errors of other packages keep their traceback. So do those of one process among several:
    torchrun shows the error of the process that failed first.

    Args:
        work_dir: what the block writes, and ``then``, what to do once there is room again.

    Raises:
        SystemExit: a file or a setting is not fit, or the disk is full or read-only.
    """
    try:
        yield
    except (ValueError, OSError, FloatingPointError) as error:
        sentence = _sentence(error, Path(work_dir), then)
        if 'RANK' in os.environ or sentence is None:
            raise
        raise SystemExit(sentence) from error


def _sentence(error: Exception, work_dir: Path, then: str) -> str | None:
    if isinstance(error, CheckpointNotWritten):
        return f'{error.strerror}, then {then}.'
    if isinstance(error, OSError) and error.errno in UNWRITABLE:
        return (
            f'{error.filename or work_dir} cannot be written: {error.strerror}; '
            f'{free_space(work_dir)}. Make room or mend it, then {then}.'
        )
    *_, (raised_in, _) = traceback.walk_tb(error.__traceback__)
    ours = raised_in.f_globals.get('__name__', '').startswith('eiclip_mm.')
    return str(error) if ours else None
