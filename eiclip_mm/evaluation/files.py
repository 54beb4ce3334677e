"""Arrays from files of any origin: .npz, .npy, parquet; a sentence where they are damaged."""

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from tokenize import TokenError
from typing import BinaryIO
from zipfile import BadZipFile

import numpy as np
from numpy.lib.npyio import NpzFile

VECTORS = ('image', 'product')
SHARDS = 'shards.json'  # in a folder of shards: how many there are, and what they are of
LABEL = 'label.'  # label.brand is the array of the label brand
FORMATS = 'a .npz file, or a folder of .npy files or of image.parquet and product.parquet'
# what numpy raises, depending on where in a file the damage is
UNREADABLE = (
    ValueError, TypeError, KeyError, AttributeError, EOFError, NotImplementedError, BadZipFile,
    TokenError, zlib.error, RecursionError, MemoryError, OverflowError,
)  # fmt: skip


def open_npz(file: BinaryIO) -> NpzFile:
    """The arrays of an .npz, each read when asked for; a :class:`ValueError` if it is none."""
    start = file.read(6)
    file.seek(0)
    if start == b'\x93NUMPY':
        raise ValueError('one array alone, a .npy; expected a .npz')
    if not start.startswith(b'PK'):  # numpy would advise to unpickle, which may run anything
        raise ValueError(f'it begins with {start!r}, so it is no .npz')
    return np.load(file, allow_pickle=False)


def integers(name: str, array: np.ndarray) -> np.ndarray:
    """The same as int64; a :class:`ValueError` names what that cannot hold."""
    if array.dtype.kind not in 'iu':
        raise ValueError(f'{name} must be integers, got {array.dtype}')
    if array.dtype.kind == 'u' and (array > np.iinfo(np.int64).max).any():
        raise ValueError(f'{name} has numbers beyond int64, e.g. {array.max()}; number anew')
    return array.astype(np.int64, copy=False)


def native(_: str, array: np.ndarray) -> np.ndarray:
    """The same in the byte order of this machine, which is all that torch knows."""
    return array.astype(array.dtype.newbyteorder('='), copy=False)


def json_object(name: str, array: np.ndarray) -> dict:
    """The JSON object that a string array without axes holds."""
    found = json.loads(str(array))
    if not isinstance(found, dict):
        raise ValueError(f'{name} must be a JSON object, {{...}}, got {str(array)[:50]!r}')
    return found


def read_folder(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a folder of .npy files, of image.parquet and product.parquet, or of shards."""
    if (path / SHARDS).is_file():
        return _read_shards(path)
    tables = [path / f'{side}.parquet' for side in VECTORS]
    lost = [table.name for table in tables if not table.is_file()]
    if len(lost) == 1:
        raise ValueError(f'{lost[0]} is missing beside the other .parquet')
    if not lost:
        return _read_parquet(tables[0]) | _read_parquet(tables[1])
    files = sorted(path.glob('*.npy'))
    if not files:
        archives = sorted(file.name for file in path.glob('*.npz'))[:5]
        if archives:
            raise ValueError(f'a folder that holds {archives}; give the file, not its folder')
        raise ValueError(f'a folder without arrays; expected {FORMATS}')
    # 'c': private to this process, so that torch may have it, but read from the file when needed
    return {file.stem: np.lib.format.open_memmap(file, mode='c') for file in files}


def shard_name(number: int) -> str:
    """Folder of one shard; each is a dump by itself, less the card."""
    return f'shard-{number:06d}'


def _read_shards(path: Path) -> dict[str, np.ndarray]:
    """The arrays of all shards as of one dump: each view and each caption once, in order of ids.

    A product on the border of two shards may be in both; the first counts.
    """
    about = json.loads((path / SHARDS).read_text(encoding='utf-8'))
    folders = [path / shard_name(i) for i in range(about['shards'])]
    lost = [folder.name for folder in folders if not folder.is_dir()]
    if lost:
        raise ValueError(
            f'{len(lost)} of its {len(folders)} shards are missing, e.g. {lost[:3]}; the same '
            'call of tools/extract_features.py again goes on where it was'
        )
    parts = [read_folder(folder) for folder in folders]
    arrays = dict(card=np.array(json.dumps(about['card'], ensure_ascii=False)))
    for keys in (('image_product_id', 'image_view'), ('product_id', 'product_caption')):
        pairs = np.stack([np.concatenate([part[key] for part in parts]) for key in keys], 1)
        rows = np.unique(pairs, axis=0, return_index=True)[1]
        own = [name for name in parts[0] if name.startswith('image') == keys[0].startswith('image')]
        arrays |= {name: _gathered([part[name] for part in parts], rows) for name in own}
    return arrays


def _gathered(parts: Sequence[np.ndarray], rows: np.ndarray) -> np.ndarray:
    """Rows of the concatenated parts, read part by part: mapped files are never in memory whole."""
    found = np.empty((len(rows), *parts[0].shape[1:]), np.result_type(*parts))
    order = rows.argsort(kind='stable')
    starts = np.cumsum([0, *map(len, parts)])
    cuts = np.searchsorted(rows[order], starts)
    for part, start, first, last in zip(parts, starts, cuts, cuts[1:], strict=False):
        places = order[first:last]
        found[places] = part[rows[places] - start]
    return found


def _read_parquet(path: Path) -> dict[str, np.ndarray]:
    try:
        from pyarrow import ArrowInvalid, compute, parquet
    except ImportError as error:
        raise ImportError(
            "reading parquet needs pyarrow: pip install 'eiclip_mm[report]'"
        ) from error
    try:
        table = parquet.read_table(path)
    except (ArrowInvalid, OSError) as error:  # as with UNREADABLE
        raise ValueError(f'{path.name}: {error}') from error
    if table.num_rows == 0:
        raise ValueError(f'{path.name} has no rows')
    arrays = {}
    for name in table.column_names:
        column = table[name].combine_chunks()
        if name not in VECTORS:
            if name.startswith(LABEL):
                column = column.cast('string').fill_null('')
            arrays[name] = column.to_numpy(zero_copy_only=False)
            continue
        lengths = set(compute.list_value_length(column).to_pylist())
        if len(lengths) > 1 or None in lengths:
            raise ValueError(f'{path.name}: vectors of column {name!r} differ in length')
        values = column.flatten().to_numpy(zero_copy_only=False)
        arrays[name] = values.reshape(table.num_rows, -1).copy()
    return {
        name: array.astype(str) if array.dtype == object else array.copy()
        for name, array in arrays.items()
    }


def npz_path(path: str | Path, what: str = 'embeddings') -> Path:
    """The path of ``what``, which must end in .npz: numpy would append it in silence."""
    if Path(path).suffix != '.npz':
        raise ValueError(f'{what} are written as .npz, got the path {str(path)!r}')
    return Path(path)
