"""Convert a shop's table, CSV or parquet, and its photos to our catalogue format.

    python tools/dataset_converters/catalogue.py shop.csv --images photos --out data/my_shop \
        --entities brand colour

One row is one product: a column ``id``, a text ``description``, its photos ``image`` (``--id``,
``--text``, ``--photo`` name others) and columns that hold entities; several values of a cell are
split by ``|``. CSV is UTF-8, with or without a byte order mark, split by commas, semicolons or
tabs. It is the table that ``tools/search/build_index.py`` reads (docs/search.md).

It writes ``train.json`` and ``val.json`` (docs/data_format.md), split by a hash of the id,
``entities.json`` (the vocabulary, from train alone, with frequent words of the text as keywords)
and ``converter_report.json``, which lists what was left out. Photos stay where they are.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from _coco import (
    InputError,
    add_error_options,
    add_vocabulary_options,
    check_counts,
    check_left_out,
    hash_split,
    listed,
    summary,
    vocabulary,
    with_entity,
    write_all,
)
from _photos import relative
from _table import Columns, read_products

from eiclip_mm.apis.tables import TABLES
from eiclip_mm.datasets.bad_rows import MAX_BAD

SPLITS = ('train', 'val')


def coco(products: Sequence[dict], split: str, types: Sequence[str], out: Path) -> dict:
    """One split in the format of docs/data_format.md."""
    images, annotations = [], []
    for product in products:
        annotations.append(
            dict(
                id=len(annotations) + 1,
                image_id=len(images) + 1,
                caption=product['title'],
                entities=product['entities'],
            )
        )
        for photo in product['photos']:
            images.append(
                dict(
                    id=len(images) + 1,
                    product_id=product['id'],
                    source_id=product['source_id'],
                    file_name=relative(photo['path'], out),
                    width=photo['width'],
                    height=photo['height'],
                )
            )
    info = dict(
        description='written by tools/dataset_converters/catalogue.py',
        entity_types=list(types),
        split=split,
    )
    return dict(info=info, licenses=[], images=images, annotations=annotations)


def convert(
    table: str | Path,
    out: str | Path,
    entities: Sequence[str],
    images: str | Path | None = None,
    on_error: str = 'raise',
    max_bad: float = MAX_BAD,
    val_share: float = 0.125,
    min_count: int = 2,
    keywords: int = 5,
    **columns: str,
) -> dict:
    """Write the converted table to ``out``; arguments as on the command line.

    Returns:
        The report, as it is written to ``converter_report.json``.

    Raises:
        InputError: an option or a row that cannot be used; nothing is written then.
        ValueError, ImportError: the table cannot be read, see :func:`~eiclip_mm.apis.tables.cells`.
    """
    table, out = Path(table), Path(out)
    images = table.parent if images is None else Path(images)
    check(table, images, out, entities, val_share, keywords)
    check_counts(min_count, keywords)
    left_out: dict[str, list] = {}

    def skip(reason: str, **what) -> None:
        left_out.setdefault(reason, []).append(what)

    products = list(read_products(table, images, Columns(tuple(entities), **columns), skip))
    if not products and not left_out:
        raise InputError(f'{table} has no rows, expected a row a product below the header.')
    bad = {row['place'] for group in left_out.values() for row in group}
    rows = bad | {product['place'] for product in products}
    check_left_out(table, left_out, len(rows), on_error, max_bad)
    splits = {split: [] for split in SPLITS}
    for product in products:
        splits[hash_split(product['source_id'], val_share)].append(product)
    if not all(splits.values()):
        raise InputError(
            f'{table}: {len(products)} products fall into '
            f'{ {split: len(group) for split, group in splits.items()} }, expected some in each; '
            f'give more products or another --val-share.\n{listed(left_out)}'
        )
    train = splits['train']
    source = f'{table.name}, split train, {len(train)} products, names of {min_count} or more'
    vocab = vocabulary(train, entities, min_count, keywords, source)
    report = dict(
        table=str(table),
        products={split: len(group) for split, group in splits.items()},
        photos={split: sum(len(p['photos']) for p in group) for split, group in splits.items()},
        with_entity=with_entity(splits, entities),
        vocabulary={type_: len(names) for type_, names in vocab.names.items()},
        left_out=left_out,
    )
    coded = {split: coco(group, split, entities, out) for split, group in splits.items()}
    write_all(out, coded, vocab, report)
    return report


def check(
    table: Path, images: Path, out: Path, entities: Sequence[str], val_share: float, keywords: int
) -> None:
    """Refuse what no row could mend."""
    if table.suffix.lower() not in TABLES:
        raise InputError(f'{table}: expected a file that ends in {" or ".join(TABLES)}.')
    if not os.path.isfile(table):
        raise InputError(f'{table} is not there, or no file.')
    if not images.is_dir():
        raise InputError(f'--images: {images} is not there, expected the folder of the photos.')
    there = next(path for path in (out, *out.parents) if path.exists())
    if not there.is_dir():
        raise InputError(f'--out: {there} is a file, expected a folder, or none yet.')
    if not 0 < val_share < 1:
        raise InputError(f'--val-share: found {val_share}, expected a number between 0 and 1.')
    if keywords and 'keyword' in entities:
        raise InputError(
            "--entities: 'keyword' is the type that --keywords makes of words of the text; rename "
            'the column, or give --keywords 0.'
        )


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('table', help='.csv or .parquet file, a row a product')
    parser.add_argument('--out', required=True, help='folder to write')
    parser.add_argument(
        '--entities', required=True, nargs='+', metavar='COLUMN', help='columns that hold entities'
    )
    parser.add_argument('--images', help="folder of the photos; by default the table's folder")
    for name, column in (('id', 'id'), ('text', 'description'), ('photo', 'image')):
        parser.add_argument(
            f'--{name}', default=column, metavar='COLUMN', help=f'default {column!r}'
        )
    add_error_options(parser, 'raise')
    parser.add_argument(
        '--val-share', type=float, default=0.125, help='share of products in val (default 0.125)'
    )
    add_vocabulary_options(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    try:
        report = convert(**vars(parse_args(argv)))
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f'{Path(__file__).name}: {error}')
    print(summary(report, report['left_out']))


if __name__ == '__main__':
    main()
