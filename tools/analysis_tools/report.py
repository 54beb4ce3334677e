"""Tables of embeddings under named protocols: python tools/analysis_tools/report.py DUMP...

Prints recalls and ranks with their intervals, below them what each number rests on and what is
doubtful about it. --out writes the same as Markdown, JSON, CSV and LaTeX.
"""

import argparse
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from eiclip_mm.evaluation.embeddings import Embeddings
from eiclip_mm.evaluation.lint import VALIDATION, VALIDATION_PRODUCTS, lint
from eiclip_mm.evaluation.manifest import Manifest
from eiclip_mm.evaluation.measures import SUM_KS
from eiclip_mm.evaluation.protocols import AS_PUBLISHED, PROTOCOLS, Protocol, get_protocol
from eiclip_mm.evaluation.report import (
    Table,
    check_writable,
    escaped,
    protocol_card,
    to_csv,
    to_json,
    to_latex,
    to_markdown,
)
from eiclip_mm.evaluation.retrieval import Retrieval, draw_candidates, retrieve
from eiclip_mm.evaluation.rows import (
    card_part,
    config_and_seed,
    different,
    other_lists,
    published_rows,
    result_row,
    seed_rows,
    sizes,
    slice_rows,
)
from eiclip_mm.utils.sentence import told
from eiclip_mm.utils.untrusted import read_json
from eiclip_mm.utils.whole_together import whole_files

