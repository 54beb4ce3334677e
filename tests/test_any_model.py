"""The evaluator on models that know nothing of it: mmpretrain's CLIP, and CLIP without entities."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from catalogues import write_fashiongen
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from tiny import ARCHITECTURE

from eiclip_mm.evaluation import Embeddings, evaluate, get_protocol

ROOT = Path(__file__).resolve().parents[1]
ROWS = [
    dict(
        productID=product,
        description=f'{colour} {kind}',
        subcategory=kind,
        brand=('Diesel', 'Arrow', '')[product % 3],
    )
    for product, (colour, kind) in enumerate(
        (colour, kind)
        for kind in ('JEANS', 'SHIRTS')
        for colour in ('red', 'blue', 'green', 'black', 'white', 'pink')
    )
    for _ in range(1 + product % 3)
]
PLAIN = dict(
    type='eiclip_mm.EntityTokenizer', model=ARCHITECTURE, vocab=None, fields=('description',)
)
METRIC = dict(
    type='eiclip_mm.RetrievalMetric',
    protocols=['full/first-image', 'full/product', '101/eiclip', '101/kaleido'],
    ks=(1, 5),
)


@pytest.fixture
def catalogue(tmp_path) -> str:
    return write_fashiongen(tmp_path / 'fashiongen_256_256_validation.h5', ROWS)


def run(tmp_path, model, dataset) -> tuple[dict, Embeddings]:
    """Results of mmengine's own Runner, and what its metric wrote."""
    runner = Runner.from_cfg(
        Config(
            dict(
                default_scope='mmpretrain',
                custom_imports=dict(
                    imports=['eiclip_mm.datasets', 'eiclip_mm.models', 'eiclip_mm.evaluation']
                ),
                model=model,
                test_dataloader=dict(
                    batch_size=5,
                    num_workers=0,
                    dataset=dict(
                        type='eiclip_mm.FashionGen',
                        ann_file=str(tmp_path / 'fashiongen_256_256_validation.h5'),
                        entity_types=('brand', 'subcategory'),
                        views='all',
                        **dataset,
                    ),
                    sampler=dict(type='DefaultSampler', shuffle=True),
                    collate_fn=dict(type='default_collate'),
                ),
                test_cfg=dict(),
                test_evaluator=dict(METRIC, out=str(tmp_path / 'dump.npz')),
                work_dir=str(tmp_path),
                log_level='ERROR',
            )
        )
    )
    return runner.test(), Embeddings.load(tmp_path / 'dump.npz')


def check(results: dict, dump: Embeddings) -> None:
    """The dump gives the results again, and they are right in one number counted by hand."""
    for protocol in METRIC['protocols']:
        for key, value in evaluate(dump, protocol, ks=(1, 5)).items():
            assert results[f'{protocol}/{key}'] == value
    assert len(dump.image) == len(ROWS)
    assert dump.product_id.tolist() == list(range(12))
    assert dump.labels['subcategory'].tolist() == ['JEANS'] * 6 + ['SHIRTS'] * 6
    scores = dump.image.double() @ dump.product.double().T
    own = scores[torch.arange(len(ROWS)), dump.image_product_id]
    rank = (scores >= own[:, None] - 1e-6).sum(1)
    assert results['full/product/i2t/R@5'] == pytest.approx(100 * (rank <= 5).double().mean())


def test_mmpretrain_clip_with_data_samples(tmp_path, catalogue):
    """A model of mmpretrain, its pipeline and its data samples; ours are data set and metric."""
    pytest.importorskip('transformers', reason="mmpretrain's multimodal models need transformers")
    import open_clip
    from mmpretrain.models.multimodal.clip.clip import CLIP
    from mmpretrain.registry import MODELS, TOKENIZER

    class Words(open_clip.SimpleTokenizer):
        def get_vocab(self):
            return self.encoder

    class ShopCLIP(CLIP):
        def predict(self, images, data_samples=None):
            texts = torch.stack([torch.as_tensor(sample.text) for sample in data_samples])
            image, text = self.extract_feat(images, texts)
            for sample, i, t in zip(data_samples, image, text, strict=True):
                sample.set_field(i, 'image')
                sample.set_field(t, 'product')
            return data_samples

    TOKENIZER.register_module(name='Words', module=Words, force=True)
    MODELS.register_module(name='ShopCLIP', module=ShopCLIP, force=True)
    torch.manual_seed(0)
    results, dump = run(
        tmp_path,
        dict(
            type='ShopCLIP',
            vision_backbone=dict(
                type='VisionTransformer', img_size=16, patch_size=8, out_type='cls_token',
                pre_norm=True, arch=dict(embed_dims=32, num_layers=2, num_heads=2,
                                         feedforward_channels=64),
            ),
            projection=dict(type='CLIPProjection', in_channels=32, out_channels=24),
            text_backbone=dict(type='CLIPTransformer', width=32, layers=2, heads=2),
            tokenizer=dict(type='Words'),
            vocab_size=49408, transformer_width=32, proj_dim=24, context_length=16,
            data_preprocessor=dict(type='MultiModalDataPreprocessor', mean=[127] * 3, std=[64] * 3),
        ),
        dict(
            tokenizer=dict(PLAIN),
            pipeline=[
                dict(type='eiclip_mm.LoadProductImage'),
                dict(type='Resize', scale=16),
                dict(
                    type='PackInputs',
                    algorithm_keys=['text'],
                    meta_keys=['sample_idx', 'product_id', 'view', 'caption'],
                ),
            ],
        ),
    )  # fmt: skip
    check(results, dump)
    assert dump.card['data']['file'] == 'fashiongen_256_256_validation.h5'


