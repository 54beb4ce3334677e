"""Checkpoint files: read if they are whole and hold data alone, written whole."""

import os
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch

from .whole_file import whole_file

TRUST = 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'  # torch's own switch
ZIP = b'PK'


class CheckpointError(ValueError):
    """A checkpoint that is damaged, or more than data."""


class CheckpointNotWritten(OSError):
    """A checkpoint that the disk did not take."""


def check_whole(path: str | Path) -> None:
    """Compare every record of a file of torch.save with the CRC-32 beside it.

    torch.load does not: a flipped bit in a weight is loaded. A file in the format of torch before
    1.6 has no checksums and passes.

    Raises:
        CheckpointError: it is damaged.
    """
    path = Path(path)
    try:
        with open(path, 'rb') as file:
            if file.read(2) != ZIP and path.stat().st_size:
                return
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except Exception as error:  # a damaged zip ends in any of ten classes
        raise CheckpointError(_damaged(path, str(error) or type(error).__name__)) from error
    if damaged is not None:
        raise CheckpointError(_damaged(path, f'record {damaged} differs from its checksum'))


def _damaged(path: Path, why: str) -> str:
    return f'checkpoint {path} is damaged ({why}); use another one, or a copy of it.'


def read_checkpoint(path: str | Path, map_location: Any = None) -> Any:
    """torch.load of a whole file, as data alone unless the environment trusts it (:data:`TRUST`).

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: it is damaged, or can be read only by running code that it names.
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
    return without_code(loaded)


def not_plain(path: str | Path, error: Exception) -> str:
    """The sentence for what cannot be read as data alone."""
    return (
        f'checkpoint {path} cannot be read as plain data ({why_not_plain(error)}): reading it '
        'could run code. If you trust where it comes from, give tools/train.py or tools/test.py '
        f'--trust, or set {TRUST}=1.'
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
