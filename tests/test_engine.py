"""Hooks and optimiser wrapper in real, small runs."""

import json
import os
import subprocess
import sys

import pytest
import runs
import tiny
import torch
from runs import TYPES, same, weights, write_catalogue

from eiclip_mm.engine import CausalEffectHook, TowerLrConstructor
from eiclip_mm.engine.hooks import effect_table
from eiclip_mm.models.checkpoints import read_towers
from eiclip_mm.registry import OPTIM_WRAPPERS


@pytest.fixture(scope='module')
def catalogue(tmp_path_factory):
    return write_catalogue(tmp_path_factory.mktemp('mini'))


@pytest.fixture
def make_runner(catalogue, tmp_path):
    """Runners of a small experiment; keyword arguments change it."""

    def make(work_dir='run', **changes):
        return runs.make_runner(catalogue, tmp_path / work_dir, **changes)

    return make


class TestResume:
    def test_a_resumed_run_repeats_the_unbroken_one(self, make_runner, tmp_path):
        hooks = ('StepSeedHook', 'PlainCheckpointHook')
        runner = make_runner('whole', epochs=3, hooks=hooks)
        runner.train()
        whole = weights(runner)
        checkpoint = str(tmp_path / 'whole/epoch_1.pth')

        def resumed(name, hooks):
            other = make_runner(name, epochs=3, hooks=hooks, load_from=checkpoint, resume=True)
            torch.manual_seed(123)  # whatever happened before
            other.train()
            assert (other.epoch, other.iter) == (3, 6)
            return weights(other)

        assert same(resumed('again', hooks), whole)
        # without the hook the gates and the dropped patches are others
        assert not same(resumed('loose', ('PlainCheckpointHook',)), whole)

        # what the hooks make of the files
        for name in ('epoch_1.pth', 'epoch_3.pth', *(p.name for p in tmp_path.glob('whole/best*'))):
            saved = torch.load(tmp_path / 'whole' / name, weights_only=True)
            assert saved['message_hub']['log_scalars'] == {}
            assert saved['meta']['dataset_meta']['views'] == 'random'
        assert list(tmp_path.glob('whole/best_full_first-image_i2t_R@1_epoch_*.pth'))
        assert torch.load(checkpoint, weights_only=True)['optimizer']['state']
        towers = read_towers(tmp_path / 'whole/epoch_3.pth')
        assert towers['text_projection'].equal(whole['towers.clip.text_projection'])
        assert towers.keys() == runner.model.towers.clip.state_dict().keys()
        assert saved['state_dict']['_extra_state'].dtype == torch.uint8

    def test_mmengine_s_own_checkpoints_need_the_hook(self, make_runner, tmp_path):
        make_runner().train()
        with pytest.raises(Exception, match='Weights only load failed'):
            torch.load(tmp_path / 'run/epoch_1.pth', weights_only=True)

    def test_seeds_are_the_same_in_every_process(self):
        """Python salts the hashes of strings, not those of numbers."""
        command = [sys.executable, '-c', 'print([hash((7, i)) % 2**63 for i in range(3)])']
        found = {
            subprocess.run(
                command, env=dict(os.environ, PYTHONHASHSEED=salt), capture_output=True, check=True
            ).stdout
            for salt in ('1', '2')
        }
        assert found == {f'{[hash((7, i)) % 2**63 for i in range(3)]}\n'.encode()}

    def test_steps_draw_differently(self, make_runner):
        runner = make_runner()
        hook = runner.hooks[[type(h).__name__ for h in runner.hooks].index('StepSeedHook')]
        draws = []
        for step in (0, 1, 0):
            runner.train_loop._iter = step
            hook.before_train_iter(runner, 0)
            draws.append(torch.rand(1).item())
        assert draws[0] == draws[2] != draws[1]


