"""See what changes from model A to model B, query by query, on one HTML page.

python tools/visualization/compare_retrievals.py CONFIG A.npz B.npz --out page.html

A and B are embeddings of one split, from tools/test.py --out; CONFIG, that of either, says where
its texts and photos are, in its test_dataloader. Ranks are those of full/first-image.
"""

import argparse
from pathlib import Path

import numpy as np
from _catalogue import SplitProducts, add_page_options, write_page
from _ranked import PROTOCOL, Ranked, add_direction, named, ranked

import eiclip_mm  # noqa: F401  (checks the installation)
from eiclip_mm.evaluation import Embeddings
from eiclip_mm.evaluation.report import check_writable
from eiclip_mm.evaluation.rows import different
from eiclip_mm.visualization import Asked, Found, Page, retrieval_page

PICKS = dict(
    both='the largest gains and the largest losses, {} of {} queries whose rank changes',
    gains='the largest gains, {} of {} queries whose rank gets better',
    losses='the largest losses, {} of {} queries whose rank gets worse',
    random='{} of all {} queries, drawn at random',
)


def main(argv: list[str] | None = None) -> None:
    """Rank, pick, write."""
    args = parse_args(argv)
    try:
        check_writable(args.out)
        dumps = {path: Embeddings.load(path) for path in (args.a, args.b)}
        for doubt in different(dumps):
            raise ValueError(doubt)
        products = SplitProducts(args.config)
        products.check(dumps)
        sides = [ranked(dump, args.direction) for dump in dumps.values()]
        rows, count = picked(*(side.rank for side in sides), args.pick, args.number)
        page = Page(
            names=tuple(named(path, dump) for path, dump in dumps.items()),
            direction=args.direction,
            ranks=np.stack([side.rank for side in sides]),
            gallery=len(sides[0].gallery),
            shown=[asked(row, sides, products) for row in rows],
            picked=PICKS[args.pick].format(len(rows), f'{count:,}'),
            protocol=PROTOCOL,
        )
    except (ValueError, OSError, ImportError) as error:
        raise SystemExit(str(error)) from error
    write_page(args.out, retrieval_page(page), f'{len(rows)} of {len(page.gain)} queries')


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', metavar='CONFIG', help='config file of either model')
    parser.add_argument('a', metavar='A', help='embeddings of the model before')
    parser.add_argument('b', metavar='B', help='embeddings of the model after')
    add_page_options(parser, 'queries', 40)
    add_direction(parser)
    parser.add_argument(
        '--pick',
        choices=list(PICKS),
        default='both',
        help='which queries; default both, half gains and half losses; random: the same every time',
    )
    args = parser.parse_args(argv)
    if Path(args.a).resolve() == Path(args.b).resolve():
        parser.error(f'A and B are the same embeddings, {args.a}; give those of two models')
    return args


def picked(before: np.ndarray, after: np.ndarray, pick: str, number: int) -> tuple[list[int], int]:
    """The queries to show, the largest gain first, and of how many they are a choice.

    A change counts by its factor: from rank 20 to 1 is more than from 2,000 to 1,000. A choice of
    both is half gains and half losses, or fewer where there are not as many.
    """
    gain = np.log(before / after)
    if pick == 'random':
        rows = np.random.default_rng(0).permutation(len(gain))[:number]
        return rows[np.argsort(-gain[rows], kind='stable')].tolist(), len(gain)
    order = np.argsort(-gain, kind='stable')
    gains, losses = order[gain[order] > 0], order[gain[order] < 0]
    lose = dict(gains=0, losses=number, both=number // 2)[pick]
    win = 0 if pick == 'losses' else number - lose
    chosen = [*gains[:win].tolist(), *losses[max(0, len(losses) - lose) :].tolist()]
    return chosen, dict(gains=len(gains), losses=len(losses)).get(pick, len(gains) + len(losses))


def asked(row: int, sides: list[Ranked], products: SplitProducts) -> Asked:
    """A query with what both models find."""
    ids = sides[0].product_id.tolist()
    found = tuple(
        [Found(products.product(ids[at]), score, at == row) for at, score in side.top(row)]
        for side in sides
    )
    ranks = tuple(int(side.rank[row]) for side in sides)
    return Asked(products.product(ids[row]), ranks, found)


if __name__ == '__main__':
    main()
