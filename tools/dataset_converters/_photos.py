"""The photos of products: found in a folder or unpacked from a zip, and their sizes."""

import errno
import lzma
import os
import re
import shutil
import struct
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path

from _coco import InputError
from tqdm import tqdm

from eiclip_mm.datasets.pixels import opened

MAX_GROWTH = 100  # of a photo in a zip: photos are packed already
DAMAGED = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, RuntimeError, EOFError, ValueError, struct.error
)  # fmt: skip


def find_images(images: Path, ids: Iterable[int]) -> dict[int, Path]:
    """Photo of each id in a folder, or in its ``images`` folder; ids without one are left out."""
    folder = images / 'images' if (images / 'images').is_dir() else images
    return {id_: path for id_ in ids if (path := folder / f'{id_}.jpg').is_file()}


def extract_images(archive: Path, ids: Iterable[int], folder: Path, warn) -> dict[int, Path]:
    """Unpack ``<id>.jpg`` of the ids, in whatever folder of the zip; present files are kept.

    The names inside the zip never make a path here, so no entry can climb out of ``folder``.
    What is not unpacked goes to ``warn``.
    """
    ids = set(ids)
    entries = {}
    try:
        opened_archive = zipfile.ZipFile(archive)
    except DAMAGED as error:
        raise InputError(f'{archive} is a damaged zip file: {error}. Get it anew.') from error
    with opened_archive as file:
        # An archive may hold a photo twice; the one nearest to the root is taken.
        for info in sorted(file.infolist(), key=lambda info: info.filename.count('/')):
            *parents, name = info.filename.replace('\\', '/').split('/')
            if '..' in parents or (parents and (not parents[0] or ':' in parents[0])):
                warn(f'{info.filename}: unsafe path, not unpacked')
            elif re.fullmatch(r'[0-9]{1,18}\.jpg', name) and int(name[:-4]) in ids:
                entries.setdefault(int(name[:-4]), info)
        folder.mkdir(parents=True, exist_ok=True)
        paths = {}
        for id_, info in tqdm(entries.items(), 'extract', unit='image', disable=None):
            path = folder / f'{id_}.jpg'
            if info.file_size > max(2**20, MAX_GROWTH * info.compress_size):
                warn(f'{info.filename}: grows to {info.file_size:,} bytes, not unpacked')
                continue
            if not (path.is_file() and path.stat().st_size == info.file_size):
                part = path.with_suffix('.part')  # an interrupted run leaves no half photo
                try:
                    with file.open(info) as source, part.open('wb') as target:
                        shutil.copyfileobj(source, target)
                except (*DAMAGED, OSError) as error:
                    part.unlink(missing_ok=True)
                    # a full disk is no damage, a place before the file's beginning is
                    if getattr(error, 'errno', None) not in (None, errno.EINVAL):
                        raise
                    warn(f'{info.filename}: damaged, not unpacked ({error})')
                    continue
                part.replace(path)
            paths[id_] = path
    return paths


def image_size(path: Path, verify: bool = False) -> tuple[int, int]:
    """Width and height from the header; ``verify`` decodes the pixels too.

    Raises:
        InputError: the photo cannot be read.
    """
    try:
        with opened(path, str(path)) as image:
            if verify:
                image.load()
            return image.size
    except (OSError, ValueError) as error:
        raise InputError(str(error)) from error


def relative(path: Path, out: Path) -> str:
    """Name of a photo, seen from ``out``.

    Links to either folder are followed first, for ``..`` behind one leads elsewhere; a photo that
    is a link keeps its name.
    """
    folder = os.path.relpath(os.path.realpath(path.parent), os.path.realpath(out))
    return (Path(folder) / path.name).as_posix()


def add_images(
    products: list[dict], paths: dict[int, Path], out: Path, verify: bool, skip
) -> list[dict]:
    """Products that have a readable photo, with its name relative to ``out`` and its size."""
    kept = []
    for product in tqdm(products, 'photos', unit='image', disable=None):
        at = dict(id=product['id'], line=product.pop('line'))
        path = paths.get(product['id'])
        if path is None:
            skip('photo is missing or damaged', **at)
            continue
        try:
            width, height = image_size(path, verify)
        except InputError as error:
            skip('photo cannot be read', **at, found=str(error))
            continue
        kept.append(dict(product, file_name=relative(path, out), width=width, height=height))
    return kept
