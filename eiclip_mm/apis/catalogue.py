"""A shop's catalogue, product by product, from whichever file it is kept in."""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np

from eiclip_mm.datasets import CocoProducts, FashionGen, LoadProductImage, ProductDataset
from eiclip_mm.datasets.coco_products import leads_out
from eiclip_mm.datasets.fashiongen import ENTITY_TYPES, PLANTED_TYPES, TEXT_FIELDS, open_fashiongen
from eiclip_mm.datasets.photo_check import records_alone
from eiclip_mm.registry import DATASETS
from eiclip_mm.structures import clean_text
from eiclip_mm.utils import load_config
from eiclip_mm.utils.untrusted import shown

from .filters import number
from .tables import SEVERAL, TABLES, Column, cells, check_names, values

HDF5 = ('.h5', '.hdf5')


@dataclass(frozen=True)
class Item:
    """A product of a catalogue.

    Attributes:
        id: the shop's own.
        text_fields: texts by field, those that the model reads.
        entities: for each type, a list of names.
        attributes: what else is known, texts and numbers; to filter by, not embedded.
        photo: path of its first photo, ``FILE.h5#ROW`` for a row of an HDF5 file, ``None`` without;
            :func:`open_photo` opens it.
    """

    id: str
    text_fields: dict[str, str]
    entities: dict[str, list[str]]
    attributes: dict[str, str | float]
    photo: str | None

    @property
    def has_text(self) -> bool:
        """Whether there is anything to read."""
        return any(self.text_fields.values()) or any(self.entities.values())

    @property
    def digest(self) -> str:
        """Of all that its vectors depend on; of the photo, name, size and time of change."""
        file, _ = _file_and_row(self.photo or '')
        stat = os.stat(file) if self.photo and os.path.isfile(file) else None
        state = None if stat is None else [stat.st_size, stat.st_mtime_ns]
        name = os.path.basename(self.photo or '')  # the folder may move
        depends = [self.text_fields, self.entities, name, state]
        plain = json.dumps(depends, sort_keys=True).encode()
        return hashlib.blake2b(plain, digest_size=8).hexdigest()

    def payload(self) -> dict:
        """What an index keeps of it, plain JSON."""
        return dict(
            text_fields=self.text_fields,
            entities=self.entities,
            photo=self.photo,
            attributes=self.attributes,
            digest=self.digest,
        )


@dataclass(frozen=True)
class Catalogue:
    """Items, read again in each iteration; the number of them is known before.

    ``notes`` are sentences on what its owner may not have meant.
    """

    size: int
    read: Callable[[], Iterator[Item]]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[Item]:
        return self.read()


