"""Counting in bfloat16 gives the counts of float32: the plain path is its twin."""

import pytest
import torch
import torch.nn.functional as F

from eiclip_mm.evaluation import both_ahead, coarse, functional
from eiclip_mm.evaluation.coarse import CoarseCounter, Direction, worthwhile


@pytest.fixture
def count(monkeypatch):
    """``both_ahead`` by a way, and how often tiles were counted coarsely, settled, given up."""
    seen = dict(tiles=0, settled=0, given_up=0)
    plain_count, plain_settle = CoarseCounter.count, CoarseCounter._settle

    def counted(self, *args):
        done = plain_count(self, *args)
        seen['tiles' if done else 'given_up'] += 1
        return done

    def settled(self, *args):
        seen['settled'] += 1
        plain_settle(self, *args)

    monkeypatch.setattr(CoarseCounter, 'count', counted)
    monkeypatch.setattr(CoarseCounter, '_settle', settled)
    monkeypatch.setattr(coarse, 'fast_bfloat16', lambda: True)  # it is right on every CPU

    def run(*sides, fast, **how):
        monkeypatch.setattr(functional, 'worthwhile', worthwhile if fast else lambda *_: False)
        return [x.tolist() for x in both_ahead(*sides, **how)]

    return run, seen


def agree(run, *sides, **how):
    assert run(*sides, fast=True, **how) == run(*sides, fast=False, **how)


def learnt(generator, products, views, dim, noise):
    """Images around their texts."""
    text = F.normalize(torch.randn(products, dim, generator=generator), dim=1)
    ids = torch.arange(products).repeat_interleave(views)
    image = text[ids] + noise * torch.randn(len(ids), dim, generator=generator)
    return F.normalize(image, dim=1), text, ids, torch.arange(products)


@pytest.mark.parametrize('ties', ['against', 'for'])
@pytest.mark.parametrize('every', [False, True])
def test_counts_are_those_of_float32(count, ties, every):
    run, seen = count
    generator = torch.Generator().manual_seed(0)
    for noise in (0.05, 0.1, 0.2, 0.4, 1.0):
        for views, dim in ((1, 128), (3, 256), (2, 32)):
            sides = learnt(generator, 150, views, dim, noise)
            agree(run, *sides, every=every, ties=ties, chunk=40)
    assert seen['tiles'] > 100
    assert seen['settled'] > 30
    assert seen['given_up'] > 1


@pytest.mark.parametrize('gap', [0, 1e-8, 1e-4, 3e-3])  # at 1e-6 itself the last bits decide
def test_wrong_items_near_the_right_one(count, gap):
    """Ties within the tolerance, and differences far below what bfloat16 can tell."""
    run, seen = count
    generator = torch.Generator().manual_seed(1)
    image, text, _, own = learnt(generator, 200, 1, 64, 0.1)
    near = torch.randperm(200, generator=generator)[:60]
    text = torch.cat([text, text[near] + gap * torch.randn(60, 64, generator=generator)])
    image = torch.cat([image, text[200:] + 0.1 * torch.randn(60, 64, generator=generator)])
    own = torch.arange(260)
    for ties in ('against', 'for'):
        agree(run, image, text, own, own, ties=ties, chunk=50)
    assert seen['settled'] > 5


def test_lengths_and_small_integers(count):
    run, seen = count
    generator = torch.Generator().manual_seed(2)
    for seed in range(40):
        image, text, ids, own = learnt(generator, 60, 2, 24, 0.15)
        if seed % 2:
            lengths = 10.0 ** torch.randint(-6, 7, (60,), generator=generator)
            text, image = text * lengths[:, None], image * lengths[ids, None]
        else:
            text, image = (text * 9).round(), (image * 9).round()
        agree(run, image, text, ids, own, chunk=16)
    assert seen['tiles'] > 40


def test_margin_holds_the_error():
    """Also where all roundings add up: every element just below half a step of bfloat16."""
    generator = torch.Generator().manual_seed(3)
    step = 1 + 2**-8 - 2**-20
    worst = 0
    for a, b in (
        (torch.full((4, 512), step), torch.full((4, 512), step)),
        (torch.full((4, 4096), step), torch.full((4, 4096), -1.0)),
        (torch.full((4, 256), step), torch.eye(256)[:4]),
        (torch.randn(300, 512, generator=generator), torch.randn(300, 512, generator=generator)),
        (torch.rand(300, 31, generator=generator), torch.rand(300, 31, generator=generator)),
    ):
        scores = CoarseCounter(len(a), len(b), a.shape[1], strict=False)._scores(a, b)
        exact = a.double() @ b.double().T
        length = a.norm(dim=1) * b.norm(dim=1).max()
        # a floor at the true score: what is compared with it may be off by its own rounding
        margin = Direction(None, exact.float(), length, a.shape[1]).margin
        worst = max(worst, float(((scores - exact).abs() / margin).max()))
    assert 0.6 < worst <= 1


def test_where_it_is_worthwhile(monkeypatch):
    monkeypatch.setattr(coarse, 'fast_bfloat16', lambda: True)
    ones = torch.ones(3)
    assert worthwhile(ones, ones)
    assert not worthwhile(ones, 0 * ones)  # no margin: all scores are ties
    assert not worthwhile(ones, 1e-20 * ones)
    assert not worthwhile(ones.to('meta'), ones.to('meta'))
    monkeypatch.setattr(coarse, 'fast_bfloat16', lambda: False)
    assert not worthwhile(ones, ones)
