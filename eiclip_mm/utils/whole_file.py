"""Files that are there once they are complete, whatever ends the process that writes them."""

import glob
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


@contextmanager
def whole_file(path: str | Path) -> Iterator[BinaryIO]:
    """Open a file to write; under its name stands what stood there until all of it is on disk.

    It is written beside its place, as ``.NAME.PID.part``, and renamed when the block ends; an
    exception removes the part. The part of a process that was killed is removed by the next
    writer of ``NAME``.

    Raises:
        OSError: it cannot be written; a file that was there is as it was.
    """
    path = Path(os.path.realpath(path))  # a link stays one
    if path.exists() and not path.is_file():  # /dev/stdout, say
        with open(path, 'wb') as file:
            yield file
        return
    remove_leftovers(path)
    part = path.with_name(f'.{path.name}.{os.getpid()}.part')
    try:
        with open(part, 'wb') as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # a rename may reach the disk before the content does
        os.replace(part, path)
    except BaseException as error:
        if isinstance(error, OSError) and error.errno and error.filename is None:
            error.filename = str(path)  # of a full disk no one says where it is
        part.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def write_whole_text(path: str | Path, text: str) -> None:
    """The same for a text, in UTF-8."""
    with whole_file(path) as file:
        file.write(text.encode())


def remove_leftovers(path: Path) -> None:
    """Remove the parts of ``path`` that killed processes of this machine left."""
    for part in path.parent.glob(f'.{glob.escape(path.name)}.*.part'):
        pid = part.name.split('.')[-2]
        if not (pid.isdigit() and _runs(int(pid))):
            part.unlink(missing_ok=True)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is another user's
        pass
    return True


def _sync_folder(folder: Path) -> None:
    """Have the rename itself on disk; not every system lets a folder be opened."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
