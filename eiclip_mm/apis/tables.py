"""Tables of a shop, CSV or parquet: each row as text by column, and which columns are numbers."""

import codecs
import csv
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eiclip_mm.structures import clean_text
from eiclip_mm.utils.untrusted import shown

from .filters import number

TABLES = ('.csv', '.parquet')
SEVERAL = '|'  # between the values of one cell
MISSING = ('', 'nan', 'null', 'none', 'na', 'n/a', '#n/a', '<na>')  # in any case
_MARKS = {  # UTF-32 first: its mark begins with that of UTF-16
    codecs.BOM_UTF32_LE: 'utf-32',
    codecs.BOM_UTF32_BE: 'utf-32',
    codecs.BOM_UTF16_LE: 'utf-16',
    codecs.BOM_UTF16_BE: 'utf-16',
}
_CODE = re.compile(r'[-+]?0\d')  # 0003 is not 3


@dataclass
class Column:
    """What the values of a column are: numbers, unless one of them is a text.

    Attributes:
        numbers: how many are numbers.
        texts: how many are neither that nor missing; a number with leading zeros is a code, a text.
        first: the first of the texts and its place.
    """

    numbers: int = 0
    texts: int = 0
    first: tuple[str, str] = ('', '')

    def add(self, value: str, place: str) -> None:
        """Count a value; an empty one, ``nan``, ``inf`` and ``null`` are none."""
        if _CODE.match(value) or (number(value) is None and not _no_number(value)):
            self.first = self.first if self.texts else (value, place)
            self.texts += 1
        elif not _no_number(value):
            self.numbers += 1

    def note(self, name: str) -> str | None:
        """Where it is text but most of its values are numbers: that, and the first that is not."""
        if not self.texts or self.numbers <= self.texts:
            return None
        value, place = self.first
        return (
            f'attribute {name!r} is text, so that {name}<=100 cannot be asked: {self.numbers:,} of '
            f'its {self.numbers + self.texts:,} values are numbers, but {place} has {value!r:.80}.'
        )


def _no_number(value: str) -> bool:
    try:
        return not math.isfinite(float(value))
    except ValueError:
        return is_missing(value)


def is_missing(text: str) -> bool:
    """Whether a text stands for none: an empty one, ``n/a`` and the like."""
    return text.casefold() in MISSING


def values(cell: str) -> list[str]:
    """The names in a cell, clean and each once; ``n/a`` and the like are none.

    >>> values('White | Gold|white|N/A|White')
    ['White', 'Gold', 'white']
    """
    names = dict.fromkeys(map(clean_text, cell.split(SEVERAL)))
    return [name for name in names if not is_missing(name)]


def cells(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Each row's place, for errors, and its cells by column; columns without a name are left out.

    Several values of a parquet cell are joined by ``|``; an empty cell is ``''``.

    Raises:
        ValueError: the file is damaged, not UTF-8, or its rows do not fit its columns; a parquet
            column holds other than texts, numbers and lists of them.
        ImportError: parquet without pyarrow.
    """
    rows = _csv(path) if path.suffix.lower() == '.csv' else _parquet(path)
    _, header = next(rows, ('', []))
    twice = [name for name, n in Counter(header).items() if n > 1 and name]
    if twice:
        raise ValueError(f'{path} has columns {twice} twice; give each a name of its own.')
    for place, values in rows:
        if len(values) != len(header):
            raise ValueError(
                f'{path}, {place}: {len(values)} cells in a table of {len(header)} columns; text '
                'that holds the separator must stand in double quotes.'
            )
        named = zip(header, values, strict=True)
        yield place, {name: value.strip() for name, value in named if name}


def check_names(path: Path, fields: Sequence[str]) -> None:
    """Qdrant names what it filters by in double quotes, which nothing escapes."""
    for name in fields:
        if '"' in name or '\\' in name:
            raise ValueError(
                f'{path}: the name of column {name!r} must be without " and \\; rename it.'
            )


def _csv(path: Path) -> Iterator[tuple[str, list[str]]]:
    """The header, then the rows that are not empty."""
    try:
        with open(path, encoding='utf-8-sig', newline='') as file:
            head = file.readline()
            separator = max(',;\t', key=head.count)  # spreadsheets write the last two as well
            file.seek(0)
            reader = csv.reader(file, delimiter=separator, strict=True)
            for cells in reader:
                if cells:
                    yield f'line {reader.line_num}', cells
    except UnicodeDecodeError as error:
        raise ValueError(
            f'{path} is not UTF-8 ({error.reason}, byte {error.start}); save it as UTF-8, or '
            f'convert it: iconv -f {_encoding(path)} -t utf-8 {path.name}'
        ) from error
    except csv.Error as error:
        if str(error).startswith('field larger'):
            raise ValueError(
                f'{path}, up to line {reader.line_num}: a cell is longer than '
                f'{csv.field_size_limit():,} characters; shorten it, or close the double quote '
                'that it begins with.'
            ) from error
        raise ValueError(f'{path} is not CSV, line {reader.line_num}: {error}.') from error


def _encoding(path: Path) -> str:
    """By the byte order mark of a file that is not UTF-8; without one a guess."""
    with open(path, 'rb') as file:
        head = file.read(4)
    return next((name for mark, name in _MARKS.items() if head.startswith(mark)), 'latin1')


def _parquet(path: Path) -> Iterator[tuple[str, list[str]]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise ImportError(
            "a catalogue in parquet needs pyarrow: pip install 'eiclip_mm[search]'"
        ) from error
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            yield 'the schema', names
            places = [f'{path}, column {name!r}' for name in names]
            rows = (row for batch in file.iter_batches(4096) for row in batch.to_pylist())
            for count, row in enumerate(rows, 1):
                texts = map(_text, map(row.__getitem__, names), places)
                yield f'row {count}', list(texts)
    # a damaged page is a plain OSError; a damaged text, of Python's own
    except (ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(f'{path} is not a readable parquet file: {shown(error)}') from error


def _text(value: Any, where: str) -> str:
    """A cell of parquet; ``where`` is for errors."""
    if isinstance(value, list):
        return SEVERAL.join(_text(inner, where) for inner in value)
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise ValueError(
                f'{where} holds bytes that are no UTF-8 text; make it text, or leave it out.'
            ) from error
    if isinstance(value, dict | tuple):  # a tuple: an entry of a map
        raise ValueError(
            f'{where} holds structs or maps, expected texts, numbers or lists of them; make each '
            'field a column of its own, or leave it out.'
        )
    if isinstance(value, float):
        if math.isnan(value):
            return ''
        # pandas makes ids floats where one is missing: 17.0 is 17; larger ones are not exact
        return str(int(value)) if value.is_integer() and abs(value) < 2**53 else str(value)
    return '' if value is None else str(value)
