"""The examples in projects/, each run as its README says, on a few products."""

import json
import re
import runpy
import sys
from pathlib import Path

import mmpretrain
import numpy as np
import pytest
import tiny
import torch
from mmengine.config import Config
from small import run_tool, write_data

from eiclip_mm.apis import EICLIPInferencer
from eiclip_mm.datasets.synthetic import FILES
from eiclip_mm.evaluation import Embeddings
from eiclip_mm.registry import MODELS
from eiclip_mm.structures import EntityVocab

PROJECTS = Path(__file__).resolve().parents[1] / 'projects'
DATA = Path('data/mini_fashiongen')  # where the configs look for it
LOADERS = (
    'train_dataloader.batch_size=16',
    'train_dataloader.num_workers=0',
    'val_dataloader.num_workers=0',
)


@pytest.fixture(scope='module')
def shop(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('shop')
    write_data(folder / DATA, 80, 24)
    return folder


@pytest.fixture(autouse=True)
def in_shop(shop, monkeypatch):
    monkeypatch.chdir(shop)


def train(config: str, work_dir: Path, epochs: int, *settings: str) -> None:
    """``python tools/train.py projects/CONFIG``, every loss logged."""
    share = 'dataset.select_share=0.3'
    run_tool(
        'train', PROJECTS / config, '--work-dir', work_dir, '--cfg-options', *LOADERS,
        f'train_cfg.max_epochs={epochs}', 'default_hooks.logger.interval=1',
        '+log_processor.window_size=1', f'+train_dataloader.{share}', f'+val_dataloader.{share}',
        *settings,
    )  # fmt: skip


def scalars(work_dir: Path, key: str) -> list[float]:
    """What a run logged under a key, in order."""
    (path,) = work_dir.glob('*/vis_data/scalars.json')
    rows = map(json.loads, path.read_text().splitlines())
    return [row[key] for row in rows if key in row]


def state_of(work_dir: Path) -> dict:
    (path,) = work_dir.glob('epoch_*.pth')
    return torch.load(path, map_location='cpu', weights_only=True)['state_dict']


def test_every_project_has_its_readme_and_is_listed():
    folders = {
        path.name for path in PROJECTS.iterdir() if path.is_dir() and path.name[0] not in '._'
    }
    listed = re.findall(r'^\| \[(\w+)\]\(\1/\)', (PROJECTS / 'README.md').read_text(), re.M)
    assert len(listed) == len(folders) == 5
    assert set(listed) == folders
    for name in folders:
        readme = (PROJECTS / name / 'README.md').read_text()
        for path in re.findall(r'projects/[\w./-]+\w', readme):
            assert (PROJECTS.parent / path).exists(), f'{name}/README.md names {path}'


def test_mmpretrain_trains_its_own_model_on_our_data_and_metric(tmp_path, monkeypatch):
    tool = str(Path(mmpretrain.__file__).parent / '.mim/tools/train.py')
    config = str(PROJECTS / 'mmpretrain_model/two_towers_mini.py')
    small = [f'{name}.persistent_workers=False' for name in ('train_dataloader', 'val_dataloader')]
    small += ['model.backbone.base_channels=8', 'model.backbone.stem_channels=8', 'model.width=64']
    log = ['log_processor.window_size=1', 'default_hooks.logger.interval=1']
    log += ['default_hooks.logger.type=LoggerHook', 'train_cfg.max_epochs=3']
    arguments = [tool, config, '--work-dir', str(tmp_path), '--cfg-options']
    monkeypatch.setattr(sys, 'argv', [*arguments, *LOADERS, *small, *log])
    runpy.run_path(tool, run_name='__main__')
    losses = scalars(tmp_path, 'loss')
    assert len(losses) == 15
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.1
    recalls = scalars(tmp_path, 'full/first-image/t2i/R@10')
    assert len(recalls) == 3
    assert all(0 <= recall <= 100 for recall in recalls)
    assert scalars(tmp_path, 'full/first-image/num_products') == [24] * 3


CLIP = 'entities_on_mmpretrain_clip/eiclip_on_mmpretrain_clip.py'


def test_entities_enter_the_text_features_of_mmpretrains_clip(tmp_path):
    pytest.importorskip('transformers', reason="mmpretrain's CLIP needs the extra 'hf'")
    train(CLIP, tmp_path, 2, 'param_scheduler=[]')
    assert len(scalars(tmp_path, 'full/first-image/SumR')) == 1
    state = state_of(tmp_path)
    assert 'towers.clip.transformer.resblocks.1.mlp.c_fc.weight' in state  # mmpretrain's names
    # both start equal, and only what trains moves; the paths into the text vector start at zero
    assert (state['learner.learned'] - state['learner.general'])[0, 1:].abs().max() > 1e-4
    for weight in ('learner.skip.weight', 'learner.out.weight'):
        assert state[weight].abs().max() > 1e-4
    assert state['selector.type_logit'].ne(2).all()  # so did each type's gate


def test_another_clip_and_its_entities_learn_one_batch():
    pytest.importorskip('transformers', reason="mmpretrain's CLIP needs the extra 'hf'")
    cfg = Config.fromfile(PROJECTS / CLIP)
    cfg.model.tokenizer.update(vocab=tiny.VOCAB.to_dict(), fields=('description',))
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    data = tiny.batch(model, size=64)
    before = tiny.total(model.eval()(**data, mode='loss')).item()
    tiny.train(model, data, steps=8, lr=0.001)
    assert tiny.total(model.eval()(**data, mode='loss')).item() < before - 0.5
    still = [name for name, p in model.learner.named_parameters() if not p.grad.any()]
    assert still == []
    product = model.encode_product(data['text'], data['entity_ids'])
    unknown = model.encode_product(data['text'], torch.zeros_like(data['entity_ids']))
    assert (product - unknown).abs().amax(1).min() < 1e-6  # of the scarf, whose brand is unknown
    assert (product - unknown).abs().amax(1)[:-1].min() > 1e-3


def test_added_tokens_are_refused_by_a_clip_that_pools_at_the_largest_id(tmp_path):
    pytest.importorskip('transformers', reason="mmpretrain's CLIP needs the extra 'hf'")
    with pytest.raises(ValueError, match="added tokens; use mention='keep'"):
        train(CLIP, tmp_path, 1, 'tokenizer.mention=token')


def test_evaluator_scores_plain_open_clip(tmp_path, monkeypatch, capsys):
    photos, dump = str(DATA / FILES['validation']), tmp_path / 'dump.npz'
    tool = str(PROJECTS / 'evaluate_open_clip/evaluate.py')
    monkeypatch.setattr(sys, 'argv', [tool, photos, '--out', str(dump)])
    runpy.run_path(tool, run_name='__main__')
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith('| full')]
    found = Embeddings.load(dump)
    assert len(found.product) == 24 < len(found.image)
    assert found.image.norm(dim=1).allclose(torch.ones(len(found.image)), atol=1e-5)
    first = found.image_view == 0
    for line, views in zip(table, (first, torch.ones_like(first)), strict=True):
        image = found.image[views].double().numpy(), found.image_product_id[views].numpy()
        product = found.product.double().numpy(), found.product_id.numpy()
        expected = [*recalls(image, product), *recalls(product, image)]
        numbers = [float(cell) for cell in line.split('|')[2:8]]
        assert numbers == pytest.approx(expected, abs=0.006)


def recalls(queries: tuple, gallery: tuple) -> list[float]:
    """R@1, R@5, R@10, one query after the other."""
    hits = np.zeros(3)
    for vector, own in zip(*queries, strict=True):
        order = np.argsort(-(gallery[0] @ vector), kind='stable')
        rank = np.flatnonzero(gallery[1][order] == own)[0]
        hits += [rank < k for k in (1, 5, 10)]
    return list(100 * hits / len(queries[0]))


def test_selector_of_another_package_is_named_in_a_config(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(PROJECTS / 'own_selector'))
    settings = ('model.towers.pretrained=None', 'model.selector.at_least=12')
    train('own_selector/eiclip_keep-frequent.py', tmp_path, 2, *settings)
    vocab = EntityVocab.load(DATA / 'entities.json')
    wanted = [False, *(n >= 12 for counts in vocab.counts.values() for n in counts)]
    assert 0 < sum(wanted) < len(wanted) - 1
    (best,) = tmp_path.glob('best_*.pth')
    encoder = EICLIPInferencer(best)  # the package has been imported: its type is known
    assert type(encoder.model.selector).__module__ == 'my_selector'
    assert encoder.model.selector.keep.bool().tolist() == wanted
