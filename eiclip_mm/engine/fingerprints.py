"""What names the content a run is made of: files that its config names, photos, weights."""

import hashlib
import os
from collections.abc import Container, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from eiclip_mm.structures import resolve_path
from eiclip_mm.utils.digest import file_sha256

WHOLE = 2**30  # bytes; reading more takes longer than a start may
SAMPLES, SAMPLE = 64, 2**20


def file_state(path: str | Path, whole: int = WHOLE) -> dict[str, Any]:
    """Size and SHA-256 of a file, as plain JSON.

    Of a file larger than ``whole`` bytes the hash is of 64 samples of 1 MiB, at equal distances,
    its head and tail among them; ``rule`` says so, and ``modified`` gives its time, in seconds,
    because a change between samples is not seen.
    """
    stat = os.stat(path)
    if stat.st_size <= whole:
        return dict(size=stat.st_size, sha256=file_sha256(path), rule='whole')
    digest = hashlib.sha256()
    last = max(stat.st_size - SAMPLE, 0)
    with open(path, 'rb') as file:
        for i in range(SAMPLES):
            file.seek(last * i // (SAMPLES - 1))
            digest.update(file.read(SAMPLE))
    return dict(
        size=stat.st_size,
        sha256=digest.hexdigest(),
        rule=f'{SAMPLES} samples of {SAMPLE} bytes',
        modified=int(stat.st_mtime),
    )


def named_files(cfg: Mapping, splits: Iterable[str]) -> dict[str, str]:
    """Files that a config names, of its model and of the data sets of some splits.

    That is each text in it that is the path of a file, as it stands or under ``data_root``; the
    indexes of packed photos; and, in the model, all files of a folder of weights.

    Returns:
        paths by their names in the config.
    """
    found = dict(_walk(cfg.get('model') or {}))
    if not cfg.get('resume'):  # it would be a checkpoint of the run itself
        found |= _walk(cfg.get('load_from'))
    for split in splits:
        loader = cfg.get(f'{split}_dataloader') or {}  # a Runner made in code has an empty config
        found |= _walk(loader.get('dataset'), data=True)
    return found


def _walk(value: Any, root: str = '', key: str = '', data: bool = False) -> Iterator[tuple]:
    if isinstance(value, Mapping):
        root = value.get('data_root') or root
        for name, inner in value.items():
            yield from _walk(inner, root, name, data)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _walk(inner, root, key, data)
    elif isinstance(value, str):
        yield from _files(value, root, key, data)


def _files(name: str, root: str, key: str, data: bool) -> Iterator[tuple[str, str]]:
    try:
        path = resolve_path(name)
    except FileNotFoundError:  # of a package that is not there: building says so
        return
    under = os.path.join(root, path)
    if os.path.isfile(under):  # data_root first, as data sets read it
        yield os.path.join(root, name), under
    elif os.path.isfile(path):
        yield name, path
    # a word such as 'demo' may be the name of a folder here, a path is more
    elif '/' in name and os.path.isdir(path) and (key == 'packed' or not data):
        for file in sorted(Path(path).rglob('*.index' if key == 'packed' else '*')):
            if file.is_file():
                yield f'{name.rstrip("/")}/{file.relative_to(path).as_posix()}', str(file)


def photos_state(dataset: Any, hashed: Container[str]) -> dict[str, Any]:
    """Photos of a data set, by path under ``data_root``, size and time.

    Args:
        dataset: has ``images()``, as ``ProductDataset``.
        hashed: paths of files that are known better, such as HDF5 files.

    Returns:
        ``count`` of files, ``missing``, which a pack holds instead, ``bytes``, and two SHA-256:
        ``names_and_sizes``, and ``times``, to the second, which copying may change. Plain JSON.
    """
    root = os.path.join(dataset.data_root or os.path.dirname(dataset.ann_file), '')
    sizes, times = hashlib.sha256(), hashlib.sha256()
    count = missing = total = 0
    for path in sorted({key[0] for key in dataset.images()}):
        if path in hashed:
            continue
        try:
            stat = os.stat(path)
        except OSError:
            missing += 1
            continue
        count, total = count + 1, total + stat.st_size
        name = os.fsencode(path.removeprefix(root)) + b'\0'
        sizes.update(name + b'%d\0' % stat.st_size)
        times.update(name + b'%d\0' % int(stat.st_mtime))
    return dict(
        count=count,
        missing=missing,
        bytes=total,
        names_and_sizes=sizes.hexdigest(),
        times=times.hexdigest(),
    )


def weights_sha256(state: Mapping[str, Any]) -> str:
    """SHA-256 of a state dict: names, types, shapes and bytes of its tensors, in order of names."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        if isinstance(value, torch.Tensor):
            digest.update(f'{name}\0{value.dtype}\0{tuple(value.shape)}\0'.encode())
            plain = value.detach().cpu().contiguous().reshape(-1)
            digest.update(plain.view(torch.uint8).numpy().data)
    return digest.hexdigest()
