"""Measures: loops over rankings, trec_eval, and what holds of any ranking."""

import math
import random

import pytest
import references
import torch
from hypothesis import given
from hypothesis import strategies as st

from eiclip_mm.evaluation import both_ahead, median_rank, recall_at, sum_recall
from eiclip_mm.evaluation.measures import (
    average_precisions,
    discounted_gains,
    first_ranks,
    reciprocal_ranks,
)

KS = (1, 2, 5, 10)
RANKING = st.lists(st.booleans(), min_size=1, max_size=30).filter(any)  # best first; True is right


def ahead_of(rankings):
    """(Q, M): for every right item the wrong ones before it."""
    rows = [
        [place - sum(ranking[:place]) for place, right in enumerate(ranking) if right]
        for ranking in rankings
    ]
    return torch.tensor(references.padded(rows))


def random_rankings(seed, number):
    """Rankings of 1 to 40 items of which one to all are right."""
    rng = random.Random(seed)
    result = []
    for _ in range(number):
        size = rng.randint(1, 40)
        right = rng.sample(range(size), rng.choice([1, 1, rng.randint(1, size)]))
        result.append([place in right for place in range(size)])
    return result


def measured(ahead):
    """All measures of each query, under the names of trec_eval."""
    rank = first_ranks(ahead)
    columns = {'map': average_precisions(ahead), 'recip_rank': reciprocal_ranks(ahead)}
    columns |= {f'ndcg_cut_{k}': discounted_gains(ahead, k) for k in KS}
    columns |= {f'success_{k}': (rank <= k).double() for k in KS}
    assert all(column.dtype == torch.float64 for column in columns.values())
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in rows]


def trec_eval(scores, right):
    """The same by trec_eval, from lists of scores and of what is right."""
    pytrec_eval = pytest.importorskip('pytrec_eval')
    run = {f'q{q}': {f'd{d}': float(s) for d, s in enumerate(row)} for q, row in enumerate(scores)}
    truth = {f'q{q}': {f'd{d}': int(r) for d, r in enumerate(row)} for q, row in enumerate(right)}
    cuts = ','.join(map(str, KS))
    evaluator = pytrec_eval.RelevanceEvaluator(
        truth, {'map', 'recip_rank', f'ndcg_cut.{cuts}', f'success.{cuts}'}
    )
    found = evaluator.evaluate(run)
    return [found[f'q{q}'] for q in range(len(scores))]


def test_agree_with_loops():
    rankings = random_rankings(seed=0, number=500)
    for ranking, found in zip(rankings, measured(ahead_of(rankings)), strict=True):
        expected = dict(
            map=references.average_precision(ranking),
            recip_rank=references.reciprocal_rank(ranking),
        )
        expected |= {f'ndcg_cut_{k}': references.ndcg(ranking, k) for k in KS}
        expected |= {f'success_{k}': float(any(ranking[:k])) for k in KS}
        assert found == pytest.approx(expected, abs=1e-12)


def test_agree_with_trec_eval():
    """Scores in any order of documents, none twice; ahead is counted from them."""
    rng = random.Random(1)
    scores, right, rows = [], [], []
    for ranking in random_rankings(seed=2, number=400):
        rng.shuffle(ranking)
        own = rng.sample(range(-1000, 1000), len(ranking))
        wrong = [s for s, is_right in zip(own, ranking, strict=True) if not is_right]
        best = sorted((s for s, is_right in zip(own, ranking, strict=True) if is_right))[::-1]
        rows.append([sum(w > s for w in wrong) for s in best])
        scores.append(own)
        right.append(ranking)
    expected = trec_eval(scores, right)
    for found, theirs in zip(
        measured(torch.tensor(references.padded(rows))), expected, strict=True
    ):
        assert found == pytest.approx(theirs, abs=1e-9)
    assert 0.2 < sum(row['map'] for row in expected) / len(expected) < 0.8


def test_agree_with_trec_eval_from_embeddings_on():
    """Several views and captions a product, both directions, negative cosines among them."""
    g = torch.Generator().manual_seed(3)
    image_ids, text_ids = (torch.randint(0, 60, (n,), generator=g) for n in (200, 90))
    image_ids, text_ids = (torch.cat((ids, torch.arange(60))) for ids in (image_ids, text_ids))
    centre = torch.randn(60, 16, generator=g)
    image, text = (
        centre[ids] + 1.5 * torch.randn(len(ids), 16, generator=g) for ids in (image_ids, text_ids)
    )
    scores = image.double() @ text.double().T
    right = image_ids[:, None] == text_ids
    directions = (scores, right), (scores.T, right.T)
    for ahead, (own, marks) in zip(
        both_ahead(image, text, image_ids, text_ids), directions, strict=True
    ):
        gaps = [  # trec_eval knows no tolerance
            float((row[is_right, None] - row[~is_right]).abs().min())
            for row, is_right in zip(own, marks, strict=True)
        ]
        longest = float(torch.cat((image, text)).norm(dim=1).max())
        clear = [q for q, gap in enumerate(gaps) if gap > 2e-6 * longest**2]
        assert len(clear) > 0.95 * len(own)
        expected = trec_eval(own.tolist(), marks.tolist())
        found = measured(ahead)
        for q in clear:
            assert found[q] == pytest.approx(expected[q], abs=1e-9)
        assert 0.1 < sum(row['map'] for row in expected) / len(expected) < 0.9
        assert ahead.shape[1] > 2


