"""NonFiniteHook in real, small runs: nothing that is not finite reaches weights or checkpoints."""

import functools
import json
import math
import os
import socket
import warnings

import pytest
import runs
import torch
import torch.multiprocessing as mp
from mmengine.hooks import Hook
from mmengine.optim.optimizer import amp_optimizer_wrapper
from runs import same, weights, write_catalogue
from test_compile import SMALL

from eiclip_mm.engine import NonFiniteHook
from eiclip_mm.models.losses import InfoNCE

HOOKS = ('StepSeedHook', 'PlainCheckpointHook')


@pytest.fixture(scope='module')
def catalogue(tmp_path_factory):
    return write_catalogue(tmp_path_factory.mktemp('mini'))


@pytest.fixture
def make_runner(catalogue, tmp_path):
    """Runners of a small experiment, two steps an epoch; keyword arguments change it."""

    def make(work_dir='run', hooks=(), **changes):
        return runs.make_runner(
            catalogue, tmp_path / work_dir, hooks=(*HOOKS, *hooks), **dict(epochs=3) | changes
        )

    return make


class Poison(Hook):
    """Photos of NaN at some steps, counted from 0; keeps what the step came from."""

    priority = 'VERY_HIGH'

    def __init__(self, *steps: int, row: int = 2):
        self.steps, self.row, self.ids = steps, row, {}

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.ids[runner.iter] = {k: data_batch[k].tolist() for k in ('product_id', 'sample_idx')}
        if runner.iter in self.steps:
            self.before = state(runner)
            data_batch['image'] = data_batch['image'].float()
            data_batch['image'][self.row] = math.nan

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter in self.steps:
            self.after = state(runner)


def state(runner) -> dict:
    """Weights and the optimiser's memory, copied."""
    held = runner.optim_wrapper.optimizer.state_dict()['state']
    momenta = {f'{i} {k}': v.clone() for i, of in held.items() for k, v in of.items()}
    return weights(runner) | momenta


# one epoch without validation
ALONE = dict(epochs=1, val_cfg=None, val_dataloader=None, val_evaluator=None)
ALONE |= dict(default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1)))


def lines(folder, name='nonfinite.jsonl') -> list[dict]:
    path = folder / name
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def clean(runner) -> bool:
    return all(v.isfinite().all() for v in weights(runner).values() if v.is_floating_point())


class TestStop:
    def test_it_says_where_and_a_resumed_run_repeats_the_unbroken_one(self, make_runner, tmp_path):
        whole = make_runner('whole', ['NonFiniteHook'])
        whole.train()
        poison = Poison(3)
        runner = make_runner(hooks=[poison, 'NonFiniteHook'])
        with pytest.raises(FloatingPointError) as error:
            runner.train()
        for part in ('iteration 4 (epoch 2, rank 0', "'loss': 'nan'", 'verify_dataset.py', 'skip'):
            assert part in str(error.value)
        assert same(state(runner), poison.before)  # the very state before the step
        (line,) = lines(tmp_path / 'run')
        (batch,) = line['batches']
        assert (line['kind'], line['rank'], batch['epoch'], batch['iter']) == ('stop', 0, 2, 4)
        assert {k: batch[k] for k in ('product_id', 'sample_idx')} == poison.ids[3]
        assert batch['not_finite'] == dict(image=[2])
        assert batch['losses']['loss_contrast'] == 'nan' and line['parameters']
        assert [p.name for p in tmp_path.glob('run/*.pth') if 'best' not in p.name] == [
            'epoch_1.pth'
        ]
        last = str(tmp_path / 'run/epoch_1.pth')
        again = make_runner('again', ['NonFiniteHook'], load_from=last, resume=True)
        again.train()
        assert same(weights(again), weights(whole))

    def test_a_gradient_alone_is_enough(self, make_runner, tmp_path):
        runner = make_runner(hooks=['NonFiniteHook'])
        weight = runner.model.learner.hidden.weight
        weight.register_hook(lambda g: g * (math.inf if runner.iter == 1 else 1))
        with pytest.raises(FloatingPointError, match=r"parameters, first \['learner.hidden.weigh"):
            runner.train()
        (line,) = lines(tmp_path / 'run')
        assert line['parameters'] == ['learner.hidden.weight']
        assert math.isfinite(line['batches'][0]['losses']['loss'])

    def test_a_learning_rate_that_breaks_the_weights(self, make_runner, tmp_path):
        wrapper = dict(optimizer=dict(type='AdamW', lr=1e30))
        with pytest.raises(FloatingPointError, match='iteration 2'):
            make_runner(hooks=['NonFiniteHook'], optim_wrapper=wrapper).train()
        assert not list(tmp_path.glob('run/*.pth'))

    def test_it_changes_no_run(self, make_runner, tmp_path):
        found = []
        for name, hooks in (('with', ['NonFiniteHook']), ('without', [])):
            runner = make_runner(name, hooks)
            runner.train()
            found.append(state(runner))
        assert same(*found)
        assert not lines(tmp_path / 'with')


