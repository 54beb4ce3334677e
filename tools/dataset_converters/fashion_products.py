r"""Convert Kaggle "Fashion Product Images" (full or small edition) to our catalogue format.

    python tools/dataset_converters/fashion_products.py --styles styles.csv --images images.zip \
        --out data/fashion_products

It writes one COCO-captions JSON a split with entities on the captions (docs/data_format.md),
``images/`` if the photos came in a zip, ``entities.json`` (the vocabulary, from train alone, with
frequent words of titles as keywords) and ``converter_report.json``, which lists every row that was
left out. A second run keeps what is already extracted.

The file has no brand column; the brand is read from the title, see ``_brands.py``.
"""

import argparse
import csv
import os
import re
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from _brands import Brands
from _coco import (
    InputError,
    add_error_options,
    add_vocabulary_options,
    check_counts,
    check_left_out,
    hash_split,
    summary,
    vocabulary,
    with_entity,
    write_all,
)
from _photos import add_images, extract_images, find_images
from tqdm import tqdm

from eiclip_mm.apis.tables import is_missing
from eiclip_mm.datasets.bad_rows import MAX_BAD
from eiclip_mm.structures import clean_text

TITLE = 'productDisplayName'
COLUMNS = dict(  # entity type -> column; 'brand' comes from the title
    article_type='articleType',
    colour='baseColour',
    usage='usage',
    gender='gender',
    season='season',
    category='masterCategory',
    subcategory='subCategory',
)
OPTIONAL = ('gender', 'season')  # taken by default where the file has them


def read_rows(path: Path, needed: Sequence[str], limit: int | None = None):
    """Yield ``(line, row)`` with the row as a dict; surplus commas belong to the title."""
    with path.open(encoding='utf-8-sig', newline='') as file:
        reader = csv.reader(file)
        try:
            header = [name.strip() for name in next(reader, [])]
            missing = [name for name in needed if name not in header]
            if missing or len(set(header)) != len(header):
                raise InputError(
                    f'{path}, line 1: found the columns {header}, expected each once, and among '
                    f'them {list(needed)}; missing: {missing}. Is this the styles.csv of Fashion '
                    'Product Images?'
                )
            at = header.index(TITLE)
            num_rows = 0
            for fields in reader:
                if not fields:
                    continue
                if num_rows == limit:
                    return
                num_rows += 1
                if any('\n' in field or '\r' in field for field in fields):
                    raise InputError(
                        f'{path}, up to line {reader.line_num}: found a field that spans lines, '
                        'expected one product a line. A quotation mark is not closed.'
                    )
                surplus = len(fields) - len(header)
                if surplus < 0:
                    yield reader.line_num, None
                    continue
                title = ','.join(fields[at : at + surplus + 1])
                fields = fields[:at] + [title] + fields[at + surplus + 1 :]
                yield reader.line_num, dict(zip(header, map(str.strip, fields), strict=True))
        except (csv.Error, UnicodeDecodeError) as error:
            raise InputError(
                f'{path}, near line {reader.line_num}: found {error}, expected comma-separated '
                'UTF-8 text.'
            ) from error


def header_of(path: Path) -> list[str]:
    """The column names of a CSV file."""
    if not os.path.isfile(path):
        raise InputError(f'{path} does not exist; --styles takes the styles.csv of the data set.')
    with path.open(encoding='utf-8-sig', newline='', errors='replace') as file:
        try:
            return [name.strip() for name in next(csv.reader(file), [])]
        except csv.Error as error:
            raise InputError(
                f'{path}, line 1: found {error}, expected comma-separated UTF-8 text.'
            ) from error


def read_products(
    path: Path, types: Sequence[str], split_column: str | None, val_share: float, limit, skip
) -> list[dict]:
    """The rows that can be used, in file order, as ``id``, ``title``, ``split``, ``entities``."""
    columns = {type_: COLUMNS[type_] for type_ in types if type_ != 'brand'}
    needed = ['id', TITLE, *columns.values(), *([split_column] if split_column else [])]
    products, line_of = [], {}
    for line, row in tqdm(read_rows(path, needed, limit), 'rows', unit='row', disable=None):
        if row is None:
            skip('too few fields', line=line)
        elif not re.fullmatch(r'[0-9]{1,18}', row['id']):
            skip('id is not an integer', line=line, found=row['id'])
        elif int(row['id']) in line_of:
            raise InputError(
                f'{path}, line {line}: found id {row["id"]} again (first in line '
                f'{line_of[int(row["id"])]}), expected each id once. Remove one of the rows.'
            )
        else:
            id_ = int(row['id'])
            line_of[id_] = line
            if is_missing(clean_text(row[TITLE])):
                skip('empty title', line=line, id=id_)
                continue
            if split_column:
                split = split_name(row[split_column], f'{path}, line {line}: {split_column}')
            else:
                split = hash_split(id_, val_share)
            values = {type_: clean_text(row[column]) for type_, column in columns.items()}
            products.append(
                dict(
                    id=id_,
                    line=line,
                    title=row[TITLE],
                    split=split,
                    entities={t: [v] for t, v in values.items() if not is_missing(v)},
                )
            )
    return products


def split_name(value: str, where: str) -> str:
    """The value of the split column, which names a file."""
    if not re.fullmatch(r'\w[\w-]*', value) or value in ('entities', 'converter_report'):
        raise InputError(
            f'{where}: found {value!r}, expected a word that can name a file, such as train or val.'
        )
    return value


