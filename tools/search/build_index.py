"""Build the index of a catalogue, or bring it up to date.

python tools/search/build_index.py CHECKPOINT CATALOGUE --index WHERE
python tools/search/build_index.py --index WHERE --delete ID ...

CATALOGUE is COCO-captions JSON with entities, CSV, parquet, an HDF5 file as Fashion-Gen's, or a
config, of which --split is read (docs/search.md). One row a product: its first photo, its text and
its entities. A second call embeds what is new or has changed; one that was killed goes on.
"""

import argparse
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np
from _search import CHUNK, add_index, as_product, photo_vectors, product_vectors
from tqdm import tqdm

import eiclip_mm  # noqa: F401  (checks the installation)
from eiclip_mm.apis.catalogue import Catalogue, Item, read_catalogue
from eiclip_mm.apis.encoder import Encoder
from eiclip_mm.apis.index import CatalogueIndex, Condition, recall_at_k
from eiclip_mm.apis.inferencer import EICLIPInferencer
from eiclip_mm.apis.search import about, check_same

COUNTS = ('new', 'changed', 'new attributes', 'as they were', 'deleted')
SHOWN = 10  # broken photos that are named
QUERIES = 200  # products whose texts ask for recall


@dataclass
class Done:
    """What a build did, by id where it matters."""

    counts: Counter = field(default_factory=Counter)
    broken: dict[str, str] = field(default_factory=dict)  # why a photo cannot be read
    empty: list[str] = field(default_factory=list)  # neither photo nor text
    ids: set[str] = field(default_factory=set)
    moved: dict[str, dict] = field(default_factory=dict)  # payloads that changed, vectors not


def main(argv: Sequence[str] | None = None) -> None:
    """Delete, build, measure."""
    args = parse_args(argv)
    try:
        if args.delete:
            with CatalogueIndex.open(args.index) as index:
                there = index.get(args.delete)
                print(f'{index.delete(args.delete)} deleted, {len(index)} left')
                if lost := [id_ for id_ in args.delete if id_ not in there]:
                    print(f'not in the index: {", ".join(lost)}')
        if args.catalogue:
            run(args)
    except (ValueError, OSError, ImportError) as error:
        raise SystemExit(str(error)) from error


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('checkpoint', nargs='?', metavar='CHECKPOINT', help='of tools/train.py')
    add('catalogue', nargs='?', metavar='CATALOGUE', help='.json, .csv, .parquet, .h5 or config')
    add_index(parser)
    add('--images', metavar='FOLDER', help="of the photos; default: the catalogue's own")
    add('--split', choices=['test', 'val', 'train'], default='test', help='of a config')
    add('--batch-size', type=int, default=64, help='items the model gets at a time, default 64')
    add('--prune', action='store_true', help='delete items that the catalogue lacks')
    add('--strict', action='store_true', help='stop at a photo that cannot be read')
    add('--config', help='of the checkpoint, where it holds none')
    add('--delete', nargs='+', metavar='ID', help='delete these items, before anything else')
    args = parser.parse_args(argv)
    if args.checkpoint and not args.catalogue:
        parser.error(f'CHECKPOINT is {args.checkpoint}, CATALOGUE is missing')
    if not args.catalogue and not args.delete:
        parser.error('give CHECKPOINT and CATALOGUE, or --delete ID ...')
    return args


def run(args: argparse.Namespace) -> None:
    """Bring the index up to date and say what was done."""
    encoder = EICLIPInferencer(args.checkpoint, config=args.config, batch_size=args.batch_size)
    types = encoder.tokenizer.vocab.types
    catalogue = read_catalogue(args.catalogue, encoder.text_fields, types, args.images, args.split)
    for note in catalogue.notes:
        print(note)
    with opened(args.index, encoder) as index:
        began = time.perf_counter()
        done = build(encoder, index, catalogue, args.strict)
        if args.prune:
            gone = [id_ for ids, _, _ in index.scan() for id_ in ids if id_ not in done.ids]
            done.counts['deleted'] = index.delete(gone)
        index.optimize()
        report(done, len(index), time.perf_counter() - began)
        measure(index, types)


def opened(where: str, encoder: Encoder) -> CatalogueIndex:
    """The index that is there, of this model, or a new one."""
    try:
        index = CatalogueIndex.open(where)
    except FileNotFoundError:
        return CatalogueIndex.create(where, encoder.dim, about(encoder))
    try:
        check_same(encoder, index)
    except ValueError:
        index.close()
        raise
    return index


