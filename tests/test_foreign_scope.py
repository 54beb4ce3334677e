"""Our types in configs of other projects: each one that a config of ours names, in their scope."""

import sys
import uuid
from functools import cache
from pathlib import Path

import mmengine.registry as roots
import pytest
import tiny
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope, Registry
from small import run_tool, write_data

import eiclip_mm.registry as ours

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted(path for path in (ROOT / 'configs').glob('**/*.py') if '_base_' not in path.parts)
NODES = [node for node in vars(ours).values() if isinstance(node, Registry)]
LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
# no part of a training: the strategy needs processes, the inferencer a checkpoint
ELSEWHERE = {'EICLIPInferencer', 'FullySharded', 'ShardedStrategy'}
MMDET = """
import mmengine.registry as roots
from mmengine.registry import Registry

NODES = [
    Registry(root.name, parent=root, scope='mmdet', locations=['mmdet'])
    for root in vars(roots).values()
    if isinstance(root, Registry)
]
"""


@pytest.fixture
def mmdet(tmp_path_factory, monkeypatch):
    """A package of that name, with a node of every kind of mmengine's as mmdet itself has."""
    folder = tmp_path_factory.mktemp('site') / 'mmdet'
    folder.mkdir()
    (folder / '__init__.py').touch()
    (folder / 'registry.py').write_text(MMDET)
    monkeypatch.syspath_prepend(str(folder.parent))
    yield
    for node in sys.modules['mmdet.registry'].NODES:
        del node.parent.children['mmdet']
    for name in ('mmdet', 'mmdet.registry'):
        del sys.modules[name]


@pytest.fixture(params=['mmdet', 'mmpretrain', 'mmengine'])
def scope(request, mmdet) -> str:
    """The default scope of another project's config."""
    import mmdet.registry  # noqa: F401

    DefaultScope.get_instance(f'test-{uuid.uuid4()}', scope_name=request.param)
    return request.param


@pytest.fixture
def complaints(monkeypatch) -> list[str]:
    """What mmengine warns of, as where it finds no registry of the scope."""
    found = []
    logger = MMLogger.get_instance(f'test-{uuid.uuid4()}')
    monkeypatch.setattr(logger, 'handle', lambda record: found.append(record.getMessage()))
    logger.setLevel('WARNING')
    return found


def registered() -> set[str]:
    """Names of all that this package registers."""
    for node in NODES:
        node.import_from_location()
    return {
        name
        for node in NODES
        for name, value in node.module_dict.items()
        if value.__module__.startswith('eiclip_mm.')
    }


def types_in(part) -> set[str]:
    """Last names of the types anywhere in a part of a config."""
    if isinstance(part, (list, tuple)):
        return set().union(*map(types_in, part))
    if not isinstance(part, dict):
        return set()
    own = {part['type'].rpartition('.')[2]} if isinstance(part.get('type'), str) else set()
    return own.union(*map(types_in, part.values()))


def qualified(part):
    """A part of a config, with its scope in front of each type that is ours or mmpretrain's."""
    if isinstance(part, (list, tuple)):
        return [qualified(value) for value in part]
    if not isinstance(part, dict):
        return part
    part = {key: qualified(value) for key, value in part.items()}
    type_ = part.get('type')
    for node in NODES:
        if type_ in node.module_dict:
            return dict(part, type=f'eiclip_mm.{type_}')
        if node.parent.scope == 'mmpretrain' and type_ in node.parent.module_dict:
            return dict(part, type=f'mmpretrain.{type_}')
    return part


@cache
def configs() -> list[dict]:
    """All configs, as plain data."""
    return [Config.fromfile(path).to_dict() for path in CONFIGS]


def parts_of(cfg: dict) -> list[tuple[str, dict]]:
    """The outermost parts of a config, with the kinds of their registries; towers are tiny."""
    tokenizer = tiny.tokenizer(vocab=tiny.VOCAB.to_dict())
    towers = dict(type='OpenCLIPTowers', model=tiny.ARCHITECTURE)
    model = dict(cfg['model'], tokenizer=tokenizer, towers=towers)
    if 'types' in model.get('selector', {}):
        model['selector'] = dict(model['selector'], types=['brand'])
    common = dict(tokenizer=tokenizer, lazy_init=True)
    return [
        ('MODELS', model),
        *(('DATASETS', dict(cfg[loader]['dataset'], **common)) for loader in LOADERS),
        ('METRICS', cfg['test_evaluator']),
        *(('HOOKS', hook) for hook in cfg['custom_hooks']),
    ]