@given(st.lists(RANKING, min_size=1, max_size=5))
def test_bounds_that_hold_of_any_ranking(rankings):
    ahead = ahead_of(rankings)
    recalls = recall_at(first_ranks(ahead), range(1, 31))
    assert list(recalls.values()) == sorted(recalls.values())  # monotone in k
    assert recalls[30] == 100
    for row in measured(ahead):
        assert min(row.values()) >= 0
        assert max(row.values()) <= 1 + 1e-12
        assert row['success_1'] == row['ndcg_cut_1']
        assert all((row[f'ndcg_cut_{k}'] > 0) == row[f'success_{k}'] for k in KS)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=6), st.integers(0, 9))
def test_perfect_ranking_scores_one_in_all(right, wrong):
    """However many items are right, and fewer or more of them than k."""
    ahead = ahead_of([[True] * number + [False] * wrong for number in right])
    for row in measured(ahead):
        assert row == pytest.approx(dict.fromkeys(row, 1.0), abs=1e-12)
    assert recall_at(first_ranks(ahead), KS) == dict.fromkeys(KS, 100)
    assert median_rank(first_ranks(ahead)) == 1


@given(st.lists(st.integers(0, 10**6), min_size=1))
def test_one_right_item_makes_map_and_mrr_the_same(wrong_ahead):
    ahead = torch.tensor(wrong_ahead)[:, None]
    assert average_precisions(ahead).equal(reciprocal_ranks(ahead))
    gains = [1 / math.log2(2 + w) if w < 10 else 0 for w in wrong_ahead]
    assert discounted_gains(ahead, 10).tolist() == pytest.approx(gains, abs=1e-12)


@given(RANKING, st.integers(0, 28))
def test_a_right_item_that_rises_lowers_no_measure(ranking, place):
    place %= len(ranking)
    before = place - 1
    if before < 0 or ranking[before] or not ranking[place]:
        return
    better = ranking.copy()
    better[before], better[place] = True, False
    worse, better = (measured(ahead_of([r]))[0] for r in (ranking, better))
    assert all(better[name] >= worse[name] - 1e-12 for name in worse)
    assert better['map'] > worse['map']


def test_queries_of_many_and_of_few_right_items_stand_alone():
    """What fills a row to the length of another changes nothing."""
    rankings = random_rankings(seed=4, number=60)
    ahead = ahead_of(rankings)
    together = measured(ahead)
    wider = measured(torch.nn.functional.pad(ahead, (0, 3), value=-1))
    for ranking, *found in zip(rankings, together, wider, strict=True):
        alone = pytest.approx(measured(ahead_of([ranking]))[0], abs=1e-12)
        assert found == [alone, alone]


def test_recall_at_k_counts_ranks_up_to_k():
    found = recall_at(torch.tensor([1, 2, 3, 3, 11]), (1, 2, 3, 10))
    assert found == {1: 20, 2: 40, 3: 80, 10: 80}
    assert list(recall_at(torch.tensor([2]), torch.tensor([3]))) == [3]


def test_middle_of_ranks():
    assert median_rank(torch.tensor([9, 1, 4])) == 4
    assert median_rank(torch.tensor([9, 1, 4, 5])) == 4.5
    large = torch.full((3,), 2**24 + 1)  # float32 has no such number
    assert median_rank(large) == 2**24 + 1


def test_sum_recall():
    i2t, t2i = {1: 1.0, 3: 50.0, 5: 2.0, 10: 4.0}, {1: 8.0, 5: 16.0, 10: 32.0, 20: 99.0}
    assert sum_recall(i2t, t2i) == 63
    perfect = dict.fromkeys((1, 5, 10), 100.0)
    assert sum_recall(perfect, perfect) == 600


def test_errors():
    ranks = torch.tensor([1])
    for ks, message in (((0, 5), r'\(0, 5\)'), ((5, -1), r'\(5, -1\)'), ((), r'\(\)')):
        with pytest.raises(ValueError, match=f'recall needs ks of 1 or more, got {message}'):
            recall_at(ranks, ks)
    for ks in ((1.0, 5.0), (1.5,), ('1',), (float('nan'),)):
        with pytest.raises(ValueError, match='recall needs whole numbers ks, got'):
            recall_at(ranks, ks)
    with pytest.raises(
        ValueError, match='no gallery is that large: recall at 99999999999999999999'
    ):
        recall_at(ranks, (1, 99999999999999999999))
    with pytest.raises(ValueError, match=r'ks of 1 or more, got \(0,\)'):
        discounted_gains(torch.tensor([[0]]), 0)
    for summary in (median_rank, lambda r: recall_at(r, (1,))):
        for wrong, shape in ((torch.tensor([], dtype=int), r'0,'), (torch.ones(2, 3), '2, 3')):
            with pytest.raises(ValueError, match=rf'must be \(Q,\) with Q >= 1, got \({shape}\)'):
                summary(wrong)
    with pytest.raises(
        ValueError, match=r'SumR needs recall at \(1, 5, 10\) in both directions; \[5\] missing'
    ):
        sum_recall({1: 1.0, 5: 1.0, 10: 1.0}, {1: 1.0, 10: 1.0})
    with pytest.raises(ValueError, match=r'\[1, 10\] missing'):
        sum_recall({5: 1.0, 10: 1.0}, {1: 1.0, 5: 1.0})
