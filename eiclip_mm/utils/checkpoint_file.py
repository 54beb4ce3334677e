"""Checkpoint files: read if they are whole and hold data alone, written whole."""

import os
import re
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .whole_file import whole_file

TRUST = 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'  # torch's own switch
ADVICE = (
    'If you trust where it comes from, give tools/train.py or tools/test.py --trust, or set '
    f'{TRUST}=1.'
)
ZIP = b'PK'
DEEPEST = 100  # lists in lists; a training leaves some five


class CheckpointError(ValueError):
    """A checkpoint that is damaged, or more than data."""


class Inflated(ValueError):
    """A file that would become far more than it is."""


class CheckpointNotWritten(OSError):
    """A checkpoint that the disk did not take."""


def check_whole(path: str | Path) -> None:
    """Compare every record of a file of torch.save with the CRC-32 beside it.

    torch.load does not: a flipped bit in a weight is loaded. A file in the format of torch before
    1.6 has no checksums and passes. What they would unpack to is compared first, unless the
    environment trusts it (:data:`TRUST`).

    Raises:
        CheckpointError: it is damaged, or inflated.
    """
    path = Path(path)
    try:
        with open(path, 'rb') as file:
            if file.read(2) != ZIP and path.stat().st_size:
                return
        with zipfile.ZipFile(path) as archive:
            if not trusted():
                check_records(archive, path.stat().st_size)
            damaged = archive.testzip()
    except Inflated as error:
        raise CheckpointError(_inflated(path, error)) from error
    except Exception as error:  # a damaged zip ends in any of ten classes
        raise CheckpointError(_damaged(path, str(error) or type(error).__name__)) from error
    if damaged is not None:
        raise CheckpointError(_damaged(path, f'record {damaged} differs from its checksum'))


def _damaged(path: Path, why: str) -> str:
    return f'checkpoint {path} is damaged ({why}); use another one, or a copy of it.'


def _inflated(path: Path, error: Inflated) -> str:
    return f'checkpoint {path} is not what a training writes ({error}). {ADVICE}'


def check_records(archive: zipfile.ZipFile, size: int) -> None:
    """Refuse an archive that would unpack to more than its file holds.

    Raises:
        Inflated: it says what was found.
    """
    records = archive.infolist()
    _check_size(sum(record.file_size for record in records), size)
    if any(record.compress_type != zipfile.ZIP_STORED for record in records):
        raise Inflated('its records are compressed, and torch.save compresses none')


def check_content(loaded: Any, size: int) -> None:
    """Refuse what was read of a file if whoever walks through it would not come to its end.

    A pickle may name one list, text or tensor a million times, and that in a list that it names as
    often. Each is counted as often as it is named, since that is how often it is met; two tensors
    of one storage are counted twice. Each container is looked into once.

    Args:
        loaded: tensors in plain containers.
        size: bytes of the file.

    Raises:
        Inflated: it says what was found.
    """
    known: dict[int, tuple[int, int]] = {}  # of each container by its id

    def measure(value: Any, depth: int) -> tuple[int, int]:
        """Bytes at least, and containers in each other."""
        if isinstance(value, Tensor):
            return value.numel() * value.element_size(), 0
        if isinstance(value, str | bytes | bytearray):
            return len(value), 0
        if not isinstance(value, Mapping | list | tuple | set | frozenset):
            return 1, 0
        if id(value) not in known:
            inner = [*value, *value.values()] if isinstance(value, Mapping) else value
            # the limit ends the walk of one that holds itself
            parts = [measure(part, depth + 1) for part in inner] if depth < DEEPEST else []
            height = 1 + max((part[1] for part in parts), default=0)
            if depth + height > DEEPEST:
                raise Inflated(f'lists in lists, more than {DEEPEST} deep')
            known[id(value)] = 1 + sum(part[0] for part in parts), height
        return known[id(value)]

    _check_size(measure(loaded, 0)[0], size)


def _check_size(claimed: int, size: int) -> None:
    if claimed > 2 * size + 2**20:  # twice: what is tied is counted twice
        many = f'{claimed:,}' if claimed < 2**63 else 'more than 2**63'
        raise Inflated(
            f'a file of {size:,} bytes, whose lists, texts and tensors would take {many}'
        )


def read_checkpoint(path: str | Path, map_location: Any = None) -> Any:
    """torch.load of a whole file, as data alone unless the environment trusts it (:data:`TRUST`).

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: it is damaged or inflated, or can be read only by running code that it
            names.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f'checkpoint {path} does not exist')
    check_whole(path)
    try:
        # weights_only by default, unless the user switched it off
        loaded = torch.load(path, map_location=map_location)  # nosec B614
    except Exception as error:  # pickle's own errors have no common class
        raise CheckpointError(not_plain(path, error)) from error
    if not trusted():
        try:
            check_content(loaded, path.stat().st_size)
        except Inflated as error:
            raise CheckpointError(_inflated(path, error)) from error
    return without_code(loaded)


def not_plain(path: str | Path, error: Exception) -> str:
    """The sentence for what cannot be read as data alone."""
    return (
        f'checkpoint {path} cannot be read as plain data ({why_not_plain(error)}): reading it '
        f'could run code. {ADVICE}'
    )


def why_not_plain(error: Exception) -> str:
    """What torch found, without its advice to read the file all the same."""
    text = str(error)
    if named := re.search(r'GLOBAL (\S+)', text):
        return f'it names {named[1]:.100}'
    if 'Unsupported operand' in text or not text:
        return 'it is no file of torch.save, or an object of another program'
    return f'{" ".join(text.split()):.160}'


def without_code(loaded: Any) -> Any:
    """The checkpoint without the config in its ``meta`` that mmengine would run on a resume."""
    if isinstance(loaded, dict) and isinstance(loaded.get('meta'), dict) and not trusted():
        loaded['meta'].pop('config', None)
    return loaded


def trusted() -> bool:
    """Whether the environment says that checkpoints may run code."""
    return os.environ.get(TRUST, '').lower() in ('1', 'y', 'yes', 'true')


def write_checkpoint(path: str | Path, content: bytes) -> None:
    """Write a file whole, its folder as well.

    Raises:
        CheckpointNotWritten: nothing has changed; it says what lacked.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file:
            file.write(content)
    except OSError as error:
        raise CheckpointNotWritten(
            error.errno,
            f'checkpoint {path} ({len(content) / 1e6:.1f} MB) could not be written: '
            f'{error.strerror}; {free_space(path.parent)}. Files written before are as they were. '
            'Make room or mend the folder',
        ) from error


def free_space(folder: Path) -> str:
    """How much is free where the folder is, or would be."""
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    return f'{shutil.disk_usage(folder).free / 1e6:.1f} MB are free in {folder}'
