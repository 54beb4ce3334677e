"""Soaks: one part at a time for long or with much, and whether anything grows, leaks or is wrong.

python tools/dev/soak.py service CHECKPOINT --index FOLDER --filters brand=Puma --minutes 30
python tools/dev/soak.py loader --items 1000000
python tools/dev/soak.py evaluator --rows 1000000 --queries 20000

Each prints Markdown and exits with 1 if something is wrong. Linux alone. The service is started
here, on 127.0.0.1, and ended again; data of the others are drawn into a temporary folder.
"""

import eiclip_mm  # noqa: F401, I001  before anything imports torchvision

import argparse
import importlib
import sys
from collections.abc import Sequence

MOST_MINUTES, MOST_CLIENTS, MOST_ITEMS, MOST_ROWS = 24 * 60, 256, 10**8, 10**7


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = parser.add_subparsers(dest='part', required=True)
    _add_service(parts.add_parser('service', help='tools/deployment/serve.py under clients'))
    _add_loader(parts.add_parser('loader', help='data sets through loaders with workers'))
    _add_evaluator(parts.add_parser('evaluator', help='ranks of very many vectors'))
    args = parser.parse_args(argv)
    for name, most in BOUNDS.items():
        value = getattr(args, name, most)
        if not 0 < value <= most:
            parser.error(f'--{name} must be above 0 and up to {most:,}, got {value:,}')
    return args


BOUNDS = dict(minutes=MOST_MINUTES, clients=MOST_CLIENTS, items=MOST_ITEMS, rows=MOST_ROWS)


def _add_service(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add('checkpoint', help='of tools/train.py')
    add('--index', required=True, metavar='FOLDER', help='of build_index.py, made with it')
    add('--filters', nargs='+', required=True, metavar='FIELD=VALUE', help='to search under')
    add('--minutes', type=float, default=30)
    add('--warm-up', type=float, default=5, help='minutes that are not judged')
    add('--words', type=int, default=70_000, help='that it is asked first, to be remembered')
    add('--clients', type=int, default=32)
    add('--rate', type=float, default=60, help='requests a second, of all clients together')
    add('--every', type=float, default=5, help='seconds from one look at the process to the next')


def _add_loader(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add('--items', type=int, default=10**6, help='through all loaders together')
    add('--photos', type=int, default=512, help='that are drawn; items repeat them')
    add('--breaks', type=int, default=500, help='iterations that are broken off')


def _add_evaluator(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add('--rows', type=int, default=10**6, help='products; as many images and texts')
    add('--queries', type=int, default=20_000, help='images that are asked among all texts')
    add('--dim', type=int, default=64)
    add('--square', type=int, default=100_000, help='products of which all are ranked among all')


def main(argv: Sequence[str] | None = None) -> None:
    """Soak one part."""
    args = parse_args(argv)
    faults = importlib.import_module(f'_soak_{args.part}').run(args)
    for fault in faults[:20]:
        print(f'\nWRONG: {fault}', file=sys.stderr)
    print(f'\n{len(faults) or "nothing"} wrong')
    raise SystemExit(bool(faults))


if __name__ == '__main__':
    main()
