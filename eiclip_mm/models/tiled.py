"""Softmax masses of a batch of any size without its score matrix.

For scores t_ij = exp(s) <x_i, y_j> and positives P::

    rows_i = log sum_{j in P(i)} softmax_j(t_ij)
    columns_j = log sum_{i in P(j)} softmax_i(t_ij)

One pass over tiles of t gives the log-sum-exps of rows and columns, of all and of positives. These
vectors are all that is kept: the backward pass computes each tile again. With the gradients g of
rows and h of columns, the gradient of t is::

    p_ij = g_i ( softmax_j over P(i) - softmax_j over all ) + h_j ( the same of column j )

and those of x and y are exp(s) p y and exp(s) pᵀ x.

Source: the log-sum-exp over tiles is Milakov and Gimelshein's (arXiv:1805.02867), its backward
pass FlashAttention's (arXiv:2205.14135); rows and columns in one pass, and columns over processes
that hold some of the rows, are ours.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# Measured on a CPU, whose caches hold a tile and its spare. On CUDA, not measured, each tile waits
# for the number of its positives, so that it should be much work.
TILE, TILE_ON_CUDA = 1024, 4096


def log_probs_in_tiles(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    x_ids: Tensor,
    y_ids: Tensor,
    tile: int | None = None,
    shared: bool = False,
) -> tuple[Tensor, Tensor]:
    """log of the softmax mass on the positives of each row and of each column; see the top.

    Memory beyond inputs, outputs and gradients is two tiles. Derivatives are of first order only.

    Args:
        x: (Q, D)
        y: (G, D)
        scale: () inverse temperature, exp(s).
        x_ids: (I, Q) ids of I kinds; i and j are positives if any kind has equal ids. Every row
            and every column must have a positive.
        y_ids: (I, G)
        tile: rows and columns of a tile; by default what suits the device.
        shared: this process holds some of the rows, all processes hold the same ``y``. A column
            then is over the rows of all processes, and its gradient that of the sum of their
            losses: each adds its part to ``y``, as the backward pass of a gather expects.

    Returns:
        (Q,) rows and (G,) columns.
    """
    tile = tile or (TILE_ON_CUDA if x.is_cuda else TILE)
    return _LogProbs.apply(x, y, scale, x_ids, y_ids, tile, shared)


class _LogProbs(torch.autograd.Function):
    """See :func:`log_probs_in_tiles`.

    Masses are base-2 logarithms, the first row of all, the second of positives, in float64: they
    are sums over tiles. On a CPU torch's exp takes 4 times as long as exp2, and 100 times where it
    gives denormal numbers, as temperature 100 does.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y: Tensor,
        scale: Tensor,
        x_ids: Tensor,
        y_ids: Tensor,
        tile: int,
        shared: bool,
    ) -> tuple[Tensor, ...]:
        rows = x.new_full((2, len(x)), -torch.inf, dtype=torch.float64)
        columns = y.new_full((2, len(y)), -torch.inf, dtype=torch.float64)
        for r, c, scores, spare, i, j in _tiles(x, y, scale, x_ids, y_ids, tile):
            right = scores[i, j]
            _add(rows[0, r], _log_mass(scores, 1, spare))
            _add(columns[0, c], _log_mass(scores, 0, spare))
            _add(rows[1, r], _log_mass_of_pairs(right, i, scores.shape[0]))
            _add(columns[1, c], _log_mass_of_pairs(right, j, scores.shape[1]))
        if shared:
            columns = _over_processes(columns)
        ctx.save_for_backward(x, y, scale, x_ids, y_ids, rows, columns)
        ctx.tile, ctx.shared = tile, shared
        return tuple((m[1] - m[0]).mul_(math.log(2)).to(x.dtype) for m in (rows, columns))

    @staticmethod
    def backward(ctx: Any, of_rows: Tensor, of_columns: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # otherwise they would be zero in silence
            raise RuntimeError(
                'the loss in tiles has no second derivatives; call backward without create_graph, '
                'or take InfoNCE(tiled=False).'
            )
        x, y, scale, x_ids, y_ids, rows, columns = ctx.saved_tensors
        if ctx.shared:
            of_columns = of_columns.clone(memory_format=torch.contiguous_format)
            dist.all_reduce(of_columns)
        rows, columns = rows.to(x.dtype), columns.to(x.dtype)
        of_x, of_y = (torch.zeros_like(t, memory_format=torch.contiguous_format) for t in (x, y))
        for r, c, scores, spare, i, j in _tiles(x, y, scale, x_ids, y_ids, ctx.tile):
            g, h = of_rows[r], of_columns[c]
            right = scores[i, j]
            right = g[i] * (right - rows[1, r][i]).exp2() + h[j] * (right - columns[1, c][j]).exp2()
            change = torch.sub(scores, rows[0, r, None], out=spare).exp2_().mul_(-g[:, None])
            change.addcmul_(scores.sub_(columns[0, c]).exp2_(), h, value=-1)
            change.index_put_((i, j), right, accumulate=True)
            of_x[r].addmm_(change, y[c])
            of_y[c].addmm_(change.T, x[r])
        of_scale = torch.dot(x.reshape(-1), of_x.view(-1))  # before of_x gets its factor
        return of_x.mul_(scale), of_y.mul_(scale), of_scale, None, None, None, None


def _tiles(
    x: Tensor, y: Tensor, scale: Tensor, x_ids: Tensor, y_ids: Tensor, tile: int
) -> Iterator[tuple[slice, slice, Tensor, Tensor, Tensor, Tensor]]:
    """Rows, columns, base-2 scores (q, g), memory as large, and the places of positives.

    The memory is one for all tiles: new pages cost as much as what is done with them.
    """
    room = x.new_empty(2, min(tile, len(x)) * min(tile, len(y)))
    for top in range(0, len(x), tile):
        r = slice(top, top + tile)
        queries = x[r] * (scale / math.log(2))
        for left in range(0, len(y), tile):
            c = slice(left, left + tile)
            keys = y[c]
            shape = len(queries), len(keys)
            scores, spare = room[:, : math.prod(shape)].unflatten(1, shape)
            torch.mm(queries, keys.T, out=scores)
            yield r, c, scores, spare, *_positives(x_ids[:, r], y_ids[:, c])


def _positives(x_ids: Tensor, y_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column of each positive of a tile with ids (I, q) and (I, g).

    Few rows have any, so that those are looked for first.
    """
    rows = torch.isin(x_ids.contiguous(), y_ids.contiguous()).any(0).nonzero().flatten()
    equal = (x_ids[:, rows, None] == y_ids[:, None]).any(0)
    i, j = equal.nonzero(as_tuple=True)
    return rows[i], j


def _log_mass(scores: Tensor, dim: int, spare: Tensor) -> Tensor:
    """log2 of the sum of 2^scores over rows or columns, in float64."""
    most = scores.amax(dim, keepdim=True)
    sums = torch.sub(scores, most, out=spare).exp2_().sum(dim)
    return most.squeeze(dim).double() + sums.double().log2()


def _log_mass_of_pairs(scores: Tensor, index: Tensor, size: int) -> Tensor:
    """The same of single scores, summed by index; -inf where there is none."""
    most = scores.new_full((size,), -torch.inf).scatter_reduce_(0, index, scores, 'amax')
    sums = scores.new_zeros(size).index_add_(0, index, (scores - most[index]).exp2())
    return most.double() + sums.double().log2()


def _add(total: Tensor, log_mass: Tensor) -> None:
    torch.logaddexp2(total, log_mass, out=total)


def _over_processes(log_mass: Tensor) -> Tensor:
    most = log_mass.clone()
    dist.all_reduce(most, dist.ReduceOp.MAX)
    sums = (log_mass - most).exp2()
    dist.all_reduce(sums)
    return most + sums.log2()
