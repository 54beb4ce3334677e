"""What the converters share: the split of an id, the vocabulary, files written, what is said."""

import argparse
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eiclip_mm.datasets.keywords import add_keywords
from eiclip_mm.structures import EntityVocab


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


def with_entity(splits: Mapping[str, Sequence[dict]], types: Sequence[str]) -> dict:
    """For each split and type, how many products have an entity of it."""
    return {
        split: {type_: sum(type_ in p['entities'] for p in group) for type_ in types}
        for split, group in splits.items()
    }


def write_json(path: Path, data: dict, **kwargs: Any) -> None:
    """Write UTF-8 JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, ensure_ascii=False, **kwargs), encoding='utf-8')


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
        first = (('' if key == 'place' else f'{key} ') + f'{v!s:.80}' for key, v in rows[0].items())
        lines.append(f'  {reason}: {len(rows):,}, e.g. {", ".join(first)}')
    return '\n'.join(lines)
