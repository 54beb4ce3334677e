"""Where right items stand among wrong ones: pure functions of tensors, in tiles, ties explicit.

For a query q and one of its right items r,

    ahead(q, r) = #{g wrong: <q, g> >= <q, r> - tol(q)},     tol(q) = TIE |q| max over g of |g|,

and the rank of the query is 1 + ahead of its best right item. Ties count against the model: if they
counted for it, a collapsed model would score 100 %. The tolerance is there because equal vectors
can differ in the last bits of one matrix product, the more so the more dimensions are summed; it
grows with the vectors, so their scale changes no rank. TIE is 1e-6, in more than 512 dimensions
1e-6 D / 512. With ``ties='for'``, as some released evaluators have
it, a wrong item counts only when it is nearer by more than the tolerance; with ``'order'`` an
equally near one counts when it stands earlier in the gallery, as in a stable sort. Source: ours.
"""

import torch
from mmengine.dist import all_reduce
from torch import Tensor

from .checks import (
    check_candidates,
    check_chunk,
    check_lengths,
    check_order,
    check_relevant,
    check_ties,
    checked,
)
from .coarse import CoarseCounter, Direction, worthwhile
from .measures import first_ranks
from .products import scores_among
from .tiles import in_order, right_places, right_scores, spans, tile_room, tile_scores, unsorted

MANY = 8  # right items of a query beyond which comparing with each in turn is slow