def coco(products: Sequence[dict], split: str, types: Sequence[str]) -> dict:
    """One split in the format of docs/data_format.md."""
    return dict(
        info=dict(
            description='Fashion Product Images (Kaggle), written by '
            'tools/dataset_converters/fashion_products.py',
            entity_types=list(types),
            split=split,
        ),
        licenses=[],
        images=[
            dict(id=p['id'], product_id=p['id'])
            | {key: p[key] for key in ('file_name', 'width', 'height')}
            for p in products
        ],
        annotations=[
            dict(id=i, image_id=p['id'], caption=p['title'], entities=p['entities'])
            for i, p in enumerate(products, 1)
        ],
    )


def check_types(styles: Path, types: Sequence[str] | None) -> list[str]:
    """The entity types to write; by default brand, the required columns and the optional ones."""
    header = header_of(styles)
    if types is None:
        optional = [type_ for type_ in OPTIONAL if COLUMNS[type_] in header]
        return ['brand', 'article_type', 'colour', 'usage', *optional]
    unknown = [type_ for type_ in types if type_ != 'brand' and type_ not in COLUMNS]
    if unknown or not types or len(set(types)) != len(types):
        raise InputError(
            f'--types: found {list(types)}, expected some of {["brand", *COLUMNS]}, each once.'
        )
    return list(types)


def check(images: Path, val_share: float) -> None:
    """Refuse what no row could mend."""
    if not 0 <= val_share < 1:
        raise InputError(f'--val-share: found {val_share}, expected a number from 0 to below 1.')
    if not images.is_dir() and not zipfile.is_zipfile(images):
        raise InputError(f'--images: {images} is neither a folder nor a zip file, or not there.')


def convert(
    styles: str | Path,
    images: str | Path,
    out: str | Path,
    split_column: str | None = None,
    val_share: float = 0.125,
    min_count: int = 2,
    types: Sequence[str] | None = None,
    limit: int | None = None,
    verify_images: bool = False,
    keywords: int = 0,
    on_error: str = 'skip',
    max_bad: float = MAX_BAD,
) -> dict:
    """Write the converted data set to ``out``; arguments as on the command line.

    Returns:
        The report, as it is written to ``converter_report.json``.
    """
    styles, images, out = Path(styles), Path(images), Path(out)
    types = check_types(styles, types)
    check(images, val_share)
    check_counts(min_count, keywords)
    skipped: dict[str, list] = {}
    archive_notes: list[str] = []

    def skip(reason: str, **what) -> None:
        skipped.setdefault(reason, []).append(what)

    products = read_products(styles, types, split_column, val_share, limit, skip)
    num_rows = len(products) + sum(map(len, skipped.values()))
    ids = [product['id'] for product in products]
    if images.is_dir():
        paths = find_images(images, ids)
    else:
        paths = extract_images(images, ids, out / 'images', archive_notes.append)
    products = add_images(products, paths, out, verify_images, skip)
    if not products:
        raise InputError(
            f'{styles} and {images}: found no row with a readable photo among {num_rows} rows, '
            f'expected photos such as {ids[0] if ids else 1163}.jpg. Left out: '
            f'{ {reason: len(what) for reason, what in skipped.items()} }.'
        )
    check_left_out(styles, skipped, num_rows, on_error, max_bad)
    splits = by_split(products, styles)
    if 'brand' in types:
        add_brands(splits)
    num_train = len(splits['train'])
    source = f'{styles.name}, split train, {num_train} products, names of {min_count} products'
    vocab = vocabulary(splits['train'], types, min_count, keywords, f'{source} or more')
    report = dict(
        styles=str(styles),
        images=str(images),
        rows=num_rows,
        products={split: len(group) for split, group in splits.items()},
        with_entity=with_entity(splits, types),
        vocabulary={type_: len(names) for type_, names in vocab.names.items()},
        skipped=skipped,
        archive_notes=archive_notes,
    )
    coded = {split: coco(group, split, types) for split, group in splits.items()}
    write_all(out, coded, vocab, report)
    return report


def by_split(products: Sequence[dict], styles: Path) -> dict[str, list[dict]]:
    """The products of each split, in the order of their names; train must be one."""
    names = sorted({product['split'] for product in products})
    if 'train' not in names:
        raise InputError(
            f'{styles}: found the splits {names}, expected "train" among them; brands '
            'and vocabulary are learned on it.'
        )
    return {name: [p for p in products if p['split'] == name] for name in names}


def add_brands(splits: Mapping[str, Sequence[dict]]) -> None:
    """Put the brands, learned on train, before the other entities."""
    brands = Brands(product['title'] for product in splits['train'])
    for group in splits.values():
        for product in group:
            if brand := brands.of(product['title']):
                product['entities'] = dict(brand=[brand], **product['entities'])


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--styles', required=True, help='styles.csv of the data set')
    parser.add_argument('--images', required=True, help='zip or folder with the photos <id>.jpg')
    parser.add_argument('--out', required=True, help='folder to write')
    split = parser.add_mutually_exclusive_group()
    split.add_argument('--split-column', help='column that names the split of each row')
    split.add_argument(
        '--val-share', type=float, default=0.125, help='else: share of val, by a hash of the id'
    )
    add_error_options(parser, 'skip')  # the data set is known for photos that are missing
    add_vocabulary_options(parser)
    parser.add_argument('--types', nargs='+', help=f'entity types: brand {" ".join(COLUMNS)}')
    parser.add_argument('--limit', type=int, help='only the first rows, to try it out')
    parser.add_argument('--verify-images', action='store_true', help='decode every photo')
    try:
        report = convert(**vars(parser.parse_args(argv)))
    except (ValueError, OSError) as error:
        sys.exit(f'{Path(__file__).name}: {error}')
    print(f'{report["rows"]:,} rows of {report["styles"]}')
    print(summary(report, report['skipped']))
    if notes := report['archive_notes']:
        print(f'in {report["images"]}: {len(notes)} entries not unpacked, e.g. {notes[0]}')


if __name__ == '__main__':
    main()
