"""What OpenMMLab's users rely on: registries, scopes, lazy imports, registration at once."""

import ast
import inspect
import json
import logging
import subprocess
import sys
from pathlib import Path

import mmengine.registry
import mmpretrain.registry
import pytest
import runs
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope, Registry
from mmengine.runner import get_priority

from eiclip_mm import registry
from eiclip_mm.utils import register_all_modules
from eiclip_mm.utils.collect_env import collect_env

ROOT = Path(__file__).resolve().parents[1]


def nodes_of(module) -> dict[str, Registry]:
    return {name: node for name, node in vars(module).items() if isinstance(node, Registry)}


OURS = nodes_of(registry)
registry.HOOKS.import_from_location()
MMENGINE, MMPRETRAIN = nodes_of(mmengine.registry), nodes_of(mmpretrain.registry)


def registered() -> set[str]:
    """Names under ``@X.register_module()`` in the source."""
    found = set()
    for path in (ROOT / 'eiclip_mm').glob('**/*.py'):
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            decorators = map(ast.unparse, getattr(node, 'decorator_list', ()))
            found |= {node.name for d in decorators if d.endswith('.register_module()')}
    return found


class TestNodes:
    def test_every_kind_of_mmengine_is_found_in_our_scope(self):
        """The Runner warns of a kind that is not, and then hides what the parents have."""
        assert len(MMENGINE) > 20
        for kind, node in MMENGINE.items():
            assert node._search_child('eiclip_mm') in OURS.values(), kind

    def test_children_of_mmpretrain_s_where_it_has_one(self):
        assert OURS.keys() >= {k for k, node in MMPRETRAIN.items() if node.scope == 'mmpretrain'}
        for kind, node in OURS.items():
            parent = MMPRETRAIN[kind] if kind in MMPRETRAIN else MMENGINE[kind]
            assert (node.parent, node.scope) == (parent, 'eiclip_mm'), kind
            assert (node.name, node.build_func) == (parent.name, parent.build_func), kind

    def test_asking_for_a_name_imports_what_registers_it(self):
        """Each part lives where its node's location is, or it would be found by luck alone."""
        seen = set()
        for kind, node in OURS.items():
            (location,) = node._locations
            node.import_from_location()
            for name, part in node.module_dict.items():
                if part.__module__.startswith('eiclip_mm.'):  # tests register some, too
                    assert part.__module__.startswith(location), (kind, name)
                    seen.add(name)
        assert seen == registered()


FRESH = """
import json, os, sys, types
import eiclip_mm
import mmpretrain.datasets, mmpretrain.engine, mmpretrain.evaluation, mmpretrain.models, open_clip
from mmengine.registry import DefaultScope, FUNCTIONS, MODELS, METRICS, Registry, STRATEGIES


def from_elsewhere(scope):
    mmdet = types.ModuleType('mmdet.registry')  # as mmdet makes its nodes
    for name, parent in dict(MODELS=MODELS, METRICS=METRICS).items():
        setattr(mmdet, name, Registry('x', parent=parent, scope='mmdet', locations=['mmdet']))
    sys.modules |= {'mmdet': types.ModuleType('mmdet'), 'mmdet.registry': mmdet}
    asked = scope and DefaultScope.get_instance('asked', scope_name=scope)
    built = [
        METRICS.build(dict(type='eiclip_mm.RetrievalMetric')),
        MODELS.build(dict(type='eiclip_mm.InfoNCE', same_text=True)),
        MODELS.build(dict(type='InfoNCE', _scope_='eiclip_mm')),
        MODELS.build(dict(type='eiclip_mm.models.InfoNCE')),  # as pure-Python configs are dumped
    ]
    return [
        [type(part).__name__ for part in built],
        FUNCTIONS.get('eiclip_mm.stack_products').__name__,
        STRATEGIES.get('eiclip_mm.ShardedStrategy').__name__,
        asked and DefaultScope.get_current_instance().scope_name,
    ]


def at_once():
    from eiclip_mm.utils import register_all_modules

    register_all_modules()
    from eiclip_mm import registry

    nodes = [node for node in vars(registry).values() if isinstance(node, Registry)]
    names = sorted({name for node in nodes for name in node.module_dict})
    return [names, DefaultScope.get_current_instance().scope_name]


cases = [lambda: from_elsewhere(None), lambda: from_elsewhere('mmdet'), at_once]
for case in cases:
    assert not any(name.startswith('eiclip_mm.regis') for name in sys.modules)
    if not os.fork():
        print(json.dumps(case()), flush=True)
        os._exit(0)
    assert os.wait()[1] == 0
"""


