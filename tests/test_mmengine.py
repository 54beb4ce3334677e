"""mmengine's own tools with our parts: hooks in any order, visualizers, evaluators, analysis."""

import json
from pathlib import Path

import pytest
import runs
import tiny
import torch
from mmengine.analysis import FlopAnalyzer, get_model_complexity_info
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.fileio import load
from mmengine.runner import Runner
from runs import same

EMA = dict(type='EMAHook', momentum=0.3)
HOOKS = [
    dict(type='StepSeedHook'),
    dict(type='CheckpointChoiceHook'),
    dict(type='PlainCheckpointHook'),
    dict(type='ImageFeatureCache'),
    dict(type='CausalEffectHook', begin=1),
    EMA,
]
TABLE = dict(type='RetrievalMetric', protocols=['full/first-image'], ks=(1, 5))
PREFIXED = dict(TABLE, ks=(1,), prefix='again')
DUMP = dict(type='DumpResults')


@pytest.fixture(scope='module')
def catalogue(tmp_path_factory):
    return runs.write_catalogue(tmp_path_factory.mktemp('mini'))


def trained(catalogue, work_dir: Path, hooks: list, **changes) -> Runner:
    runner = runs.make_runner(
        catalogue, work_dir, epochs=2, hooks=hooks,
        model=dict(selector=dict(type='EffectCESelector')), **changes,
    )  # fmt: skip
    runner.train()
    return runner


