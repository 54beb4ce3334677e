"""Build the entity vocabulary of a config's training split.

python tools/dataset_converters/build_entities.py configs/eiclip_fashiongen.py
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config
from mmengine.registry import init_default_scope
from tqdm import tqdm

import eiclip_mm  # noqa: F401  (checks the installation)
from eiclip_mm.datasets.bad_rows import ON_ERROR
from eiclip_mm.datasets.keywords import add_keywords
from eiclip_mm.datasets.photo_check import records_alone
from eiclip_mm.evaluation.report import check_writable
from eiclip_mm.registry import DATASETS
from eiclip_mm.structures import EntityVocab
from eiclip_mm.utils import load_config
from eiclip_mm.utils.sentence import told


def main(argv: Sequence[str] | None = None) -> None:
    """Read train's records, count entities, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config whose train_dataloader and model are meant')
    parser.add_argument('--types', nargs='+', help="entity types; by default the data set's")
    parser.add_argument(
        '--min-count', type=int, default=2, help='rarer names become unknown (default 2)'
    )
    parser.add_argument(
        '--keywords',
        type=int,
        default=0,
        metavar='COUNT',
        help='add the type "keyword": words of descriptions that so many training products have; '
        '0: none (default 0)',
    )
    parser.add_argument('--out', help="file to write; by default the config's vocabulary")
    parser.add_argument('--on-error', choices=ON_ERROR, help="by default the data set's own")
    args = parser.parse_args(argv)
    if args.min_count < 1:
        raise SystemExit(f'--min-count: found {args.min_count}, expected 1 or more.')
    if args.keywords < 0:
        raise SystemExit(f'--keywords: found {args.keywords}, expected 1 or more, or 0 for none.')
    try:
        cfg = load_config(args.config)
    except (ValueError, OSError) as error:
        raise SystemExit(str(error)) from error
    if args.on_error:
        cfg.train_dataloader.dataset.on_error = args.on_error
    init_default_scope('eiclip_mm')
    path = Path(args.out or cfg.model.tokenizer.vocab)
    try:
        check_writable(path)
        vocab = build(cfg, args.types, args.min_count, args.keywords)
        with told(path):
            vocab.save(path)
    except (ValueError, OSError) as error:
        raise SystemExit(str(error)) from error
    for type_ in vocab.types:
        print(f'{type_}: {vocab.size(type_) - 1} names, e.g. {", ".join(vocab.names[type_][:5])}')
    print(f'written to {path}')


def build(
    cfg: Config,
    types: Sequence[str] | None = None,
    min_count: int = 2,
    keywords: int = 0,
) -> EntityVocab:
    """Vocabulary of the whole training split of a config."""
    wanted = records_alone(cfg.train_dataloader.dataset, fold='all', views='first')
    dataset = DATASETS.build(wanted)
    records = list(tqdm(dataset.records(), 'products', len(dataset)))
    products = [record['entities'] for record in records]
    found = list(dict.fromkeys(t for entities in products for t in entities))
    vocab = EntityVocab.build(
        products,
        types or list(getattr(dataset, 'entity_types', found)),
        min_count,
        source=f'training split {dataset.ann_file}: {len(products)} products, '
        f'names in at least {min_count}',
    )
    if not keywords:
        return vocab
    return add_keywords(vocab, (' '.join(r['text_fields'].values()) for r in records), keywords)


if __name__ == '__main__':
    main()
