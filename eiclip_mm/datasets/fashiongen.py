"""Fashion-Gen, read from its two HDF5 files as they are."""

import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from eiclip_mm.registry import DATASETS
from eiclip_mm.structures import clean_text
from eiclip_mm.utils.untrusted import shown

from .pixels import MAX_PIXELS
from .product_dataset import ProductDataset

KEYS = (
    'index', 'index_2', 'input_brand', 'input_category', 'input_composition',
    'input_concat_description', 'input_department', 'input_description', 'input_gender',
    'input_image', 'input_msrpUSD', 'input_name', 'input_pose', 'input_productID',
    'input_season', 'input_subcategory',
)  # fmt: skip
TEXT_FIELDS = ('description', 'name', 'concat_description')
ENTITY_TYPES = (
    'brand', 'category', 'composition', 'department', 'gender', 'season', 'subcategory',
)  # fmt: skip
PLANTED_TYPES = ('label', 'code')  # in planted_*.h5 of the mini Fashion-Gen alone
MAX_TEXT = 2**20  # bytes of a cell
MAX_RATIO = 200  # of the bytes of a large column to those it takes in the file
BLOCK = 2**24  # bytes of a column that are read at a time


# A name ends at a sign, at the next percentage, or before the word of the next part ("Lining:").
_MATERIAL = re.compile(r'\d\s*%\s*([^\W\d_][\w\s-]*?)\s*(?=$|[^\w\s-]|\d[\d.,]*\s*%|\b\w+\s*:)')


def materials(composition: str) -> list[str]:
    """The materials of a composition string; percentages, parts and care text are left out.

    >>> materials('Body: 80% cotton, 20% silk. Lining: 100% cotton. Dry clean only.')
    ['cotton', 'silk']
    >>> materials('Upper: leather.')
    ['leather']
    """
    text = composition.casefold()
    found = _MATERIAL.findall(text) or text.split('.')[0].rpartition(':')[2].split(',')
    return list(dict.fromkeys(name for name in (name.strip(' -') for name in found) if name))


def open_fashiongen(path: str | Path) -> h5py.File:
    """Open a Fashion-Gen file after checking its keys and lengths.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not HDF5, a key is missing, lengths differ, or no rows.
    """
    path = Path(path)
    if not os.path.isfile(path):  # a Path's own raises where the name is too long
        problem = 'is no file' if os.path.exists(path) else 'does not exist'
        raise FileNotFoundError(
            f'Fashion-Gen file {shown(path)} {problem}. Give the folder of the two .h5 files as '
            'data_root, or write a small one with '
            'python tools/dataset_converters/make_mini_fashiongen.py.'
        )
    try:
        file = h5py.File(path, 'r')
    except (OSError, RuntimeError) as error:
        raise ValueError(f'{shown(path)} is not a readable HDF5 file: {shown(error)}') from error
    try:
        fault = _problem_of(file)
    except Exception as error:  # of damaged files h5py raises of all kinds
        fault = f'damaged: {shown(error)}. Get the file anew.'
    if fault:
        file.close()
        raise ValueError(f'{path}: {fault}')
    return file


def _problem_of(file: h5py.File) -> str | None:
    missing = [key for key in KEYS if not isinstance(file.get(key), h5py.Dataset)]
    if missing:
        return f'key {missing[0]!r} is missing; expected {list(KEYS)}, found {sorted(file)}.'
    shape = file['input_image'].shape
    if len(shape) != 4 or shape[-1] != 3 or file['input_image'].dtype != np.uint8:
        return (
            f"key 'input_image' must be (N, height, width, 3) uint8, found {shape} "
            f'{file["input_image"].dtype}.'
        )
    if file['input_productID'].dtype.kind not in 'iu':
        return f"key 'input_productID' must be integer, found {file['input_productID'].dtype}."
    if shape[0] == 0:
        return 'the split is empty: every key has 0 rows.'
    for key in KEYS:
        if file[key].shape[:1] != shape[:1]:
            return f'key {key!r} has shape {file[key].shape}, but input_image has {shape[0]} rows.'
        if key not in ('input_image',) and file[key].size != shape[0]:
            return f'key {key!r} has shape {file[key].shape}, expected ({shape[0]}, 1).'
    return next(filter(None, (_danger_of(file, key) for key in KEYS)), None)


def _danger_of(file: h5py.File, key: str) -> str | None:
    """What a file of little bytes could do: read other files, or fill memory."""
    column = file[key]
    # a link may lead to a file beside this one: splits that share their photos
    folders = {os.path.dirname(os.path.realpath(f.filename)) for f in (file, column.file)}
    if len(folders) > 1 or column.external or column.is_virtual:
        return (
            f'key {key!r} lies in another file; copy its data into this one, or link to an HDF5 '
            'file in the same folder.'
        )
    stored, rows = column.id.get_storage_size(), len(column)
    if key == 'input_image' and not 0 < math.prod(column.shape[1:3]) <= MAX_PIXELS:
        return f"key 'input_image' has photos of {column.shape[1:3]} pixels; make them smaller."
    if key == 'input_image' and stored < rows:
        return f"key 'input_image' holds {stored} bytes for {rows} photos: they were not written."
    if key != 'input_image' and column.dtype.itemsize > MAX_TEXT:
        return f'key {key!r} has cells of {column.dtype.itemsize} bytes, at most {MAX_TEXT}.'
    if key != 'input_image' and column.nbytes > max(2**30, MAX_RATIO * stored):
        return f'key {key!r} grows from {stored} to {column.nbytes} bytes; write it anew.'
    return None