@pytest.fixture(scope='module')
def run(catalogue, tmp_path_factory) -> tuple[Runner, Path]:
    """A training with several metrics and backends, and the EMAHook, and its work dir."""
    folder = tmp_path_factory.mktemp('run')
    backends = [dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
    runner = trained(
        catalogue, folder, HOOKS,
        val_evaluator=[TABLE, PREFIXED, dict(DUMP, out_file_path=str(folder / 'dump.pkl'))],
        visualizer=dict(type='UniversalVisualizer', vis_backends=backends),
    )  # fmt: skip
    runner.visualizer.add_config(Config(dict(model=dict(type='EICLIP'), wide=(1, 2))))
    runner.visualizer.close()
    return runner, folder


class TestHooks:
    def test_their_order_in_a_config_does_not_matter(self, run, catalogue, tmp_path):
        """Priorities put them where they belong among mmengine's."""
        folder = run[1]
        trained(catalogue, tmp_path, HOOKS[::-1])
        first, second = (
            torch.load(place / 'epoch_2.pth', weights_only=True) for place in (folder, tmp_path)
        )
        for part in ('state_dict', 'ema_state_dict'):
            assert same(first[part], second[part]), part
        for saved in (first, second):
            assert saved['message_hub']['log_scalars'] == {}
            assert saved['meta']['chosen_on'] is None  # the Runner got no config

    def test_places_among_mmengine_s(self, run):
        places = {type(hook).__name__: (hook.priority, i) for i, hook in enumerate(run[0].hooks)}
        order = sorted(places, key=lambda name: places[name][1])
        # features before anybody trains or measures; the checkpoint is made plain when all is in it
        assert order.index('ImageFeatureCache') < order.index('EMAHook')
        assert order.index('StepSeedHook') < order.index('CheckpointHook')
        assert order[-1] == 'PlainCheckpointHook'

    def test_the_average_takes_over_what_was_chosen(self, run):
        runner, folder = run
        saved = torch.load(folder / 'epoch_2.pth', weights_only=True)
        weight = runner.model.selector.weight
        assert (folder / 'causal_effects.json').is_file()
        assert saved['state_dict']['selector.weight'].equal(weight)
        assert saved['ema_state_dict']['module.selector.weight'].equal(weight)


class TestVisualizers:
    def test_scalars_and_config_are_written(self, run):
        (folder,) = run[1].glob('*/vis_data')
        rows = [json.loads(line) for line in (folder / 'scalars.json').read_text().splitlines()]
        assert [row['step'] for row in rows if 'full/first-image/i2t/R@1' in row] == [1, 2]
        assert all(
            {'loss', 'loss_contrast', 'logit_scale'} <= row.keys() for row in rows if 'lr' in row
        )
        config = Config.fromfile(folder / 'config.py')
        assert (config.model.type, config.wide) == ('EICLIP', (1, 2))

    def test_tensorboard(self, run):
        reader = pytest.importorskip(
            'tensorboard.backend.event_processing.event_accumulator', reason="needs the extra 'dev'"
        )
        (folder,) = run[1].glob('*/vis_data')
        events = reader.EventAccumulator(str(folder)).Reload()
        tags = events.Tags()
        assert {'loss', 'full/first-image/i2t/R@1'} <= set(tags['scalars'])
        assert tags['tensors'] == ['config/text_summary']


class TestEvaluators:
    def test_several_metrics_at_once(self, run):
        runner, _ = run
        found = runner.val_loop.run()
        assert found['again/full/first-image/i2t/R@1'] == found['full/first-image/i2t/R@1']
        assert 'again/full/first-image/i2t/R@5' not in found

    def test_equal_keys_are_refused(self, run):
        folder = run[1]
        evaluator = Evaluator([TABLE, TABLE])
        with pytest.raises(ValueError, match='same metric name'):
            evaluator.offline_evaluate(load(folder / 'dump.pkl'))

    @pytest.mark.parametrize('chunk_size', [1, 3, 100])
    def test_a_dump_is_evaluated_later(self, run, chunk_size):
        """mmengine's DumpResults and offline_evaluate, as tools of others use them."""
        runner, folder = run
        expected = runner.val_loop.run()
        samples = load(folder / 'dump.pkl')
        assert len(samples) == len(runner.val_dataloader.dataset)
        found = Evaluator(TABLE).offline_evaluate(samples, chunk_size=chunk_size)
        assert found == {key: expected[key] for key in found} and len(found) > 10


class TestModel:
    def test_modes(self):
        model = tiny.model().eval()
        data = tiny.batch(model)
        n = len(data['image'])
        tensors, samples = model(**data, mode='tensor'), model(**data, mode='predict')
        assert tensors['image'].shape == tensors['product'].shape == (n, model.towers.dim)
        assert torch.stack([sample['product'] for sample in samples]).equal(tensors['product'])
        assert [int(sample['product_id']) for sample in samples] == data['product_id'].tolist()
        steps = model.val_step(data), model.test_step(data)
        for step in steps:
            assert torch.stack([sample['image'] for sample in step]).equal(tensors['image'])
        assert model(**data, mode='loss').keys() >= {'loss_contrast', 'logit_scale'}
        with pytest.raises(ValueError, match=r"mode='features' .* \('loss', 'predict', 'tensor'\)"):
            model(**data, mode='features')

    def test_init_cfg_loads_a_checkpoint(self, tmp_path):
        source = tiny.randomised(tiny.model())
        torch.save(dict(state_dict=source.state_dict()), tmp_path / 'source.pth')
        path = str(tmp_path / 'source.pth')
        model = tiny.model(seed=1, init_cfg=dict(type='Pretrained', checkpoint=path))
        assert not same(model.state_dict(), source.state_dict())
        model.init_weights()
        assert same(model.state_dict(), source.state_dict())

    def test_complexity(self):
        """Parameters, and operations of layers that can be counted by hand, for one product."""
        model = tiny.model().eval()
        data = tiny.batch(model)
        inputs = tuple(data[name][:1] for name in ('image', 'text', 'entity_ids'))
        whole = get_model_complexity_info(model, inputs=inputs, show_arch=False)
        assert whole['params'] == sum(p.numel() for p in model.parameters())
        assert '| model ' in whole['out_table'] and ' learner ' in whole['out_table']
        counted = FlopAnalyzer(model, inputs).by_module()
        assert counted[''] == whole['flops']
        patches, width = 4 * 4, 32
        assert counted['towers.clip.visual.conv1'] == patches * 3 * 8 * 8 * width
        mlp = (patches + 1) * 2 * 4 * width * width  # of all patches and the class
        assert counted['towers.clip.visual.transformer.resblocks.0.mlp'] == mlp
        assert counted['learner.out'] == 2 * width * width
