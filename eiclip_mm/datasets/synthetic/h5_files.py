"""New HDF5 files, on disks that may be full."""

import io
from collections.abc import Iterator
from contextlib import contextmanager

import h5py


class Disk(io.FileIO):
    """A file whose errors are kept: HDF5 ends the process where a write fails as it closes."""

    error: OSError | None = None

    def write(self, data: memoryview) -> int:  # type: ignore[override]  # h5py gives no other
        """All of the data, or none after an error."""
        rest = memoryview(data).cast('B')
        try:
            while len(rest) and self.error is None:
                rest = rest[super().write(rest) or 0 :]
        except OSError as error:
            self.error = error
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        """Like :meth:`write`."""
        try:
            return super().truncate(size)
        except OSError as error:
            self.error = self.error or error
            return size or 0

    def check(self) -> None:
        """Raise what was kept."""
        if self.error is not None:
            raise self.error


@contextmanager
def new_h5(path: str) -> Iterator[tuple[h5py.File, Disk]]:
    """An HDF5 file to write, and what tells on the way whether the disk takes it.

    Raises:
        OSError: it does not, at the latest when the file is closed.
    """
    with Disk(path, 'w+') as disk:
        with h5py.File(disk, 'w') as file:
            yield file, disk
        disk.check()