def test_clip_without_entities(tmp_path, catalogue):
    """Plain open_clip: no vocabulary of entities anywhere."""
    torch.manual_seed(0)
    results, dump = run(
        tmp_path,
        dict(
            type='eiclip_mm.OpenCLIP',
            towers=dict(type='eiclip_mm.OpenCLIPTowers', model=ARCHITECTURE),
            tokenizer=dict(PLAIN),
        ),
        dict(
            tokenizer=dict(PLAIN),
            pipeline=[
                dict(type='eiclip_mm.LoadProductImage'),
                dict(type='Resize', scale=32),
                dict(type='eiclip_mm.PackProduct'),
            ],
        ),
    )
    check(results, dump)
    assert dump.card['text']['fields'] == ['description']
    assert not [name for name in dump.labels if name.endswith('.seen')]


def test_arrays_from_elsewhere(tmp_path):
    """Three arrays and ids of any framework are enough, saved by numpy alone."""
    rng = np.random.default_rng(0)
    text = rng.normal(size=(9, 4))
    text = (text / np.linalg.norm(text, axis=1, keepdims=True)).astype(np.float16)
    np.savez(
        tmp_path / 'theirs.npz',
        image=np.repeat(text, 2, 0),
        image_product_id=np.repeat(np.arange(9), 2),
        product=text,
        product_id=np.arange(9),
        **{'label.subcategory': np.array(['a'] * 5 + ['b'] * 4)},
    )
    dump = Embeddings.load(tmp_path / 'theirs.npz')
    assert dump.image_view.tolist() == [0, 1] * 9
    for protocol in METRIC['protocols']:
        assert evaluate(dump, protocol, ks=(1,))['t2i/R@1'] == 100


def test_config_without_ei_clip_is_tested_from_the_command_line(tmp_path, catalogue, monkeypatch):
    """tools/test.py on plain CLIP, untrained; the card says so."""
    import runpy
    import sys

    dump = tmp_path / 'dump.npz'
    data = {
        'test_dataloader.dataset.data_root': str(tmp_path),
        'test_dataloader.batch_size': 8,
        'test_dataloader.num_workers': 0,
        'tokenizer.vocab': None,
        'model.towers.pretrained': None,  # weights of another training, which need not be there
        '+test_evaluator.ks': '[1,5]',
    }
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT / 'tools'))
    monkeypatch.setattr(
        sys,
        'argv',
        ['test.py', 'configs/baselines/clip-zeroshot_fashiongen_mini.py', 'none', '--out',
         str(dump), '--work-dir', str(tmp_path), '--cfg-options',
         *(f'{key}={value}' for key, value in data.items())],
    )  # fmt: skip
    runpy.run_path('tools/test.py', run_name='__main__')
    found = Embeddings.load(dump)
    assert found.card['model'] == dict(
        config='clip-zeroshot_fashiongen_mini', checkpoint=None, chosen_on=None
    )
    results = json.loads((tmp_path / 'test_results.json').read_text())
    cards = json.loads((tmp_path / 'protocol_cards.json').read_text())
    assert list(cards) == ['full/first-image', 'full/product']
    assert cards['full/product']['protocol']['ties'] == 'against'
    assert cards['full/product']['galleries'] == dict(i2t=12, t2i=len(ROWS))
    assert cards['full/product']['model'] == found.card['model']
    again = evaluate(found, get_protocol('full/product'), ks=(1, 5))
    assert results['full/product/t2i/mAP'] == again['t2i/mAP']
    assert F.normalize(found.image, dim=1).allclose(found.image, atol=1e-5)
    assert DefaultScope.get_current_instance().scope_name == 'eiclip_mm'
