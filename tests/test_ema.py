"""mmengine's EMAHook with our models: what is averaged, evaluated, saved and resumed."""

import pytest
import runs
import torch
from mmengine.hooks import Hook
from runs import same, weights

from eiclip_mm.models.ei_clip import vocab_of_state

MOMENTUM = 0.3
EMA = dict(type='EMAHook', momentum=MOMENTUM)
NAME = 'towers.clip.text_projection'


class Recorder(Hook):
    """One weight after each step, and as evaluation sees it."""

    priority = 'LOWEST'

    def __init__(self):
        self.trained, self.evaluated = [], []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.trained.append(runner.model.get_parameter(NAME).detach().clone())

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        self.evaluated.append(runner.model.get_parameter(NAME).detach().clone())


@pytest.fixture(scope='module')
def catalogue(tmp_path_factory):
    return runs.write_catalogue(tmp_path_factory.mktemp('mini'))


def averaged(trained):
    average = trained[0].clone()
    for weight in trained[1:]:
        average = (1 - MOMENTUM) * average + MOMENTUM * weight
    return average


def test_from_training_to_a_resumed_run(catalogue, tmp_path):
    hooks = ('StepSeedHook', 'PlainCheckpointHook', EMA, recorder := Recorder())
    runner = runs.make_runner(catalogue, tmp_path / 'whole', epochs=2, hooks=hooks)
    runner.train()
    steps = len(recorder.trained) // 2
    assert steps > 1 and len(recorder.evaluated) == 2

    # evaluation sees the average, training goes on from its own weights
    expected = averaged(recorder.trained[:steps])
    torch.testing.assert_close(recorder.evaluated[0], expected)
    assert not recorder.evaluated[0].equal(recorder.trained[steps - 1])
    assert runner.model.get_parameter(NAME).equal(recorder.trained[-1])

    # a checkpoint is the average, whoever loads it; the trained weights lie beside it
    saved = torch.load(tmp_path / 'whole/epoch_2.pth', weights_only=False)
    torch.testing.assert_close(saved['state_dict'][NAME], averaged(recorder.trained))
    assert saved['ema_state_dict'][f'module.{NAME}'].equal(recorder.trained[-1])
    for state in (saved['state_dict'], {'_extra_state': runner.model.get_extra_state()}):
        assert state['_extra_state'].dtype == torch.uint8
        assert vocab_of_state(state['_extra_state']) == runner.model.vocab
    assert saved['ema_state_dict']['module._extra_state'].equal(runner.model.get_extra_state())

    again = runs.make_runner(
        catalogue, tmp_path / 'again', epochs=2, hooks=('StepSeedHook', 'PlainCheckpointHook', EMA),
        load_from=str(tmp_path / 'whole/epoch_1.pth'), resume=True,
    )  # fmt: skip
    again.train()
    assert same(weights(again), weights(runner))
    resumed = torch.load(tmp_path / 'again/epoch_2.pth', weights_only=False)
    for name in ('state_dict', 'ema_state_dict'):
        assert same(resumed[name], saved[name]), name


def test_another_vocabulary_is_refused(catalogue, tmp_path):
    """The average's copy of the vocabulary is checked as the model's own."""
    runner = runs.make_runner(catalogue, tmp_path, hooks=(EMA,))
    runner.call_hook('before_run')
    hook = next(h for h in runner.hooks if type(h).__name__ == 'EMAHook')
    state = hook.ema_model.state_dict()
    vocab = runner.model.vocab.to_dict()
    other = dict(vocab, names=dict(vocab['names'], brand=[f'x{i}' for i in range(9)]))
    other['counts'] = dict(vocab['counts'], brand=[1] * 9)
    tokenizer = dict(vocab=other)
    stranger = runs.make_runner(catalogue, tmp_path, hooks=(EMA,), tokenizer=tokenizer)
    state['module._extra_state'] = stranger.model.get_extra_state()
    with pytest.raises(ValueError, match='trained with another entity vocabulary'):
        hook.ema_model.load_state_dict(state)


def test_adapters_are_averaged(catalogue, tmp_path):
    towers = dict(type='OpenCLIPTowers', model=runs.NOISY, lora=dict(rank=2))
    runner = runs.make_runner(catalogue, tmp_path, model=dict(towers=towers), hooks=(EMA,))
    before = weights(runner)
    runner.train()
    saved = torch.load(tmp_path / 'epoch_1.pth', weights_only=False)
    changed = {n for n, value in saved['state_dict'].items() if not value.equal(before[n])}
    assert any(name.endswith('in_proj_weight.0.up') for name in changed)
    assert not any(name.endswith('.original') for name in changed)
    adapter = next(name for name in changed if name.endswith('.up'))
    assert not saved['ema_state_dict'][f'module.{adapter}'].equal(saved['state_dict'][adapter])
