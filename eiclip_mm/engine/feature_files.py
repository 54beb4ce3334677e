"""Files of features, which runs beside each other write in parts and join to one."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

import numpy as np


def join(parts: list[Path], path: Path, count: int) -> None:
    """One file of all parts, unless a run beside this one joins them first."""

    def fill(file: BinaryIO) -> None:
        # not through a memory map, in which a full disk ends the process
        array = np.load(parts[0])
        header = np.lib.format.header_data_from_array_1_0(array)
        header['shape'] = (count, array.shape[1])
        np.lib.format.write_array_header_1_0(file, header)
        for part in parts:
            file.write(np.load(part))

    write(path, path, fill)


def write(path: Path, whole: Path, fill: Callable[[BinaryIO], None]) -> None:
    """Have ``fill`` write the file ``path``, which is there once it is complete.

    A run beside this one that has written ``whole`` takes the parts away at any time.
    """
    temporary = whole.with_suffix('.parts') / uuid4().hex
    try:
        temporary.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, 'wb') as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())  # a rename may reach the disk before the content does
        temporary.rename(path)
    except FileNotFoundError:
        if not whole.is_file():
            raise
    except OSError as error:
        raise OSError(
            f'features cannot be written to {path}: {error.strerror or error}. Make room, or give '
            'the cache another folder; what is whole stays, and the next run goes on from it.'
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(whole: Path) -> None:
    """Refuse, before anything is computed, a place where ``whole`` cannot be written."""
    write(whole.with_suffix('.parts') / 'try', whole, lambda file: None)
    (whole.with_suffix('.parts') / 'try').unlink(missing_ok=True)


def damage(path: Path, count: int) -> str | None:
    """What tells that a file does not hold ``count`` features, by its header and its size."""
    try:
        array = np.lib.format.open_memmap(path, mode='r')
    except FileNotFoundError:
        return 'there is no such file'
    except Exception as error:  # numpy raises many kinds, depending on where the damage is
        return repr(error)
    if array.ndim != 2 or len(array) != count or array.dtype != np.float32:
        return f'expected ({count}, F) float32, got {array.shape} {array.dtype}'
    size, expected = path.stat().st_size, array.offset + array.nbytes
    return f'{size} bytes, expected {expected}' if size != expected else None
