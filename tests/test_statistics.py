"""Intervals, paired comparison and spread over seeds, against enumeration and simulation."""

import itertools
import math
from dataclasses import astuple, replace

import numpy as np
import pytest
import torch

from eiclip_mm.evaluation import PROTOCOLS, Embeddings, Ranking, Retrieval, get_protocol, retrieve
from eiclip_mm.evaluation.by_product import tables
from eiclip_mm.evaluation.statistics import compare, intervals, over_seeds


def result(i2t, t2i, protocol='full/product', gallery=100, **changes):
    """A result from the rank of each query: {product: ranks}, one dict a direction."""

    def ranking(ranks):
        ids = torch.tensor([product for product, found in ranks.items() for _ in found])
        ahead = torch.tensor([[rank - 1] for found in ranks.values() for rank in found])
        return Ranking(ids, ahead, gallery)

    products = len({*i2t, *t2i})
    images = sum(map(len, i2t.values()))
    given = dict(num_images=images, num_products=products) | changes
    return Retrieval(PROTOCOLS[protocol], ranking(i2t), ranking(t2i), **given)


class World:
    """Products whose right items have geometric ranks: R@k of a product is 1 - (1 - theta)^k.

    A product has 1 to 6 views and one text, all of one theta, which is Beta distributed and the
    higher the more views there are. So hits hang together within a product, within and across
    directions, and the true value of every recall is known.
    """

    views = np.arange(1, 7)

    def __init__(self, first, second, seed):
        self.first, self.second = first * (0.7 + 0.1 * self.views), second  # of Beta
        self.rng = np.random.default_rng(seed)

    def recall(self, direction, k):
        i = np.arange(k)
        beta = self.first[:, None] + self.second
        missed = ((self.second + i) / (beta + i)).prod(1)  # E (1 - theta)^k
        return 100 * np.average(1 - missed, weights=self.views if direction == 'i2t' else None)

    @property
    def sum_recall(self):
        return sum(self.recall(d, k) for d in ('i2t', 't2i') for k in (1, 5, 10))

    def products(self, number):
        """Number of views and theta of each product."""
        views = self.rng.integers(1, 7, number)
        return views, self.rng.beta(self.first[views - 1], self.second).clip(1e-6)

    def run(self, views, theta):
        """A model asked about these products."""
        ids = np.arange(len(views))
        rankings = []
        for product in (ids.repeat(views), ids):
            ahead = self.rng.geometric(theta[product]).clip(max=10**6) - 1
            rankings.append(
                Ranking(torch.from_numpy(product), torch.from_numpy(ahead)[:, None], 10**6)
            )
        return Retrieval(PROTOCOLS['full/product'], *rankings, int(views.sum()), len(views))


def is_share(hits, number, expected):
    """Whether hits are the expected share of a number, within four standard errors."""
    return abs(hits / number - expected) < 4 * math.sqrt(expected * (1 - expected) / number)


SMALL = (
    {5: [1, 3, 12], 8: [2], 9: [1, 1], 11: [7, 30]},
    {5: [2], 8: [1], 9: [40], 11: [4]},
)
OTHER = (
    {5: [1, 1, 9], 8: [5], 9: [2, 1], 11: [3, 11]},
    {5: [1], 8: [1], 9: [6], 11: [20]},
)


def literal(runs, products):
    """Measures of a literal list of products, one product possibly several times."""
    found = {}
    for direction in (0, 1):
        ranks = [r for run in runs for product in products for r in run[direction][product]]
        name = ('i2t', 't2i')[direction]
        for k in (1, 5, 10):
            found[f'{name}/R@{k}'] = 100 * sum(r <= k for r in ranks) / len(ranks)
        found[f'{name}/MRR'] = found[f'{name}/mAP'] = sum(1 / r for r in ranks) / len(ranks)
        gains = [1 / math.log2(1 + r) if r <= 10 else 0 for r in ranks]
        found[f'{name}/nDCG@10'] = sum(gains) / len(ranks)
        found[f'{name}/mean_rank'] = sum(ranks) / len(ranks)
    found['SumR'] = sum(v for k, v in found.items() if '/R@' in k)
    found['meanR'] = found['SumR'] / 6
    return found


