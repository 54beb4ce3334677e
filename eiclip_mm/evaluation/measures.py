"""Measures of ranked retrieval, from where the right items of each query stand.

All of them read ``ahead`` (Q, M): column m holds how many *wrong* items stand ahead of the query's
m-th best right item, -1 where a query has fewer than M right items. So the m-th right item,
m = 0, 1, …, has rank ``ahead + m + 1`` in the whole list and the first one has ``ahead + 1``.
Definitions are those of trec_eval, with binary relevance.
"""

import statistics
from collections.abc import Mapping, Sequence
from operator import index

import torch
from torch import Tensor

SUM_KS = (1, 5, 10)  # SumR is defined by these, in both directions


def first_ranks(ahead: Tensor) -> Tensor:
    """(Q,) rank of the best right item of each query, from 1.

    >>> first_ranks(torch.tensor([[0, 3], [4, -1]]))
    tensor([1, 5])
    """
    return ahead[:, 0] + 1


def recall_at(ranks: Tensor, ks: Sequence[int]) -> dict[int, float]:
    """Per cent of queries whose rank is at most k.

    >>> recall_at(torch.tensor([1, 2, 2, 7]), (1, 5))
    {1: 25.0, 5: 75.0}
    """
    _check_ranks(ranks)
    check_ks(ks)
    return {int(k): 100 * int((ranks <= k).sum()) / len(ranks) for k in ks}


def median_rank(ranks: Tensor) -> float:
    """Median of the ranks; of an even number, the mean of the two in the middle.

    >>> median_rank(torch.tensor([1, 2, 4, 7]))
    3.0
    """
    _check_ranks(ranks)
    return float(statistics.median(ranks.tolist()))


def reciprocal_ranks(ahead: Tensor) -> Tensor:
    """(Q,) one over the rank of the best right item; their mean is MRR.

    >>> reciprocal_ranks(torch.tensor([[0, 3], [4, -1]])).tolist()
    [1.0, 0.2]
    """
    return 1 / first_ranks(ahead).double()


def average_precisions(ahead: Tensor) -> Tensor:
    """(Q,) mean over the right items of the precision where each stands; their mean is mAP.

    >>> average_precisions(torch.tensor([[0, 2], [1, -1]])).tolist()
    [0.75, 0.5]
    """
    right = ahead >= 0
    found = torch.arange(1, ahead.shape[1] + 1, device=ahead.device).double()
    precision = torch.where(right, found / (found + ahead), 0.0)
    return precision.sum(1) / right.sum(1)


def discounted_gains(ahead: Tensor, k: int) -> Tensor:
    """(Q,) nDCG@k: gain 1 / log2(1 + rank) of the right items up to rank k, over the best possible.

    >>> discounted_gains(torch.tensor([[0, 0], [2, -1], [5, -1]]), k=5).tolist()
    [1.0, 0.5, 0.0]
    """
    check_ks([k])
    place = torch.arange(1, ahead.shape[1] + 1, device=ahead.device)
    rank, right = ahead + place, ahead >= 0
    gain = torch.where(right & (rank <= k), 1 / torch.log2(1 + rank.clamp(min=1).double()), 0.0)
    best = torch.where(right & (place <= k), 1 / torch.log2(1 + place.double()), 0.0)
    return gain.sum(1) / best.sum(1)


def sum_recall(i2t: Mapping[int, float], t2i: Mapping[int, float]) -> float:
    """SumR: R@1 + R@5 + R@10 of both directions, at most 600.

    >>> sum_recall({1: 25.7, 5: 54.5, 10: 66.8}, {1: 28.4, 5: 57.1, 10: 69.4})
    301.9
    """
    missing = [k for k in SUM_KS if k not in i2t or k not in t2i]
    if missing:
        raise ValueError(f'SumR needs recall at {SUM_KS} in both directions; {missing} missing')
    return sum(recalls[k] for recalls in (i2t, t2i) for k in SUM_KS)


def check_ks(ks: Sequence[int]) -> None:
    """Refuse recalls at nothing, and at what is no whole number."""
    try:
        whole = [index(k) for k in ks]
    except TypeError as error:
        raise ValueError(f'recall needs whole numbers ks, got {tuple(ks)}') from error
    if not whole or min(whole) < 1:
        raise ValueError(f'recall needs ks of 1 or more, got {tuple(whole)}')
    if max(whole) >= 2**31:
        raise ValueError(f'no gallery is that large: recall at {max(whole)}')


def _check_ranks(ranks: Tensor) -> None:
    if ranks.ndim != 1 or not len(ranks):
        raise ValueError(f'ranks must be (Q,) with Q >= 1, got {tuple(ranks.shape)}')