def build(encoder: Encoder, index: CatalogueIndex, catalogue: Catalogue, strict: bool) -> Done:
    """Embed and write what is new or has changed, part by part."""
    done, items = Done(), iter(catalogue)
    with ThreadPoolExecutor() as pool, tqdm(total=len(catalogue), unit=' rows') as bar:
        while part := list(islice(items, CHUNK)):
            update(encoder, index, part, done, strict, pool)
            bar.update(len(part))
    if done.moved:
        for ids, vectors, _ in index.scan(with_vectors=True):
            rows = [row for row, id_ in enumerate(ids) if id_ in done.moved]
            own = [ids[row] for row in rows]
            index.upsert(
                own, {side: v[rows] for side, v in vectors.items()}, [done.moved[i] for i in own]
            )
    return done


def update(
    encoder: Encoder,
    index: CatalogueIndex,
    items: Sequence[Item],
    done: Done,
    strict: bool,
    pool: ThreadPoolExecutor,
) -> None:
    """Bring some items of the index up to date."""
    known = index.get([item.id for item in items])
    todo = []
    for item in items:
        done.ids.add(item.id)
        old, new = known.get(item.id), item.payload()
        if old is None or old.get('digest') != new['digest']:
            todo.append(item)
        elif old == new:
            done.counts['as they were'] += 1
        else:
            done.moved[item.id] = new
            done.counts['new attributes'] += 1
    images, broken = photo_vectors(encoder, [item.photo for item in todo], pool)
    if broken and strict:
        row, why = next(iter(broken.items()))
        raise ValueError(f'product {todo[row].id}: {why}; leave --strict out to index its text.')
    done.broken |= {todo[row].id: why for row, why in broken.items()}
    # without its photo the digest is another one: the next call tries again
    todo = [replace(item, photo=None) if row in broken else item for row, item in enumerate(todo)]
    payloads = [item.payload() for item in todo]
    empty = [row for row, i in enumerate(todo) if not i.has_text and np.isnan(images[row, 0])]
    done.empty += [todo[row].id for row in empty]
    index.delete([todo[row].id for row in empty])
    same = [row for row, item in enumerate(todo) if known.get(item.id) == payloads[row]]
    done.counts['as they were'] += len(same)
    rows = [row for row in range(len(todo)) if row not in {*empty, *same}]
    texts = product_vectors(
        encoder, [as_product(payloads[row]) if todo[row].has_text else None for row in rows]
    )
    done.counts['new'] += sum(todo[row].id not in known for row in rows)
    done.counts['changed'] += sum(todo[row].id in known for row in rows)
    index.upsert(
        [todo[row].id for row in rows],
        dict(image=images[rows], product=texts),
        [payloads[row] for row in rows],
    )


def report(done: Done, size: int, seconds: float) -> None:
    """What was done, and what could not be."""
    counts = ', '.join(f'{done.counts[what]:,} {what}' for what in COUNTS if done.counts[what])
    embedded = done.counts['new'] + done.counts['changed']
    print(f'{size:,} products in the index: {counts}')
    rate = f', {embedded / seconds:.1f} embedded rows/s' if embedded else ''
    print(f'{seconds:.1f} s{rate}')
    if done.broken:
        print(
            f'{len(done.broken)} photos cannot be read; of these products the text alone is '
            'searched (--side product):'
        )
        for id_, why in islice(done.broken.items(), SHOWN):
            print(f'  {id_}: {why}')
        if len(done.broken) > SHOWN:
            print(f'  and {", ".join(islice(done.broken, SHOWN, None))}')
    if done.empty:
        print(f'{len(done.empty)} have neither text nor photo and are left out: {done.empty}')


def measure(index: CatalogueIndex, types: Sequence[str]) -> None:
    """Print how much of an exact search the index finds, of products' texts as queries."""
    # in the order of hashed ids: the first are as good as drawn at random
    _, vectors, _ = next(index.scan(with_vectors=True, batch_size=QUERIES))
    queries = vectors['product'][~np.isnan(vectors['product'][:, 0])]
    if not len(queries):
        return
    print(f'recall@10 against exact search, {len(queries)} texts ask:')
    print(f'  {recall_at_k(index, queries):.4f} among all')
    for type_ in types:
        try:
            found = list(index.facets(type_, limit=1000).items())
        except ValueError:  # no item has one
            continue
        if not found:  # they were there once
            continue
        name, count = found[len(found) // 2]
        recall = recall_at_k(index, queries, [Condition(type_, '=', (name,))])
        print(f'  {recall:.4f} where {type_}={name}, {count:,} products')


if __name__ == '__main__':
    main()
