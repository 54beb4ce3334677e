"""Arrays from files of any origin: .npz, .npy, parquet; a sentence where they are damaged."""

import json
import zlib
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from tokenize import TokenError
from zipfile import BadZipFile

import numpy as np

from .npz import check_claim, check_packing

VECTORS = ('image', 'product')
SHARDS = 'shards.json'  # in a folder of shards: how many there are, and what they are of
KEYS = (('image_product_id', 'image_view'), ('product_id', 'product_caption'))
LABEL = 'label.'  # label.brand is the array of the label brand
FORMATS = 'a .npz file, or a folder of .npy files or of image.parquet and product.parquet'
# what numpy raises, depending on where in a file the damage is
UNREADABLE = (
    ValueError, TypeError, KeyError, AttributeError, EOFError, NotImplementedError, BadZipFile,
    TokenError, zlib.error, RecursionError, MemoryError, OverflowError,
)  # fmt: skip


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


def json_object(name: str, text: np.ndarray | str) -> dict:
    """The JSON object in a text, or in a string array without axes."""
    try:
        found = json.loads(str(text))
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{name} is not JSON: {error}') from error
    if not isinstance(found, dict):
        raise ValueError(f'{name} must be a JSON object, {{...}}, got {str(text)[:50]!r}')
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
    return {file.stem: _mapped(file) for file in files}


def _mapped(file: Path) -> np.ndarray:
    if not file.is_file():  # a pipe would never end
        raise ValueError(f'{file.name} is no file')
    # 'c': private to this process, so that torch may have it, but read from the file when needed
    array = np.lib.format.open_memmap(file, mode='c')
    check_claim(file.name, array.size, file.stat().st_size)
    return array


def shard_name(number: int) -> str:
    """Folder of one shard; each is a dump by itself, less the card."""
    return f'shard-{number:06d}'


def _read_shards(path: Path) -> dict[str, np.ndarray]:
    """The arrays of all shards as of one dump: each view and each caption once, in order of ids.

    A product on the border of two shards may be in both; the first counts. The result is in memory
    whole; of the parts, one at a time.
    """
    about = json_object(SHARDS, (path / SHARDS).read_text(encoding='utf-8'))
    lost = [name for name in ('items', 'shard_size', 'shards', 'card') if name not in about]
    if lost:
        raise ValueError(f'{SHARDS} lacks {lost}. Write the folder anew')
    folders = _shards(path, about)
    outlines = [_outline(folder) for folder in folders]
    _check_outlines(folders, outlines)
    arrays = dict(card=np.array(json.dumps(about['card'], ensure_ascii=False)))
    sides = []
    for keys in KEYS:
        ids = [np.stack([part[key] for key in keys], 1) for part in outlines]
        own = [n for n in outlines[0] if n.startswith('image') == keys[0].startswith('image')]
        sides.append((own, chosen := _chosen_rows(ids)))
        count = sum(len(rows) for rows, _ in chosen)
        for name in own:
            like = [part[name] for part in outlines]
            arrays[name] = np.empty((count, *like[0].shape[1:]), np.result_type(*like))
    for i, folder in enumerate(folders):
        _copy_shard(folder, arrays, [(own, *chosen[i]) for own, chosen in sides])
    return arrays


def _shards(path: Path, about: Mapping) -> list[Path]:
    """The folders of all shards; a :class:`ValueError` if some are missing or too many."""
    items, size, count = (about[name] for name in ('items', 'shard_size', 'shards'))
    whole = all(type(number) is int and number > 0 for number in (items, size, count))
    if not whole or count != -(-items // size):
        raise ValueError(
            f'{SHARDS} says {items!r} items in {count!r} shards of {size!r}; expected integers '
            'from 1, and as many shards as hold the items. Write the folder anew'
        )
    found = {p.name for p in path.glob('shard-*') if p.is_dir() and p.suffix != '.tmp'}
    if len(found) < count:  # which may be beyond all counting
        lost = list(islice((n for n in map(shard_name, range(count)) if n not in found), 3))
        raise ValueError(
            f'{count - len(found)} of its {count} shards are missing, e.g. {lost}; the same '
            'call of tools/extract_features.py again goes on where it was'
        )
    folders = [path / shard_name(i) for i in range(count)]
    more = sorted(found - {folder.name for folder in folders})
    if more:
        raise ValueError(f'{SHARDS} says {count} shards, but there are also e.g. {more[:3]}')
    return folders


def _check_outlines(folders: Sequence[Path], outlines: Sequence[Mapping]) -> None:
    """Refuse arrays of other widths, which numpy may spread in silence, and copies."""
    seen: dict[tuple[int, ...], Path] = {}
    first = {name: array.shape[1:] for name, array in outlines[0].items()}
    for folder, part in zip(folders, outlines, strict=True):
        own = {name: array.shape[1:] for name, array in part.items()}
        for name in sorted(own.keys() | first.keys()):
            here, there = own.get(name, 'missing'), first.get(name, 'missing')
            if here != there:
                raise ValueError(
                    f'rows of {name[:50]!r} are {here} in {folder.name}, {there} in '
                    f'{folders[0].name}; write the folder anew'
                )
        # items differ in view or caption, so two shards may share views or captions, not both
        ids = tuple(hash(part[key].tobytes()) for keys in KEYS for key in keys)
        other = seen.setdefault(ids, folder)
        if other != folder:
            raise ValueError(
                f'{folder.name} has the ids of {other.name}, so one is a copy; delete both, and '
                'the same call of tools/extract_features.py again writes them anew'
            )


def _outline(folder: Path) -> dict[str, np.ndarray]:
    """A shard's ids, and empty arrays that have the type and the width of its others."""
    ids = [name for keys in KEYS for name in keys]
    part = read_folder(folder)
    for image in (True, False):
        rows = {a.shape[:1]: n[:50] for n, a in part.items() if n.startswith('image') == image}
        if len(rows) > 1:
            raise ValueError(
                f'arrays of {folder.name} differ in length: {rows}; delete that shard, and the '
                'same call of tools/extract_features.py again writes it anew'
            )
    return {name: np.array(array if name in ids else array[:0]) for name, array in part.items()}


def _chosen_rows(ids: Sequence[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each shard's (rows, 2) ids: the rows that count, and their places in order of ids."""
    rows = np.unique(np.concatenate(ids), axis=0, return_index=True)[1]
    order = rows.argsort(kind='stable')
    starts = np.cumsum([0, *map(len, ids)])
    places = np.split(order, np.searchsorted(rows[order], starts[1:-1]))
    return [(rows[some] - start, some) for some, start in zip(places, starts, strict=False)]


def _copy_shard(folder: Path, arrays: dict[str, np.ndarray], sides: Sequence[tuple]) -> None:
    part = read_folder(folder)
    for own, rows, places in sides:
        for name in own:
            arrays[name][places] = part[name][rows]


def _read_parquet(path: Path) -> dict[str, np.ndarray]:
    try:
        from pyarrow import ArrowInvalid, compute, parquet
    except ImportError as error:
        raise ImportError(
            "reading parquet needs pyarrow: pip install 'eiclip_mm[report]'"
        ) from error
    try:
        about = parquet.read_metadata(path)
        groups = [about.row_group(i) for i in range(about.num_row_groups)]
        numbers = sum(g.column(i).num_values for g in groups for i in range(g.num_columns))
        check_packing(path.stat().st_size, 4 * numbers)
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