ADAMW = dict(type='AdamW', lr=0.003, weight_decay=0.1)
KINDS = dict(
    plain=dict(),
    clipped=dict(optim_wrapper=dict(optimizer=ADAMW, clip_grad=dict(max_norm=1.0))),
    fused=dict(optim_wrapper=dict(optimizer=dict(ADAMW, fused=True))),
    bfloat16=dict(optim_wrapper=dict(type='AutocastOptimWrapper', optimizer=ADAMW)),
    cached=dict(model=dict(towers=dict(type='OpenCLIPTowers', model=runs.NOISY, micro_batch=4))),
    compiled=dict(model=dict(towers=dict(type='OpenCLIPTowers', model=SMALL, compile='eager'))),
)


# dynamo looks at the gradient of every tensor it meets
@pytest.mark.filterwarnings('ignore:The .grad attribute of a Tensor:UserWarning')
class TestSkip:
    @pytest.mark.parametrize('kind', KINDS)
    def test_a_step_left_out_changes_nothing(self, make_runner, tmp_path, kind):
        poison = Poison(1, 4)
        runner = make_runner(
            hooks=[poison, dict(type='NonFiniteHook', action='skip')], **KINDS[kind]
        )
        runner.train()
        assert same(poison.before, poison.after) and len(poison.before) > 150
        assert clean(runner) and not same(poison.after, state(runner))
        assert [line['batches'][0]['iter'] for line in lines(tmp_path / 'run')] == [2, 5]
        assert {line['kind'] for line in lines(tmp_path / 'run')} == {'skip'}

    def test_of_accumulated_batches_all_are_named(self, make_runner, tmp_path):
        poison = Poison(2)
        wrapper = dict(optimizer=ADAMW, accumulative_counts=2)
        hook = dict(type='NonFiniteHook', action='skip')
        runner = make_runner(hooks=[poison, hook], optim_wrapper=wrapper, param_scheduler=[])
        runner.train()
        (line,) = lines(tmp_path / 'run')
        assert [batch['iter'] for batch in line['batches']] == [3, 4]
        assert [batch['product_id'] for batch in line['batches']] == [
            poison.ids[i]['product_id'] for i in (2, 3)
        ]
        assert [batch['losses']['loss'] == 'nan' for batch in line['batches']] == [True, False]
        assert clean(runner)

    def test_averaged_weights_stay_clean(self, make_runner, tmp_path):
        average = dict(type='EMAHook', momentum=0.5)
        runner = make_runner(hooks=[Poison(3), average, dict(type='NonFiniteHook', action='skip')])
        runner.train()
        saved = torch.load(tmp_path / 'run/epoch_3.pth', weights_only=True)
        for part in ('state_dict', 'ema_state_dict'):
            assert all(v.isfinite().all() for v in saved[part].values() if v.is_floating_point())

    def test_too_many_in_a_row_end_the_run(self, make_runner, tmp_path):
        hook = dict(type='NonFiniteHook', action='skip', max_skipped=2)
        with pytest.raises(FloatingPointError, match=r'iteration 5 .* 2 in a row'):
            make_runner(hooks=[Poison(1, 3, 4), hook]).train()
        assert [line['kind'] for line in lines(tmp_path / 'run')] == ['skip', 'skip', 'stop']


@pytest.fixture(params=[False, True], ids=['plain', 'fused'])
def scaled(monkeypatch, request):
    """mmengine's wrapper for float16 with torch's scaler, which both would do on a CPU."""
    monkeypatch.setattr(amp_optimizer_wrapper, 'is_cuda_available', lambda: True)
    monkeypatch.setattr(
        amp_optimizer_wrapper, 'GradScaler', functools.partial(torch.amp.GradScaler, 'cpu')
    )
    return lambda scale: dict(
        type='AmpOptimWrapper', dtype='bfloat16', loss_scale=dict(init_scale=scale),
        optimizer=dict(ADAMW, fused=request.param),
    )  # fmt: skip


