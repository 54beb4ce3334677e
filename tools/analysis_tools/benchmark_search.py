"""Search engines side by side: recall and time with and without filters, time to build, disk.

python tools/analysis_tools/benchmark_search.py [--items 100000] [--ways qdrant-edge exact]

Vectors are drawn: 1,000 unit centres with Zipf shares of the items; an item is its centre plus
noise of the centre's length, in 32 directions that belong to the centre, then made unit; a query is
an item plus noise of half its length. So the nearest share a centre, and lie at cosines around 0.5.
A centre belongs to one of 50 categories; brand (2,000, Zipf) and price (log-normal) are drawn
without a look at the vector.

Asked for: the 10 nearest of all; of the query's category; of one brand with some 25 items; of a
tenth of the prices. Recall is against the exact scan. Graphs have m = 16, ef_construction = 200
and ef = 128 in all engines. Each engine runs in a process of its own; those that are not installed
are skipped. Time is the wall's, the best of three, median over queries, one after another.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import _search_engines as engines
import numpy as np
from _benchmark import add_options, run, table
from _search_engines import K

ASKED = ('all', 'category', 'rare brand', 'price range')
NEEDS = {  # way: packages that must be there
    'exact': ('numpy',),
    'qdrant-edge': ('qdrant-edge-py',),
    'qdrant-server': ('qdrant-client',),
    'faiss': ('faiss-cpu',),
    'lancedb': ('lancedb',),
    'milvus': ('pymilvus', 'milvus-lite'),
    'pgvector': ('psycopg', 'pgvector'),
}
OUTSIDE = ('pgvector', 'qdrant_server')
MODULES = {'qdrant-edge-py': 'qdrant_edge', 'faiss-cpu': 'faiss'}  # where the name differs


@dataclass(frozen=True)
class Made:
    """(P, D) vectors and what is known of each product; queries and what each is narrowed to."""

    vectors: np.ndarray
    category: np.ndarray
    brand: np.ndarray
    price: np.ndarray
    queries: np.ndarray
    query_category: np.ndarray
    rare: int
    prices: tuple[float, float]

    def passing(self, asked: str, query: int) -> np.ndarray | None:
        """(P,) bool: which products pass; None: all."""
        low, high = self.prices
        return {
            'all': lambda: None,
            'category': lambda: self.category == self.query_category[query],
            'rare brand': lambda: self.brand == self.rare,
            'price range': lambda: (self.price >= low) & (self.price < high),
        }[asked]()

    def where(self, asked: str, query: int, both: str = 'AND') -> str:
        """The same as an expression of SQL, which engines share."""
        low, high = self.prices
        return {
            'all': '',
            'category': f'category = {self.query_category[query]}',
            'rare brand': f'brand = {self.rare}',
            'price range': f'price >= {low} {both} price < {high}',
        }[asked]


def parse_args() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--items', type=int, default=100_000)
    parser.add_argument('--dim', type=int, default=512)
    parser.add_argument('--queries', type=int, default=100)
    parser.add_argument(
        '--qdrant', help='http://HOST:PORT/COLLECTION of a server, for qdrant-server'
    )
    parser.add_argument('--milvus', help='http://HOST:PORT of a server, instead of milvus-lite')
    parser.add_argument('--postgres', help='connection string of a database that has pgvector')
    add_options(parser, tuple(NEEDS), repeats=1)
    return parser.parse_args()


def main() -> None:
    """Run every engine that is there and print the table."""
    args = parse_args()
    for way in list(args.ways):
        if not args.run and (reason := why_not(way, args)):
            print(f'{way}: skipped, {reason}', file=sys.stderr)
            args.ways.remove(way)
    ways = {way: partial(measure, getattr(engines, way.replace('-', '_'))) for way in NEEDS}
    found = run(ways, args)
    print(f'{args.items} x {args.dim}, {args.queries} queries, recall@{K} and ms\n')
    columns = {'version': lambda row: row['version']}
    for asked in ASKED:
        columns[asked] = lambda row, asked=asked: '{:.3f}, {:.1f}'.format(*row[asked])
    columns['build s'] = lambda row: f'{row["build"]:.0f}'
    columns['CPU-s'] = lambda row: f'{row["cpu"]:.0f}' if row['cpu'] else '–'
    columns['disk MB'] = lambda row: f'{row["mb"]:.0f}' if row['mb'] else '–'
    rows = {way: row | dict(version=version(NEEDS[way][-1])) for way, row in found.items()}
    print(table(rows, columns))


def why_not(way: str, args: argparse.Namespace) -> str:
    """Why an engine cannot run; empty if it can."""
    missing = [name for name in NEEDS[way] if not find_spec(module_of(name))]
    if missing:
        return f'pip install {" ".join(missing)}'
    if way == 'qdrant-server' and not args.qdrant:
        return 'give --qdrant http://HOST:PORT/COLLECTION'
    return 'give --postgres' if way == 'pgvector' and not args.postgres else ''


def module_of(package: str) -> str:
    """What is imported of a package."""
    return MODULES.get(package, package.replace('-', '_'))


def draw(items: int, dim: int, queries: int) -> Made:
    """See the top of the file."""
    rng = np.random.default_rng(0)
    centres = unit(rng.normal(size=(1000, dim)).astype(np.float32))
    of = rng.choice(1000, items, p=zipf(1000))
    noise = np.empty((items, dim), dtype=np.float32)
    for c in range(1000):
        rows = np.flatnonzero(of == c)
        directions = rng.normal(size=(32, dim)).astype(np.float32) / dim**0.5
        noise[rows] = rng.normal(size=(len(rows), 32)).astype(np.float32) @ directions / 32**0.5
    vectors = unit(centres[of] + noise)
    asked = rng.choice(items, queries, replace=False)
    more = rng.normal(size=(queries, dim)).astype(np.float32) / dim**0.5
    brand = rng.choice(2000, items, p=zipf(2000))
    price = rng.lognormal(3.5, 0.8, items).round(2)
    low, high = np.quantile(price, (0.4, 0.5)).round(2).tolist()
    counts = np.bincount(brand, minlength=2000)
    return Made(
        vectors=vectors,
        category=of % 50,
        brand=brand,
        price=price,
        queries=unit(vectors[asked] + 0.5 * more),
        query_category=of[asked] % 50,
        rare=int(np.abs(counts - 25).argmin()),
        prices=(low, high),
    )


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows of length 1."""
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def zipf(n: int) -> np.ndarray:
    """Shares of n names: the r-th is an r-th of the first."""
    shares = 1 / np.arange(1, n + 1)
    return shares / shares.sum()


