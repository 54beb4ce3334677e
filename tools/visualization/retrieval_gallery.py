"""See where one model fails, query by query, on one HTML page.

python tools/visualization/retrieval_gallery.py CONFIG EMBEDDINGS.npz --out page.html

EMBEDDINGS are those of tools/test.py --out; CONFIG says where their texts and photos are, in its
test_dataloader. Ranks are those of full/first-image. A failure is a query that finds another item
first; the page says what these have in common with the right one, beside what chance would give.
"""

import argparse

import numpy as np
from _catalogue import SplitProducts, add_page_options, write_page
from _failures import Failures, groups
from _ranked import PROTOCOL, TOP, Ranked, add_direction, named, ranked

import eiclip_mm  # noqa: F401  (checks the installation)
from eiclip_mm.evaluation import Embeddings
from eiclip_mm.evaluation.report import check_writable
from eiclip_mm.visualization import Candidate, Gallery, Query, gallery_page

PICKS = dict(
    worst='the {} of {:,} queries whose right item stands furthest behind',
    random='{} of all {:,} queries, drawn at random',
    best='the {} of {:,} queries whose right item leads by most',
)


def main(argv: list[str] | None = None) -> None:
    """Rank, count, pick, write."""
    args = parse_args(argv)
    try:
        check_writable(args.out)
        dump = Embeddings.load(args.embeddings)
        products = SplitProducts(args.config)
        products.check({args.embeddings: dump})
        gallery = make(args, dump, products)
    except (ValueError, OSError, ImportError) as error:
        raise SystemExit(str(error)) from error
    holds = f'{len(gallery.shown)} of {gallery.queries} queries'
    write_page(args.out, gallery_page(gallery), holds)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', metavar='CONFIG', help='config file of the model')
    parser.add_argument('embeddings', metavar='EMBEDDINGS', help='of its test split')
    add_page_options(parser, 'queries', 40)
    add_direction(parser)
    parser.add_argument(
        '--pick', choices=list(PICKS), default='worst', help='default worst; random is typical'
    )
    parser.add_argument(
        '--group-by', metavar='TYPE', help='an entity type, e.g. brand: a row for each value'
    )
    return parser.parse_args(argv)


def make(args: argparse.Namespace, dump: Embeddings, products: SplitProducts) -> Gallery:
    """All that the page shows."""
    answers = ranked(dump, args.direction)
    failures = Failures(answers, products, args.direction)
    rows = picked(answers.rank, failures.lead, args.pick, args.number)
    values = order = None
    if args.group_by:
        values = failures.values_of(args.group_by)
        order = groups(values, answers.rank)
        place = {group.name: i for i, group in enumerate(order)}
        rows.sort(key=lambda row: place[values[row]])
    return Gallery(
        name=named(args.embeddings, dump),
        direction=args.direction,
        protocol=PROTOCOL,
        queries=len(answers.rank),
        failures=int((answers.rank > 1).sum()),
        alike=failures.alike(),
        agreements=failures.agreements(),
        shown=[asked(row, answers, failures, products, values) for row in rows],
        picked=PICKS[args.pick].format(len(rows), len(answers.rank)),
        group_by=args.group_by,
        groups=order or (),
    )


def picked(rank: np.ndarray, lead: np.ndarray, pick: str, number: int) -> list[int]:
    """The queries to show.

    Args:
        rank: (Q,) of the right item, from 1.
        lead: (Q,) score of the right item less that of the best wrong one.
        pick: see :data:`PICKS`; equal ranks go by their lead.
        number: how many.
    """
    if pick == 'random':
        rows = np.random.default_rng(0).permutation(len(rank))[:number]
        return rows[np.argsort(-rank[rows], kind='stable')].tolist()
    order = np.lexsort((-lead, rank))
    return order[:number].tolist() if pick == 'best' else order[::-1][:number].tolist()


def asked(
    row: int,
    answers: Ranked,
    failures: Failures,
    products: SplitProducts,
    values: list[str] | None,
) -> Query:
    """A query with the first items that it finds, and the right one behind them."""
    ids = answers.product_id.tolist()
    rank = int(answers.rank[row])
    found = [(place, at, score) for place, (at, score) in enumerate(answers.top(row), 1)]
    if rank > TOP:
        found.append((rank, row, float(answers.queries[row] @ answers.gallery[row])))
    items = [
        Candidate(
            products.product(ids[at]),
            score,
            place,
            right=at == row,
            shared={} if at == row else failures.shared(row, at),
            alike=[] if at == row else failures.near_duplicate(row, at),
        )
        for place, at, score in found
    ]
    group = None if values is None else values[row]
    return Query(products.product(ids[row]), rank, items, group)


if __name__ == '__main__':
    main()
