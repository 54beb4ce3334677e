"""Is model B better than model A? python tools/analysis_tools/compare.py A.npz B.npz

A and B are embeddings of one split, from tools/test.py --out or elsewhere. Several seeds of a model
are given as a quoted pattern or with commas, 'work_dirs/b_*/embeddings.npz', and their mean is
compared. Intervals and p-values are over products: they say whether other products would give the
same answer. Whether training again would is a question for several seeds.
"""

import argparse
import json
import os
from dataclasses import asdict
from glob import glob, has_magic
from pathlib import Path

import eiclip_mm  # noqa: F401  (checks the installation)
from eiclip_mm.evaluation import PROTOCOLS, Embeddings, Manifest, get_protocol, retrieve
from eiclip_mm.evaluation.measures import SUM_KS
from eiclip_mm.evaluation.protocols import AS_PUBLISHED, Protocol
from eiclip_mm.evaluation.report import check_writable, grid
from eiclip_mm.evaluation.retrieval import Retrieval
from eiclip_mm.evaluation.rows import KEYS, contents, other_lists
from eiclip_mm.evaluation.statistics import Difference, compare
from eiclip_mm.utils.sentence import told
from eiclip_mm.utils.whole_file import write_whole_text


def main(argv: list[str] | None = None) -> None:
    """Compare under each protocol; print tables and sentences, write JSON."""
    args = parse_args(argv)
    try:
        if args.out:
            check_writable(args.out)
        a, b = dumps(args.a), dumps(args.b)
        manifest = Manifest.load(args.manifest) if args.manifest else None
        found = retrievals(a + b, args, manifest)
        options = dict(ks=args.ks, level=args.level, samples=args.samples, seed=args.seed)
        results = {
            name: compare(runs[: len(a)], runs[len(a) :], **options) for name, runs in found.items()
        }
    except KeyError as error:  # whose str() has quotes around
        raise SystemExit(error.args[0]) from error
    except (ValueError, OSError, ImportError) as error:
        raise SystemExit(str(error)) from error
    print(f'A: {described(a)}\nB: {described(b)}')
    for name, differences in results.items():
        asked = found[name][0]
        print(f'\n## {name}\n')
        print(f'{asked.num_products} products, {asked.num_images} images', end='')
        print(f', candidates {asked.manifest}\n' if asked.manifest else '\n')
        if asked.manifest and manifest and (doubt := other_lists(manifest, asked.protocol)):
            print(f'Warning: {doubt}\n')
        print(table(differences, args.level))
        print(f'\n{verdict(differences["SumR"], args.level)}')
    if args.out:
        write(args, a, b, found, results)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('a', metavar='A', help='.npz file or folder; "a,b" or "seed*.npz": seeds')
    parser.add_argument('b', metavar='B', help='the same of the other model')
    parser.add_argument(
        '--protocols',
        nargs='+',
        metavar='NAME',
        help=f'of {", ".join(PROTOCOLS)}; by default full/first-image and, where products have '
        'several views, full/product',
    )
    parser.add_argument('--group', metavar='LABEL', help='label that candidates share')
    parser.add_argument(
        '--as-published', action='store_true', help='with the defects of released evaluators'
    )
    parser.add_argument('--same-text', action='store_true', help='identical texts are right too')
    parser.add_argument('--manifest', metavar='FILE', help='candidates to take, not to draw')
    parser.add_argument(
        '--ks', nargs='+', type=int, default=[], metavar='K', help='recalls beside 1, 5 and 10'
    )
    parser.add_argument('--samples', type=int, default=2000, help='of products, default 2000')
    parser.add_argument('--level', type=float, default=0.95, help='of intervals, default 0.95')
    parser.add_argument('--seed', type=int, default=0, help='of the samples')
    parser.add_argument('--out', metavar='FILE.json', type=Path, help='write everything here too')
    args = parser.parse_args(argv)
    args.ks = sorted({*SUM_KS, *args.ks})
    if args.as_published and not set(args.protocols or ()) & set(AS_PUBLISHED):
        parser.error(f'--as-published changes nothing but {", ".join(AS_PUBLISHED)}; name one')
    if args.manifest:
        if args.group:
            parser.error('--manifest holds the lists: no --group')
        known = [PROTOCOLS[name] for name in set(args.protocols or ()) if name in PROTOCOLS]
        if sum(protocol.candidates is not None for protocol in known) != 1:
            parser.error('--manifest is for one protocol; name it: --protocols 101/fashionbert')
    return args


def dumps(text: str) -> list[str]:
    """The dumps that an argument names."""
    if Path(text).exists():
        return [text]
    found = []
    for part in text.split(','):
        matches = sorted(glob(part)) if has_magic(part) else [part]
        if not matches:
            raise ValueError(f'no embeddings match {part!r}')
        found += matches
    # not Path.resolve, which raises where links go round
    if len(set(map(os.path.realpath, found))) < len(found):
        raise ValueError(f'a dump is given twice in {found}; a mean over seeds takes each once')
    return found


