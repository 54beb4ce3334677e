"""How sure a result is: intervals over products, paired comparison of two models, spread of seeds.

The unit of chance is the product, for its views and texts succeed or fail together: a product is
drawn with all its queries of both directions. Galleries and candidates stay as they are, and so
does the model: an interval over products tells what other products of the same kind would give,
:func:`over_seeds` what training again would. The choice of the product as the unit is ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil

import numpy as np

from .by_product import mean, tables
from .measures import SUM_KS
from .retrieval import Retrieval

MOST_SAMPLES = 1_000_000  # whose measures take some 400 MB


@dataclass(frozen=True)
class Interval:
    """A measure and the interval it lies in."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """A measure of a and of b, b - a with its interval, and the p-value of no difference."""

    a: float
    b: float
    difference: float
    low: float
    high: float
    p: float


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation of a measure over seeds, and an interval of the mean."""

    mean: float
    std: float
    low: float
    high: float


def intervals(
    runs: Retrieval | Sequence[Retrieval],
    ks: Sequence[int] = SUM_KS,
    level: float = 0.95,
    samples: int = 2000,
    seed: int = 0,
) -> dict[str, Interval]:
    """Percentile bootstrap over products (Efron and Tibshirani 1993, chapter 13).

    A sample is a sum of values over a number of queries, so products with many views weigh as much
    as in the measure itself. Simulated 95 % intervals hold the true value in 94 to 95.5 % of cases;
    where under ten products miss, or under ten hit, in fewer.

    Args:
        runs: one result, or several of one config trained with different seeds: then the value is
            their mean, and each sample draws the same products for all.
        ks: recalls to report.
        level: share of such intervals that hold the true value.
        samples: how often products are drawn, with replacement; from 2 / (1 - level) - 1, below
            which the ends would lie beyond all samples, to a million.
        seed: of the draws.

    Returns:
        By the keys of :meth:`Retrieval.metrics`, without the medians and the counts.

    Raises:
        ValueError: the runs are not of one protocol, manifest and set of queries.
    """
    _check_samples(level, samples)
    runs = _listed(runs)
    table = mean(tables(runs, ks))
    low, high = _quantiles(table.resampled(samples, seed), level)
    return {
        name: Interval(value, float(low[i]), float(high[i]))
        for i, (name, value) in enumerate(_values(runs, table.names, ks).items())
    }


def compare(
    a: Retrieval | Sequence[Retrieval],
    b: Retrieval | Sequence[Retrieval],
    ks: Sequence[int] = SUM_KS,
    level: float = 0.95,
    samples: int = 2000,
    seed: int = 0,
) -> dict[str, Difference]:
    """Paired comparison: b - a product by product, far surer than two intervals side by side.

    The interval is that of :func:`intervals`, of the difference. The p-value is that of a two-sided
    permutation test: if the models were equally good, a and b could be swapped for each product.
    It is (1 + swaps with at least this difference) / (1 + samples), so 0.0005 at the least for
    2,000 samples.

    Args:
        a, b: one result each, or several seeds each, whose mean is compared.
        ks, level, samples, seed: as in :func:`intervals`.

    Raises:
        ValueError: a and b are not of one protocol, manifest and set of queries; says what differs.
            Runs are counted through a, then b.
    """
    _check_samples(level, samples)
    a, b = _listed(a), _listed(b)
    found = tables(a + b, ks)
    first, second = mean(found[: len(a)]), mean(found[len(a) :])
    table = replace(second, sums=second.sums - first.sums)
    low, high = _quantiles(table.resampled(samples, seed), level)
    p = table.p_values(samples, seed)
    of_a, of_b = (_values(runs, table.names, ks) for runs in (a, b))
    return {
        name: Difference(
            of_a[name],
            of_b[name],
            of_b[name] - of_a[name],
            float(low[i]),
            float(high[i]),
            float(p[i]),
        )
        for i, name in enumerate(table.names)
    }


def over_seeds(
    runs: Sequence[Retrieval], ks: Sequence[int] = SUM_KS, level: float = 0.95
) -> dict[str, Spread]:
    """Mean of every measure over runs that differ in their seed alone, with Student's interval.

    The standard deviation is that of a sample (divided by n - 1); the interval speaks of training
    again and takes the products as given.

    Raises:
        ValueError: fewer than two runs, or they are not of one protocol and set of queries.
    """
    try:
        from scipy.stats import t as student
    except ImportError as error:
        raise ImportError(
            "intervals over seeds need scipy: pip install 'eiclip_mm[report]'"
        ) from error
    _check(level)
    runs = _listed(runs)
    if len(runs) < 2:
        raise ValueError(f'the spread over seeds needs 2 runs or more, got {len(runs)}')
    tables(runs, ks)
    metrics = [run.metrics(ks) for run in runs]
    spreads = {}
    for name in metrics[0].keys() - {'num_images', 'num_products'}:
        values = np.array([m[name] for m in metrics])
        middle, std = float(values.mean()), float(values.std(ddof=1))
        half = float(student.ppf((1 + level) / 2, len(runs) - 1)) * std / len(runs) ** 0.5
        spreads[name] = Spread(middle, std, middle - half, middle + half)
    return {name: spreads[name] for name in metrics[0] if name in spreads}


def _values(runs: Sequence[Retrieval], names: Sequence[str], ks: Sequence[int]) -> dict[str, float]:
    """Mean over the runs of the measures of these names."""
    metrics = [run.metrics(ks) for run in runs]
    return {name: float(np.mean([m[name] for m in metrics])) for name in names}


def _quantiles(values: np.ndarray, level: float) -> np.ndarray:
    """(2, F) ends of the middle ``level`` of (S, F)."""
    # 'weibull', for numpy's own choice cuts too much from both ends of few samples
    return np.quantile(values, [(1 - level) / 2, (1 + level) / 2], axis=0, method='weibull')


def _listed(runs: Retrieval | Sequence[Retrieval]) -> list[Retrieval]:
    runs = [runs] if isinstance(runs, Retrieval) else list(runs)
    if not runs:
        raise ValueError('got no run; give one Retrieval or more, see retrieve()')
    return runs


def _check(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f'level is a share between 0 and 1, as 0.95, got {level}')


def _check_samples(level: float, samples: int) -> None:
    _check(level)
    fewest = ceil(round(2 / (1 - level) - 1, 6))  # rounded, for 1 - 0.9 is not quite 0.1
    if not fewest <= samples <= MOST_SAMPLES:
        raise ValueError(
            f'intervals of level {level} need from {fewest:,} to {MOST_SAMPLES:,} samples, got '
            f'{samples:,}'
        )