class TestCausalEffectHook:
    EFFECT = dict(selector=dict(type='EffectCESelector'))

    def test_it_chooses_once(self, make_runner, tmp_path):
        hooks = ('StepSeedHook', 'PlainCheckpointHook', dict(type='CausalEffectHook', begin=1))
        runner = make_runner(epochs=2, hooks=hooks, model=self.EFFECT)
        assert (runner.model.selector.weight == 1).all()
        runner.train()
        table = json.loads((tmp_path / 'run/causal_effects.json').read_text(encoding='utf-8'))
        assert [row['type'] for row in table] == list(TYPES)
        first = 1
        for row in table:
            assert row['low'] <= row['effect'] <= row['high'] and row['kept'] == (row['low'] > 0)
            kept, of = row['entities']
            assert runner.model.selector.weight[first : first + of].sum() == kept
            first += of
        saved = [
            torch.load(tmp_path / f'run/epoch_{n}.pth')['state_dict']['selector.weight']
            for n in (1, 2)
        ]
        assert (saved[0] == 1).all() and saved[1].equal(runner.model.selector.weight)
        assert 'brand' in effect_table(table) and runner.model.training is False

    def test_measured_with_the_model_as_it_is(self, make_runner, monkeypatch, tmp_path):
        """The batches it sees are the whole slice, as the validation loader would load it."""
        runner = make_runner(epochs=2, hooks=(), model=self.EFFECT)
        hook = CausalEffectHook(begin=1)
        hook.before_train(runner)
        hook.before_train_epoch(runner)  # epoch 0: not yet
        assert not (tmp_path / 'run/causal_effects.json').exists()
        runner.train_loop._epoch = 1
        known = runner.message_hub.runtime_info  # as mmengine's CheckpointHook of several measures
        known.update({'best_score_R@1': 90.0, 'best_score_SumR': 500.0, 'best_ckpt_SumR': 'x.pth'})
        hook.before_train_epoch(runner)
        assert [name for name in known if name.startswith('best_')] == ['best_ckpt_SumR']
        table = json.loads((tmp_path / 'run/causal_effects.json').read_text(encoding='utf-8'))
        weight = runner.model.selector.weight.clone()
        batches = list(runner.val_dataloader)
        assert len(batches[0]['text']) == len(runner.val_dataloader.dataset) > 2
        again = runner.model.selector.choose(runner.model, batches)
        for row, other in zip(table, again, strict=True):
            assert row['effect'] == pytest.approx(other['effect'], abs=1e-6)
        assert runner.model.selector.weight.equal(weight)

    @pytest.mark.parametrize('fold', ['fit', 'all'])
    def test_other_products_are_refused(self, make_runner, fold):
        runner = make_runner(fold=fold, model=self.EFFECT, hooks=())
        with pytest.raises(ValueError, match=rf"fold='select' \(now fold='{fold}'\)"):
            CausalEffectHook(begin=1).before_train(runner)

    def test_no_validation_is_refused(self, make_runner):
        none = dict(val_dataloader=None, val_evaluator=None, val_cfg=None, default_hooks={})
        runner = make_runner(model=self.EFFECT, hooks=(), **none)
        with pytest.raises(ValueError, match='needs validation: train without --no-validate'):
            CausalEffectHook(begin=1).before_train(runner)

    def test_other_selectors_are_refused(self, make_runner):
        runner = make_runner(epochs=2, hooks=())
        with pytest.raises(ValueError, match=r"type='EffectCESelector'.*\(now GatedCESelector\)"):
            CausalEffectHook(begin=1).before_train(runner)

    def test_a_run_that_ends_before_is_refused(self, make_runner):
        runner = make_runner(epochs=2, model=self.EFFECT, hooks=())
        with pytest.raises(ValueError, match=r'before epoch 2.* ends after 2: lower begin '):
            CausalEffectHook(begin=2).before_train(runner)
        CausalEffectHook(begin=1).before_train(runner)

    def test_an_untrained_model_is_refused(self):
        with pytest.raises(ValueError, match='an untrained model shows no effect; got 0'):
            CausalEffectHook(begin=0)


