"""Counting in bfloat16, and in float32 wherever that could change a count: the same counts, faster.

bfloat16 keeps 8 bits, so rounding both vectors moves an inner product by at most 2^-7 |q| |g|, and
rounding the product by 2^-8 of itself. A score further than this from what it is compared with is
on the right side of it; the others, few in a model that has learnt, are computed again. Source:
ours.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from .products import float32, scores_of_pairs

ROUNDING = 2.0**-16  # of the two float32 sums, for each dimension; far above what they may lose
SHARE = 0.02  # of a tile; where more must be computed again, float32 is faster at once
CALM = 1e-15  # vectors this short would leave the range of normal numbers


@dataclass(frozen=True, eq=False)
class Direction:
    """Queries of one direction in a tile.

    Attributes:
        ahead: (q, M) int64, to be added to.
        floor: (q, M) what a wrong item must reach to stand ahead; finite.
        length: (q,) of the queries times the longest item's.
        dim: of the vectors.
    """

    ahead: Tensor
    floor: Tensor
    length: Tensor
    dim: int

    @property
    def margin(self) -> Tensor:
        """(q, M) by how much a score near the floor may be wrong."""
        spare = 1.01 + self.dim * ROUNDING  # 1.01 for the squares of the errors
        return spare * (2**-7 * self.length[:, None] + 2**-8 * self.floor.abs())

    def of(self, rows: slice) -> 'Direction':
        """The queries of a tile; adding to them adds to all."""
        return Direction(self.ahead[rows], self.floor[rows], self.length[rows], self.dim)


@lru_cache
def fast_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 faster than float32."""
    known: dict = getattr(torch.cpu, 'get_capabilities', dict)()  # torch 2.10 or newer
    return bool(known.get('avx512_bf16') or known.get('amx_bf16'))


def worthwhile(a_length: Tensor, b_length: Tensor) -> bool:
    """Whether vectors of these lengths may be counted so, here and in this range of numbers."""
    lengths = torch.cat([a_length, b_length])
    return lengths.device.type == 'cpu' and fast_bfloat16() and bool((lengths > CALM).all())


class CoarseCounter:
    """Counts wrong items ahead in tiles that hold no right ones.

    Memory is taken once: new pages for every tile would cost as much as the products.

    Args:
        height, width, dim: of the largest tile.
        strict: an item must exceed the floor, not reach it.
    """

    def __init__(self, height: int, width: int, dim: int, strict: bool):
        half = torch.bfloat16
        self.a, self.b = torch.empty(height, dim, dtype=half), torch.empty(width, dim, dtype=half)
        self.product = torch.empty(height * width, dtype=half)
        self.scores, self.reached = torch.empty(height * width), torch.empty(height * width)
        self.strict = strict

    def count(self, a: Tensor, b: Tensor, a_side: Direction, b_side: Direction) -> bool:
        """Count a tile, or return ``False`` where float32 had better do it.

        Args:
            a: (q, D) float32, queries of the first direction and items of the second.
            b: (g, D).
            a_side, b_side: what is counted of each.
        """
        scores = self._scores(a, b)
        sides = (a_side, scores, a, b), (b_side, scores.T, b, a)
        sure, maybe = ([self._counts(side, s, sign) for side, s, *_ in sides] for sign in (1, -1))
        doubts = [m - s for m, s in zip(maybe, sure, strict=True)]
        if sum(int(doubt.sum()) for doubt in doubts) > SHARE * scores.numel():
            return False
        for (side, s, queries, items), count, doubt in zip(sides, sure, doubts, strict=True):
            side.ahead.add_(count)
            for m in doubt.any(0).nonzero().flatten().tolist():
                self._settle(side, m, s, doubt[:, m].nonzero().flatten(), queries, items)
        return True

    def _scores(self, a: Tensor, b: Tensor) -> Tensor:
        """(q, g) scores, wrong by up to the margin."""
        shape = len(a), len(b)
        product, scores = (x[: len(a) * len(b)].view(shape) for x in (self.product, self.scores))
        with float32(a.device):
            torch.mm(self.a[: len(a)].copy_(a), self.b[: len(b)].copy_(b).T, out=product)
        return scores.copy_(product)

    def _counts(self, side: Direction, scores: Tensor, sign: int) -> Tensor:
        """(q, M) items that reach the floor for sure (sign 1), or may reach it (sign -1)."""
        bounds = (side.floor + sign * side.margin).T
        reached = self.reached[: scores.numel()].as_strided(scores.shape, scores.stride())
        counts = [
            torch.ge(scores, bound.contiguous()[:, None], out=reached).sum(1) for bound in bounds
        ]
        return torch.stack(counts, 1).long()

    def _settle(
        self, side: Direction, m: int, scores: Tensor, rows: Tensor, queries: Tensor, items: Tensor
    ) -> None:
        """Add the items near the floor of right item m that do reach it in float32."""
        near, floor, margin = scores[rows], side.floor[rows, m], side.margin[rows, m]
        near = (near >= (floor - margin)[:, None]) & (near < (floor + margin)[:, None])
        starts = torch.cat([near.new_zeros(1, dtype=torch.int64), near.sum(1).cumsum(0)])
        row, column = near.nonzero(as_tuple=True)
        exact = scores_of_pairs(queries[rows], items, starts, column)
        reach = exact > floor[row] if self.strict else exact >= floor[row]
        side.ahead[:, m].index_add_(0, rows[row], reach.long())
