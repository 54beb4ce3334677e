"""Fashion-Gen, read from its two HDF5 files as they are."""

import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from eiclip_mm.registry import DATASETS
from eiclip_mm.structures import clean_text

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
    if not path.is_file():
        raise FileNotFoundError(
            f'Fashion-Gen file {path} does not exist. Give the folder of the two .h5 files as '
            'data_root, or write a small one with '
            'python tools/dataset_converters/make_mini_fashiongen.py.'
        )
    try:
        file = h5py.File(path, 'r')
    except OSError as error:
        raise ValueError(f'{path} is not a readable HDF5 file: {error}') from error
    problem = _problem_of(file)
    if problem:
        file.close()
        raise ValueError(f'{path}: {problem}')
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
    return None


def read_strings(file: h5py.File, key: str) -> list[str]:
    """A text column, (N, 1) bytes, as clean strings; latin-1, as the real files need.

    A column that h5py marked as UTF-8 is read as such.
    """
    kind = h5py.check_string_dtype(file[key].dtype)
    if kind is None:
        raise ValueError(
            f'{file.filename}: key {key!r} must hold byte strings, found {file[key].dtype}.'
        )
    encoding = 'utf-8' if kind.encoding == 'utf-8' else 'latin-1'
    # Few distinct values: clean each once.
    values, inverse = np.unique(file[key][...].reshape(-1), return_inverse=True)
    clean = [clean_text(value.decode(encoding, 'replace')) for value in values]
    return [clean[i] for i in inverse]


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
            ids = file['input_productID'][...].reshape(-1).tolist()
            texts = {f: read_strings(file, f'input_{f}') for f in self.text_fields}
            entities = {t: read_strings(file, f'input_{t}') for t in self.entity_types}
        records: dict[int, dict] = {}
        for row, product_id in enumerate(ids):
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