class TestIntervals:
    def test_two_products_by_hand(self):
        """Both, the first twice or the second twice: 1/2, 1/4, 1/4."""
        run = result({7: [1, 4, 20], 9: [1]}, {7: [1], 9: [2]})
        wide, narrow = intervals(run), intervals(run, level=0.4)
        for name, (value, low, high) in {
            'i2t/R@1': (50, 100 / 3, 100),  # 2 of 4, 1 of 3, 1 of 1: views weigh, not products
            't2i/R@1': (50, 0, 100),
            'i2t/mean_rank': (6.5, 1, 25 / 3),
            'SumR': (450, 450, 500),  # 450, 466.7 and 500
        }.items():
            assert wide[name].value == pytest.approx(value)
            assert (wide[name].low, wide[name].high) == pytest.approx((low, high))
        assert narrow['i2t/R@1'].low == narrow['i2t/R@1'].high == 50

    @pytest.mark.parametrize('runs', [[SMALL], [SMALL, OTHER]])
    @pytest.mark.parametrize('level', [0.5, 0.95])
    def test_all_draws_enumerated(self, runs, level):
        """256 draws of 4 products from 4: the ends cut off what they should."""
        draws = [literal(runs, products) for products in itertools.product(SMALL[0], repeat=4)]
        samples = 20_000
        found = intervals([result(*run) for run in runs], level=level, samples=samples)
        assert found.keys() == draws[0].keys()
        cut = (1 - level) / 2
        error = 4 * math.sqrt(cut * (1 - cut) / samples)
        for name, interval in found.items():
            assert interval.value == pytest.approx(literal(runs, SMALL[0])[name])
            values = np.array([draw[name] for draw in draws])
            assert (values < interval.low - 1e-9).mean() <= cut + error, name
            assert (values <= interval.low + 1e-9).mean() >= cut - error, name
            assert (values > interval.high + 1e-9).mean() <= cut + error, name
            assert (values >= interval.high - 1e-9).mean() >= cut - error, name

    def test_a_product_takes_both_directions_along(self):
        """Where one direction makes up for the other, the sum is sure."""
        first = {p: [1 + 98 * (p % 2)] for p in range(40)}
        second = {p: [99 - 98 * (p % 2)] for p in range(40)}
        found = intervals(result(first, second))
        assert found['SumR'].low == found['SumR'].high == pytest.approx(300)
        assert found['i2t/R@1'].high - found['i2t/R@1'].low > 20

    def test_views_of_a_product_are_no_further_evidence(self):
        ranks = {p: [1 + 98 * (p % 2)] for p in range(40)}
        one = intervals(result(ranks, ranks))
        ten = intervals(result({p: r * 10 for p, r in ranks.items()}, ranks))
        for name, interval in one.items():
            assert astuple(ten[name]) == pytest.approx(astuple(interval)), name

    @pytest.mark.parametrize('first', [0.5, 3.0])
    def test_coverage(self, first):
        """95 % intervals hold the true value in 95 % of worlds."""
        world = World(first, 2, seed=0)
        worlds, truth = 600, {'i2t/R@1': world.recall('i2t', 1), 'SumR': world.sum_recall}
        held = dict.fromkeys(truth, 0)
        for seed in range(worlds):
            found = intervals(world.run(*world.products(200)), samples=199, seed=seed)
            for name, value in truth.items():
                held[name] += found[name].low <= value <= found[name].high
        assert all(is_share(count, worlds, 0.95) for count in held.values()), held

    def test_chunks_change_nothing(self, monkeypatch):
        world = World(1, 2, seed=1)
        products = world.products(30)
        a, b = world.run(*products), world.run(*products)
        whole, other = compare(a, b, samples=50), compare(a, b, samples=50, seed=1)
        monkeypatch.setattr('eiclip_mm.evaluation.by_product.CHUNK', 100)
        for name, difference in compare(a, b, samples=50).items():
            assert astuple(difference) == pytest.approx(astuple(whole[name])), name
            assert difference.low != pytest.approx(other[name].low), name

    def test_real_results_keep_their_values(self):
        """Several right items, several draws, products asked in one direction alone."""
        g = torch.Generator().manual_seed(0)
        ids = torch.arange(40) % 16
        embeddings = Embeddings(
            image=torch.randn(40, 8, generator=g),
            image_product_id=ids,
            product=torch.randn(16, 8, generator=g),
            product_id=torch.arange(16),
            labels={'subcategory': np.array(['a'] * 12 + ['b'] * 4)},
        )
        for protocol in ('full/product', get_protocol('101/kaleido', queries=9)):
            run = retrieve(embeddings, protocol)
            metrics = run.metrics((1, 5, 10))
            found = intervals(run)
            left = {'i2t/median_rank', 't2i/median_rank', 'num_images', 'num_products'}
            assert metrics.keys() - found.keys() == left
            for name, interval in found.items():
                assert interval.value == pytest.approx(metrics[name])
                assert interval.low < interval.value < interval.high, name

    @pytest.mark.parametrize('level', [0.5, 0.8, 0.9, 0.95, 0.99])
    def test_the_fewest_samples_span_them_all(self, level):
        """Between the ends, which are the extremes, lies one more draw with the share ``level``."""
        samples = round(2 / (1 - level)) - 1
        run = result(*SMALL)
        found = intervals(run, level=level, samples=samples)
        drawn = tables([run], (1, 5, 10))[0].resampled(samples, seed=0)
        assert [i.low for i in found.values()] == pytest.approx(drawn.min(0))
        assert [i.high for i in found.values()] == pytest.approx(drawn.max(0))
        for call in (lambda s: intervals(run, level=level, samples=s),
                     lambda s: compare(run, run, level=level, samples=s)):  # fmt: skip
            with pytest.raises(ValueError, match=f'need from {samples} to'):
                call(samples - 1)

    def test_no_sum_without_its_recalls(self):
        assert 'SumR' not in intervals(result(*SMALL), ks=(1, 5))

    @pytest.mark.parametrize(
        ('change', 'message'),
        [
            (dict(level=95), 'level is a share between 0 and 1, as 0.95, got 95'),
            (dict(samples=38), 'level 0.95 need from 39 to 1,000,000 samples, got 38'),
            (dict(level=0.9, samples=18), 'level 0.9 need from 19 to'),
            (dict(samples=1_000_001), 'to 1,000,000 samples, got 1,000,001'),
            (dict(ks=(1, 200)), r'R@200 means nothing in a gallery of 100 texts'),
            (dict(ks=()), r'recall needs ks of 1 or more, got \(\)'),
            (dict(runs=[]), 'got no run; give one Retrieval or more'),
            (dict(runs=result({3: [1]}, {3: [1]})), 'needs 2 of them or more, got 1'),
            (dict(runs=result({3: [1]}, {4: [1]})),
             r'there may be none with a query of one direction: too few have one, \[1, 1\]'),
        ],
    )  # fmt: skip
    def test_errors(self, change, message):
        with pytest.raises(ValueError, match=message):
            intervals(**(dict(runs=result(*SMALL)) | change))