class TestAutocast:
    def wrapper(self, model, **changes):
        config = dict(
            type='AutocastOptimWrapper', optimizer=torch.optim.SGD(model.parameters(), 0.5)
        )
        return OPTIM_WRAPPERS.build(config | changes)

    def test_bfloat16_inside_float32_outside(self):
        model = tiny.model()
        seen = []
        model.towers.clip.visual.transformer.register_forward_hook(
            lambda module, inputs, output: seen.append(module.resblocks[0].mlp(inputs[0]).dtype)
        )
        data = tiny.batch(model)
        log = model.train_step(data, self.wrapper(model))
        assert seen == [torch.bfloat16]
        assert log['loss'].dtype == torch.float32 and log['loss'].isfinite()
        assert all(p.dtype == torch.float32 for p in model.parameters())
        model(**data)
        assert seen[1:] == [torch.float32] and not torch.is_autocast_enabled('cpu')

    @pytest.mark.parametrize('kind', ['OptimWrapper', 'AutocastOptimWrapper'])
    def test_accumulation_equals_the_mean_of_two_batches(self, kind):
        models = [tiny.model(entity_loss_weight=0).eval() for _ in range(2)]
        data = tiny.batch(models[0]), tiny.batch(models[0], seed=1)
        wrapper = self.wrapper(models[0], type=kind, accumulative_counts=2)
        wrapper.initialize_count_status(models[0], 0, 4)
        start = models[0].towers.clip.text_projection.clone()
        models[0].train_step(data[0], wrapper)
        assert models[0].towers.clip.text_projection.equal(start)
        models[0].train_step(data[1], wrapper)
        optimizer = torch.optim.SGD(models[1].parameters(), 0.5)
        for part in data:
            with torch.autocast('cpu', torch.bfloat16, enabled=kind == 'AutocastOptimWrapper'):
                loss = tiny.total(models[1](**part, mode='loss')) / 2
            loss.backward()
        optimizer.step()
        assert not models[0].towers.clip.text_projection.equal(start)
        for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)

    def test_in_a_run(self, make_runner):
        wrapper = dict(
            type='AutocastOptimWrapper', dtype='bfloat16', accumulative_counts=2,
            optimizer=dict(type='AdamW', lr=0.003), clip_grad=dict(max_norm=1.0),
        )  # fmt: skip
        runner = make_runner(optim_wrapper=wrapper, param_scheduler=None)
        before = weights(runner)
        runner.train()
        after = weights(runner)
        assert not same(before, after) and all(
            value.isfinite().all() for value in after.values() if value.is_floating_point()
        )


def test_rates_by_prefix_and_no_decay_for_what_is_no_weight_matrix():
    network = tiny.model()
    constructor = TowerLrConstructor(
        dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.1)),
        dict(lr_mult={'towers': 0.1, 'towers.clip.logit_scale': 0.5}),
    )
    groups = constructor(network).optimizer.param_groups
    found = {
        id(p): (group['lr'], group['weight_decay']) for group in groups for p in group['params']
    }
    named = dict(network.named_parameters())
    assert len(found) == sum(p.requires_grad for p in named.values())
    expected = {
        'towers.clip.visual.conv1.weight': (1e-4, 0.1),
        'towers.clip.visual.class_embedding': (1e-4, 0.0),
        'towers.clip.visual.positional_embedding': (1e-4, 0.0),
        'towers.clip.token_embedding.weight': (1e-4, 0.0),
        'towers.clip.transformer.resblocks.0.ln_1.weight': (1e-4, 0.0),
        'towers.clip.transformer.resblocks.0.attn.in_proj_bias': (1e-4, 0.0),
        'towers.clip.logit_scale': (5e-4, 0.0),
        'learner.hidden.weight': (1e-3, 0.1),
        'learner.hidden.bias': (1e-3, 0.0),
        'learner.learned': (1e-3, 0.0),
        'learner.unknown': (1e-3, 0.0),
    }
    for name, (rate, decay) in expected.items():
        assert found[id(named[name])] == (pytest.approx(rate), decay), name


def test_a_prefix_that_fits_nothing_is_refused():
    constructor = TowerLrConstructor(
        dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3)),
        dict(lr_mult={'tower.clip': 0.1}),
    )
    with pytest.raises(ValueError, match=r"lr_mult \['tower.clip'\] fits no parameter"):
        constructor(tiny.model())


def test_fused_adamw_is_fused_and_the_same():
    """One kernel for all parameters of a group, asked for by the schedule of the configs."""
    results = []
    for fused in (True, False):
        network = tiny.model()
        wrapper = TowerLrConstructor(
            dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3, fused=fused)),
            dict(lr_mult={'towers': 0.1}),
        )(network)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            network.train_step(tiny.batch(network), wrapper)
        names = [event.name for event in profile.events()]
        groups = len(wrapper.optimizer.param_groups)
        assert names.count('aten::_fused_adamw_') == groups * fused
        results.append(list(network.parameters()))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