DRAWN = re.compile(', (all queries|seed \\d+)')  # changes no expectation
DUPLICATES, FOUND = 'photo in train', 'near-duplicate'
WHOLE = dict(dataset='FashionGen', file=VALIDATION, products=VALIDATION_PRODUCTS)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('dumps', nargs='+', metavar='DUMP', help='embeddings, as tools/test.py --out writes them')
    add(
        '--protocols',
        nargs='+',
        choices=list(PROTOCOLS),
        metavar='NAME',
        help=f'of {", ".join(PROTOCOLS)}; by default all that the dump allows, but full/pair',
    )
    add('--group', metavar='LABEL', help='candidates share this label instead of subcategory')
    add('--as-published', action='store_true', help='also with the defects of released evaluators')
    add('--same-text', action='store_true', help='a product with an identical text is right too')
    add('--queries', choices=['all'], help='ask all instead of a random thousand')
    add('--manifest', metavar='FILE', help='take the candidates from this file')
    add('--save-manifests', metavar='DIR', type=Path, help='write the candidates drawn')
    add('--ks', nargs='+', type=int, default=SUM_KS, metavar='K', help='recalls, by default 1 5 10')
    add('--slices', nargs='+', default=(), metavar='LABEL', help='recalls by value of these labels')
    add('--samples', type=int, default=2000, help='of the bootstrap; 0: no intervals')
    add('--level', type=float, default=0.95, help='of the intervals')
    add('--seed', type=int, default=0, help='of candidates and bootstrap')
    add(
        '--published',
        action=argparse.BooleanOptionalAction,
        help='show published numbers; by default if the data are the validation set of Fashion-Gen',
    )
    add('--duplicates', metavar='FILE', type=Path, help='file of find_duplicates.py: a slice more')
    add('--out', metavar='DIR', type=Path, help='write report.md, .json, .csv and .tex')
    args = parser.parse_args(argv)
    if args.manifest:
        if args.queries or args.group or args.save_manifests:
            parser.error('--manifest holds the lists: no --queries, --group or --save-manifests')
        if sum(PROTOCOLS[name].candidates is not None for name in set(args.protocols or ())) != 1:
            parser.error('--manifest is for one protocol; name it: --protocols 101/fashionbert')
    if args.as_published and args.protocols and not set(args.protocols) & set(AS_PUBLISHED):
        parser.error(f'--as-published changes nothing but {", ".join(AS_PUBLISHED)}')
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Score, print, write."""
    args = parse_args(argv)
    try:
        if args.out:
            check_writable(args.out / 'report.md')  # the others stand beside it
        manifest = Manifest.load(args.manifest) if args.manifest else None
        photos = None if args.duplicates is None else read_duplicates(args.duplicates)
        dumps = read_dumps(args.dumps)
        check_group(dumps, args)
        if photos:
            dumps = {name: with_duplicates(dump, photos) for name, dump in dumps.items()}
            args.slices = [*args.slices, *[DUPLICATES] * any(map(has_duplicates, dumps.values()))]
        scored = {name: score(name, dump, args, manifest) for name, dump in dumps.items()}
        runs = {name: found for name, (found, _) in scored.items()}
        tables = list(tables_of(dumps, runs, args))
        warnings = [line for _, left_out in scored.values() for line in left_out]
        warnings += [*doubts(dumps, runs, photos, manifest), *findings(dumps, runs, photos)]
    except (ValueError, OSError, ImportError) as error:
        raise SystemExit(str(error)) from error
    text = '\n\n'.join(
        [to_markdown(table) for table in tables]
        + ['## Card', *card_lines(runs, manifest), '## Warnings']
        + ['\n'.join(f'- {escaped(line)}' for line in warnings) or 'None.']
    )
    print(text)
    if args.out:
        cards = {
            name: {run.protocol.name: card_of(run, manifest) for run in own}
            for name, own in runs.items()
        }
        bootstrap = dict(samples=args.samples, level=args.level, seed=args.seed)
        latex = ['% needs \\usepackage{booktabs}', *map(to_latex, tables)]
        contents = dict(
            md=text + '\n',
            json=to_json(tables, cards=cards, warnings=warnings, bootstrap=bootstrap) + '\n',
            csv=to_csv(tables),
            tex='\n\n'.join(latex) + '\n',
        )
        with (
            told(args.out),
            whole_files(*(args.out / f'report.{suffix}' for suffix in contents)) as files,
        ):
            for file, content in zip(files, contents.values(), strict=True):
                file.write(content.encode())


def read_dumps(paths: Sequence[str]) -> dict[str, Embeddings]:
    """Embeddings by the name of their row: config and seed of the card, or the path."""
    # not Path.resolve, which raises where links go round
    if len(set(map(os.path.realpath, paths))) < len(paths):
        raise ValueError(f'a dump is given twice in {paths}; give each once')
    dumps = [Embeddings.load(path) for path in paths]
    names = []
    for path, dump in zip(paths, dumps, strict=True):
        config, seed = config_and_seed(dump.card)
        names.append((config or path) + (f', seed {seed}' if config and seed is not None else ''))
    return {
        name if names.count(name) == 1 else f'{name} ({path})': dump
        for path, name, dump in zip(paths, names, dumps, strict=True)
    }


def read_duplicates(path: Path) -> dict:
    """What find_duplicates.py wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is another one.
    """
    if not path.is_file():  # a pipe would never end
        raise FileNotFoundError(
            f'--duplicates: {path} is not there, or no file; write it with find_duplicates.py --out'
        )
    found = read_json(path)
    try:
        if any(type(product_id) is not int for product_id in found['product_ids']):
            raise ValueError(f'product_ids must be integers, got {found["product_ids"][:5]}')
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{path} is not what find_duplicates.py --out writes: {error}') from error
    return found


def with_duplicates(dump: Embeddings, photos: Mapping) -> Embeddings:
    """The same with a label that tells products whose photos are in train from others."""
    known = np.isin(dump.product_id.numpy(), photos['product_ids'])
    label = np.where(known, FOUND, 'none')
    return replace(dump, labels=dict(dump.labels) | {DUPLICATES: label})


def has_duplicates(dump: Embeddings) -> bool:
    """Whether :func:`with_duplicates` found any."""
    return FOUND in dump.labels[DUPLICATES]


def check_group(dumps: Mapping[str, Embeddings], args: argparse.Namespace) -> None:
    """Refuse a label that no dump has, for which all tables that need it would be missing."""
    wanted = args.group and args.protocols is None
    if wanted and not any(args.group in dump.labels for dump in dumps.values()):
        next(iter(dumps.values())).label(args.group)  # says which there are


def score(
    name: str, dump: Embeddings, args: argparse.Namespace, manifest: Manifest | None
) -> tuple[list[Retrieval], list[str]]:
    """One dump under all protocols, and a sentence for each that is left out.

    A protocol with candidates that nobody named is left out where the dump is too small for it.
    """
    runs, left_out = [], []
    for protocol in protocols_for(dump, args):
        listed = protocol.candidates is not None
        try:
            run = retrieve(dump, protocol, manifest if listed else None)
            run.metrics(args.ks)  # refuses a k beyond the gallery
        except ValueError as error:
            if args.protocols or not listed:
                raise ValueError(f'{name}: {error}') from error
            left_out.append(f'{name} is left out of a table: {error}')
            continue
        runs.append(run)
        if args.save_manifests and run.manifest:
            path = args.save_manifests / f'{slug(protocol.name)}-{run.manifest}.npz'
            if not path.exists():  # dumps of one split share it
                drawn = draw_candidates(dump, protocol)
                drawn.manifest(dump, origin=asdict(protocol)).save(path)
    return runs, left_out


def slug(name: str) -> str:
    """A protocol's name as part of a file name."""
    return name.replace(',', '').replace('/', '_').replace(' ', '-')


def protocols_for(dump: Embeddings, args: argparse.Namespace) -> list[Protocol]:
    """The protocols asked for, or all that the dump allows, changed as asked."""
    names = args.protocols
    if names is None:
        several = bool((dump.image_view > 0).any() or (dump.product_caption > 0).any())
        grouped = (args.group or 'subcategory') in dump.labels
        names = ['full/first-image', *['full/product'] * several]
        names += [n for n, p in PROTOCOLS.items() if grouped and p.candidates is not None]
    return [
        changed(name, defects, args)
        for name in dict.fromkeys(names)
        for defects in (False, True)
        if not defects or (args.as_published and name in AS_PUBLISHED)
    ]


