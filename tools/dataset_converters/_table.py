"""The rows of a shop's table that can be used: ids, texts, photos, entities."""

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from _coco import InputError
from _photos import image_size
from tqdm import tqdm

from eiclip_mm.apis.tables import SEVERAL, cells, is_missing, values
from eiclip_mm.datasets.coco_products import leads_out
from eiclip_mm.structures import clean_text


@dataclass(frozen=True)
class Columns:
    """Which columns are read; each name of ``entities`` becomes an entity type."""

    entities: tuple[str, ...]
    id: str = 'id'
    text: str = 'description'
    photo: str = 'image'

    def check(self, path: Path, row: dict[str, str]) -> None:
        """Refuse a table that lacks one, and a column that is asked for twice."""
        names = [self.id, self.text, self.photo, *self.entities]
        missing = [name for name in names if name not in row]
        if missing or len(set(names)) < len(names):
            raise InputError(
                f'{path} has the columns {list(row)}, expected {names} among them, each once; '
                f'missing: {missing}. Name them with --id, --text, --photo and --entities.'
            )


def read_products(path: Path, images: Path, columns: Columns, skip) -> Iterator[dict]:
    """The rows that can be used, in file order; ``skip`` is told of what cannot.

    Yields:
        ``id`` (int), ``source_id`` (the table's), ``place`` (its row), ``title``, ``photos`` (dicts
        of ``path``, ``width``, ``height``, at least one), ``entities``.
    """
    place_of: dict[str, str] = {}
    for place, row in tqdm(cells(path), 'rows', unit='row', disable=None):
        if not place_of:
            columns.check(path, row)
        id_, title = row[columns.id], clean_text(row[columns.text])
        if not id_:
            skip('id is empty', place=place)
            continue
        if id_ in place_of:
            skip('id occurs again', place=place, id=id_, first=place_of[id_])
            continue
        place_of[id_] = place
        if is_missing(title):
            skip('text is empty', place=place, id=id_)
            continue
        photos = list(readable(row[columns.photo], images, skip, place=place, id=id_))
        if photos:
            found = {type_: values(row[type_]) for type_ in columns.entities}
            yield dict(
                id=number(id_),
                source_id=id_,
                place=place,
                title=title,
                photos=photos,
                entities={type_: names for type_, names in found.items() if names},
            )


def readable(cell: str, images: Path, skip, **at) -> Iterator[dict]:
    """Path and size in pixels of the photos of a cell that can be opened."""
    # names of files are not cleaned, which would spoil "a&amp;b.jpg"; a ".." is taken out, for
    # behind a link it would lead elsewhere
    names = [os.path.normpath(name) for name in map(str.strip, cell.split(SEVERAL)) if name]
    if not names:
        skip('no photo is named', **at)
    for name in dict.fromkeys(names):
        if leads_out(name):
            skip('photo lies outside of --images', **at, photo=name)
            continue
        path = images / name
        if not os.path.isfile(path):  # a Path's own raises where the name is too long
            skip('photo is missing', **at, photo=name)
            continue
        try:
            width, height = image_size(path)
        except InputError as error:
            skip('photo cannot be read', **at, photo=name, found=str(error))
            continue
        yield dict(path=path, width=width, height=height)


def number(id_: str) -> int:
    """The integer that an id is, else one of its hash: the same in every version of the table.

    >>> number('1163'), number('0017') == number('17')
    (1163, False)
    """
    if re.fullmatch(r'0|[1-9][0-9]{0,17}', id_):
        return int(id_)
    return int.from_bytes(hashlib.blake2b(id_.encode(), digest_size=8).digest(), 'big') >> 1
