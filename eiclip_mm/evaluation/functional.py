"""Ranks and recalls of embeddings: pure functions of tensors, in tiles, ties explicit.

The rank of a query is one more than the wrong gallery items that stand ahead of its best right one,

    rank(q) = 1 + #{g wrong: <q, g> >= max over right g' of <q, g'>, minus tol(q)},
    tol(q)  = 1e-6 |q| max over g of |g|.

Ties count against the model: if they counted for it, a collapsed model would score 100 %. The
tolerance is there because equal vectors can differ in the last bits of one matrix product; it
grows with the vectors, so their scale changes no rank, and is 1e-6 at unit length. Source: ours.
"""

import statistics
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

TIE = 1e-6  # cosines that differ by no more are equal
SUM_KS = (1, 5, 10)  # SumR is defined by these, in both directions


def ranks(
    queries: Tensor, gallery: Tensor, query_ids: Tensor, gallery_ids: Tensor, chunk: int = 1024
) -> Tensor:
    """Rank of the best relevant gallery item of each query, from 1.

    Args:
        queries: (Q, D), of any length and floating type; computed in float32.
        gallery: (G, D).
        query_ids: (Q,) integers; a gallery item of the same id is relevant.
        gallery_ids: (G,) integers; ids that no query has are distractors.
        chunk: side of the tiles of the score matrix, which is never held as a whole.

    Returns:
        (Q,) int64.
    """
    queries, gallery = _checked(queries, gallery, query_ids, gallery_ids, ('queries', 'gallery'))
    _check_relevant(query_ids, gallery_ids, ('queries', 'gallery'))
    return _ranks_of_both(queries, gallery, query_ids, gallery_ids, chunk)[0]


def both_ranks(
    images: Tensor, products: Tensor, image_ids: Tensor, product_ids: Tensor, chunk: int = 1024
) -> tuple[Tensor, Tensor]:
    """:func:`ranks` of both directions from one pass over the scores.

    Args:
        images: (N, D).
        products: (P, D).
        image_ids: (N,) product of each image.
        product_ids: (P,) the same for the texts; each id is on both sides.
        chunk: see :func:`ranks`.

    Returns:
        Ranks of the images among the products (N,), and of the products among the images (P,).
    """
    sides = ('images', 'products')
    images, products = _checked(images, products, image_ids, product_ids, sides)
    _check_relevant(image_ids, product_ids, sides)
    _check_relevant(product_ids, image_ids, sides[::-1])
    return _ranks_of_both(images, products, image_ids, product_ids, chunk)


def recall_at(ranks: Tensor, ks: Sequence[int]) -> dict[int, float]:
    """Per cent of queries whose rank is at most k.

    >>> recall_at(torch.tensor([1, 2, 2, 7]), (1, 5))
    {1: 25.0, 5: 75.0}
    """
    _check_ranks(ranks)
    if not ks or any(k < 1 for k in ks):
        raise ValueError(f'recall needs ks of 1 or more, got {tuple(ks)}')
    return {int(k): 100 * int((ranks <= k).sum()) / len(ranks) for k in ks}


def median_rank(ranks: Tensor) -> float:
    """Median of the ranks; of an even number, the mean of the two in the middle.

    >>> median_rank(torch.tensor([1, 2, 4, 7]))
    3.0
    """
    _check_ranks(ranks)
    return float(statistics.median(ranks.tolist()))


def sum_recall(i2t: Mapping[int, float], t2i: Mapping[int, float]) -> float:
    """SumR: R@1 + R@5 + R@10 of both directions, at most 600.

    >>> sum_recall({1: 25.7, 5: 54.5, 10: 66.8}, {1: 28.4, 5: 57.1, 10: 69.4})
    301.9
    """
    missing = [k for k in SUM_KS if k not in i2t or k not in t2i]
    if missing:
        raise ValueError(f'SumR needs recall at {SUM_KS} in both directions; {missing} missing')
    return sum(recalls[k] for recalls in (i2t, t2i) for k in SUM_KS)


def _check_ranks(ranks: Tensor) -> None:
    if ranks.ndim != 1 or not len(ranks):
        raise ValueError(f'ranks must be (Q,) with Q >= 1, got {tuple(ranks.shape)}')


