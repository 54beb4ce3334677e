"""The score matrix of two sides in tiles, sorted by id so that right pairs lie in few of them."""

from collections.abc import Iterator
from math import ceil

import torch
from mmengine.dist import get_rank, get_world_size
from torch import Tensor

from .products import float32


def right_places(ids: Tensor, others: Tensor) -> tuple[Tensor, int]:
    """Where among sorted ``others`` the equal ones of each id begin, and how many at most."""
    first = torch.searchsorted(others, ids)
    return first, int((torch.searchsorted(others, ids, right=True) - first).max())


def right_scores(
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
    room = tile_room(a, b, chunk)
    for rows, columns, right in spans(a, b, a_ids, b_ids, chunk, only_right=True):
        assert right is not None  # by only_right
        scores = tile_scores(a[rows], b[columns], room)
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


def spans(
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


def tile_room(a: Tensor, b: Tensor, chunk: int) -> Tensor:
    """Memory for the scores of a tile, one for all tiles: new pages cost as much as comparing."""
    return a.new_empty(min(chunk, len(a)) * min(chunk, len(b)))


def tile_scores(a: Tensor, b: Tensor, room: Tensor) -> Tensor:
    """(q, g) scores of a tile, in full float32."""
    scores = room[: len(a) * len(b)].view(len(a), len(b))
    with float32(a.device):
        return torch.mm(a, b.T, out=scores)


def in_order(values: Tensor, order: Tensor) -> Tensor:
    """The rows in this order; they themselves, not a copy, where they have it already."""
    if order.equal(torch.arange(len(order), device=order.device)):
        return values
    return values[order]


def unsorted(values: Tensor, order: Tensor) -> Tensor:
    """The inverse of :func:`in_order`."""
    result = torch.empty_like(values)
    result[order] = values
    return result