def tie(dim: int) -> float:
    """Cosines of vectors of ``dim`` dimensions that differ by no more are equal.

    >>> tie(256), tie(1024)
    (1e-06, 2e-06)
    """
    return 1e-6 * max(1, dim / 512)


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

    >>> photos = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    >>> texts = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.6, 0.8]])
    >>> ranks(photos, texts, torch.tensor([8, 7]), torch.tensor([7, 8, 9]))
    tensor([1, 2])
    """
    queries, gallery = checked(queries, gallery, query_ids, gallery_ids, ('queries', 'gallery'))
    check_relevant(query_ids, gallery_ids, ('queries', 'gallery'))
    return first_ranks(_ahead_of_both(queries, gallery, query_ids, gallery_ids, chunk)[0])


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
    i2t, t2i = both_ahead(images, products, image_ids, product_ids, every=False, chunk=chunk)
    return first_ranks(i2t), first_ranks(t2i)


def both_ahead(
    images: Tensor,
    products: Tensor,
    image_ids: Tensor,
    product_ids: Tensor,
    every: bool = True,
    ties: str = 'against',
    chunk: int = 1024,
    shared: bool = False,
) -> tuple[Tensor, Tensor]:
    """Wrong items ahead of the right ones, in both directions from one pass over the scores.

    Args:
        images, products, image_ids, product_ids, chunk: see :func:`both_ranks`.
        every: of every right item; otherwise of the best one alone.
        ties: ``'against'`` the model, ``'for'`` it, or by ``'order'``, where every query has one
            right item alone.
        shared: share the work among all processes, all of which must call with the same arrays.

    Returns:
        (N, M) and (P, M') int64, ascending in a row; -1 where a row has fewer right items.
    """
    sides = ('images', 'products')
    images, products = checked(images, products, image_ids, product_ids, sides)
    check_relevant(image_ids, product_ids, sides)
    check_relevant(product_ids, image_ids, sides[::-1])
    return _ahead_of_both(images, products, image_ids, product_ids, chunk, every, ties, shared)


@torch.no_grad()
def candidate_ahead(
    queries: Tensor,
    gallery: Tensor,
    candidates: Tensor,
    right: Tensor,
    ties: str = 'against',
    chunk: int = 2048,
) -> Tensor:
    """Wrong candidates ahead of the right ones, where each query has candidates of its own.

    Args:
        queries: (Q, D).
        gallery: (G, D).
        candidates: (Q, C) rows of the gallery; -1 fills a list that is shorter.
        right: (Q, C) bool, which candidates are right; at least one a query.
        ties: see :func:`both_ahead`.
        chunk: queries that are scored at once.

    Returns:
        (Q, M) int64, as :func:`both_ahead`.
    """
    ids, own = (torch.arange(len(x), device=x.device) for x in (queries, gallery))
    queries, gallery = checked(queries, gallery, ids, own, ('queries', 'gallery'))
    check_ties(ties)
    check_chunk(chunk)
    right = check_candidates(candidates, right, len(queries), len(gallery))
    query_length, length = queries.norm(dim=1), gallery.norm(dim=1)
    check_lengths(query_length, length)
    most = int(right.sum(1).max())
    check_order(ties, most)
    ahead = torch.empty(len(queries), most, dtype=torch.int64, device=queries.device)
    column = torch.arange(candidates.shape[1], device=queries.device)
    for start in range(0, len(queries), chunk):
        rows = slice(start, start + chunk)
        listed = candidates[rows] >= 0
        among = candidates[rows].clamp(min=0).long()
        scores = scores_among(queries[rows], gallery, among)
        tolerance = (
            tie(queries.shape[1])
            * query_length[rows]
            * torch.where(listed, length[among], 0).amax(1)
        )
        wrong = scores.masked_fill(right[rows] | ~listed, -torch.inf)
        floor = scores.masked_fill(~right[rows], -torch.inf).topk(ahead.shape[1]).values
        earlier = None
        if ties == 'order':
            earlier = column < right[rows].float().argmax(1, keepdim=True)
        count = torch.zeros_like(floor, dtype=torch.int64)
        _count(count, wrong, floor, tolerance, ties, earlier)
        ahead[rows] = count.masked_fill(floor.isinf(), -1)
    return ahead


@torch.no_grad()
def _ahead_of_both(
    a: Tensor,
    b: Tensor,
    a_ids: Tensor,
    b_ids: Tensor,
    chunk: int,
    every: bool = False,
    ties: str = 'against',
    shared: bool = False,
) -> tuple[Tensor, Tensor]:
    """Counts of (A, D) in (B, D) and back; those of a row without a relevant item mean nothing."""
    check_chunk(chunk)
    check_ties(ties)
    a_length, b_length = a.norm(dim=1), b.norm(dim=1)
    check_lengths(a_length, b_length)
    # Sorted by id, right pairs lie in few tiles along the diagonal. So the right scores come
    # cheaply from the very products that are counted later, not from another kernel.
    a_order, b_order = a_ids.argsort(stable=True), b_ids.argsort(stable=True)
    sides = in_order(a, a_order), in_order(b, b_order), a_ids[a_order], b_ids[b_order], chunk
    a_scale = a_length[a_order] * b_length.max()
    b_scale = b_length[b_order] * a_length.max()
    a_tol, b_tol = tie(a.shape[1]) * a_scale, tie(a.shape[1]) * b_scale

    (a_first, a_most), (b_first, b_most) = (
        right_places(x, y) for x, y in ((sides[2], sides[3]), (sides[3], sides[2]))
    )
    check_order(ties, max(a_most, b_most))
    most = (a_most, b_most) if every else (1, 1)
    a_right, b_right = right_scores(*sides, a_first, b_first, most)  # (A, M), (B, M')
    a_ahead = torch.zeros_like(a_right, dtype=torch.int64)
    b_ahead = torch.zeros_like(b_right, dtype=torch.int64)
    room = tile_room(*sides[:2], chunk)
    strict, lowest = ties == 'for', torch.finfo(a.dtype).min
    sign = 1 if strict else -1
    coarse = None
    if ties != 'order' and max(most) <= MANY and worthwhile(a_length, b_length):
        coarse = CoarseCounter(min(chunk, len(a)), min(chunk, len(b)), a.shape[1], strict)
    a_side, b_side = (
        Direction(ahead, (right + sign * tol[:, None]).clamp(min=lowest), scale, a.shape[1])
        for ahead, right, tol, scale in (
            (a_ahead, a_right, a_tol, a_scale),
            (b_ahead, b_right, b_tol, b_scale),
        )
    )
    for rows, columns, right in spans(*sides, shared=shared):
        tile = sides[0][rows], sides[1][columns]
        if right is None and coarse:
            if coarse.count(*tile, a_side.of(rows), b_side.of(columns)):
                continue
            coarse = None  # other tiles are alike: a model that tells little apart
        scores = tile_scores(*tile, room)
        if right is not None:
            scores.masked_fill_(right, -torch.inf)
        a_earlier = b_earlier = None
        if ties == 'order':
            a_earlier = b_order[columns] < b_order[a_first[rows], None]
            b_earlier = a_order[rows] < a_order[b_first[columns], None]
        _count(a_ahead[rows], scores, a_right[rows], a_tol[rows], ties, a_earlier)
        _count(b_ahead[columns], scores.T, b_right[columns], b_tol[columns], ties, b_earlier)
    if shared:
        all_reduce(a_ahead)
        all_reduce(b_ahead)
    a_ahead[a_right.isinf()] = -1
    b_ahead[b_right.isinf()] = -1
    return unsorted(a_ahead, a_order), unsorted(b_ahead, b_order)


def _count(
    ahead: Tensor,
    scores: Tensor,
    right: Tensor,
    tolerance: Tensor,
    ties: str,
    earlier: Tensor | None,
) -> None:
    """Add to ``ahead`` (q, M) the wrong ones of ``scores`` (q, g) ahead of ``right`` (q, M)."""

    def nearer(scores: Tensor, right: Tensor, tolerance: Tensor) -> Tensor:
        out = torch.empty_like(scores)  # 0 or 1: summing floats is thrice as fast as bools
        if ties == 'against':
            return torch.ge(scores, right - tolerance, out=out)
        torch.gt(scores, right + tolerance, out=out)
        if earlier is not None:
            out[(scores >= right - tolerance) & earlier] = 1
        return out

    for m in range(min(right.shape[1], MANY)):
        has = right[:, m].isfinite()
        if m == 0 or has.all():
            found = nearer(scores, right[:, m, None], tolerance[:, None])
            ahead[:, m] += found.sum(1).long()
        elif has.any():  # few queries have many right items
            found = nearer(scores[has], right[has, m, None], tolerance[has, None])
            ahead[has, m] += found.sum(1).long()
    more = right[:, MANY:]
    rows = more.isfinite().any(1).nonzero().flatten()
    if len(rows):
        sign = -1 if ties == 'against' else 1
        floors = (more[rows] + sign * tolerance[rows, None]).flip(1)  # ascending
        ahead[rows, MANY:] += _reaching(scores[rows], floors, strict=ties == 'for').flip(1)


def _reaching(scores: Tensor, floors: Tensor, strict: bool) -> Tensor:
    """(q, M) how many of ``scores`` (q, g) reach each of ``floors`` (q, M), ascending in a row.

    One search for each score instead of one comparison with each floor.
    """
    below = torch.searchsorted(floors, scores.contiguous(), right=not strict)  # (q, g) floors
    number = torch.zeros(len(floors), floors.shape[1] + 1, dtype=torch.int64, device=floors.device)
    number.scatter_add_(1, below, torch.ones_like(below))
    return number.flip(1).cumsum(1).flip(1)[:, 1:]