class TestLossScale:
    def test_its_search_is_no_event(self, make_runner, tmp_path, scaled):
        settings = dict(optim_wrapper=scaled(2.0**127), epochs=8, default_hooks={})
        runner = make_runner(hooks=['NonFiniteHook'], **ALONE | settings)
        before = weights(runner)
        runner.train()
        scale = runner.optim_wrapper.loss_scaler.get_scale()
        assert scale < 2.0**127  # steps were left out
        assert not lines(tmp_path / 'run') and clean(runner)
        assert not same(before, weights(runner)), 'no step was taken: the test shows nothing'

    def test_a_loss_that_is_none_is_one(self, make_runner, tmp_path, scaled):
        with pytest.raises(FloatingPointError, match='iteration 4'):
            make_runner(hooks=[Poison(3), 'NonFiniteHook'], optim_wrapper=scaled(2.0**10)).train()
        assert [line['batches'][0]['iter'] for line in lines(tmp_path / 'run')] == [4]

    def test_a_search_without_end_ends(self, make_runner, tmp_path, scaled):
        settings = dict(optim_wrapper=scaled(2.0**10), epochs=30, default_hooks={})
        runner = make_runner(hooks=['NonFiniteHook'], **ALONE | settings)
        runner.model.learner.hidden.weight.register_hook(lambda g: g * math.nan)
        with pytest.raises(FloatingPointError, match='iteration 40 '):
            runner.train()


class Damage(Hook):
    """Write a value into a tensor of the model after the last step of an epoch."""

    def __init__(self, name: str, value: float):
        self.name, self.value = name, value

    def after_train_epoch(self, runner):
        tensor = runner.model.state_dict()[self.name]
        tensor.view(-1)[0] = self.value


class TestCheckpoint:
    @pytest.mark.parametrize('value', [math.nan, math.inf])
    def test_damaged_weights_are_not_written(self, make_runner, tmp_path, value):
        damage = Damage('learner.hidden.weight', value)
        with pytest.raises(FloatingPointError, match=r'state_dict/learner.hidden.weight.*not writ'):
            make_runner(hooks=[damage, 'NonFiniteHook']).train()
        assert not list(tmp_path.glob('run/*.pth'))
        (line,) = lines(tmp_path / 'run')
        assert line['kind'] == 'checkpoint'
        assert line['tensors'] == ['state_dict/learner.hidden.weight']

    def test_nor_behind_averaged_ones(self, make_runner, tmp_path):
        damage = Damage('learner.hidden.weight', math.inf)
        average = dict(type='EMAHook', momentum=1e-9)
        with pytest.raises(FloatingPointError, match=r'ema_state_dict/.*not written'):
            make_runner(hooks=[damage, average, 'NonFiniteHook']).train()

    @pytest.mark.parametrize('value', [math.nan, -math.inf])
    def test_a_buffer_may_hold_an_infinity(self, make_runner, tmp_path, value):
        runner = make_runner(hooks=['NonFiniteHook'], **ALONE)
        runner.model.towers.register_buffer('mask', torch.tensor([0.0, value]))
        if math.isinf(value):
            runner.train()
            assert (tmp_path / 'run/epoch_1.pth').is_file()
        else:
            with pytest.raises(FloatingPointError, match=r"first \['state_dict/towers.mask'\]"):
                runner.train()


class TestSpike:
    def test_a_loss_far_above_its_course_is_written_down(self, make_runner, tmp_path):
        poison = Poison()
        hook = dict(type='NonFiniteHook', window=20)
        runner = make_runner(hooks=[poison, hook], epochs=5)
        runner.model.loss.register_forward_hook(
            lambda module, _, loss: loss * (30 if runner.iter == 7 else 1)
        )
        runner.train()
        (line,) = lines(tmp_path / 'run')
        assert line['kind'] == 'spike' and line['batches'][0]['iter'] == 8
        assert line['batches'][0]['product_id'] == poison.ids[7]['product_id']
        assert line['median'] < line['limit'] < line['batches'][0]['losses']['loss']

    def test_none_of_it_if_so_wanted(self, make_runner, tmp_path):
        runner = make_runner(hooks=[dict(type='NonFiniteHook', window=20, spike=None)], epochs=5)
        runner.model.loss.register_forward_hook(
            lambda module, _, loss: loss * (30 if runner.iter == 7 else 1)
        )
        runner.train()
        assert not lines(tmp_path / 'run')


