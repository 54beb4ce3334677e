"""Small real runs: 44 products in files like Fashion-Gen's, towers of width 32, one epoch."""

import uuid
from pathlib import Path

import tiny
import torch
from mmengine.registry import DefaultScope
from mmengine.runner import Runner

from eiclip_mm.datasets import FashionGen
from eiclip_mm.datasets.synthetic import FILES, write_mini_fashiongen
from eiclip_mm.structures import EntityVocab

TYPES = ('brand', 'composition')
LOAD = [
    dict(type='LoadProductImage'),
    dict(type='ResizeEdge', scale=32, edge='short'),
    dict(type='CenterCrop', crop_size=32),
]
PIXELS = [*LOAD, dict(type='EntityDropout', prob=0.3), dict(type='PackProduct')]
# draws at every step: patches that are dropped, gates
NOISY = dict(tiny.ARCHITECTURE, vision_cfg=dict(tiny.ARCHITECTURE['vision_cfg'], patch_dropout=0.5))


def write_catalogue(folder: Path) -> tuple[Path, dict]:
    """44 products, and their vocabulary as a plain dict."""
    write_mini_fashiongen(folder, num_train=44, num_validation=2, num_general=2, progress=False)
    DefaultScope.get_instance('catalogue', scope_name='eiclip_mm')
    products = FashionGen(FILES['train'], TYPES, data_root=str(folder)).records()
    vocab = EntityVocab.build((p['entities'] for p in products), TYPES)
    return folder, vocab.to_dict()


def make_runner(
    catalogue, work_dir: Path, model=None, pipeline=PIXELS, fold='select', hooks=('StepSeedHook',),
    epochs=1, tokenizer=None, data=None, **changes,
):  # fmt: skip
    """A Runner; keyword arguments change it, ``data`` its data sets."""
    folder, vocab = catalogue
    torch.manual_seed(0)
    model = dict(
        type='EICLIP',
        towers=dict(type='OpenCLIPTowers', model=NOISY),
        selector=dict(type='GatedCESelector'),
        learner=dict(type='EALearner'),
    ) | (model or {})
    tokenizer = tiny.tokenizer(model=model['towers']['model'], vocab=vocab) | (tokenizer or {})
    batched = (data or {}).get('batched', False)
    dataset = dict(
        type='FashionGen', data_root=str(folder), ann_file=FILES['train'],
        entity_types=TYPES, tokenizer=tokenizer, pipeline=pipeline,
        serialize_data=False,  # it collects garbage, a third of a second a time
    ) | (data or {})  # fmt: skip
    collate = 'stack_products' if batched else 'default_collate'
    loader = dict(num_workers=0, collate_fn=dict(type=collate))
    settings = dict(
        model=dict(model, tokenizer=tokenizer),
        work_dir=str(work_dir),
        train_dataloader=dict(
            batch_size=16, drop_last=True, sampler=dict(type='ProductSampler', shuffle=True),
            dataset=dict(dataset, views='random', fold='fit'), **loader,
        ),
        val_dataloader=dict(
            batch_size=16, sampler=dict(type='DefaultSampler', shuffle=False),
            dataset=dict(dataset, views='first', fold=fold), **loader,
        ),
        val_evaluator=dict(type='RetrievalMetric', protocols=['full/first-image'], ks=(1, 5)),
        val_cfg=dict(),
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.003)),
        param_scheduler=[dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=5)],
        default_hooks=dict(
            checkpoint=dict(type='CheckpointHook', interval=1, rule='greater',
                            save_best='full/first-image/i2t/R@1'),
        ),
        custom_hooks=[dict(type=h) if isinstance(h, str) else h for h in hooks],
        randomness=dict(seed=7),
        default_scope='eiclip_mm',
        log_level='ERROR',
        experiment_name=f'test-{uuid.uuid4()}',
    )  # fmt: skip
    return Runner(**settings | changes)


def weights(runner) -> dict:
    """A copy of the model's state."""
    return {name: value.clone() for name, value in runner.model.state_dict().items()}


def same(a: dict, b: dict) -> bool:
    """Whether two states are equal to the bit."""
    return all(a[name].equal(b[name]) for name in a)
