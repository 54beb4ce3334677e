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


@pytest.mark.parametrize('factor', [-1.5, -0.5, 0.5, 1.5])
def test_tolerance_is_that_of_float32(count, factor):
    """Wrong items whose score is off the right one's by this many tolerances."""
    run, seen = count
    image, text, _, own = learnt(torch.Generator().manual_seed(4), 200, 1, 64, 0.05)
    text[100:] = text[:100] + factor * 1e-6 * image[:100]
    image[100:] = -image[:100]
    for ties, counted in (('against', factor > -1), ('for', factor > 1)):
        found = run(image, text, own, own, fast=True, ties=ties, chunk=50)
        assert sum(row[0] for row in found[0][:100]) == 100 * counted
    assert seen['settled'] > 5


def test_margin_is_of_the_tile_s_queries_and_the_longest_item(count, monkeypatch):
    """What it is made of, for queries and items of all lengths, in both directions."""
    run, seen = count
    image, text, _, own = learnt(torch.Generator().manual_seed(5), 60, 1, 24, 0.05)
    image, text = (x * torch.linspace(1, 3, 60)[:, None] for x in (image, text.flip(1)))
    plain = CoarseCounter.count

    def checked(self, a, b, a_side, b_side):
        for side, queries, items in ((a_side, a, text), (b_side, b, image)):
            expected = queries.norm(dim=1) * items.norm(dim=1).max()
            torch.testing.assert_close(side.length, expected)
            assert side.dim == 24
        return plain(self, a, b, a_side, b_side)

    monkeypatch.setattr(CoarseCounter, 'count', checked)
    run(image, text, own, own, fast=True, chunk=20)
    assert seen['tiles'] + seen['given_up'] > 0


@pytest.mark.parametrize(
    ('views', 'coarsely'), [(functional.MANY, True), (functional.MANY + 1, False)]
)
def test_more_right_items_are_not_counted_coarsely(count, views, coarsely):
    run, seen = count
    sides = learnt(torch.Generator().manual_seed(6), 40, views, 64, 0.05)
    agree(run, *sides, chunk=20)
    assert (seen['tiles'] > 0) == coarsely


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