@pytest.mark.parametrize(
    ('wrong', 'sentence'),
    [
        (dict(action='ignore'), r"action='ignore' is not known; choose one of \('stop', 'skip'\)"),
        (dict(max_skipped=0), 'max_skipped must be at least 1'),
        (dict(spike=0), 'spike above 0 or None'),
    ],
)
def test_wrong_settings_are_refused(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        NonFiniteHook(**wrong)


def _ranks(rank, port, catalogue, folder):
    """A rank of two; at step 1 a term of rank 1 alone is infinite, and has no gradient."""
    torch.set_num_threads(1)
    warnings.simplefilter('ignore')  # mmengine's about processes
    os.environ |= dict(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE='2', MASTER_ADDR='127.0.0.1',
        MASTER_PORT=str(port),
    )  # fmt: skip
    torch.distributed.init_process_group('gloo')
    wrapper = dict(type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False)
    runner = runs.make_runner(
        catalogue, folder, launcher='pytorch', cfg=dict(model_wrapper_cfg=wrapper),
        hooks=('StepSeedHook', dict(type='NonFiniteHook', action='skip')), **ALONE | dict(epochs=2),
    )  # fmt: skip
    runner.model.module.loss.register_forward_hook(
        lambda module, _, loss: loss + (math.inf if rank and runner.iter == 1 else 0)
    )
    runner.train()
    torch.save(weights(runner), folder / f'{rank}.pth')


def free_port() -> int:
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        return free.getsockname()[1]


def test_what_one_process_sees_all_leave_out(catalogue, tmp_path):
    mp.start_processes(_ranks, (free_port(), catalogue, tmp_path), nprocs=2, start_method='fork')
    first, second = (torch.load(tmp_path / f'{rank}.pth') for rank in (0, 1))
    assert same(first, second)
    (mine,), (theirs,) = lines(tmp_path), lines(tmp_path, 'nonfinite.rank1.jsonl')
    assert (mine['batches'][0]['iter'], theirs['batches'][0]['iter'], theirs['rank']) == (2, 2, 1)
    assert math.isfinite(mine['batches'][0]['losses']['loss'])
    assert theirs['batches'][0]['losses']['loss'] == 'inf'
    assert not {*mine['batches'][0]['product_id']} & {*theirs['batches'][0]['product_id']}


class TestTemperature:
    @pytest.mark.parametrize('tiled', [False, True])
    @pytest.mark.parametrize('start', [-1e4, -3.0, 50.0, 1e4])
    def test_it_comes_back_from_anywhere(self, tiled, start):
        """Far below 0 exp gives 0, and so does the gradient: unbounded, it would stay there."""
        scale = torch.nn.Parameter(torch.tensor(start))
        image = torch.eye(6)
        ids = torch.arange(6)
        loss = InfoNCE(tiled=tiled)(image, image[None], torch.zeros(1, 6), scale, ids, ids)
        loss.backward()
        assert 1 <= scale.exp().item() <= 100.001
        assert loss.isfinite() and scale.grad.isfinite()
        if start < 0:
            assert scale.grad.item() < -0.1  # it wants to rise, as matches are perfect

    @pytest.mark.parametrize('rate', [10.0, 1e4])
    def test_after_any_step(self, make_runner, rate):
        """A rate for the temperature alone that throws it anywhere."""
        wrapper = dict(
            optimizer=dict(type='SGD', lr=1e-3), constructor='TowerLrConstructor',
            paramwise_cfg=dict(lr_mult={'towers.clip.logit_scale': rate * 1e3}),
        )  # fmt: skip
        runner = make_runner(hooks=['NonFiniteHook'], optim_wrapper=wrapper, param_scheduler=[])
        used = []
        runner.model.loss.register_forward_hook(
            lambda module, inputs, _: used.append(inputs[3].exp().item())
        )
        runner.train()
        assert len(used) == 6 and len({*used}) > 1
        assert all(1 <= value <= 100.001 for value in used)
