"""randomness.deterministic=True: torch refuses what is not repeatable, and our models train."""

import pytest
import runs
import torch
from runs import same, weights, write_catalogue
from test_finite import ALONE
from test_tools import ROOT

from eiclip_mm.utils import load_config

ADAMW = dict(type='AdamW', lr=0.003, fused=True)
CACHED = dict(type='OpenCLIPTowers', model=runs.NOISY, micro_batch=4, grad_checkpointing=True)
KINDS = dict(
    gates=dict(),
    tiled=dict(model=dict(loss=dict(type='InfoNCE', tiled=True, same_text=True))),
    cached=dict(model=dict(towers=CACHED)),
    senses=dict(model=dict(learner=dict(type='EALearner', num_learned=2, expectation='exact'))),
    bfloat16=dict(
        optim_wrapper=dict(
            type='AutocastOptimWrapper', optimizer=ADAMW, clip_grad=dict(max_norm=1.0),
            accumulative_counts=2,
        )
    ),
)  # fmt: skip


@pytest.fixture(scope='module')
def catalogue(tmp_path_factory):
    return write_catalogue(tmp_path_factory.mktemp('mini'))


@pytest.fixture
def as_before():
    """mmengine sets switches of the whole process."""
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    yield
    torch.use_deterministic_algorithms(False)
    cudnn.deterministic, cudnn.benchmark = before


@pytest.mark.parametrize('kind', KINDS)
def test_two_runs_are_equal_to_the_bit(catalogue, tmp_path, as_before, kind):
    found = []
    for name in ('one', 'two'):
        runner = runs.make_runner(
            catalogue, tmp_path / name, hooks=('StepSeedHook', 'NonFiniteHook'),
            randomness=dict(seed=0, deterministic=True), param_scheduler=[],
            **ALONE | KINDS[kind],
        )  # fmt: skip
        start = weights(runner)
        runner.train()
        assert torch.are_deterministic_algorithms_enabled()
        found.append(weights(runner))
    assert same(*found) and not same(start, found[0])


def test_the_switch_stands_in_every_config():
    """So that --cfg-options randomness.deterministic=True needs no +."""
    assert load_config(ROOT / 'configs/eiclip_products.py').randomness.deterministic is False
