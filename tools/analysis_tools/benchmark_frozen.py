"""Training steps of EI-CLIP on frozen towers: computed each time, or from cached features.

python tools/analysis_tools/benchmark_frozen.py [--model ViT-B-32-quickgelu --batch-size 1024]

``trunks`` runs both frozen towers in every step (of 32 products by default, for it is slow), on
pixels and texts in memory. ``features`` makes the same step from features in memory, ``loader``
from features that the data set delivers in batches, as training does. Weights and data are drawn.
"""

import argparse
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from _benchmark import Meter, add_options, run, table

WAYS = ('trunks', 'features', 'loader')
TYPES = dict(brand=60, article_type=30, colour=20, usage=8)


def parse_args() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--model', default='ViT-B-32-quickgelu', help='of open_clip')
    parser.add_argument('--batch-size', type=int, default=1024, help='of features and loader')
    parser.add_argument('--trunk-batch', type=int, default=32, help='of trunks')
    parser.add_argument('--steps', type=int, default=4, help='measured; of trunks one')
    add_options(parser, WAYS, repeats=1)
    return parser.parse_args()


def main() -> None:
    """Run every way in turn and print the medians."""
    args = parse_args()
    found = run({way: partial(measure, way) for way in WAYS}, args)
    columns = {
        'batch': lambda row: f'{row["batch"]:.0f}',
        'pairs per CPU-s': lambda row: f'{row["pairs"] / row["cpu"]:,.1f}',
        'pairs/s': lambda row: f'{row["pairs"] / row["wall"]:,.1f}',
        'peak MB': lambda row: f'{row["mb"]:.0f}',
    }
    print(f'{args.model}, bfloat16, {args.threads} threads, {args.device}\n')
    print(table(found, columns))


def measure(way: str, args: argparse.Namespace) -> dict:
    """Resources of some steps after one that is not counted."""
    import eiclip_mm.engine  # noqa: F401  so that imports are not measured

    steps, batch = (1, args.trunk_batch) if way == 'trunks' else (args.steps, args.batch_size)
    model, dataset, wrapper = build(args, (steps + 1) * batch)
    batches = loaded(dataset, batch) if way == 'loader' else drawn(way, model, dataset, batch, args)
    model.train_step(next(batches), wrapper)
    with Meter(args.device) as used:
        for _ in range(steps):
            model.train_step(next(batches), wrapper)
    return used.result | dict(pairs=steps * batch, batch=batch)


def build(args: argparse.Namespace, products: int):
    """EI-CLIP on frozen towers, products whose features are cached, and the optimiser."""
    from mmengine.optim import build_optim_wrapper
    from mmengine.registry import init_default_scope

    from eiclip_mm.registry import MODELS
    from eiclip_mm.structures import EntityVocab

    init_default_scope('eiclip_mm')
    torch.manual_seed(0)
    names = {t: tuple(f'{t} {i}' for i in range(n)) for t, n in TYPES.items()}
    vocab = EntityVocab(names, {t: (1,) * n for t, n in TYPES.items()})
    tokenizer = dict(
        type='EntityTokenizer', model=args.model, vocab=vocab, fields=('description', *TYPES)
    )
    towers = dict(type='OpenCLIPTowers', model=args.model, image_unlocked=0, text_unlocked=0)
    model = MODELS.build(
        dict(
            type='EICLIP', towers=towers, tokenizer=tokenizer,
            selector=dict(type='EffectCESelector'), learner=dict(type='EALearner'),
        )
    ).to(args.device)  # fmt: skip
    optimizer = dict(type='AdamW', lr=5e-4, fused=True)
    wrapper = dict(
        type='AutocastOptimWrapper', optimizer=optimizer, clip_grad=dict(max_norm=1.0),
        constructor='TowerLrConstructor',
    )  # fmt: skip
    return (
        model,
        cached_products(tokenizer, products, model.towers.dim),
        build_optim_wrapper(model, wrapper),
    )


def cached_products(tokenizer: dict, count: int, dim: int):
    """Products with drawn entities, as they are once both caches are filled."""
    from dataclasses import replace

    from eiclip_mm.datasets.product_dataset import ProductDataset

    rng = np.random.default_rng(0)

    class Products(ProductDataset):
        def load_records(self) -> list[dict]:
            return [
                dict(
                    product_id=i, sample_idx=i, images=[dict(img_path=str(i))],
                    texts=[dict(description=f'a long description of product {i}')],
                    entities={t: [f'{t} {rng.integers(n)}'] for t, n in TYPES.items()},
                )
                for i in range(count)
            ]  # fmt: skip

    pipeline = [
        dict(type='LoadImageFeature', pipeline=[]),
        dict(type='EntityDropout', prob=0.1),
        dict(type='PackProduct'),
    ]
    dataset = Products(ann_file='', tokenizer=tokenizer, pipeline=pipeline, batched=True)
    dataset.set_epoch(0)
    tokens = dataset.encoded.text
    features = rng.standard_normal((count, dim), dtype=np.float32)
    dataset.folder = tempfile.TemporaryDirectory()  # lives as long as the data set
    path = Path(dataset.folder.name) / 'features.npy'
    np.save(path, features)
    dataset.pipeline.transforms[0].use(str(path), {(str(i),): i for i in range(count)})
    dataset.encoded = replace(dataset.encoded, text=features)
    dataset.tokens = tokens
    return dataset


def loaded(dataset, batch: int) -> Iterator[dict]:
    """Batches as training gets them, in this process, so that their CPU time counts."""
    from eiclip_mm.datasets.batches import stack_products

    return iter(torch.utils.data.DataLoader(dataset, batch, collate_fn=stack_products))


def drawn(way: str, model, dataset, batch: int, args: argparse.Namespace) -> Iterator[dict]:
    """One batch again and again, of features or of what the towers read."""
    data = next(loaded(dataset, batch))
    if way == 'trunks':
        size = model.towers.clip.visual.image_size
        height, width = size if isinstance(size, tuple) else (size, size)
        data['image'] = torch.randint(256, (batch, 3, height, width), dtype=torch.uint8)
        data['text'] = torch.from_numpy(dataset.tokens[:batch]).long()
    while True:
        yield dict(data)


if __name__ == '__main__':
    main()
