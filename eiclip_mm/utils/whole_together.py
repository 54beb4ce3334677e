"""Files that belong together: a kill leaves them all, or visibly not all, and never a mix."""

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from .whole_file import _runs, whole_file


@contextmanager
def whole_files(*paths: str | Path) -> Iterator[list[BinaryIO]]:
    """Open files that tell of each other, such as a report as Markdown and as JSON.

    What stood there stays until all of them are on the disk. Then it goes, the new ones come in
    the order of ``paths``, and a kill in this moment leaves some of them missing.

    Raises:
        OSError: one cannot be written; all that were there are as they were.
    """
    with ExitStack() as stack:
        files = [stack.enter_context(whole_file(path)) for path in reversed(paths)][::-1]
        yield files
        for file in files:
            file.flush()  # now, since a full disk must not be found when the old ones are gone
            if os.path.isfile(file.name):
                os.fsync(file.fileno())
        for path in map(os.path.realpath, paths):
            if os.path.isfile(path):
                os.unlink(path)


@contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """A folder to fill; under its name it stands once it is complete.

    It is filled beside its place, as ``.NAME.PID.parts``, and renamed when the block ends; an
    exception removes it. What a killed process of this machine left is removed by the next writer
    of ``NAME``.

    Raises:
        FileExistsError: something stands there, other than an empty folder that can be replaced.
        OSError: it cannot be written; nothing stands under its name.
    """
    path = Path(os.path.realpath(path))
    check_empty(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.iterdir():
        pid = left.name.removeprefix(f'.{path.name}.').removesuffix('.parts')
        if left.name != f'.{path.name}.{pid}.parts' or not pid.isdigit():
            continue
        if int(pid) == os.getpid() or not _runs(int(pid)):  # in a container ids come again
            shutil.rmtree(left, ignore_errors=True)
    part = path.with_name(f'.{path.name}.{os.getpid()}.parts')
    try:
        part.mkdir()
        yield part
        _sync(part)
        os.rename(part, path)
    except BaseException as error:
        shutil.rmtree(part, ignore_errors=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # which of all files the disk was too full for
        raise


def check_empty(path: Path) -> None:
    """Refuse a place where something stands.

    Raises:
        FileExistsError: it is not an empty folder, and not free; or the folder is a disk's.
    """
    if os.path.ismount(os.path.realpath(path)):
        raise FileExistsError(
            f'{path} is where a disk is mounted, which cannot be replaced; give a folder inside it.'
        )
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f'{path} is there and not empty; remove it, or give another place.')


def _sync(folder: Path) -> None:
    """Have all files of a folder on the disk: a rename may reach it before they do."""
    for path in folder.rglob('*'):
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
