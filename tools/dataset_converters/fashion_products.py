r"""Convert Kaggle "Fashion Product Images" (full or small edition) to our catalogue format.

    python tools/dataset_converters/fashion_products.py --styles styles.csv --images images.zip \
        --out data/fashion_products

It writes one COCO-captions JSON a split with entities on the captions (docs/data_format.md),
``images/`` if the photos came in a zip, ``entities.json`` (the vocabulary, from train alone, with
frequent words of titles as keywords) and ``converter_report.json``, which lists every row that was
left out. A second run keeps what is already extracted.

The file has no brand column; the brand is read from the title. Source of the rule: ours.

1. *Candidate*: the 1 to 4 words before the first audience word (Men, Women's, Kids, Unisex ...).
   Spellings that differ in case, spaces and signs only are one ("Inc. 5", "INC5").
2. *Known brand*: a candidate of at least 3 train titles. Shortest first, one that extends a known
   brand is that brand if it is rare beside it (a fifth of its titles or less: "Nike Fragrances")
   or if at least 3 different words follow the brand, each in 2 titles or more (a maker with
   lines: "Turtle Check", "Turtle Solid", "Casio Enticer"). "Lee Cooper" stays beside "Lee".
3. Some brands never meet an audience word ("Colorbar"): in the train titles that have neither
   candidate nor known brand, a first word of at least 3 titles starts a brand; the brand is
   what all these titles begin with, if that is 4 words or fewer and never the whole title.
4. *The brand of a title* is the longest known brand it begins with, else its candidate, else none.
   A candidate that is not known is kept as text, so a brand of val may lie outside the vocabulary.
"""

import argparse
import csv
import json
import os
import re
import shutil
import sys
import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from eiclip_mm.datasets.keywords import add_keywords
from eiclip_mm.structures import EntityVocab, clean_text

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
NOT_A_VALUE = {'', 'na', 'n/a', 'nan', 'none', 'null'}
MIN_TITLES = 3  # train titles that make a candidate a known brand
BRAND_WORDS = 4

# "Mr. Men" is a brand, and "Spider-Man" is not for men only; "Kids-Boys" is for kids.
_AUDIENCE = re.compile(
    r'(?<![\w-])(?<!mr\. )(?:adult|boy|gent|girl|infant|kid|kidswear|ladie|lady|man|men|teen|'
    r"toddler|unisex|woman|women)(?:['’]?s)?\b",
    re.IGNORECASE,
)


class InputError(ValueError):
    """The user's files or options cannot be converted; the message says what to do."""


# ------------------------------------------------------------------------------- brands


def brand_key(words: Sequence[str]) -> str:
    """Letters and digits only, case-folded: what spellings of one brand share.

    >>> brand_key(['U.S.', 'Polo', 'Assn.']) == brand_key(['U.S.Polo', 'Assn'])
    True
    """
    return re.sub(r'[\W_]', '', ''.join(words)).casefold()


def brand_candidate(title: str) -> tuple[str, ...]:
    """Words before the first audience word, or () if there is none or they are not 1 to 4.

    >>> brand_candidate('Mother Earth Women Aug Bagru Red Kurtas')
    ('Mother', 'Earth')
    >>> brand_candidate('Kids Ville Girls Pink Top')
    ('Kids', 'Ville')
    >>> brand_candidate('Lakme Eye Pencil')
    ()
    """
    found = _AUDIENCE.search(title, len(title.split(' ', 1)[0]))  # not in the first word
    if not found:
        return ()
    words = title[: found.start()].split()
    while words and (words[-1].casefold() in ('for', 'by') or not brand_key(words[-1])):
        words.pop()
    return tuple(words) if len(words) <= BRAND_WORDS else ()