def parts() -> list[tuple[str, dict]]:
    """Parts of all configs: of those that name the same types, the first."""
    found = {}
    for cfg in configs():
        for kind, part in parts_of(cfg):
            found.setdefault((kind, frozenset(types_in(part))), part)
    assert len(found) > 15
    return [(kind, part) for (kind, _), part in found.items()]


def test_configs_name_everything_that_is_registered():
    named = set().union(*map(types_in, configs()))
    named |= {cfg['optim_wrapper'].get('constructor') for cfg in configs()}
    assert registered() - named == ELSEWHERE


@pytest.mark.parametrize('spelling', ['scope', 'names'])
def test_every_part_builds(scope, spelling, complaints):
    """With ``_scope_`` said once, outermost, or with a scope in front of every name."""
    for kind, part in parts():
        part = dict(part, _scope_='eiclip_mm') if spelling == 'scope' else qualified(part)
        built = getattr(roots, kind).build(part)
        for transform in getattr(getattr(built, 'pipeline', None), 'transforms', ()):
            if type(transform).__name__ == 'LoadImageFeature':  # the pipeline in a pipeline
                assert len(transform.transforms) == len(transform.pipeline)
        if kind == 'MODELS':
            assert type(built.loss).__module__ == 'eiclip_mm.models.losses'
    if spelling == 'scope' or scope == 'mmpretrain':
        assert complaints == []
    else:  # mmengine has no registry of tokenizers, so no other project has a node there
        assert all('in the "tokenizer" registry tree' in text for text in complaints)


def test_names_without_scope_are_the_default_scopes(scope):
    transforms = [dict(type='LoadProductImage')]
    dataset = dict(type='eiclip_mm.FashionGen', ann_file='', pipeline=transforms, lazy_init=True)
    with pytest.raises(KeyError, match='LoadProductImage is not in the'):
        roots.DATASETS.build(dataset)


def test_optimiser_wrapper_and_samplers(scope):
    data = [1, 2, 3]
    for sampler in (dict(type='eiclip_mm.ProductSampler'),
                    dict(type='ProductSampler', _scope_='eiclip_mm')):  # fmt: skip
        built = roots.DATA_SAMPLERS.build(
            dict(sampler, shuffle=False), default_args=dict(dataset=data)
        )
        assert list(built) == [0, 1, 2]
    model = tiny.model(
        towers=dict(type='eiclip_mm.OpenCLIPTowers', model=tiny.ARCHITECTURE),
        tokenizer=tiny.tokenizer(type='eiclip_mm.EntityTokenizer'),
        type='eiclip_mm.OpenCLIP',
        kind='OpenCLIP',
    )
    wrapper = build_optim_wrapper(
        model,
        dict(
            type='eiclip_mm.AutocastOptimWrapper',
            optimizer=dict(type='AdamW', lr=1.0),
            constructor='eiclip_mm.TowerLrConstructor',
            paramwise_cfg=dict(lr_mult={'towers': 0.1}),
        ),
    )
    assert type(wrapper).__name__ == 'AutocastOptimWrapper'
    assert {group['lr'] for group in wrapper.optimizer.param_groups} == {0.1}


def test_config_of_scope_mmdet_trains(mmdet, tmp_path, monkeypatch):
    """projects/from_mmdet, from data to checkpoint; mmengine finds nothing to warn of."""
    write_data(tmp_path / 'data/mini_fashiongen', 80, 24)
    monkeypatch.chdir(tmp_path)
    share = 'dataset.select_share=0.3'
    run_tool(
        'train', ROOT / 'projects/from_mmdet/eiclip_in_mmdet.py', '--work-dir', 'out',
        '--cfg-options', 'model.towers.pretrained=None', 'train_dataloader.batch_size=16',
        'train_dataloader.num_workers=0', 'val_dataloader.num_workers=0', 'train_cfg.max_epochs=4',
        f'+train_dataloader.{share}', f'+val_dataloader.{share}',
    )  # fmt: skip
    assert DefaultScope.get_current_instance().scope_name == 'mmdet'
    (log,) = Path('out').glob('*/*.log')
    assert 'Causal effect of each entity type' in log.read_text()
    assert 'registry tree' not in log.read_text()
    assert list(Path('out').glob('best_*.pth'))
