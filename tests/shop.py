"""A small shop for the tests of search: coloured photos, a table, and the checkpoint of a model."""

import csv
from pathlib import Path

import numpy as np
import tiny
import torch
from mmengine.config import Config
from PIL import Image

COLOURS = dict(red=(220, 20, 30), green=(20, 160, 40), blue=(30, 40, 200), grey=(128, 128, 128))
BRANDS = ('Diesel', 'Golden Goose', "Levi's", 'Nobody')  # the vocabulary lacks the last
PIPELINE = [
    dict(type='LoadProductImage'),
    dict(type='ResizeEdge', scale=32, edge='short'),
    dict(type='CenterCrop', crop_size=32),
    dict(type='PackProduct'),
]


def write_checkpoint(path: Path, model=None, seed: int = 0, kind='EICLIP', **changes) -> Path:
    """A tiny model as tools/train.py writes one: weights, and the config in plain text.

    The config names a file of the vocabulary that is not there; the weights hold it, too.
    """
    parts = dict(selector=dict(type='KeepAll'), learner=dict(type='EALearner'))
    config = (
        dict(
            type=kind,
            towers=dict(type='OpenCLIPTowers', model=tiny.ARCHITECTURE),
            tokenizer=tiny.tokenizer(),
            **(parts if kind == 'EICLIP' else {}),
        )
        | changes
    )
    config['tokenizer'] = dict(config['tokenizer'], vocab='entities.json')
    loader = dict(dataset=dict(type='CocoProducts', pipeline=PIPELINE))
    text = Config(dict(model=config, test_dataloader=loader)).pretty_text
    if model is None:
        model = tiny.randomised(tiny.model(kind, seed=seed, **changes), 0.2, seed)
    torch.save(dict(state_dict=model.state_dict(), meta=dict(cfg=text, epoch=1)), path)
    return path


def rows(count: int = 24) -> list[dict]:
    """Products 'p0', 'p1', ... of every brand and colour."""
    names = list(COLOURS)
    return [
        dict(
            id=f'p{i}',
            description=f'{names[i % 4]} tee number {i}',
            image=f'{i}.png',
            brand=BRANDS[i // 4 % 4],
            composition='cotton|silk' if i % 3 else '',
            price=f'{5 + i}.5',
            sku=f'{i:03d}x',
        )
        for i in range(count)
    ]


def write_photos(folder: Path, count: int = 24) -> Path:
    """The photos of :func:`rows`: their colour, with noise of their own."""
    folder.mkdir(exist_ok=True)
    for i in range(count):
        noise = np.random.default_rng(i).integers(-20, 20, (40, 40, 3))
        pixels = np.array(list(COLOURS.values())[i % 4]) + noise
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f'{i}.png')
    return folder


def write_csv(path: Path, products: list[dict]) -> Path:
    with open(path, 'w', encoding='utf-8', newline='') as file:
        writer = csv.DictWriter(file, list(products[0]))
        writer.writeheader()
        writer.writerows(products)
    return path
