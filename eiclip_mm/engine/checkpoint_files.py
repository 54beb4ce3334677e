"""Checkpoints in a work dir: written whole, found again, the last good one among them."""

import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from mmengine.fileio import LocalBackend, register_backend

from eiclip_mm.utils.checkpoint_file import (
    CheckpointError,
    CheckpointNotWritten,
    check_whole,
    free_space,
    not_plain,
    write_checkpoint,
)
from eiclip_mm.utils.whole_file import remove_leftovers


@register_backend('whole', prefixes='', force=True)
class WholeFileBackend(LocalBackend):
    """mmengine's files on disk, whole under their names or not there.

    It serves every path without a prefix, for FlexibleRunner's strategies name no backend.
    """

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """See :func:`eiclip_mm.utils.checkpoint_file.write_checkpoint`."""
        write_checkpoint(filepath, obj)


class LateRemoval:
    """A file backend that notes what is to be removed instead of removing it.

    Args:
        backend: does everything else.
        folder: files elsewhere, of the run this one was forked from, are not even noted.

    Attributes:
        outdated: what was noted.
    """

    def __init__(self, backend: Any, folder: str, outdated: list[str]):
        self.backend, self.folder, self.outdated = backend, folder, outdated

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    def remove(self, path: str) -> None:
        """Note a file."""
        if os.path.realpath(os.path.dirname(path)) == os.path.realpath(self.folder):
            self.outdated.append(path)

    rmtree = remove

    def remove_noted(self, keep: set[str]) -> None:
        """Remove what was noted and is there, but for the files to keep."""
        for path in set(self.outdated) - keep:
            if self.backend.isfile(path):
                self.backend.remove(path)
            elif self.backend.isdir(path):  # of strategies that write one file a process
                self.backend.rmtree(path)
        self.outdated.clear()


def remove_parts(checkpoint: str) -> None:
    """Remove what processes that were killed had written of checkpoints in the same folder."""
    for part in Path(checkpoint).parent.glob('.*.pth.*.part'):
        remove_leftovers(part.with_name(part.name[1:].rsplit('.', 2)[0]))


def check_writable(folder: str | Path, what: str = 'work dir', option: str = '--work-dir') -> None:
    """Make the folder and try a file in it.

    Args:
        folder: for checkpoints.
        what: it is, and ``option``, with which the user names it, for the message.

    Raises:
        CheckpointNotWritten: says what is wrong and how much is free.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise CheckpointNotWritten(
            error.errno,
            f'{what} {folder} cannot be written: {error.strerror}; {free_space(folder)}. '
            f'Make room or mend it, or give another one with {option}',
        ) from error


def last_good(work_dir: str | Path) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint of a work dir that training can go on from.

    Newest by the time written inside, then by the step: times of files change when they are copied.

    Returns:
        The file, ``None`` if there is none, and a sentence for each that was passed over.
    """
    found, passed_over = [], []
    for path in _candidates(Path(work_dir)):
        try:
            found.append((_position(path), path))
        except CheckpointError as error:
            passed_over.append(str(error))
    for _, path in sorted(found, reverse=True):
        try:
            check_whole(path)
        except CheckpointError as error:
            passed_over.append(str(error))
        else:
            return path, passed_over
    return None, passed_over


def _candidates(work_dir: Path) -> set[Path]:
    """What mmengine's names say are checkpoints of training, and the one it names as the last.

    Another folder, ``default_hooks.checkpoint.out_dir``, counts where the work dir holds none: a
    copied work dir still names the folder it was copied from.
    """
    named = work_dir / 'last_checkpoint'
    last = named.read_text(encoding='utf-8', errors='replace').strip() if named.is_file() else ''
    path = Path(last)
    found = _numbered(work_dir)
    if last and not found:
        return {path, *_numbered(path.parent)} if path.is_file() else {path}
    if last and path.is_file() and path.parent.resolve() == work_dir.resolve():
        found.add(work_dir / path.name)  # whatever its name
    return found


def _numbered(folder: Path) -> set[Path]:
    return {path for name in ('epoch', 'iter') for path in folder.glob(f'{name}_*.pth')}


def _position(path: Path) -> tuple[str, int]:
    """When the checkpoint was written, and after which step; reads no weights."""
    if not path.is_file():
        raise CheckpointError(f'checkpoint {path} is missing, or no file.')
    try:
        content = torch.load(path, map_location='meta')  # nosec B614  (see read_checkpoint)
    except Exception as error:
        check_whole(path)  # damaged, or a stranger's
        raise CheckpointError(not_plain(path, error)) from error
    meta = content.get('meta') if isinstance(content, dict) else None
    if not isinstance(meta, dict) or not {'optimizer', 'message_hub'} <= content.keys():
        raise CheckpointError(f'checkpoint {path} holds weights alone, no state of a training.')
    return str(meta.get('time', '')), int(meta.get('iter', 0))
