"""What the diagnostics share: a checkpoint and its catalogue, embedded as a reader asks for it."""

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from mmengine.config import Config, DictAction
from mmengine.registry import init_default_scope
from mmengine.runner import Runner, load_checkpoint
from torch import Tensor

import eiclip_mm  # noqa: F401  (checks the installation)
from eiclip_mm.datasets import EntityTokenizer, ProductDataset
from eiclip_mm.engine import ImageFeatureCache
from eiclip_mm.evaluation import Embeddings
from eiclip_mm.evaluation.statistics import Difference
from eiclip_mm.models import OpenCLIP
from eiclip_mm.models.causal_effects import bootstrap_interval
from eiclip_mm.registry import DATASETS, MODELS, TOKENIZER

sys.path.append(str(Path(__file__).resolve().parents[1]))
from _cli import checkpoint_path, read_config

PROTOCOL = 'full/first-image'
SHOWN = ('i2t/R@1', 'i2t/R@10', 't2i/R@1', 't2i/R@10', 'SumR')
Texts = Sequence[tuple[Mapping[str, str], Mapping[str, Sequence[str]]]]  # fields, entities


def add_options(parser: argparse.ArgumentParser, checkpoint: bool = True) -> None:
    """Config, checkpoint, overrides and output, the same for all."""
    add = parser.add_argument
    add('config', help='config file')
    if checkpoint:
        add('checkpoint', help='checkpoint of a training run, or "none" for the towers as they are')
    add('--out', type=Path, metavar='FILE.json', help='write everything here too')
    add('--cfg-options', nargs='+', action=DictAction, help='as in tools/test.py')
    parser.set_defaults(work_dir=None, launcher='none', local_rank=0)


def opened(args: argparse.Namespace) -> Config:
    """The config, its names resolved in our scope."""
    cfg = read_config(args)
    init_default_scope('eiclip_mm')
    return cfg


def model_of(cfg: Config, checkpoint: str) -> OpenCLIP:
    """The model with the weights of a checkpoint, ready to embed."""
    cfg = Config(cfg.to_dict())  # without the pretrained towers once there is a checkpoint
    path = checkpoint_path(cfg, checkpoint)
    model = MODELS.build(cfg.model)
    if path is not None:
        load_checkpoint(model, str(path), map_location='cpu', strict=True, logger='silent')
    return model.to('cuda' if torch.cuda.is_available() else 'cpu').eval()


def dataset_of(cfg: Config, split: str = 'test', **changes) -> ProductDataset:
    """One item a product, its first photo and caption, read as a test reads them."""
    wanted = dict(cfg[f'{split}_dataloader'].dataset)
    test = cfg.test_dataloader.dataset
    same = dict(views='first', pipeline=test.pipeline, tokenizer=cfg.model.tokenizer)
    return DATASETS.build(wanted | same | changes)


def fill_cache(cfg: Config, model: OpenCLIP, dataset: ProductDataset) -> None:
    """Compute cached features of photos, where the config has them cached."""
    for hook in cfg.get('custom_hooks') or ():
        if hook['type'].rpartition('.')[2] == 'ImageFeatureCache':
            settings = {k: v for k, v in hook.items() if k != 'type'}
            ImageFeatureCache(**settings).fill(model.towers, dataset)


@torch.no_grad()
def embed_photos(cfg: Config, models: Sequence[OpenCLIP], dataset: ProductDataset) -> list[Tensor]:
    """For each model the (P, D) unit embeddings of the photos; frozen trunks must be the same."""
    fill_cache(cfg, models[0], dataset)
    loader = cfg.test_dataloader.copy()
    loader.update(dataset=dataset, num_workers=0, persistent_workers=False, pin_memory=False)
    loader.sampler = dict(type='DefaultSampler', shuffle=False)
    found = [[] for _ in models]
    for batch in Runner.build_dataloader(loader):
        for model, parts in zip(models, found, strict=True):
            image = model.data_preprocessor(dict(image=batch['image']))['image']
            parts.append(model.encode_image(image).float().cpu())
    return [torch.cat(parts) for parts in found]