def changed(name: str, defects: bool, args: argparse.Namespace) -> Protocol:
    """The protocol, with what was asked as far as it has it."""
    protocol = get_protocol(name, defects)
    changes = dict(same_text=True) if args.same_text and protocol.right == 'product' else {}
    if protocol.candidates is None:
        return get_protocol(protocol, **changes)
    if args.queries == 'all' and protocol.queries is not None:
        changes['queries'] = None
    return get_protocol(protocol, group=args.group, **changes, seed=args.seed)


def tables_of(
    dumps: Mapping[str, Embeddings],
    runs: Mapping[str, Sequence[Retrieval]],
    args: argparse.Namespace,
) -> Iterator[Table]:
    """A table for each protocol, and behind it those by label."""
    options = (args.ks, args.level, args.samples, args.seed)
    interval = f'{100 * args.level:g} % intervals over products, {args.samples:,} samples'
    for protocol in dict.fromkeys(run.protocol.name for own in runs.values() for run in own):
        found = {n: run for n, own in runs.items() for run in own if run.protocol.name == protocol}
        rows = [result_row(name, run, *options) for name, run in found.items()]
        rows += seed_rows(list(found.values()), args.ks, args.level)
        ours = all(is_validation(run.card) for run in found.values())
        if ours if args.published is None else args.published:
            rows += published_rows(DRAWN.sub('', protocol))
        said = list(dict.fromkeys(map(sizes, found.values()))) + [interval] * (args.samples > 0)
        yield Table(protocol, rows, caption='; '.join(said), level=args.level)
        for label in args.slices:
            for name, run in found.items():
                yield Table(protocol, slice_rows(name, run, dumps[name], label, args.ks), label)


def is_validation(card: Mapping) -> bool:
    """Whether the data are all products of the validation file of Fashion-Gen."""
    return {key: card_part(card, 'data').get(key) for key in WHOLE} == WHOLE


def card_of(run: Retrieval, manifest: Manifest | None) -> dict:
    """What a result rests on, and for which protocol given lists were drawn."""
    origin = {}
    if manifest and run.manifest:
        origin['manifest_origin'] = manifest.origin.get('name', 'not stated in the manifest')
    return protocol_card(run) | origin


def card_lines(runs: Mapping[str, Sequence[Retrieval]], manifest: Manifest | None) -> Iterator[str]:
    """The cards, each part once: of each dump what it says, of each protocol what was asked."""
    parts = {}
    for name, own in runs.items():
        for run in own:
            parts.setdefault(_listed(run.card), {})[name] = None
            card = card_of(replace(run, card={}), manifest)
            parts.setdefault(_listed(card), {})[name] = None
    for text, names in parts.items():
        yield f'{escaped(", ".join(names))}:\n\n{text}'


def _listed(card: Mapping) -> str:
    lines = [f'- {escaped(k)}: `{json.dumps(v, ensure_ascii=False)}`' for k, v in card.items()]
    return '\n'.join(lines) or '- no card: where it comes from is not known'


def doubts(
    dumps: Mapping[str, Embeddings],
    runs: Mapping[str, Sequence[Retrieval]],
    photos: Mapping | None,
    manifest: Manifest | None,
) -> Iterator[str]:
    """What does not fit together: dumps, the file of near-duplicates, the manifest."""
    yield from different(dumps)
    if photos and photos['product_ids']:
        for name in (name for name, dump in dumps.items() if not has_duplicates(dump)):
            yield (
                f'{name} has none of the {len(photos["product_ids"])} products of --duplicates; '
                'run find_duplicates.py on the split that is reported.'
            )
    if manifest:
        listed = {run.protocol: None for own in runs.values() for run in own if run.manifest}
        yield from filter(None, (other_lists(manifest, protocol) for protocol in listed))


def findings(
    dumps: Mapping[str, Embeddings],
    runs: Mapping[str, Sequence[Retrieval]],
    photos: Mapping | None,
) -> list[str]:
    """What is doubtful about each; what holds of all, or under all protocols, is said once."""
    protocols = {}
    for name, own in runs.items():
        for run in own:
            for text in lint(dumps[name], run, photos):
                protocols.setdefault((text, name), []).append(run.protocol.name)
    names = {}
    for (text, name), under in protocols.items():
        everywhere = len(under) == len(runs[name])
        names.setdefault((text, () if everywhere else tuple(under)), []).append(name)
    return [
        ': '.join(filter(None, [', '.join([*of * (len(of) < len(dumps)), *under]), text]))
        for (text, under), of in names.items()
    ]


if __name__ == '__main__':
    main()