def retrievals(
    paths: list[str], args: argparse.Namespace, manifest: Manifest | None
) -> dict[str, list[Retrieval]]:
    """For each protocol the result of every dump, one dump in memory beside the first."""
    first = Embeddings.load(paths[0])
    asked = protocols(args, first)
    found = {protocol.name: [] for protocol in asked}
    for path in paths:
        embeddings = Embeddings.load(path)
        check_same(paths[0], first, path, embeddings, args.same_text)
        for protocol in asked:
            listed = None if protocol.candidates is None else manifest
            found[protocol.name].append(retrieve(embeddings, protocol, listed))
    return found


def protocols(args: argparse.Namespace, embeddings: Embeddings) -> list[Protocol]:
    """The protocols asked for, each once."""
    names = args.protocols or ['full/first-image'] + ['full/product'] * bool(
        embeddings.image_view.any()
    )
    found = []
    for name in dict.fromkeys(names):
        # as in report.py, options that a protocol lacks leave it as it is
        protocol = get_protocol(name, args.as_published and name in AS_PUBLISHED)
        changes = dict(same_text=True) if args.same_text and protocol.right == 'product' else {}
        group = None if protocol.candidates is None else args.group
        found.append(get_protocol(protocol, group=group, **changes))
    return found


def check_same(
    path: str, first: Embeddings, other_path: str, other: Embeddings, same_text: bool
) -> None:
    """Refuse dumps of different products, views or captions, or that call other texts equal."""
    for what, one, two in zip(
        KEYS[1:], *(list(contents(x))[1:] for x in (first, other)), strict=True
    ):
        if one != two:
            raise ValueError(
                f'{path} and {other_path} hold different {what}: {len(one - two)} are in the first '
                f'alone, {len(two - one)} in the second alone, e.g. {min(one ^ two)}. Compare '
                f'embeddings of one split'
            )
    if same_text and first.product_text is not None and other.product_text is not None:
        keys = [x.product_text[order_of_texts(x)].tolist() for x in (first, other)]
        if not len(set(keys[0])) == len(set(keys[1])) == len(set(zip(*keys, strict=True))):
            raise ValueError(
                f'{path} and {other_path} call other texts identical, as models that read other '
                f'texts do: then --same-text would ask them different things. Leave it out'
            )


def order_of_texts(embeddings: Embeddings) -> list[int]:
    """Rows of the texts by product and caption."""
    pairs = zip(embeddings.product_id.tolist(), embeddings.product_caption.tolist(), strict=True)
    return [row for _, row in sorted((pair, row) for row, pair in enumerate(pairs))]


def table(differences: dict[str, Difference], level: float) -> str:
    """Markdown, one row a measure."""
    rows = [['measure', 'A', 'B', 'B - A', f'{100 * level:g} % interval', 'p']]
    for name, d in differences.items():
        digits = 4 if name.endswith(('MRR', 'mAP')) or '/nDCG@' in name else 2
        a, b, low, high = (f'{x:.{digits}f}' for x in (d.a, d.b, d.low, d.high))
        difference = f'{d.difference:+.{digits}f}'
        rows.append([name, a, b, difference, f'[{low}, {high}]', f'{d.p:.2g}'])
    return grid(rows)


def verdict(sum_r: Difference, level: float) -> str:
    """One sentence: which is better, by how much, how sure."""
    if sum_r.p > 1 - level:
        return (
            f'no difference is shown: B - A is {sum_r.difference:.2f} SumR [{sum_r.low:.2f}, '
            f'{sum_r.high:.2f}], p = {sum_r.p:.2g}'
        )
    better, low, high = 'B', sum_r.low, sum_r.high
    if sum_r.difference < 0:
        better, low, high = 'A', -sum_r.high, -sum_r.low
    return (
        f'{better} is better by {abs(sum_r.difference):.2f} SumR [{low:.2f}, {high:.2f}], '
        f'p = {sum_r.p:.2g}'
    )


def described(paths: list[str]) -> str:
    """A side in words."""
    return paths[0] if len(paths) == 1 else f'mean of {len(paths)} runs, {", ".join(paths)}'


def write(
    args: argparse.Namespace,
    a: list[str],
    b: list[str],
    found: dict[str, list[Retrieval]],
    results: dict[str, dict[str, Difference]],
) -> None:
    """All that was asked and found, as JSON."""
    content = dict(a=a, b=b, level=args.level, samples=args.samples, seed=args.seed, protocols={})
    for name, differences in results.items():
        content['protocols'][name] = dict(
            protocol=asdict(found[name][0].protocol),
            manifest=found[name][0].manifest,
            num_products=found[name][0].num_products,
            num_images=found[name][0].num_images,
            measures={measure: asdict(d) for measure, d in differences.items()},
        )
    with told(args.out):
        write_whole_text(args.out, json.dumps(content, indent=1))


if __name__ == '__main__':
    main()
