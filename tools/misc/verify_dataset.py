"""Check the data of a config and print what is in it: python tools/misc/verify_dataset.py CONFIG

Reads every product, text and photo of the data sets for training, validation and testing; photos
from where a run reads them, packs first. Ends with status 1 where a data set cannot be read or a
photo cannot be decoded. With --on-error skip rows that cannot be used are left out, as a data set
with on_error='skip' does; --list-bad OUT.json writes all of them, however many there are.
"""

import argparse
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from mmengine.registry import init_default_scope
from tqdm import tqdm

import eiclip_mm  # noqa: F401  (checks the installation)
from eiclip_mm.datasets import LoadProductImage, ProductDataset
from eiclip_mm.datasets.bad_rows import ON_ERROR
from eiclip_mm.datasets.photo_check import packs_of, records_alone
from eiclip_mm.datasets.product_dataset import image_key
from eiclip_mm.evaluation.report import check_writable
from eiclip_mm.registry import DATASETS
from eiclip_mm.structures import UNKNOWN, entity_key
from eiclip_mm.utils import load_config
from eiclip_mm.utils.sentence import told
from eiclip_mm.utils.untrusted import shown
from eiclip_mm.utils.whole_file import write_whole_text

SPLITS = ('train', 'val', 'test')


def main(argv: list[str] | None = None) -> None:
    """Check each split of the config in turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config', help='config file')
    parser.add_argument('--split', choices=SPLITS, help='check this one alone')
    parser.add_argument('--no-images', action='store_true', help='do not read the photos')
    parser.add_argument(
        '--on-error', choices=ON_ERROR, help="rows that cannot be used; by default the config's way"
    )
    parser.add_argument(
        '--list-bad', type=Path, metavar='OUT.json', help='write the rows that cannot be used'
    )
    args = parser.parse_args(argv)
    try:
        cfg = load_config(args.config)
        if args.list_bad:
            check_writable(args.list_bad)
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from error
    init_default_scope('eiclip_mm')
    wanted = [args.split] if args.split else SPLITS
    loaders = {split: cfg.get(f'{split}_dataloader') for split in wanted}
    # A list, not a generator: one broken split does not hide the next.
    bad: list[tuple[str, dict]] = []
    sound = [
        check(split, with_options(loader.dataset, args), args.no_images, bad)
        for split, loader in loaders.items()
        if loader
    ]
    if not sound:
        raise SystemExit(f'{args.config} has no dataloader for {" or ".join(wanted)}.')
    if args.list_bad:
        write_bad(args.list_bad, bad)
    unasked = bad and args.on_error != 'skip' and args.list_bad
    raise SystemExit(bool(unasked) or not all(sound))


def with_options(cfg: Mapping, args: argparse.Namespace) -> dict:
    """A data set that does with bad rows what the options say."""
    if args.list_bad:
        limit = {} if args.on_error == 'skip' else dict(max_bad=1.0)
        return dict(cfg, on_error='skip', **limit)
    return dict(cfg, on_error=args.on_error) if args.on_error else dict(cfg)


def write_bad(path: Path, bad: list[tuple[str, dict]]) -> None:
    """All rows that cannot be used: splits, file, row and why; each once, also of a shared file."""
    rows: dict[tuple, dict] = {}
    for split, row in bad:
        rows.setdefault((row['file'], row['row']), dict(splits=[]) | row)['splits'].append(split)
    with told(path):
        write_whole_text(path, json.dumps(list(rows.values()), ensure_ascii=False, indent=1))
    print(f'\n{len(rows)} rows that cannot be used are listed in {path}')


def check(split: str, cfg: Mapping, no_images: bool, bad: list[tuple[str, dict]]) -> bool:
    """Print what a data set holds, add to ``bad``; False if it cannot be read in full."""
    tokenizer = cfg.get('tokenizer')
    print(f'\n== {split}: {cfg["type"]} {cfg["ann_file"]}, fold {cfg.get("fold", "all")} ==')
    if tokenizer and isinstance(tokenizer.vocab, str) and not Path(tokenizer.vocab).is_file():
        print(f'no vocabulary {tokenizer.vocab}: texts are not encoded. Write it with')
        print('python tools/dataset_converters/build_entities.py CONFIG')
        tokenizer = None
    # with random views a record holds all views and captions of its product
    wanted = records_alone(cfg, tokenizer=tokenizer, views='random')
    try:
        dataset = DATASETS.build(wanted)
    except (ValueError, KeyError, OSError) as error:
        print(f'CANNOT BE READ: {error}')
        return False
    report_products(dataset)
    report_entities(dataset)
    report_texts(dataset)
    broken = [] if no_images else report_images(dataset)
    bad += [(split, row) for row in (*dataset.skipped, *broken)]
    return not broken


def report_products(dataset: ProductDataset) -> None:
    """Products, views, captions."""
    views, captions, scattered = [], 0, 0
    for record in dataset.records():
        views.append(len(record['images']))
        captions += len(record['texts'])
        rows = [image['row'] for image in record['images'] if 'row' in image]
        scattered += rows != list(range(rows[0], rows[0] + len(rows))) if rows else 0
    mean = sum(views) / len(views)
    print(f'products                     {len(views)}')
    if dataset.skipped:
        print(f'rows left out                {len(dataset.skipped)}')
    print(f'views of a product           {min(views)} to {max(views)}, {mean:.2f} on average')
    print(f'views                        {sum(views)}')
    print(f'captions                     {captions}')
    print(f'products in scattered rows   {scattered}')


def report_entities(dataset: ProductDataset) -> None:
    """Entity types: who has them, how many names, what the vocabulary lacks."""
    vocab = dataset.tokenizer and dataset.tokenizer.vocab
    products, unknown, names = Counter(), Counter(), {}
    for record in dataset.records():
        for type_, values in record['entities'].items():
            keys = {entity_key(value) for value in values} - {''}
            names.setdefault(type_, set()).update(keys)
            products[type_] += bool(keys)
            if vocab and type_ in vocab.types:
                unknown[type_] += any(vocab.id(type_, key) == UNKNOWN for key in keys)
    for type_ in dict.fromkeys((*names, *(vocab.types if vocab else ()))):
        held = f'{len(names[type_])} names in {products[type_]} products' if type_ in names else ''
        line = f'{type_:28} {held or "not in the metadata, read from texts"}'
        if vocab and type_ in vocab.types:
            line += f'; vocabulary of {vocab.size(type_) - 1}, unknown in {unknown[type_]} products'
        print(line)


def report_texts(dataset: ProductDataset) -> None:
    """Texts: empty, repeated, not ASCII, too long for the model."""
    seen, not_ascii, cut, lost = {}, 0, 0, 0
    for record in dataset.records():
        for fields in record['texts']:
            text = ' '.join(fields.values())
            if dataset.tokenizer:
                encoded = dataset.tokenizer(fields, record['entities'])
                text = encoded.composed
                cut, lost = cut + (encoded.dropped > 0), lost + encoded.dropped
            not_ascii += not text.isascii()
            seen.setdefault(text, set()).add(record['product_id'])
    shared = [ids for text, ids in seen.items() if text and len(ids) > 1]
    print(f'products without text        {len(seen.get("", ()))}')
    print(f'products of one text         {sum(map(len, shared))}, sharing {len(shared)} texts')
    print(f'texts not in ASCII           {not_ascii}')
    if dataset.tokenizer:
        label = f'texts over {dataset.tokenizer.subwords.context_length} tokens'
        print(f'{label:28} {cut}, losing {lost} sub-words')


def report_images(dataset: ProductDataset) -> list[dict]:
    """Read every photo; those that cannot be decoded, as data sets list them."""
    load, black, broken = LoadProductImage(), 0, []
    packs = packs_of(dataset.pipeline.transforms)
    for image in tqdm(dataset.images().values(), 'photos', unit='img'):
        try:
            found = (pack.get(image) for pack in packs)
            pixels = next((p for p in found if p is not None), None)
            black += not (load(dict(image))['img'] if pixels is None else pixels).any()
        except (ValueError, OSError) as error:
            file, *row = image_key(image)
            broken.append(dict(file=file, row=f'row {row[0]}' if row else '', why=str(error)))
    print(f'photos all black             {black}')
    print(f'photos that cannot be read   {len(broken)}')
    for error in broken[:10]:
        print(f'  {shown(error["why"])}')
    return broken


if __name__ == '__main__':
    main()
