"""Opening .npz of any origin: no pickle is run, and no more memory taken than bytes account for."""

from math import prod
from typing import BinaryIO
from zipfile import ZipFile

import numpy as np
from numpy.lib.npyio import NpzFile

HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
LARGE = 2**30  # bytes; less may be packed as tightly as it likes


def open_npz(file: BinaryIO) -> NpzFile:
    """The arrays of an .npz, each read when asked for; a :class:`ValueError` if it is none."""
    start = file.read(6)
    file.seek(0)
    if start == b'\x93NUMPY':
        raise ValueError('one array alone, a .npy; expected a .npz')
    # numpy would advise to unpickle another one, which may run anything
    if not start.startswith((b'PK\x03\x04', b'PK\x05\x06')):
        raise ValueError(f'it begins with {start!r}, so it is no .npz')
    try:
        arrays = np.load(file, allow_pickle=False)
        _check_archive(arrays.zip)
    except OSError as error:  # of a seek before the start: the file itself is open
        raise ValueError(f'its parts are not where it says ({error.strerror})') from error
    return arrays


def _check_archive(archive: ZipFile) -> None:
    """Refuse what would fill the memory: of few bytes, or of none at all."""
    entries = archive.infolist()
    check_packing(sum(e.compress_size for e in entries), sum(e.file_size for e in entries))
    for entry in entries:
        with archive.open(entry) as array:
            version = np.lib.format.read_magic(array)
            if version not in HEADERS:
                raise ValueError(f'{entry.filename!r:.60} is an array of version {version}')
            shape, _, dtype = HEADERS[version](array)
            check_claim(entry.filename, prod(shape) * max(dtype.itemsize, 1), entry.file_size)


def check_packing(packed: int, unpacked: int) -> None:
    """Refuse bytes that would fill the memory once they are unpacked."""
    if unpacked > max(LARGE, 100 * packed):
        raise ValueError(
            f'{packed:,} bytes that unpack to {unpacked:,}; write such arrays without compression'
        )


def check_claim(name: str, claimed: int, held: int) -> None:
    """Refuse an array that says it has more bytes than there are; one item counts as one or more.

    Items without a size may be of any number, and grow when they are converted.
    """
    if claimed > held:
        raise ValueError(f'{name!r:.60} says it has {claimed:,} bytes, there are {held:,}')