def read_catalogue(
    path: str | Path,
    text_fields: Sequence[str] = ('description',),
    entity_types: Sequence[str] = (),
    images: str | Path | None = None,
    split: str = 'test',
) -> Catalogue:
    """The products of a file, one item each: its first photo, its first text, its entities.

    ========================  =====================================================================
    ``.json``                 COCO captions with entities, ``docs/data_format.md``
    ``.csv``, ``.parquet``    columns ``id``, each of ``text_fields`` and, if there are photos,
                              ``image``; a column named like one of ``entity_types`` holds entities,
                              any other an attribute: a number where all values are numbers, but
                              for ``nan``, ``inf``, ``null``, which are missing; one with a leading
                              zero is text. Several values of a cell are split by ``|``; among
                              entities ``n/a``, ``nan``, ``null`` and the like are none
    ``.h5``, ``.hdf5``        Fashion-Gen's; its price becomes the attribute ``price``
    ``.py``                   a config: the data set of its ``split``
    ========================  =====================================================================

    Args:
        path: the file.
        text_fields: those that the model reads: ``Encoder.text_fields``.
        entity_types: those of the model's vocabulary.
        images: folder of the photos; the file's own by default. Names in a table lead to files
            in it, links among them.
        split: of a config, ``'train'``, ``'val'`` or ``'test'``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another kind of file, a damaged one, a column is missing or has a name that no
            filter can have, an id occurs twice, a photo lies outside of ``images``.
        ImportError: a parquet file without pyarrow.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'catalogue {path} does not exist; give a file.')
    root = Path(images) if images is not None else path.parent
    if not root.is_dir():
        raise FileNotFoundError(f'folder of photos {root} does not exist; give another one.')
    kind = path.suffix.lower()
    if kind in TABLES:
        return _table(path, tuple(text_fields), frozenset(entity_types), root)
    if kind == '.json':
        data = CocoProducts(str(path), image_root=str(root), views='first')
    elif kind in HDF5:
        data = _fashiongen(path, text_fields, entity_types)
    elif kind == '.py':
        data = _of_config(path, split)
    else:
        raise ValueError(
            f'catalogue {path} must end in .json, .csv, .parquet, .h5 or .py (a config), got '
            f'{kind!r}.'
        )
    return Catalogue(len(data), partial(_items, data))


def open_photo(name: str) -> Path | np.ndarray:
    """What an item's ``photo`` names: a path, or the pixels (height, width, 3) of an HDF5 row.

    Raises:
        FileNotFoundError, ValueError: the row cannot be read.
    """
    file, row = _file_and_row(name)
    if row is None:
        return Path(file)
    return _rows().transform(dict(h5_path=file, row=row))['img']


@cache
def _rows() -> LoadProductImage:
    return LoadProductImage()


def _file_and_row(photo: str) -> tuple[str, int | None]:
    file, _, row = photo.rpartition('#')
    return (file, int(row)) if file.endswith(HDF5) and row.isdecimal() else (photo, None)


def _fashiongen(path: Path, text_fields: Sequence[str], entity_types: Sequence[str]) -> FashionGen:
    with open_fashiongen(path) as file:
        types = [t for t in ENTITY_TYPES + PLANTED_TYPES if f'input_{t}' in file]
    missing = sorted(set(text_fields) - set(TEXT_FIELDS))
    if missing:
        raise ValueError(f'{path}: the model reads texts {missing}, the file has {TEXT_FIELDS}.')
    return FashionGen(
        str(path),
        entity_types=tuple(t for t in types if t in entity_types),
        text_fields=tuple(text_fields) or TEXT_FIELDS[:1],
        views='first',
    )


def _of_config(path: Path, split: str) -> ProductDataset:
    config = load_config(path)
    loader = config.get(f'{split}_dataloader')
    if not loader:
        raise ValueError(f'{path} has no {split}_dataloader; give another split or config.')
    wanted = records_alone(loader.dataset, views='first', fold='all', _scope_='eiclip_mm')
    return DATASETS.build(wanted)


def _absolute(file: str) -> str:
    """Its path without ``..``, which behind a link leads elsewhere; the file itself may be one."""
    folder, name = os.path.split(file)
    return os.path.join(os.path.realpath(folder), name)


def _items(data: ProductDataset) -> Iterator[Item]:
    prices: dict[int | None, float] = {}
    if isinstance(data, FashionGen):
        with open_fashiongen(data.ann_file) as file:
            prices = dict(enumerate(file['input_msrpUSD'][...].reshape(-1).tolist()))
    for record in data.records():
        row = record.get('row')
        price = prices.get(row)
        file = _absolute(record['img_path'] if row is None else record['h5_path'])
        yield Item(
            id=str(record['product_id']),
            text_fields=record['text_fields'],
            entities={t: list(names) for t, names in record['entities'].items() if names},
            attributes={'price': price} if price is not None and math.isfinite(price) else {},
            photo=file if row is None else f'{file}#{row}',
        )


def _table(path: Path, text_fields: tuple, entity_types: frozenset, root: Path) -> Catalogue:
    places: dict[str, str] = {}
    columns: dict[str, Column] = {}  # the attributes
    for place, row in cells(path):
        missing = [name for name in ('id', *text_fields) if name not in row]
        if missing:
            raise ValueError(
                f'{path}: columns {missing} are missing, it has {list(row)}; the model reads texts '
                f'{list(text_fields)}, and every product needs an id.'
            )
        id_ = row['id']
        if not id_:
            raise ValueError(f'{path}, {place}: the id is empty; every product needs one.')
        if id_ in places:
            raise ValueError(
                f'{path}: id {id_!r} occurs twice, {places[id_]} and {place}; keep one row a '
                f'product, its photos in one cell, split by {SEVERAL!r}.'
            )
        if leads_out(photo := _photo(row)):
            raise ValueError(
                f'{path}, {place}: photo {shown(photo)!r} lies outside of {root}; name it relative '
                'to this folder, or give another folder of photos (--images).'
            )
        if not places:
            fields = [name for name in row if name not in ('id', 'image', *text_fields)]
            check_names(path, fields)
            columns = {name: Column() for name in fields if name not in entity_types}
        places[id_] = place
        for name, column in columns.items():
            column.add(row[name], place)
    if not places:
        raise ValueError(f'{path} has no rows.')
    texts = {name for name, column in columns.items() if column.texts}

    def items() -> Iterator[Item]:
        for _, row in cells(path):
            yield _item(row, text_fields, entity_types, texts, root)

    notes = (column.note(name) for name, column in columns.items())
    return Catalogue(len(places), items, tuple(filter(None, notes)))


def _item(
    row: dict[str, str], text_fields: tuple, entity_types: frozenset, texts: set, root: Path
) -> Item:
    rest = {n: v for n, v in row.items() if v and n not in ('id', 'image', *text_fields)}
    photo = _photo(row)
    return Item(
        id=row['id'],
        text_fields={name: clean_text(row[name]) for name in text_fields},
        entities={n: names for n, v in rest.items() if n in entity_types and (names := values(v))},
        attributes={
            name: read
            for name, value in rest.items()
            if name not in entity_types
            and (read := clean_text(value) if name in texts else number(value)) is not None
        },
        photo=os.path.abspath(root / photo) if photo else None,
    )


def _photo(row: dict[str, str]) -> str:
    """The name of the first photo of a row; '' without."""
    return row.get('image', '').split(SEVERAL)[0].strip()