class Brands:
    """The brand rule of the module docstring, with what it learned from train titles.

    >>> brands = Brands(['Turtle Men Check Shirt', 'TURTLE Men Shirt', 'Turtle Boys Shirt'])
    >>> brands.of('Turtle Leather Belt'), brands.of('Gas Men Jeans'), brands.of('Blue Belt')
    ('Turtle', 'Gas', None)
    """

    def __init__(self, train_titles: Iterable[str]):
        titles = [clean_text(title) for title in train_titles]
        spellings = defaultdict(Counter)  # key -> printed words, of candidates
        for title in titles:
            if words := brand_candidate(title):
                spellings[brand_key(words)][words] += 1
        self.names = {}  # key of a known brand -> printed name
        self._accept({key: n for key, n in spellings.items() if key})
        self._accept_without_audience(titles)

    def _accept(self, spellings: dict[str, Counter]) -> None:
        count = {key: n.total() for key, n in spellings.items()}
        printed = {key: n.most_common(1)[0][0] for key, n in spellings.items()}
        followers = defaultdict(Counter)  # brand -> the words that follow it in longer candidates
        for key, words in printed.items():
            for n in range(1, len(words)):
                if (start := brand_key(words[:n])) in count:
                    followers[start][brand_key(words[n])] += count[key]
        makers = {k for k, n in followers.items() if sum(c >= 2 for c in n.values()) >= 3}
        for key in sorted(count, key=lambda key: (len(printed[key]), key)):
            base = self._known_start(printed[key])
            is_line = base and (base in makers or count[key] <= count[base] / 5)
            if count[key] >= MIN_TITLES and not is_line:
                self.names[key] = ' '.join(printed[key])

    def _accept_without_audience(self, titles: list[str]) -> None:
        groups = defaultdict(list)
        for title in titles:
            words = title.split()
            if words and not brand_candidate(title) and not self._known_start(words):
                groups[brand_key(words[:1])].append(words)
        for first, group in groups.items():
            if not first or len(group) < MIN_TITLES:
                continue
            keys = ([brand_key([word]) for word in words] for words in group)
            columns = zip(*keys, strict=False)
            differ = (n for n, column in enumerate(columns) if len(set(column)) > 1)
            shared = next(differ, 0)  # 0: one title is the start of all others, or all are one
            if 0 < shared <= BRAND_WORDS:
                starts = Counter(tuple(words[:shared]) for words in group)
                words = starts.most_common(1)[0][0]
                self.names[brand_key(words)] = ' '.join(words)

    def _known_start(self, words: Sequence[str]) -> str | None:
        """Key of the longest known brand that the words begin with."""
        keys = (brand_key(words[:n]) for n in range(BRAND_WORDS, 0, -1))
        return next((key for key in keys if key in self.names), None)

    def of(self, title: str) -> str | None:
        """The brand of a title, known or not; None if it names none."""
        title = clean_text(title)
        if key := self._known_start(title.split()):
            return self.names[key]
        return ' '.join(brand_candidate(title)) or None


# --------------------------------------------------------------------------------- rows


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
    if not path.is_file():
        raise InputError(f'{path} does not exist; --styles takes the styles.csv of the data set.')
    with path.open(encoding='utf-8-sig', newline='', errors='replace') as file:
        return [name.strip() for name in next(csv.reader(file), [])]


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
            if clean_text(row[TITLE]).casefold() in NOT_A_VALUE:
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
                    entities={t: [v] for t, v in values.items() if v.casefold() not in NOT_A_VALUE},
                )
            )
    return products


def hash_split(id_: int, val_share: float) -> str:
    """Split by a hash of the id: an id is in the same split in every edition."""
    return 'val' if zlib.crc32(str(id_).encode()) < val_share * 2**32 else 'train'


def split_name(value: str, where: str) -> str:
    """The value of the split column, which names a file."""
    if not re.fullmatch(r'\w[\w-]*', value) or value in ('entities', 'converter_report'):
        raise InputError(
            f'{where}: found {value!r}, expected a word that can name a file, such as train or val.'
        )
    return value


# ------------------------------------------------------------------------------- images


def find_images(images: Path, ids: Iterable[int]) -> dict[int, Path]:
    """Photo of each id in a folder, or in its ``images`` folder; ids without one are left out."""
    folder = images / 'images' if (images / 'images').is_dir() else images
    return {id_: path for id_ in ids if (path := folder / f'{id_}.jpg').is_file()}


def extract_images(archive: Path, ids: Iterable[int], folder: Path, warn) -> dict[int, Path]:
    """Unpack ``<id>.jpg`` of the ids, in whatever folder of the zip; present files are kept.

    The names inside the zip never make a path here, so no entry can climb out of ``folder``.
    What is not unpacked goes to ``warn``.
    """
    ids = set(ids)
    entries = {}
    with zipfile.ZipFile(archive) as file:
        # An archive may hold a photo twice; the one nearest to the root is taken.
        for info in sorted(file.infolist(), key=lambda info: info.filename.count('/')):
            *parents, name = info.filename.replace('\\', '/').split('/')
            if '..' in parents or (parents and (not parents[0] or ':' in parents[0])):
                warn(f'{info.filename}: unsafe path, not unpacked')
            elif re.fullmatch(r'[0-9]{1,18}\.jpg', name) and int(name[:-4]) in ids:
                entries.setdefault(int(name[:-4]), info)
        folder.mkdir(parents=True, exist_ok=True)
        paths = {}
        for id_, info in tqdm(entries.items(), 'extract', unit='image', disable=None):
            path = folder / f'{id_}.jpg'
            if not (path.is_file() and path.stat().st_size == info.file_size):
                part = path.with_suffix('.part')  # an interrupted run leaves no half photo
                try:
                    with file.open(info) as source, part.open('wb') as target:
                        shutil.copyfileobj(source, target)
                except (zipfile.BadZipFile, zlib.error, RuntimeError, EOFError) as error:
                    part.unlink(missing_ok=True)
                    warn(f'{info.filename}: damaged, not unpacked ({error})')
                    continue
                part.replace(path)
            paths[id_] = path
    return paths


def image_size(path: Path, verify: bool) -> tuple[int, int]:
    """Width and height from the header; ``verify`` decodes the pixels too."""
    with Image.open(path) as image:
        if verify:
            image.load()
        return image.size