@torch.no_grad()
def embed_tokens(model: OpenCLIP, text: Tensor, entity_ids: Tensor) -> Tensor:
    """(T, L) token ids and (T, K, M) entity ids -> (T, D) unit embeddings."""
    device = next(model.parameters()).device
    parts = [
        model.encode_product(*(x.to(device) for x in both)).float().cpu()
        for both in zip(text.long().split(256), entity_ids.long().split(256), strict=True)
    ]
    return torch.cat(parts)


def embed_texts(model: OpenCLIP, texts: Texts, tokenizer: EntityTokenizer | None = None) -> Tensor:
    """(T, D) unit embeddings of products, read by the model's tokenizer or another."""
    encoded = (tokenizer or model.tokenizer).encode_all(texts)
    return embed_tokens(model, torch.from_numpy(encoded.text), torch.from_numpy(encoded.entity_ids))


def tokenizer_of(cfg: Config, **changes) -> EntityTokenizer:
    """The config's tokenizer with changes."""
    return TOKENIZER.build(dict(cfg.model.tokenizer) | changes)


def texts_of(dataset: ProductDataset) -> Texts:
    """Text fields and entities of each item."""
    return [(data['text_fields'], data['entities']) for data in dataset.records()]


def product_ids(dataset: ProductDataset) -> Tensor:
    """(P,) of the items."""
    return torch.tensor([data['product_id'] for data in dataset.records()])


def entity_ids(tokenizer: EntityTokenizer, texts: Texts, type_: str) -> list[list[int]]:
    """For each product the ids of its known entities of a type."""
    vocab = tokenizer.vocab
    if type_ not in vocab.types:
        raise ValueError(f'--type {type_!r} is not in the vocabulary; it has {vocab.types}.')
    found = [[vocab.id(type_, name) for name in tags.get(type_, ())] for _, tags in texts]
    return [list(dict.fromkeys(filter(None, own))) for own in found]


def holding(ids: Iterable[Sequence[int]], size: int) -> Tensor:
    """(P, size) bool: whether a product has an entity; column 0 is empty."""
    ids = list(ids)
    holds = torch.zeros(len(ids), size, dtype=torch.bool)
    for row, own in enumerate(ids):
        holds[row, own] = True
    return holds


def embeddings(image: Tensor, product: Tensor, ids: Tensor) -> Embeddings:
    """First photos and captions of products, for protocols."""
    return Embeddings(image=image, image_product_id=ids, product=product, product_id=ids)


def means(columns: Mapping[str, Tensor]) -> dict[str, dict[str, float]]:
    """Mean of each column with its 95 % bootstrap interval over the rows."""
    values = torch.stack(list(columns.values()), 1).double()
    low, high = bootstrap_interval(values, 0.95, seed=0)
    return {
        name: dict(mean=float(values[:, i].mean()), low=float(low[i]), high=float(high[i]))
        for i, name in enumerate(columns)
    }


def mean_rows(measures: Mapping) -> list[list[str]]:
    """A row for each mean."""
    rows = [['mean', 'value', '95 % interval']]
    for name, m in measures.items():
        rows.append([name, f'{m["mean"]:.4g}', f'[{m["low"]:.4g}, {m["high"]:.4g}]'])
    return rows


def difference_rows(found: Mapping[str, Mapping[str, Difference]]) -> list[list[str]]:
    """A row for each comparison and measure that is shown."""
    rows = [['b - a', 'measure', 'a', 'b', 'difference', '95 % interval', 'p']]
    for pair, measures in found.items():
        for name in SHOWN:
            d = measures[name]
            cells = [f'{d.a:.2f}', f'{d.b:.2f}', f'{d.difference:+.2f}']
            rows.append([pair, name, *cells, f'[{d.low:.2f}, {d.high:.2f}]', f'{d.p:.2g}'])
    return rows


def plain(found: Mapping[str, Difference]) -> dict:
    """Differences as plain JSON."""
    return {name: asdict(d) for name, d in found.items()}
