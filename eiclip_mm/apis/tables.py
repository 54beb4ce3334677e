"""Tables of a shop, CSV or parquet: each row as text by column."""

import csv
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

TABLES = ('.csv', '.parquet')
SEVERAL = '|'  # between the values of one cell


def cells(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Each row's place, for errors, and its cells by column; columns without a name are left out.

    Several values of a parquet cell are joined by ``|``; an empty cell is ``''``.

    Raises:
        ValueError: the file is damaged, not UTF-8, or its rows do not fit its columns.
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
            f'convert it: iconv -f latin1 -t utf-8 {path.name}'
        ) from error
    except csv.Error as error:
        raise ValueError(f'{path} is not CSV, line {reader.line_num}: {error}.') from error


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
            rows = (row for batch in file.iter_batches(4096) for row in batch.to_pylist())
            for number, row in enumerate(rows, 1):
                yield f'row {number}', [_text(row[name]) for name in names]
    except ArrowException as error:
        raise ValueError(f'{path} is not a readable parquet file: {error!s:.200}') from error


def _text(value) -> str:
    if isinstance(value, list):
        return SEVERAL.join(_text(inner) for inner in value)
    missing = value is None or (isinstance(value, float) and math.isnan(value))
    return '' if missing else str(value)