def _checked(
    a: Tensor, b: Tensor, a_ids: Tensor, b_ids: Tensor, sides: tuple[str, str]
) -> tuple[Tensor, Tensor]:
    """Both sides in float32, or an error that says which side is wrong and where."""
    a, b = a.detach().float(), b.detach().float()
    for side, vectors, ids in zip(sides, (a, b), (a_ids, b_ids), strict=True):
        if vectors.ndim != 2 or not vectors.numel():
            shape = tuple(vectors.shape)
            raise ValueError(f'{side} must be (rows, D) with at least one row, got {shape}')
        if ids.shape != vectors.shape[:1] or ids.is_floating_point():
            raise ValueError(
                f'{side} have {len(vectors)} rows; their ids must be as many integers, got '
                f'{tuple(ids.shape)} of {ids.dtype}'
            )
        bad = (~vectors.isfinite().all(1)).nonzero().flatten()
        if len(bad):
            raise ValueError(
                f'{side} hold NaN or infinity in {len(bad)} of {len(vectors)} rows, first in row '
                f'{int(bad[0])} (id {int(ids[bad[0]])}). Such scores have no rank: has training '
                'diverged?'
            )
    if a.shape[1] != b.shape[1]:
        raise ValueError(
            f'{sides[0]} have {a.shape[1]} dimensions but {sides[1]} have {b.shape[1]}; both '
            'must come from one model'
        )
    return a, b


def _check_relevant(ids: Tensor, other_ids: Tensor, sides: tuple[str, str]) -> None:
    lost = ids[~torch.isin(ids, other_ids)]
    if len(lost):
        raise ValueError(
            f'{len(lost)} of {len(ids)} {sides[0]} have no relevant item among the {sides[1]}, '
            f'e.g. those of id {lost.unique()[:5].tolist()}'
        )


@torch.no_grad()
def _ranks_of_both(
    a: Tensor, b: Tensor, a_ids: Tensor, b_ids: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    """Ranks of (A, D) in (B, D) and back; those of a row without a relevant item mean nothing."""
    if chunk < 1:
        raise ValueError(f'chunk must be 1 or more, got {chunk}')
    a_length, b_length = a.norm(dim=1), b.norm(dim=1)
    if not (a_length.max() * b_length.max()).isfinite():
        raise ValueError(
            f'vectors as long as {float(a_length.max()):.3g} and {float(b_length.max()):.3g} '
            'overflow float32 when multiplied; normalise them first'
        )
    # Sorted by id, right pairs lie in few tiles along the diagonal. So the best right score comes
    # cheaply from the very products that are counted later, not from another kernel.
    a_order, b_order = a_ids.argsort(stable=True), b_ids.argsort(stable=True)
    sides = a[a_order], b[b_order], a_ids[a_order], b_ids[b_order], chunk

    a_best, b_best = torch.full_like(a_length, -torch.inf), torch.full_like(b_length, -torch.inf)
    for rows, columns, scores, right in _tiles(*sides, only_right=True):
        scores.masked_fill_(~right, -torch.inf)
        a_best[rows] = torch.maximum(a_best[rows], scores.amax(1))
        b_best[columns] = torch.maximum(b_best[columns], scores.amax(0))
    a_floor = a_best - TIE * a_length[a_order] * b_length.max()
    b_floor = b_best - TIE * b_length[b_order] * a_length.max()

    a_ranks = torch.ones_like(a_order)
    b_ranks = torch.ones_like(b_order)
    for rows, columns, scores, right in _tiles(*sides):
        if right is not None:
            scores.masked_fill_(right, -torch.inf)
        ahead = torch.empty_like(scores)  # 0 or 1; summing floats is thrice as fast as bools
        torch.ge(scores, a_floor[rows, None], out=ahead)
        a_ranks[a_order[rows]] += ahead.sum(1).long()
        torch.ge(scores, b_floor[columns], out=ahead)
        b_ranks[b_order[columns]] += ahead.sum(0).long()
    return a_ranks, b_ranks


def _tiles(
    a: Tensor, b: Tensor, a_ids: Tensor, b_ids: Tensor, chunk: int, only_right: bool = False
) -> Iterator[tuple[slice, slice, Tensor, Tensor | None]]:
    """Rows, columns, their scores, and where the ids are equal (``None``: nowhere).

    Both sides are sorted by id; ``only_right`` leaves out the tiles where no ids can be equal.
    """
    a_list, b_list = a_ids.tolist(), b_ids.tolist()
    for row in range(0, len(a), chunk):
        for column in range(0, len(b), chunk):
            rows, columns = slice(row, row + chunk), slice(column, column + chunk)
            a_span, b_span = a_list[rows], b_list[columns]
            meet = a_span[0] <= b_span[-1] and b_span[0] <= a_span[-1]
            if only_right and not meet:
                continue
            with torch.autocast(a.device.type, enabled=False):  # half precision would make ties
                scores = a[rows] @ b[columns].T
            yield rows, columns, scores, a_ids[rows, None] == b_ids[columns] if meet else None
