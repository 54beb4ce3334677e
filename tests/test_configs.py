"""Every config of the repository builds; each family trains (tests/test_tools.py)."""

import ast
from pathlib import Path

import pytest
import tiny
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.utils import get_object_from_string

from eiclip_mm.apis import EICLIPInferencer
from eiclip_mm.registry import DATASETS, HOOKS, METRICS, MODELS
from eiclip_mm.structures import EntityVocab
from eiclip_mm.utils import load_config

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
PURE = 'pure_python/eiclip_fashiongen_mini.py'  # in mmengine's other style
LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT / 'configs'))


def test_every_row_has_its_three_twins():
    names = {name_of(path) for path in CONFIGS}
    assert {row.format(data) for row in ROWS for data in DATA} <= names
    others = names - {row.format(data) for row in ROWS for data in DATA} - {PURE}
    starts = {'clip_general_mini.py', 'clip_neutral_mini.py'}
    ablations = {name for name in others if name.startswith('ablations/')}
    assert others - ablations == starts
    assert all(name.removesuffix('.py').endswith(DATA) for name in ablations)


@pytest.mark.parametrize('path', CONFIGS, ids=name_of)
def test_config_builds(path, tmp_path, monkeypatch):
    if 'products' in path.name:
        pytest.importorskip('transformers', reason="needs the extra 'hf'")
    cfg = Config.fromfile(path)
    vocab = vocab_of(cfg)
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


def vocab_of(cfg: Config) -> EntityVocab:
    types = types_of(cfg)
    return EntityVocab.build([{type_: [f'{type_} one', f'{type_} two'] for type_ in types}], types)


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


@pytest.mark.parametrize('name', ['eiclip_products.py', PURE])
def test_a_dumped_config_is_the_same(name, tmp_path):
    """What a run leaves in its work dir and in its checkpoints; of classes, their import paths."""
    cfg = load_config(ROOT / 'configs' / name)
    cfg.dump(tmp_path / 'dumped.py')
    again = Config.fromfile(tmp_path / 'dumped.py')
    assert again.to_dict() == cfg.to_dict()
    assert again.pretty_text == (tmp_path / 'dumped.py').read_text(encoding='utf-8')


def test_what_differs_from_the_parent_is_shown():
    """mmengine's ``Config.diff``."""
    names = (row.format('products') for row in ('eiclip_{}.py', 'ablations/eiclip-all_{}.py'))
    lines = Config.diff(*(str(ROOT / 'configs' / name) for name in names)).splitlines()
    changed = [line for line in lines if line[:1] in ('+', '-') and line.strip('+- ')]
    assert changed == [
        "-    dict(begin=8, type='CausalEffectHook'),",
        "-    selector=dict(type='EffectCESelector'),",
        "+    selector=dict(type='KeepAll'),",
    ]


class TestPurePython:
    """The experiment in both of mmengine's styles."""

    TEXT = 'eiclip_fashiongen_mini.py'

    def test_every_setting_is_that_of_the_text(self):
        pure, text = (load_config(ROOT / 'configs' / name).to_dict() for name in (PURE, self.TEXT))
        paths = []

        def named(value):
            """The same with registered names for import paths."""
            if isinstance(value, dict):
                if (path := str(value.get('type'))).startswith('eiclip_mm.'):
                    part = get_object_from_string(path)
                    assert part in {**MODELS.module_dict, **HOOKS.module_dict}.values()
                    paths.append(path)
                    value = dict(value, type=part.__name__)
                return {key: named(inner) for key, inner in value.items()}
            return [named(inner) for inner in value] if isinstance(value, list) else value

        assert named(pure) == text
        assert len(paths) == 6 and named(text) == text

    def test_its_types_are_classes(self):
        cfg = Config.fromfile(ROOT / 'configs' / PURE)
        assert cfg.model.type is MODELS.get('EICLIP')
        assert cfg.custom_hooks[-1].type is HOOKS.get('CausalEffectHook')

    def test_it_trains_alike_and_its_checkpoint_is_read(self, tmp_path):
        losses, vectors = [], []
        for i, name in enumerate((PURE, self.TEXT)):
            cfg = Config.fromfile(ROOT / 'configs' / name)
            cfg.model.tokenizer.vocab = vocab_of(cfg).to_dict()
            cfg.model.towers.pretrained = None
            torch.manual_seed(0)
            model = MODELS.build(cfg.model)
            optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
            data = tiny.batch(model, size=64)
            losses.append([model.train_step(data, optim_wrapper)['loss'].item() for _ in range(3)])
            path = tmp_path / f'{i}.pth'
            torch.save(dict(state_dict=model.state_dict(), meta=dict(cfg=cfg.pretty_text)), path)
            vectors.append(EICLIPInferencer(path, device='cpu').encode_queries('a red dress'))
        assert losses[0] == losses[1] and losses[0][2] < losses[0][0]
        assert vectors[0].equal(vectors[1])