def add_images(
    products: list[dict], paths: dict[int, Path], out: Path, verify: bool, skip
) -> list[dict]:
    """Products that have a readable photo, with its name relative to ``out`` and its size."""
    kept = []
    for product in tqdm(products, 'photos', unit='image', disable=None):
        at = dict(id=product['id'], line=product.pop('line'))
        path = paths.get(product['id'])
        if path is None:
            skip('photo is missing or damaged', **at)
            continue
        try:
            width, height = image_size(path, verify)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            skip('photo cannot be read', **at, found=f'{type(error).__name__}: {error}')
            continue
        name = Path(os.path.relpath(path, out)).as_posix()
        kept.append(dict(product, file_name=name, width=width, height=height))
    return kept


# ------------------------------------------------------------------------------- output


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
    keywords: int | None = None,
) -> dict:
    """Write the converted data set to ``out``; arguments as on the command line.

    Returns:
        The report, as it is written to ``converter_report.json``.
    """
    styles, images, out = Path(styles), Path(images), Path(out)
    types = check_types(styles, types)
    if not 0 <= val_share < 1:
        raise InputError(f'--val-share: found {val_share}, expected a number from 0 to below 1.')
    if not images.is_dir() and not zipfile.is_zipfile(images):
        raise InputError(f'--images: {images} is neither a folder nor a zip file, or not there.')

    skipped = defaultdict(list)

    def skip(reason: str, **what) -> None:
        skipped[reason].append(what)

    products = read_products(styles, types, split_column, val_share, limit, skip)
    num_rows = len(products) + sum(map(len, skipped.values()))
    ids = [product['id'] for product in products]
    archive_notes = []
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
    splits = defaultdict(list)
    for product in products:
        splits[product['split']].append(product)
    if 'train' not in splits:
        raise InputError(
            f'{styles}: found the splits {sorted(splits)}, expected "train" among them; brands '
            'and vocabulary are learned on it.'
        )
    if 'brand' in types:
        brands = Brands(product['title'] for product in splits['train'])
        for product in products:
            if brand := brands.of(product['title']):
                product['entities'] = dict(brand=[brand], **product['entities'])

    vocab = EntityVocab.build(
        (product['entities'] for product in splits['train']),
        types,
        min_count=min_count,
        source=f'{styles.name}, split train, {len(splits["train"])} products, '
        f'names of {min_count} products or more',
    )
    if keywords:
        vocab = add_keywords(vocab, (p['title'] for p in splits['train']), keywords)
    vocab.save(out / 'entities.json')
    for split, group in splits.items():
        write_json(out / f'{split}.json', coco(group, split, types))
    report = dict(
        styles=str(styles),
        images=str(images),
        rows=num_rows,
        products={split: len(group) for split, group in sorted(splits.items())},
        with_entity={
            split: {t: sum(t in p['entities'] for p in group) for t in types}
            for split, group in sorted(splits.items())
        },
        vocabulary={type_: len(names) for type_, names in vocab.names.items()},
        skipped=dict(skipped),
        archive_notes=archive_notes,
    )
    write_json(out / 'converter_report.json', report, indent=1)
    return report


def write_json(path: Path, data: dict, **kwargs) -> None:
    """Write UTF-8 JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, ensure_ascii=False, **kwargs), encoding='utf-8')


def summary(report: dict) -> str:
    """The report in a few lines."""
    lines = [f'{report["rows"]} rows of {report["styles"]}']
    for split, num in report['products'].items():
        with_entity = report['with_entity'][split].items()
        with_entity = ', '.join(f'{type_} {n}' for type_, n in with_entity)
        lines.append(f'  {split}: {num} products; with {with_entity}')
    vocabulary = ', '.join(f'{type_} {n}' for type_, n in report['vocabulary'].items())
    lines.append(f'  vocabulary: {vocabulary}')
    for reason, what in report['skipped'].items():
        lines.append(f'  left out, {reason}: {len(what)}, e.g. {what[0]}')
    if notes := report['archive_notes']:
        lines.append(f'  in {report["images"]}: {len(notes)} entries not unpacked, e.g. {notes[0]}')
    return '\n'.join(lines)


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
    parser.add_argument(
        '--min-count', type=int, default=2, help='train products that an entity needs'
    )
    parser.add_argument(
        '--keywords',
        type=int,
        default=5,
        metavar='COUNT',
        help='words of so many train titles become entities of type keyword; 0: none (default 5)',
    )
    parser.add_argument('--types', nargs='+', help=f'entity types: brand {" ".join(COLUMNS)}')
    parser.add_argument('--limit', type=int, help='only the first rows, to try it out')
    parser.add_argument('--verify-images', action='store_true', help='decode every photo')
    try:
        report = convert(**vars(parser.parse_args(argv)))
    except ValueError as error:
        sys.exit(f'{Path(__file__).name}: {error}')
    print(summary(report))


if __name__ == '__main__':
    main()
