"""Results as tables: Markdown, LaTeX, CSV and JSON. Data in, text out; nothing is computed here."""

import csv
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from .manifest import DIRECTIONS
from .retrieval import Retrieval

ABSENT = '–'
BOUNDS = ('low', 'high', 'std')
NAMES = {'meanR': 'mean R', 'median_rank': 'median rank', 'mean_rank': 'mean rank'}
FORMATS = dict(
    {name: '.2f' for name in ('R', 'SumR', 'meanR')},
    **{name: '.1f' for name in ('median_rank', 'mean_rank')},
    **{name: '.3f' for name in ('MRR', 'mAP', 'nDCG')},
    queries=',',
)
LATEX = str.maketrans(
    {c: '\\' + c for c in '&%$#_{}'}
    | {'\\': r'\textbackslash{}', '~': r'\textasciitilde{}', '^': r'\textasciicircum{}'}
    | {'<': r'\textless{}', '>': r'\textgreater{}', '|': r'\textbar{}', '–': '--'}
    | {'[': '{[}', '*': '{*}'}  # at the start of a line they would belong to the \\ before
)


@dataclass(frozen=True)
class Row:
    """What one method scores.

    Attributes:
        method: model, dump or paper.
        values: by the keys of :meth:`Retrieval.metrics`, and ``i2t/queries``, ``t2i/queries``;
            what is missing is left blank.
        low, high: ends of the interval, by the same keys, where there is one.
        std: standard deviation over seeds, by the same keys, for a mean over seeds.
        slice: value of the label whose queries alone are counted, in a table by label.
        source, note: printed under the table.
    """

    method: str
    values: Mapping[str, float]
    low: Mapping[str, float] = field(default_factory=dict)
    high: Mapping[str, float] = field(default_factory=dict)
    std: Mapping[str, float] = field(default_factory=dict)
    slice: str = ''
    source: str = ''
    note: str = ''


@dataclass(frozen=True)
class Table:
    """Rows of one protocol.

    Attributes:
        protocol: its name.
        rows: from top to bottom.
        label: the label whose values the rows are, if it is a table by label.
        caption: what was asked, in a sentence.
        level: of the intervals, between 0 and 1.
    """

    protocol: str
    rows: Sequence[Row]
    label: str = ''
    caption: str = ''
    level: float = 0.95

    @property
    def title(self) -> str:
        """Protocol, and for a table by label the label and the method."""
        by = f', {self.rows[0].method} by {self.label}' if self.label and self.rows else ''
        return self.protocol + by


def to_markdown(table: Table) -> str:
    """Heading, caption, one grid of recalls and one of ranks, and a line for each note.

    >>> print(to_markdown(Table('full/product', [Row('ours', {'SumR': 301.9})])))
    ## full/product
    <BLANKLINE>
    |      |   SumR |
    |:-----|-------:|
    | ours | 301.90 |
    """
    grids = [grid(list(_cells(table, keys))) for keys in _blocks(table.rows)]
    notes = '\n'.join(f'- {escaped(line)}' for line in _notes(table))
    caption = escaped(table.caption)
    return '\n\n'.join(filter(None, [f'## {escaped(table.title)}', caption, *grids, notes]))


def to_latex(table: Table) -> str:
    """The same as a ``table`` with rules of the package booktabs; one ``tabular`` a grid."""
    parts = []
    for keys in _blocks(table.rows):
        head, *rows = [' & '.join(map(_latex, row)) + r' \\' for row in _cells(table, keys)]
        body = '\n'.join([r'\toprule', head, r'\midrule', *rows, r'\bottomrule'])
        parts.append(f'\\begin{{tabular}}{{l{"r" * len(keys)}}}\n{body}\n\\end{{tabular}}')
    caption = _latex('. '.join(filter(None, [table.title, table.caption])))
    notes = [rf'\par {{\footnotesize {_latex(line)}}}' for line in _notes(table)]
    return '\n'.join(
        [r'\begin{table}', r'\centering', rf'\caption{{{caption}}}']
        + ['\n\\par\\medskip\n'.join(parts), *notes, r'\end{table}']
    )


def to_csv(tables: Sequence[Table]) -> str:
    """One line a row of all tables, in full precision; a column for each value and its bounds."""
    rows = [row for table in tables for row in table.rows]
    keys = [key for block in _blocks(rows) for key in block]
    keys += sorted({key for row in rows for key in row.values} - set(keys))
    names = []
    for key in keys:
        names += [key]
        names += [f'{key} {of}' for of in BOUNDS if any(key in getattr(row, of) for row in rows)]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator='\n')
    writer.writerow(['protocol', 'method', 'label', 'slice', *names, 'source', 'note'])
    for table in tables:
        for row in table.rows:
            cells = dict(row.values)
            for of in BOUNDS:
                cells |= {f'{key} {of}': value for key, value in getattr(row, of).items()}
            writer.writerow(
                [table.protocol, row.method, table.label, row.slice]
                + [cells.get(name, '') for name in names]
                + [row.source, row.note]
            )
    return file.getvalue()


def to_json(tables: Sequence[Table], **more: Any) -> str:
    """Everything in full precision: the tables and what else is given, e.g. cards and warnings."""
    return json.dumps(
        {'tables': [asdict(table) for table in tables]} | more, indent=1, ensure_ascii=False
    )


