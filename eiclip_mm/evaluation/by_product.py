"""Results summed up by product: what intervals and tests draw from.

Shapes: P products, S samples, M measures of one direction, F of both with SumR and meanR; axis 2
is i2t and t2i.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch

from .manifest import DIRECTIONS
from .measures import SUM_KS, check_ks
from .retrieval import Retrieval

CHUNK = 2**20  # cells of the largest array of samples times products: some 25 MB with its copies


@dataclass(frozen=True, eq=False)
class ByProduct:
    """What runs score, by product.

    Attributes:
        measures: (M,) names of the measures of one direction.
        product_id: (P,).
        queries: (P, 2) how many queries a product has in each direction.
        sums: (P, 2, M) what these queries score together.
    """

    measures: tuple[str, ...]
    product_id: np.ndarray
    queries: np.ndarray
    sums: np.ndarray

    @property
    def names(self) -> list[str]:
        """(F,) names of all that :meth:`resampled` gives."""
        names = [f'{direction}/{measure}' for direction in DIRECTIONS for measure in self.measures]
        return names + ['SumR', 'meanR'] * self.has_sum

    @property
    def has_sum(self) -> bool:
        return all(f'R@{k}' in self.measures for k in SUM_KS)

    def resampled(self, samples: int, seed: int) -> np.ndarray:
        """(S, F) measures of products drawn with replacement."""
        number = len(self.product_id)
        if number < 2:
            raise ValueError(f'an interval over products needs 2 of them or more, got {number}')
        rng = np.random.Generator(np.random.PCG64(seed))
        columns = np.concatenate([self.queries[:, :, None], self.sums], 2)
        flat = columns.reshape(number, -1)
        parts = []
        for rows in _chunks(samples, number):
            drawn = rng.integers(number, size=(rows, number))
            drawn += number * np.arange(rows)[:, None]
            times = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape)
            parts.append(times @ flat)
        totals = np.concatenate(parts).reshape(samples, *columns.shape[1:])
        if (totals[:, :, 0] == 0).any():
            raise ValueError(
                f'among {number} products drawn with replacement there may be none with a query '
                f'of one direction: too few have one, {np.count_nonzero(self.queries, 0).tolist()} '
                f'of {DIRECTIONS}'
            )
        return self.with_sum(totals[:, :, 1:] / totals[:, :, :1])

    def p_values(self, samples: int, seed: int) -> np.ndarray:
        """(F,) two-sided p-values of sums that are differences, whose signs are drawn."""
        rng = np.random.Generator(np.random.PCG64(seed))
        shares = self.sums / self.queries.sum(0)[:, None]
        flat = shares.reshape(len(shares), -1)
        found = np.abs(self.with_sum(shares.sum(0, keepdims=True)))
        hits = np.zeros(found.shape[1], dtype=np.int64)
        for rows in _chunks(samples, len(flat)):
            signs = 2.0 * rng.integers(2, size=(rows, len(flat))) - 1
            swapped = self.with_sum((signs @ flat).reshape(rows, *shares.shape[1:]))
            # equal but for the order of summation is equal
            hits += (np.abs(swapped) >= found - 1e-9).sum(0)
        return (1 + hits) / (1 + samples)

    def with_sum(self, values: np.ndarray) -> np.ndarray:
        """(S, F) of (S, 2, M): all measures, then SumR and meanR."""
        flat = values.reshape(len(values), -1)
        if not self.has_sum:
            return flat
        recalls = [self.measures.index(f'R@{k}') for k in SUM_KS]
        total = values[:, :, recalls].sum((1, 2))
        return np.column_stack([flat, total, total / 6])


def tables(runs: Sequence[Retrieval], ks: Sequence[int]) -> list[ByProduct]:
    """Each run by product; refuses runs that were not asked the same."""
    check_ks(ks)
    found = [_by_product(run, ks) for run in runs]
    for number, (run, table) in enumerate(zip(runs, found, strict=True), 1):
        differ = _differences(runs[0], run) or _different_queries(found[0], table)
        if differ:
            raise ValueError(
                f'run {number} of {len(runs)} cannot be compared with the first: {differ}. Take '
                f'runs of one protocol, one manifest and one split'
            )
    return found


def _by_product(run: Retrieval, ks: Sequence[int]) -> ByProduct:
    rankings = [getattr(run, direction) for direction in DIRECTIONS]
    values = [ranking.values(ks) for ranking in rankings]
    ids, rows = torch.cat([ranking.product_id for ranking in rankings]).unique(return_inverse=True)
    rows = np.split(rows.cpu().numpy(), [len(rankings[0].product_id)])

    def summed(row: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        return np.bincount(row, weights, minlength=len(ids))

    sums = [
        np.stack([summed(row, v.cpu().numpy()) for v in of.values()], 1)
        for row, of in zip(rows, values, strict=True)
    ]
    return ByProduct(
        measures=tuple(values[0]),
        product_id=ids.cpu().numpy(),
        queries=np.stack([summed(row) for row in rows], 1),
        sums=np.stack(sums, 1),
    )


def _differences(first: Retrieval, run: Retrieval) -> str:
    """What differs in what was asked, in words; '' if nothing."""

    def asked(retrieval: Retrieval) -> dict:
        fields = {f'protocol.{k}': v for k, v in asdict(retrieval.protocol).items()}
        galleries = {f'{d} gallery': getattr(retrieval, d).gallery for d in DIRECTIONS}
        return fields | {'manifest': retrieval.manifest} | galleries

    one, other = asked(first), asked(run)
    return ', '.join(f'{k} is {one[k]!r} and {v!r}' for k, v in other.items() if v != one[k])


def _different_queries(first: ByProduct, table: ByProduct) -> str:
    """What differs in the queries, in words; '' if nothing."""
    lost = np.setxor1d(first.product_id, table.product_id)
    if len(lost):
        return f'{len(lost)} products are in one of them alone, e.g. {lost[:5].tolist()}'
    differ = (first.queries != table.queries).any(1)
    if not differ.any():
        return ''
    one, other = (x.queries[differ][0].tolist() for x in (first, table))
    return (
        f'{int(differ.sum())} products have other numbers of queries, e.g. product '
        f'{int(first.product_id[differ][0])} has {one} and {other} in {DIRECTIONS}'
    )


def mean(tables: Sequence[ByProduct]) -> ByProduct:
    """The mean over runs, product by product."""
    return replace(tables[0], sums=np.mean([table.sums for table in tables], 0))


def _chunks(samples: int, products: int) -> Iterator[int]:
    """How many samples to take at a time."""
    rows = max(1, CHUNK // products)
    for start in range(0, samples, rows):
        yield min(rows, samples - start)