@pytest.fixture(scope='module')
def fresh() -> list:
    """What the cases of :data:`FRESH` find where nothing of ours is registered beforehand."""
    command = [sys.executable, '-W', 'ignore', '-c', FRESH]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == ''
    lines = done.stdout.splitlines()
    assert not [line for line in lines if 'WARNING' in line]
    return [json.loads(line) for line in lines]


class TestFromElsewhere:
    @pytest.mark.parametrize(('case', 'scope'), [(0, None), (1, 'mmdet')])
    def test_a_name_with_our_scope_is_enough(self, fresh, case, scope):
        """A config of another project imports nothing of ours, and keeps its own scope."""
        names = ['RetrievalMetric', *['InfoNCE'] * 3]
        assert fresh[case] == [names, 'stack_products', 'ShardedStrategy', scope]

    @pytest.mark.parametrize('kind', MMENGINE)
    def test_every_part_is_found_from_the_root(self, kind):
        node = MMENGINE[kind]._search_child('eiclip_mm')
        node.import_from_location()
        for name, part in node.module_dict.items():
            assert MMENGINE[kind].get(f'eiclip_mm.{name}') is part

    def test_short_names_of_collate_functions(self):
        """The Runner asks mmengine's node for them, whatever the scope."""
        short = mmengine.registry.FUNCTIONS.get('stack_products')
        assert short is registry.FUNCTIONS.get('stack_products')


class TestRegisterAllModules:
    def test_everything_is_registered_then(self, fresh):
        names, scope = fresh[2]
        lazy = {'EICLIPInferencer', 'FullySharded', 'ShardedStrategy'}  # found when asked for
        assert (set(names), scope) == (registered() - lazy, 'eiclip_mm')

    def test_scope(self):
        DefaultScope._instance_dict.clear()
        register_all_modules(init_default_scope=False)
        assert DefaultScope.get_current_instance() is None
        DefaultScope.get_instance('other', scope_name='mmpretrain')
        register_all_modules()
        assert DefaultScope.get_current_instance().scope_name == 'eiclip_mm'
        model = mmengine.registry.MODELS.build(dict(type='InfoNCE'))
        assert type(model) is registry.MODELS.get('InfoNCE')


def test_collected_environment():
    import torch

    from eiclip_mm import __version__

    found = collect_env()
    assert (found['torch'], found['eiclip_mm']) == (torch.__version__, __version__)
    assert 'Python' in found and 'open_clip_torch' in found
    assert all('\n' not in str(value) for value in found.values())


class TestHooks:
    HOOKS = [
        hook
        for hook in registry.HOOKS.module_dict.values()
        if hook.__module__.startswith('eiclip_mm.')
    ]

    @pytest.mark.parametrize('hook', HOOKS, ids=lambda hook: hook.__name__)
    def test_points_and_signatures_are_mmengine_s(self, hook):
        points = [name for name in vars(Hook) if name.startswith(('before_', 'after_'))]
        for own in hook.__mro__[: hook.__mro__.index(Hook)]:
            if not own.__module__.startswith('eiclip_mm.'):
                continue
            public = {n for n in vars(own) if n.startswith(('before_', 'after_'))}
            assert public <= set(points)
            for name in public:
                theirs, ours = (inspect.signature(getattr(c, name)) for c in (Hook, own))
                assert list(ours.parameters) == list(theirs.parameters), name
                for parameter in ours.parameters.values():
                    default = theirs.parameters[parameter.name].default
                    assert parameter.default == default, name
        get_priority(hook.priority)  # refuses what is none

    def test_there_are_some(self):
        assert len(self.HOOKS) >= 6


@pytest.fixture(scope='module')
def catalogue(tmp_path_factory):
    return runs.write_catalogue(tmp_path_factory.mktemp('mini'))


def test_a_small_training_warns_of_nothing(catalogue, tmp_path):
    """Of no scope, no node and no name, in the Runner's log."""
    runner = runs.make_runner(
        catalogue, tmp_path, log_level='WARNING',
        visualizer=dict(type='UniversalVisualizer', vis_backends=[dict(type='LocalVisBackend')]),
        hooks=('StepSeedHook', 'CheckpointChoiceHook', 'PlainCheckpointHook', 'ImageFeatureCache'),
    )  # fmt: skip
    seen = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: seen.append(record.getMessage())
    MMLogger.get_current_instance().addHandler(handler)
    runner.train()
    theirs = ('FileClient', 'HardDiskBackend')  # CheckpointHook, of its own words
    assert [line for line in seen if not any(name in line for name in theirs)] == []
