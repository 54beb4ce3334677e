"""Split a COCO catalogue so that training never sees a part of the brands.

python tools/dataset_converters/hold_out_entities.py CONFIG --type brand --share 0.1 --out DIR

Writes train.json without the products of a tenth of the brands, val_unseen.json with val's products
of these brands alone, and entities.json without their names. Photos are referred to where they are.
"""

import argparse
import json
import os
from collections.abc import Container, Mapping
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path

from mmengine.config import Config
from mmengine.registry import init_default_scope

import eiclip_mm  # noqa: F401  (checks the installation)
from eiclip_mm.datasets import CocoProducts
from eiclip_mm.datasets.photo_check import records_alone
from eiclip_mm.registry import DATASETS
from eiclip_mm.structures import EntityVocab, entity_key
from eiclip_mm.utils import load_config
from eiclip_mm.utils.sentence import refusals_told
from eiclip_mm.utils.whole_file import write_whole_text
from eiclip_mm.utils.whole_together import check_empty, whole_folder

SPLITS = dict(train='train.json', test='val_unseen.json')
OPTIONS = """--cfg-options \\
    tokenizer.vocab={out}/entities.json \\
    train_dataloader.dataset.data_root={out} val_dataloader.dataset.data_root={out} \\
    test_dataloader.dataset.data_root={out} test_dataloader.dataset.ann_file=val_unseen.json"""


@refusals_told()
def main(argv: list[str] | None = None) -> None:
    """Choose the entities, write the three files, say how they are used."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('config', help='its train_dataloader and test_dataloader are meant')
    add('--type', default='brand', help='entity type (default brand)')
    add('--share', type=float, default=0.1, help='of its names that train must not see (0.1)')
    add('--out', required=True, type=Path, help='folder of the new files')
    args = parser.parse_args(argv)
    if not 0 < args.share < 1:
        parser.error(f'--share must lie between 0 and 1, got {args.share}')
    try:
        check_empty(args.out)
    except OSError as error:
        raise SystemExit(f'--out: {error}') from error
    cfg = load_config(args.config)
    init_default_scope('eiclip_mm')
    datasets = {split: build(cfg, split) for split in ('train', 'test')}
    products = {split: held(d, args.type, args.share) for split, d in datasets.items()}
    vocab = without(EntityVocab.load(cfg.model.tokenizer.vocab), args.type, args.share)
    chosen = {split: wanted(split, datasets[split], own) for split, own in products.items()}
    try:
        with whole_folder(args.out) as folder:
            vocab.save(folder / 'entities.json')
            for split, name in SPLITS.items():
                path = Path(datasets[split].ann_file)
                root = Path(datasets[split].image_root or path.parent)
                whole = json.loads(path.read_text(encoding='utf-8-sig'))
                content = part(whole, chosen[split], root, args.out)
                write_whole_text(folder / name, json.dumps(content, ensure_ascii=False))
    except OSError as error:
        raise SystemExit(str(error)) from error
    for split, name in SPLITS.items():
        print(f'{args.out / name}: {len(chosen[split])} of {len(products[split])} products')
    print(f'train and test with\n{OPTIONS.format(out=args.out)}')


def build(cfg: Config, split: str) -> CocoProducts:
    """A data set of the config, whole, no pixels read."""
    loader = cfg[f'{split}_dataloader']
    if loader.dataset.type.rpartition('.')[2] != 'CocoProducts':
        raise SystemExit(
            f'{cfg.filename} reads {loader.dataset.type}; only CocoProducts can be split here.'
        )
    return DATASETS.build(records_alone(loader.dataset, views='first', fold='all'))


def is_held(name: str, share: float) -> bool:
    """Whether training must not see an entity; it depends on its name alone, in any spelling."""
    digest = blake2b(entity_key(name).encode(), digest_size=8).digest()
    return int.from_bytes(digest, 'big') < share * 2**64


def held(dataset: CocoProducts, type_: str, share: float) -> dict[int, bool]:
    """For each product, whether it has an entity that training must not see."""
    records = list(dataset.records())
    types = sorted({t for record in records for t in record['entities']})
    if type_ not in types:
        raise SystemExit(f'no product of {dataset.ann_file} has a {type_!r}; it has {types}.')
    return {
        record['product_id']: any(
            is_held(name, share) for name in record['entities'].get(type_, ())
        )
        for record in records
    }


def wanted(split: str, dataset: CocoProducts, products: Mapping[int, bool]) -> set[int]:
    """Products of a new file: of train those without held-out entities, of test the others."""
    chosen = {
        product_id for product_id, is_held in products.items() if is_held == (split == 'test')
    }
    if not chosen:
        raise SystemExit(
            f'no product of {dataset.ann_file} is left for {SPLITS[split]}; choose another --share.'
        )
    return chosen


def without(vocab: EntityVocab, type_: str, share: float) -> EntityVocab:
    """The vocabulary less the held-out names; other types keep their names and counts."""
    kept = [i for i, name in enumerate(vocab.names[type_]) if not is_held(name, share)]
    names, counts = (
        {t: tuple(own[i] for i in kept) if t == type_ else own for t, own in table.items()}
        for table in (vocab.names, vocab.counts)
    )
    source = f'{vocab.source}; less {vocab.size(type_) - 1 - len(kept)} held-out names of {type_}'
    return replace(vocab, names=names, counts=counts, source=source)


def part(content: Mapping, product_ids: Container[int], root: Path, out: Path) -> dict:
    """The images of these products and their annotations, paths seen from ``out``."""
    images = [
        dict(image, file_name=os.path.relpath(root.resolve() / image['file_name'], out.resolve()))
        for image in content['images']
        if image.get('product_id', image['id']) in product_ids
    ]
    ids = {image['id'] for image in images}
    annotations = [a for a in content['annotations'] if a['image_id'] in ids]
    return dict(content, images=images, annotations=annotations)


if __name__ == '__main__':
    main()