def measure(way: Callable, args: argparse.Namespace) -> dict:
    """Build an engine, then recall and ms of every question."""
    catalogue = draw(args.items, args.dim, args.queries)
    with tempfile.TemporaryDirectory() as folder:
        start, cpu = time.perf_counter(), time.process_time()
        search, size = way(catalogue, Path(folder), args)
        found = dict(build=time.perf_counter() - start, cpu=time.process_time() - cpu)
        if way.__name__ in OUTSIDE or args.milvus:
            found['cpu'] = 0  # a server's
        for asked in ASKED:
            found[asked] = ask(search, catalogue, asked)
        return found | dict(mb=size() / 1e6)


def ask(search: Callable, catalogue: Made, asked: str) -> tuple[float, float]:
    """Recall and ms of one kind of question."""
    recalls, times = [], []
    for i, query in enumerate(catalogue.queries):
        tries = []
        for _ in range(3):  # the best: other load on the machine is no property of an engine
            start = time.perf_counter()
            rows = np.asarray(search(query, asked, i), dtype=int)
            tries.append(time.perf_counter() - start)
        times.append(min(tries))
        scores, passing = catalogue.vectors @ query, catalogue.passing(asked, i)
        if passing is not None:
            scores[~passing] = -2
        right = np.sort(scores[scores > -2])[-K:]
        recalls.append((scores[np.unique(rows)] >= right[0] - 1e-5).sum() / len(right))
    return float(np.mean(recalls)), 1e3 * statistics.median(times)


if __name__ == '__main__':
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    main()
