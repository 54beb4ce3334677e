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

from collections.abc import Iterator
from math import ceil

import torch
from mmengine.dist import all_reduce, get_rank, get_world_size
from torch import Tensor

from .checks import check_chunk, check_lengths, check_order, check_relevant, check_ties, checked
from .coarse import CoarseCounter, Direction, worthwhile
from .measures import first_ranks
from .products import float32, scores_among

MANY = 8  # right items of a query beyond which comparing with each in turn is slow


def tie(dim: int) -> float:
    """Cosines of vectors of ``dim`` dimensions that differ by no more are equal."""
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
    ids = [torch.arange(len(x), device=x.device) for x in (queries, gallery)]
    queries, gallery = checked(queries, gallery, *ids, ('queries', 'gallery'))
    check_ties(ties)
    check_chunk(chunk)
    fits = candidates.ndim == 2 and candidates.shape == right.shape and candidates.numel()
    if not fits or len(candidates) != len(queries):
        raise ValueError(
            f'{len(queries)} queries need candidates and right of shape ({len(queries)}, C), C of '
            f'1 or more, got {tuple(candidates.shape)} and {tuple(right.shape)}'
        )
    if candidates.min() < -1 or candidates.max() >= len(gallery):
        raise ValueError(
            f'candidates must be rows of a gallery of {len(gallery)}, or -1; got '
            f'{int(candidates.min())} to {int(candidates.max())}'
        )
    right = right & (candidates >= 0)
    if not right.any(1).all():
        lost = (~right.any(1)).nonzero().flatten()
        raise ValueError(
            f'{len(lost)} of {len(queries)} queries have no right item among their candidates, '
            f'first query {int(lost[0])}'
        )
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
    sides = _in_order(a, a_order), _in_order(b, b_order), a_ids[a_order], b_ids[b_order], chunk
    a_scale = a_length[a_order] * b_length.max()
    b_scale = b_length[b_order] * a_length.max()
    a_tol, b_tol = tie(a.shape[1]) * a_scale, tie(a.shape[1]) * b_scale

    (a_first, a_most), (b_first, b_most) = (
        _right_places(x, y) for x, y in ((sides[2], sides[3]), (sides[3], sides[2]))
    )
    check_order(ties, max(a_most, b_most))
    most = (a_most, b_most) if every else (1, 1)
    a_right, b_right = _right_scores(*sides, a_first, b_first, most)  # (A, M), (B, M')
    a_ahead = torch.zeros_like(a_right, dtype=torch.int64)
    b_ahead = torch.zeros_like(b_right, dtype=torch.int64)
    room = _room(*sides[:2], chunk)
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
    for rows, columns, right in _spans(*sides, shared=shared):
        tile = sides[0][rows], sides[1][columns]
        if right is None and coarse:
            if coarse.count(*tile, a_side.of(rows), b_side.of(columns)):
                continue
            coarse = None  # other tiles are alike: a model that tells little apart
        scores = _product(*tile, room)
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
    return _unsorted(a_ahead, a_order), _unsorted(b_ahead, b_order)


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
        if ties == 'order':
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


def _right_places(ids: Tensor, others: Tensor) -> tuple[Tensor, int]:
    """Where among sorted ``others`` the equal ones of each id begin, and how many at most."""
    first = torch.searchsorted(others, ids)
    return first, int((torch.searchsorted(others, ids, right=True) - first).max())


def _right_scores(
    a: Tensor,
    b: Tensor,
    a_ids: Tensor,
    b_ids: Tensor,
    chunk: int,
    a_first: Tensor,
    b_first: Tensor,
    most: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """(A, M) and (B, M') scores of right items, best first, -inf where there are fewer.

    Both sides are sorted by id; the right items of a row begin at ``a_first`` of the other side.
    """
    a_right = a.new_full((len(a), most[0]), -torch.inf)
    b_right = b.new_full((len(b), most[1]), -torch.inf)
    room = _room(a, b, chunk)
    for rows, columns, right in _spans(a, b, a_ids, b_ids, chunk, only_right=True):
        scores = _product(a[rows], b[columns], room)
        if max(most) == 1:
            scores.masked_fill_(~right, -torch.inf)
            a_right[rows, 0] = torch.maximum(a_right[rows, 0], scores.amax(1))
            b_right[columns, 0] = torch.maximum(b_right[columns, 0], scores.amax(0))
            continue
        i, j = right.nonzero(as_tuple=True)
        value, i, j = scores[i, j], i + rows.start, j + columns.start
        a_right[i, j - a_first[i]] = value
        b_right[j, i - b_first[j]] = value
    return a_right.sort(1, descending=True).values, b_right.sort(1, descending=True).values


def _spans(
    a: Tensor,
    b: Tensor,
    a_ids: Tensor,
    b_ids: Tensor,
    chunk: int,
    only_right: bool = False,
    shared: bool = False,
) -> Iterator[tuple[slice, slice, Tensor | None]]:
    """Rows and columns of each tile, and where its ids are equal (``None``: nowhere).

    Both sides are sorted by id; ``only_right`` leaves out the tiles where no ids can be equal, and
    ``shared`` the rows of other processes.
    """
    a_list, b_list = a_ids.tolist(), b_ids.tolist()
    first, step = (get_rank(), get_world_size()) if shared else (0, 1)
    # Tiles of about one size: a product of few rows would take another kernel and sum otherwise.
    height, width = (ceil(n / ceil(n / chunk)) for n in (len(a), len(b)))
    for row in range(first * height, len(a), step * height):
        for column in range(0, len(b), width):
            rows, columns = slice(row, row + height), slice(column, column + width)
            a_span, b_span = a_list[rows], b_list[columns]
            if a_span[0] <= b_span[-1] and b_span[0] <= a_span[-1]:
                yield rows, columns, a_ids[rows, None] == b_ids[columns]
            elif not only_right:
                yield rows, columns, None


def _room(a: Tensor, b: Tensor, chunk: int) -> Tensor:
    """Memory for the scores of a tile, one for all tiles: new pages cost as much as comparing."""
    return a.new_empty(min(chunk, len(a)) * min(chunk, len(b)))


def _product(a: Tensor, b: Tensor, room: Tensor) -> Tensor:
    """(q, g) scores of a tile, in full float32."""
    scores = room[: len(a) * len(b)].view(len(a), len(b))
    with float32(a.device):
        return torch.mm(a, b.T, out=scores)


def _in_order(values: Tensor, order: Tensor) -> Tensor:
    """The rows in this order; they themselves, not a copy, where they have it already."""
    if order.equal(torch.arange(len(order), device=order.device)):
        return values
    return values[order]


def _unsorted(values: Tensor, order: Tensor) -> Tensor:
    result = torch.empty_like(values)
    result[order] = values
    return result
