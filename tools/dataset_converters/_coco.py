"""What the converters share: the split of an id, the vocabulary, files written, what is said."""

import argparse
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eiclip_mm.datasets.bad_rows import MAX_BAD, ON_ERROR
from eiclip_mm.datasets.keywords import add_keywords
from eiclip_mm.structures import EntityVocab
from eiclip_mm.utils.sentence import told
from eiclip_mm.utils.untrusted import shown
from eiclip_mm.utils.whole_together import whole_files


class InputError(ValueError):
    """The user's files or options cannot be converted; the message says what to do."""


def hash_split(id_: int | str, val_share: float) -> str:
    """Split by a hash of the id: an id is in the same split in every edition."""
    return 'val' if zlib.crc32(str(id_).encode()) < val_share * 2**32 else 'train'


def vocabulary(
    train: Sequence[dict], types: Sequence[str], min_count: int, keywords: int, source: str
) -> EntityVocab:
    """The entities of the training products, with the frequent words of their titles.

    Args:
        train: products with ``title`` and ``entities``.
        types: entity types, in the order of the vocabulary.
        min_count: products that a name needs.
        keywords: products that a word needs to be an entity of type ``keyword``; 0: none is.
        source: what it was made of.
    """
    products = (product['entities'] for product in train)
    vocab = EntityVocab.build(products, types, min_count, source=source)
    if not keywords:
        return vocab
    return add_keywords(vocab, (product['title'] for product in train), keywords)


def add_vocabulary_options(parser: argparse.ArgumentParser) -> None:
    """``--min-count`` and ``--keywords``, which :func:`check_counts` checks."""
    parser.add_argument(
        '--min-count', type=int, default=2, help='train products that a name needs (default 2)'
    )
    parser.add_argument(
        '--keywords',
        type=int,
        default=5,
        metavar='COUNT',
        help='words of so many train texts become entities of type keyword; 0: none (default 5)',
    )


def check_counts(min_count: int, keywords: int) -> None:
    """Refuse numbers of products that no name or word could miss."""
    if min_count < 1:
        raise InputError(f'--min-count: found {min_count}, expected 1 or more.')
    if keywords < 0:
        raise InputError(f'--keywords: found {keywords}, expected 1 or more, or 0 for none.')


def add_error_options(parser: argparse.ArgumentParser, default: str) -> None:
    """``--on-error`` and ``--max-bad``, which :func:`check_left_out` obeys."""
    parser.add_argument(
        '--on-error',
        choices=ON_ERROR,
        default=default,
        help=f'rows without id, text or readable photo: write nothing, or leave them out '
        f'(default {default})',
    )
    parser.add_argument(
        '--max-bad',
        type=float,
        default=MAX_BAD,
        metavar='SHARE',
        help=f'write nothing if more of the rows cannot be used (default {MAX_BAD:g})',
    )


def check_left_out(
    path: Path, left_out: Mapping[str, Sequence[dict]], rows: int, on_error: str, max_bad: float
) -> None:
    """Refuse rows that cannot be used, or too many of them.

    Args:
        path: the table.
        left_out: for each reason the rows, each with its ``place`` or ``line``.
        rows: all rows of the table.
        on_error, max_bad: see :func:`add_error_options`.
    """
    if not 0 <= max_bad <= 1:
        raise InputError(f'--max-bad: found {max_bad}, expected a share from 0 to 1.')
    if left_out and on_error == 'raise':
        raise InputError(
            f'{path} has rows that cannot be used; nothing was written.\n'
            f'{listed(left_out)}\nMend them, or leave them out with --on-error skip.'
        )
    bad = {row.get('place', row.get('line')) for group in left_out.values() for row in group}
    if len(bad) > max_bad * rows:
        raise InputError(
            f'{path}: {len(bad):,} of {rows:,} rows cannot be used, more than --max-bad '
            f'{max_bad:g} of them; no catalogue was written.\n{listed(left_out)}\n'
            'Mend them, or give a larger --max-bad.'
        )


def with_entity(splits: Mapping[str, Sequence[dict]], types: Sequence[str]) -> dict:
    """For each split and type, how many products have an entity of it."""
    return {
        split: {type_: sum(type_ in p['entities'] for p in group) for type_ in types}
        for split, group in splits.items()
    }


def write_all(out: Path, splits: Mapping[str, dict], vocab: EntityVocab, report: dict) -> None:
    """Write what a converter makes; of two conversions no kill leaves a mix."""
    out.mkdir(parents=True, exist_ok=True)
    contents = {f'{split}.json': (data, None) for split, data in splits.items()}
    contents |= {'entities.json': (vocab.to_dict(), 1), 'converter_report.json': (report, 1)}
    with told(out), whole_files(*(out / name for name in contents)) as files:
        for file, (data, indent) in zip(files, contents.values(), strict=True):
            file.write(json.dumps(data, ensure_ascii=False, indent=indent).encode())


def summary(report: Mapping[str, Any], left_out: Mapping[str, Sequence[dict]]) -> str:
    """The splits and the vocabulary of a report, and what was left out, in a few lines."""
    lines = []
    for split, count in report['products'].items():
        photos = f', {report["photos"][split]:,} photos' if 'photos' in report else ''
        lines.append(f'{split}: {count:,} products{photos}; {counts(report["with_entity"][split])}')
    lines.append(f'vocabulary: {counts(report["vocabulary"])}')
    if left_out:
        lines += ['left out:', listed(left_out)]
    return '\n'.join(lines)


def counts(found: Mapping[str, int]) -> str:
    """Numbers by name, on one line."""
    return ', '.join(f'{name} {count:,}' for name, count in found.items())


def listed(left_out: Mapping[str, Sequence[dict]]) -> str:
    """What was left out, a line a reason, with its first row."""
    lines = []
    for reason, rows in left_out.items():
        first = (('' if key == 'place' else f'{key} ') + shown(v, 80) for key, v in rows[0].items())
        lines.append(f'  {reason}: {len(rows):,}, e.g. {", ".join(first)}')
    return '\n'.join(lines)