def protocol_card(retrieval: Retrieval) -> dict:
    """What a result rests on, as plain JSON, and nothing that differs when it is made again.

    Returns:
        ``data``, ``text``, ``model``, ``versions``: as the embeddings state them, if they do;
        ``protocol``: all fields of :class:`Protocol`, ties and seed among them; ``galleries``
        and ``queries`` of each direction; ``num_images`` and ``num_products`` that took part;
        ``manifest``: hash of the candidates, ``None`` if all are.
    """
    sides = {direction: getattr(retrieval, direction) for direction in DIRECTIONS}
    return dict(retrieval.card) | dict(
        protocol=asdict(retrieval.protocol),
        galleries={direction: side.gallery for direction, side in sides.items()},
        queries={direction: len(side.product_id) for direction, side in sides.items()},
        num_images=retrieval.num_images,
        num_products=retrieval.num_products,
        manifest=retrieval.manifest,
    )


def recall_table(results: Mapping[str, Mapping[str, float]]) -> str:
    """Markdown table of results of :func:`evaluate`, one row a label.

    >>> row = {'i2t/R@1': 25.7, 't2i/R@1': 28.4}
    >>> print(recall_table({'EI-CLIP': row}))
    |         | I2T R@1 | T2I R@1 | SumR |
    |:--------|--------:|--------:|-----:|
    | EI-CLIP |   25.70 |   28.40 |    – |
    """
    recalls = {key for metrics in results.values() for key in metrics if '/R@' in key}
    if not recalls or any(key[:6] not in ('i2t/R@', 't2i/R@') for key in recalls):
        got = {label: list(metrics) for label, metrics in results.items()}
        raise ValueError(f"a recall table needs the keys of evaluate(), as 'i2t/R@1'; got {got}")
    rows = [Row(label, metrics) for label, metrics in results.items()]
    return grid(list(_cells(Table('', rows), [*_by_k(recalls), 'SumR'])))


def _blocks(rows: Sequence[Row]) -> list[list[str]]:
    """Keys of the columns of each grid: recalls, then ranks; eighteen side by side fit no page."""
    keys = {key for row in rows for key in row.values}
    recalls = _by_k(key for key in keys if '/R@' in key)
    gains = _by_k(key for key in keys if '/nDCG@' in key)
    ranks = [f'{d}/{m}' for m in ('median_rank', 'mean_rank', 'MRR', 'mAP') for d in DIRECTIONS]
    queries = [f'{d}/queries' for d in DIRECTIONS]
    blocks = [*queries, *recalls, 'SumR', 'meanR'], [*ranks, *gains]
    return [kept for block in blocks if (kept := [key for key in block if key in keys])]


def _by_k(keys: Iterable[str]) -> list[str]:
    """Keys of recalls or gains by direction, then k."""
    return sorted(keys, key=lambda key: (key[:3], int(key.split('@')[1])))


def _cells(table: Table, keys: Sequence[str]) -> Iterator[list[str]]:
    """Lines of cells: head, then for each row its values and, where it has them, their bounds."""
    yield ['', *map(_heading, keys)]
    for row in table.rows:
        if not any(key in row.values for key in keys):
            continue
        name = row.slice if table.label else row.method
        yield [name, *(_number(key, row.values.get(key)) for key in keys)]
        if row.low:
            ends = (
                [_number(key, end[key]) for end in (row.low, row.high) if key in end]
                for key in keys
            )
            yield [f'{100 * table.level:g} % interval', *('–'.join(pair) for pair in ends)]
        if row.std:
            yield ['std over seeds', *(_number(key, row.std.get(key)) for key in keys)]


def _heading(key: str) -> str:
    *direction, measure = key.split('/')
    return ' '.join([*(d.upper() for d in direction), NAMES.get(measure, measure)])


def _number(key: str, value: float | None) -> str:
    measure = key.split('/')[-1].split('@')[0]
    return ABSENT if value is None else format(value, FORMATS[measure])


def _notes(table: Table) -> list[str]:
    """Sources and notes; rows that share them share a line."""
    said: dict[str, list[str]] = {}
    for row in table.rows:
        text = '; '.join(filter(None, [row.source, row.note]))
        if text:
            said.setdefault(text, []).append(row.slice if table.label else row.method)
    return [f'{"; ".join(methods)}: {text}.' for text, methods in said.items()]


def grid(rows: Sequence[Sequence[str]]) -> str:
    """An aligned Markdown table; the first row is its head."""
    rows = [[escaped(cell) for cell in row] for row in rows]
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    lines = [
        '| ' + ' | '.join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) + ' |'
        for row in rows
    ]
    rule = [':' + '-' * (widths[0] + 1)] + ['-' * (width + 1) + ':' for width in widths[1:]]
    return '\n'.join([lines[0], '|' + '|'.join(rule) + '|', *lines[1:]])


def escaped(text: str) -> str:
    """Text from outside as a part of one line of Markdown, in a table or not."""
    return ' '.join(text.split()).replace('|', r'\|')


def _latex(text: str) -> str:
    return ' '.join(text.split()).translate(LATEX)


def check_writable(path: Path) -> None:
    """Make the folder of a file and refuse, before anything is scored, what cannot be written.

    Raises:
        ValueError: the file, or one in its place or in that of a folder, cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            path.open('a').close()
        if path.is_file() or not path.exists():  # others, such as /dev/stdout, are not replaced
            TemporaryFile(dir=os.path.dirname(os.path.realpath(path))).close()
    except OSError as error:
        raise ValueError(
            f'{path} cannot be written: {error.strerror} ({error.filename}); take another --out'
        ) from error