def read_strings(
    file: h5py.File, key: str, on_bad: Callable[[int, str], object] | None = None
) -> list[str]:
    """A text column, (N, 1) bytes, as clean strings; latin-1, as the real files need.

    A column that h5py marked as UTF-8 is read as such.

    Args:
        file: of Fashion-Gen.
        key: of the column.
        on_bad: told of each row that cannot be read, and why; its string is ''.

    Raises:
        ValueError: no column of byte strings; without ``on_bad``, a row that cannot be read.
    """
    column = file[key]
    kind = h5py.check_string_dtype(column.dtype)
    if kind is None:
        raise ValueError(
            f'{file.filename}: key {key!r} must hold byte strings, found {column.dtype}.'
        )
    encoding = 'utf-8' if kind.encoding == 'utf-8' else 'latin-1'
    clean: dict[bytes, str] = {}  # few distinct values: clean each once
    texts = []
    step = max(1, BLOCK // column.dtype.itemsize)
    for start in range(0, len(column), step):
        for value in _read(column, start, min(start + step, len(column)), on_bad):
            if value not in clean:
                clean[value] = clean_text(value.decode(encoding, 'replace'))
            texts.append(clean[value])
    return texts


def _read(
    column: h5py.Dataset, start: int, end: int, on_bad: Callable[[int, str], object] | None
) -> list[bytes]:
    """The cells of some rows; where they cannot be read at once, one by one."""
    try:
        return column[start:end].reshape(-1).tolist()
    except (OSError, RuntimeError, ValueError) as error:
        why = f'{column.file.filename}: row {start} of key {column.name[1:]!r} cannot be read: '
        if end - start == 1:
            if on_bad is None:
                raise ValueError(f'{why}{shown(error)}. Get the file anew.') from error
            on_bad(start, why + shown(error))
            return [b'']
    return [cell for row in range(start, end) for cell in _read(column, row, row + 1, on_bad)]


def _product_ids(file: h5py.File) -> list[int]:
    """Of each row; without them no row can be used."""
    try:
        ids = file['input_productID'][...].reshape(-1).tolist()
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"{file.filename}: key 'input_productID' cannot be read: {shown(error)}. Get the file "
            'anew.'
        ) from error
    if max(ids) >= 2**63:
        raise ValueError(
            f"{file.filename}: key 'input_productID' has {max(ids)}; ids must be below 2**63."
        )
    return ids


@DATASETS.register_module()
class FashionGen(ProductDataset):
    """The Fashion-Gen products of one HDF5 file.

    Text fields and metadata are read once, at the start; pixels are read row by row by
    :class:`~eiclip_mm.datasets.LoadProductImage`. Rows of a product are grouped by id,
    contiguous or not. Composition becomes a list of materials, every other entity type has
    one value. File format: ``docs/data_format.md``.

    Args:
        ann_file: the ``.h5`` file, relative to ``data_root``.
        entity_types: the metadata columns that are entities, without ``input_``.
        text_fields: the text columns to keep for the template, without ``input_``.
        **kwargs: see :class:`ProductDataset`.
    """

    def __init__(
        self,
        ann_file: str,
        entity_types: tuple[str, ...] = ('composition', 'subcategory', 'brand', 'season'),
        text_fields: tuple[str, ...] = ('description',),
        **kwargs: Any,
    ):
        for name, chosen, allowed in (
            ('entity_types', entity_types, ENTITY_TYPES + PLANTED_TYPES),
            ('text_fields', text_fields, TEXT_FIELDS),
        ):
            unknown = [value for value in chosen if value not in allowed]
            if unknown:
                raise ValueError(f'{name} {unknown} are not in the files; choose from {allowed}.')
        self.entity_types, self.text_fields = tuple(entity_types), tuple(text_fields)
        super().__init__(ann_file=ann_file, **kwargs)

    def load_records(self) -> list[dict]:
        """Read every column but the pixels; one record a product, in order of first row."""
        with open_fashiongen(self.ann_file) as file:
            missing = [t for t in self.entity_types if f'input_{t}' not in file]
            if missing:
                raise ValueError(
                    f'{self.ann_file} has no entity types {missing}: Fashion-Gen lacks them, they '
                    'are planted in planted_train.h5 and planted_validation.h5, which '
                    'tools/dataset_converters/make_mini_fashiongen.py writes. Give one of these '
                    f'as ann_file, or choose entity_types from {ENTITY_TYPES}.'
                )
            ids = _product_ids(file)
            bad: dict[int, str] = {}
            texts = {f: read_strings(file, f'input_{f}', bad.setdefault) for f in self.text_fields}
            entities = {
                t: read_strings(file, f'input_{t}', bad.setdefault) for t in self.entity_types
            }
        for row in sorted(bad):
            self.bad.add(self.ann_file, f'row {row}', bad[row])
        records: dict[int, dict] = {}
        for row, product_id in enumerate(ids):
            if row in bad:
                continue
            image = dict(h5_path=str(self.ann_file), row=row)
            if product_id in records:
                records[product_id]['images'].append(image)
                continue
            records[product_id] = dict(
                product_id=product_id,
                images=[image],
                texts=[{f: column[row] for f, column in texts.items()}],
                entities={
                    t: materials(column[row]) if t == 'composition' else [column[row]]
                    for t, column in entities.items()
                    if column[row]
                },
            )
        return list(records.values())
