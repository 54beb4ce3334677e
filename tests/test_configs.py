"""Every config of the repository builds; each family trains (tests/test_tools.py)."""

import ast
from pathlib import Path

import pytest
from mmengine.config import Config

from eiclip_mm.registry import DATASETS, HOOKS, METRICS, MODELS
from eiclip_mm.structures import EntityVocab

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted(path for path in (ROOT / 'configs').glob('**/*.py') if '_base_' not in path.parts)
ROWS = (
    'baselines/clip-zeroshot_{}.py',
    'baselines/clip_{}.py',
    'baselines/clip-meta_{}.py',
    'ablations/eiclip-all_{}.py',
    'eiclip_{}.py',
)
DATA = ('fashiongen', 'fashiongen_mini', 'products')
LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT / 'configs'))


def test_every_row_has_its_three_twins():
    names = {name_of(path) for path in CONFIGS}
    assert {row.format(data) for row in ROWS for data in DATA} <= names
    others = names - {row.format(data) for row in ROWS for data in DATA}
    starts = {'clip_general_mini.py', 'clip_neutral_mini.py'}
    ablations = {name for name in others if name.startswith('ablations/')}
    assert others - ablations == starts
    assert all(name.removesuffix('.py').endswith(DATA) for name in ablations)


@pytest.mark.parametrize('path', CONFIGS, ids=name_of)
def test_config_builds(path, tmp_path, monkeypatch):
    if 'products' in path.name:
        pytest.importorskip('transformers', reason="needs the extra 'hf'")
    cfg = Config.fromfile(path)
    vocab = EntityVocab.build(
        [{type_: [f'{type_} one', f'{type_} two'] for type_ in types_of(cfg)}], types_of(cfg)
    )
    # pretrained weights and data are not in the repository; all else is built as it stands
    cfg.model.tokenizer.vocab = vocab.to_dict()
    cfg.model.towers.pretrained = None
    model = MODELS.build(cfg.model)
    assert model.vocab.types == types_of(cfg)
    for loader in LOADERS:
        dataset = dict(cfg[loader].dataset)
        dataset['tokenizer'] = dict(dataset['tokenizer'], vocab=vocab.to_dict())
        built = DATASETS.build(dict(dataset, lazy_init=True))
        assert built.tokenizer.fields == model.tokenizer.fields
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        METRICS.build(evaluator)
    for hook in cfg.custom_hooks:
        HOOKS.build(hook)


def types_of(cfg: Config) -> tuple[str, ...]:
    return (*cfg.get('entity_types'), *cfg.model.tokenizer.get('text_types', ()))


@pytest.mark.parametrize('path', CONFIGS, ids=name_of)
def test_model_and_loaders_read_products_alike(path):
    cfg = Config.fromfile(path)
    for loader in LOADERS:
        tokenizer = dict(cfg[loader].dataset.tokenizer)
        if loader == 'test_dataloader' and 'checkpoint_of' in cfg:
            tokenizer['tags'] = cfg.model.tokenizer.tags  # another way to test, not to train
        assert tokenizer == cfg.model.tokenizer


@pytest.mark.parametrize('path', CONFIGS, ids=name_of)
def test_choices_are_made_on_a_slice_of_train(path):
    cfg = Config.fromfile(path)
    train, val, test = (cfg[loader].dataset for loader in LOADERS)
    assert train.fold == 'fit'
    assert (val.fold, val.ann_file) == ('select', train.ann_file)
    assert test.ann_file != train.ann_file or cfg.get('choose_on_reported_split')


@pytest.mark.parametrize('path', CONFIGS, ids=name_of)
def test_loaders_take_whole_batches(path):
    cfg = Config.fromfile(path)
    for loader in LOADERS:
        assert cfg[loader].dataset.batched
        assert cfg[loader].collate_fn == dict(type='stack_products')


@pytest.mark.parametrize('row', ROWS)
def test_twins_differ_in_data_and_size_only(row):
    first, *others = (Config.fromfile(ROOT / 'configs' / row.format(data)) for data in DATA)
    for other in others:
        for part in ('selector', 'loss', 'type'):
            assert other.model.get(part) == first.model.get(part)
        learners = [dict(cfg.model.get('learner', {}), hidden_dim=None) for cfg in (first, other)]
        assert learners[0] == learners[1]
        hooks = [
            dict(hook, begin=None) for hook in other.custom_hooks
        ]  # trainings differ in length
        hooks = [hook for hook in hooks if hook['type'] != 'TextFeatureCache']
        assert hooks == [dict(hook, begin=None) for hook in first.custom_hooks]


@pytest.mark.parametrize('path', CONFIGS, ids=name_of)
def test_head_says_how_to_run_it(path):
    head = ast.get_docstring(ast.parse(path.read_text(encoding='utf-8')))
    assert f'configs/{name_of(path)}' in head
