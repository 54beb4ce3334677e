"""Inner products in full float32: of whole tiles, and of chosen pairs alone."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def float32(device: torch.device) -> Iterator[None]:
    """Products in full float32, whatever the caller has set: lower precision would make ties."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision('highest')
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


def scores_among(queries: Tensor, gallery: Tensor, among: Tensor) -> Tensor:
    """(q, C) scores of each query with the gallery rows ``among`` (q, C)."""
    if among.shape[1] > len(gallery):  # rows repeat, which scores_of_pairs refuses then
        with float32(queries.device):
            return (queries @ gallery.T).gather(1, among)
    if queries.device.type != 'cpu':
        with float32(queries.device):
            return torch.einsum('qd,qcd->qc', queries, gallery[among])
    starts = torch.arange(0, among.numel() + 1, among.shape[1])
    return scores_of_pairs(queries, gallery, starts, among.flatten()).view(among.shape)


def scores_of_pairs(queries: Tensor, gallery: Tensor, starts: Tensor, columns: Tensor) -> Tensor:
    """Scores of some pairs, on a CPU: one inner product each, without a copy of the vectors.

    Fifteen times as fast as gathering the vectors first.

    Args:
        queries: (q, D) float32.
        gallery: (G, D).
        starts: (q + 1,) where the pairs of each query begin in ``columns``.
        columns: (pairs,) gallery row of each pair; no more for a query than the gallery has.

    Returns:
        (pairs,).
    """
    size = len(queries), len(gallery)
    with float32(queries.device), warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='Sparse (CSR|invariant)')
        wanted = torch.sparse_csr_tensor(starts, columns, queries.new_zeros(len(columns)), size)
        return torch.sparse.sampled_addmm(wanted, queries, gallery.T, beta=0.0).values()
