"""Which photos cannot be decoded: all are tried once, and what was found is remembered."""

import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import PIL
from mmengine.dist import is_main_process
from tqdm import tqdm

from eiclip_mm.utils.cores import usable_cores
from eiclip_mm.utils.untrusted import read_json
from eiclip_mm.utils.whole_file import write_whole_text

from .bad_rows import BadRows
from .packed import PackedPhotos
from .pixels import FORMATS, MAX_ASPECT, MAX_PIXELS, decoded

PLACE = Path('work_dirs/photo_check')


def with_sound_photos(records: list[dict], transforms: Iterable, bad: BadRows) -> list[dict]:
    """The records less the photo files that cannot be decoded, which go to ``bad``.

    Args:
        records: see :class:`~eiclip_mm.datasets.ProductDataset`; rows of HDF5 are kept.
        transforms: those that load the photos; what they have packed needs no file.
        bad: where photos are left out.
    """
    packs = packs_of(transforms)
    images = [image for record in records for image in record['images'] if 'img_path' in image]
    whys = unreadable(
        image['img_path'] for image in images if all(pack.get(image) is None for pack in packs)
    )
    kept = []
    for record in records:
        paths = [image.get('img_path') for image in record['images']]
        for path in filter(whys.get, paths):
            bad.add(path, f'product {record["product_id"]}', whys[path])
        sound = [i for i, path in zip(record['images'], paths, strict=True) if path not in whys]
        if sound:
            kept.append(dict(record, images=sound))
    return kept


def packs_of(transforms: Iterable) -> list[PackedPhotos]:
    """The packs that transforms, and those within them, read from."""
    loaders = [t for own in transforms for t in (own, *getattr(own, 'transforms', ()))]
    return [t.packed for t in loaders if getattr(t, 'packed', None) is not None]


def records_alone(dataset: Mapping, **changes: Any) -> dict:
    """A config's data set for those who want its records: nothing encoded, no pixels read.

    Steps that name packs stay, for with ``on_error='skip'`` they decide which photos there are.
    """
    spared = dict(tokenizer=None, batched=False)
    steps = loading_steps(dataset.get('pipeline') or ())
    return dict(dataset, pipeline=steps) | {k: spared[k] for k in spared if k in dataset} | changes


def loading_steps(pipeline: Iterable) -> list:
    """Of a config's pipeline, what :func:`with_sound_photos` needs: the steps that name packs.

    >>> loading_steps([dict(type='LoadProductImage', packed='p'), dict(type='PackProduct')])
    [{'type': 'LoadProductImage', 'packed': 'p'}]
    """
    return [step for step in pipeline if _names_packs(step)]


def _names_packs(value: Any) -> bool:
    if isinstance(value, Mapping):
        return value.get('packed') is not None or any(map(_names_packs, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_names_packs, value))
    return bool(packs_of([value]))  # a transform that is built already


def unreadable(paths: Iterable[str]) -> dict[str, str]:
    """Of the photos that cannot be decoded, why.

    The result is kept in :data:`PLACE` under a digest of all paths, sizes and times, so that later
    data sets of the same photos, as folds, splits and later runs, decode nothing. Processes that
    build one at the same time, as the ranks of a first run, each decode all.
    """
    paths = sorted(set(paths))
    if not paths:
        return {}
    rules = (PIL.__version__, FORMATS, MAX_PIXELS, MAX_ASPECT)
    states = json.dumps([rules, [(path, *_state(path)) for path in paths]])
    memory = PLACE / f'{sha256(states.encode()).hexdigest()[:32]}.json'
    with suppress(OSError, ValueError):
        return {path: str(why) for path, why in read_json(memory).items()}
    with ThreadPoolExecutor(usable_cores()) as pool:  # decoders let other threads run
        whys = pool.map(_why, paths)
        bar = tqdm(whys, 'check photos', len(paths), disable=None if is_main_process() else True)
        found = {path: why for path, why in zip(paths, bar, strict=True) if why}
    with suppress(OSError):  # where nothing can be written, it is done again
        PLACE.mkdir(parents=True, exist_ok=True)
        write_whole_text(memory, json.dumps(found, indent=1))
    return found


def _state(path: str) -> tuple[int, int]:
    try:
        stat = os.stat(path)
    except (OSError, ValueError):
        return -1, -1
    return stat.st_size, stat.st_mtime_ns


def _why(path: str) -> str:
    try:
        decoded(path, path)
    except FileNotFoundError:
        return f'{path} does not exist'
    except ValueError as error:
        return str(error)
    return ''