class TestCompare:
    def test_against_enumeration(self):
        """All 16 swaps of 4 products; the interval is that of the difference in the same draws."""
        found = compare(result(*SMALL), result(*OTHER), samples=20_000)
        draws = itertools.product(SMALL[0], repeat=4)
        pairs = [(literal([SMALL], draw), literal([OTHER], draw)) for draw in draws]
        for name, difference in found.items():
            a, b = (literal([run], SMALL[0])[name] for run in (SMALL, OTHER))
            assert (difference.a, difference.b) == pytest.approx((a, b))
            assert difference.difference == pytest.approx(b - a)
            values = np.array([two[name] - one[name] for one, two in pairs])
            for end, tail in ((difference.low, values), (-difference.high, -values)):
                assert (tail < end - 1e-9).mean() <= 0.03, name
                assert (tail <= end + 1e-9).mean() >= 0.02, name
            assert difference.p == pytest.approx(self.exact_p(name), abs=0.015), name

    @staticmethod
    def exact_p(name):
        hits = 0
        for swap in itertools.product([False, True], repeat=4):
            runs = [({}, {}), ({}, {})]
            for direction in (0, 1):
                for product, swapped in zip(SMALL[0], swap, strict=True):
                    pair = SMALL[direction][product], OTHER[direction][product]
                    runs[0][direction][product], runs[1][direction][product] = pair[
                        :: -1 if swapped else 1
                    ]
            one, two = (literal([run], SMALL[0])[name] for run in runs)
            if not any(swap):
                found = abs(two - one)
            hits += abs(two - one) >= found - 1e-9
        return hits / 16

    def test_equal_runs(self):
        world = World(1, 2, seed=0)
        run = world.run(*world.products(50))
        for difference in compare(run, run, samples=99).values():
            assert difference.difference == difference.low == difference.high == 0
            assert difference.p == 1

    def test_order_of_queries_does_not_matter(self):
        a, b = result(*SMALL), result(*OTHER)
        back = [dict(reversed(side.items())) for side in OTHER]
        found = compare(a, result(*back))
        for name, difference in compare(a, b).items():
            assert astuple(found[name]) == pytest.approx(astuple(difference)), name

    def test_p_is_uniform_where_models_are_equally_good(self):
        world = World(1, 2, seed=2)
        worlds, p = 600, {'i2t/MRR': [], 't2i/nDCG@10': [], 'SumR': []}
        for seed in range(worlds):
            products = world.products(60)
            found = compare(world.run(*products), world.run(*products), samples=199, seed=seed)
            for name, values in p.items():
                values.append(found[name].p)
        for name, values in p.items():
            for level in (0.05, 0.2, 0.5, 0.8):
                hits = sum(value <= level + 1e-9 for value in values)
                assert is_share(hits, worlds, level), (name, level, hits)

    def test_a_difference_is_found(self):
        """The better model wins in both ways to put the question; the interval holds the truth."""
        world = World(1, 2, seed=3)
        views, theta = world.products(400)
        a, b = world.run(views, theta), world.run(views, theta**0.7)
        one, two = compare(a, b)['SumR'], compare(b, a)['SumR']
        assert one.p == two.p == 1 / 2001
        truth = sum(
            100 * np.average((1 - theta) ** k - (1 - theta**0.7) ** k, weights=weights)
            for k in (1, 5, 10)
            for weights in (views, None)
        )
        assert 0 < one.low < truth < one.high
        assert one.difference == -two.difference > 0
        assert (one.low, one.high) == pytest.approx((-two.high, -two.low))

    def test_pairs_are_surer_than_two_intervals(self):
        world = World(1, 2, seed=4)
        run = world.run(*world.products(200))
        little = replace(run, i2t=replace(run.i2t, ahead=(run.i2t.ahead - 1).clip(min=0)))
        paired, alone = compare(run, little)['SumR'], intervals(run)['SumR']
        assert paired.high - paired.low < 0.5 * (alone.high - alone.low)

    def test_seeds_are_averaged(self):
        world = World(1, 2, seed=5)
        products = world.products(50)
        a, b, c = (world.run(*products) for _ in range(3))
        found = compare([a, b], c)
        for name, difference in found.items():
            mean = (a.metrics()[name] + b.metrics()[name]) / 2
            assert difference.a == pytest.approx(mean)
            assert difference.difference == pytest.approx(c.metrics()[name] - mean)
        for difference in compare([a, b], [b, a], samples=99).values():
            ends = difference.difference, difference.low, difference.high
            assert ends == pytest.approx((0, 0, 0)) and difference.p == 1
        same, once = compare([a, a], [c, c, c])['SumR'], compare(a, c)['SumR']
        assert astuple(same) == pytest.approx(astuple(once))

    @pytest.mark.parametrize(
        ('change', 'message'),
        [
            (dict(protocol='full/first-image'), "protocol.name is 'full/product' and 'full/first"),
            (dict(manifest='ab'), "run 2 of 2 cannot .* first: manifest is None and 'ab'. Take"),
            (dict(gallery=99), 'i2t gallery is 100 and 99, t2i gallery is 100 and 99'),
            (dict(i2t={5: [1], 9: [1, 2], 11: [1]}, t2i={5: [1], 9: [1], 11: [1]}),
             r'1 products are in one of them alone, e.g. \[8\]'),
            (dict(i2t={5: [1] * 3, 8: [2], 9: [1], 11: [7] * 2}),
             r"1 products have other .* product 9 has \[2, 1\] and \[1, 1\] in \('i2t', 't2i'\)"),
        ],
    )  # fmt: skip
    def test_runs_must_be_asked_the_same(self, change, message):
        other = result(**(dict(i2t=SMALL[0], t2i=SMALL[1]) | change))
        for call in (compare, lambda a, b: intervals([a, b]), lambda a, b: over_seeds([a, b])):
            with pytest.raises(ValueError, match=message):
                call(result(*SMALL), other)


class TestOverSeeds:
    def test_three_seeds_by_hand(self):
        """R@1 of 20, 30 and 40 per cent: 4.3027 * 10 / sqrt(3) to each side of 30."""
        runs = [
            result(*[{p: [1 if p < hits else 3 + hits] for p in range(10)}] * 2)
            for hits in (2, 3, 4)
        ]
        found = over_seeds(runs)
        recall = found['t2i/R@1']
        assert (recall.mean, recall.std) == pytest.approx((30, 10))
        assert (recall.low, recall.high) == pytest.approx((30 - 24.8414, 30 + 24.8414), abs=1e-4)
        assert found['i2t/median_rank'].mean == pytest.approx(6)
        assert found['SumR'].mean == pytest.approx(2 * (30 + (100 + 30 + 40) / 3 + 100))
        assert list(found) == list(runs[0].metrics())[:-2]  # all but the two counts

    def test_errors(self):
        for runs in (result(*SMALL), [result(*SMALL)]):
            with pytest.raises(ValueError, match='over seeds needs 2 runs or more, got 1'):
                over_seeds(runs)
