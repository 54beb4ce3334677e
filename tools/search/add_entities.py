"""Add entities to a trained model, such as a new brand, without training.

python tools/search/add_entities.py CHECKPOINT --type brand --names "Golden Goose" --out NEW.pth

Its senses are read off its name and the entities of its type; better, off photos of its products,
as those of the others in the index teach: --from-index, of the index's own products that have it,
or --photos FOLDER (FOLDER/NAME/ for several names). With --index, the rows that are read otherwise
now are embedded again, and the index is NEW.pth's.
"""

import argparse
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from _search import add_index, as_product, columns, photo_vectors

import eiclip_mm  # noqa: F401  (checks the installation)
from eiclip_mm.apis.checkpoint import open_checkpoint, save_checkpoint
from eiclip_mm.apis.encoder import Encoder
from eiclip_mm.apis.index import CatalogueIndex
from eiclip_mm.apis.inferencer import EICLIPInferencer
from eiclip_mm.apis.search import about, check_same
from eiclip_mm.evaluation.report import check_writable
from eiclip_mm.models import EICLIP, add_entities, extended
from eiclip_mm.models.entity_table import EntityTable
from eiclip_mm.registry import TOKENIZER
from eiclip_mm.structures import EntityVocab
from eiclip_mm.utils.digest import file_sha256
from eiclip_mm.utils.sentence import told

PHOTOS = ('.jpg', '.jpeg', '.png', '.webp', '.gif', '.bmp')


def main(argv: Sequence[str] | None = None) -> None:
    """Add, write, embed again."""
    args = parse_args(argv)
    try:
        check_writable(args.out)
        old = EICLIPInferencer(args.checkpoint, config=args.config)
        if not isinstance(old.model, EICLIP):
            raise ValueError(f'{args.checkpoint} is a model without entities: none can be added.')
        if args.index is None:
            save(grown(old, args, None), args)
        else:
            with CatalogueIndex.open(args.index) as index:
                done = index.about.get('added') == asked(old, args)
                if done and args.out.is_file() and index.about['sha256'] == file_sha256(args.out):
                    print(f'{args.out} is written and the index is of it already')
                    return
                if index.about.get('unfinished') != asked(old, args):
                    check_same(old, index)
                serve(old, args, index)
    except KeyError as error:  # whose str() has quotes around
        raise SystemExit(error.args[0]) from error
    except (ValueError, OSError, ImportError, TypeError) as error:
        raise SystemExit(str(error)) from error


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('checkpoint', metavar='CHECKPOINT', help='of an EI-CLIP model')
    add('--type', required=True, help='entity type of the vocabulary, e.g. brand')
    add('--names', required=True, nargs='+', metavar='NAME', help='new names')
    add(
        '--out',
        required=True,
        type=Path,
        metavar='NEW.pth',
        help='or .safetensors',
    )
    start = parser.add_mutually_exclusive_group()
    start.add_argument('--photos', type=Path, metavar='FOLDER', help='of products of the name')
    start.add_argument('--from-index', action='store_true', help="photos of the index's products")
    add_index(parser, required=False)
    add('--config', help='of the checkpoint, where it holds none')
    args = parser.parse_args(argv)
    if (args.from_index or args.photos) and args.index is None:
        parser.error('photos need --index: those of other entities say what they mean')
    if args.out.resolve() == Path(args.checkpoint).resolve():
        parser.error('--out is CHECKPOINT itself; give another file')
    return args


def grown(
    old: EICLIPInferencer, args: argparse.Namespace, index: CatalogueIndex | None
) -> EICLIPInferencer:
    """The model with the new names."""
    new = deepcopy(old)
    vocab = extended(old.tokenizer.vocab, {args.type: args.names})
    config = dict(old.config.model.to_dict()['tokenizer'], vocab=vocab, _scope_='eiclip_mm')
    new.tokenizer = TOKENIZER.build(config)
    photos = mean_photos(index, new) if args.photos or args.from_index else None
    if photos is not None:
        rows = [row_of(vocab, args.type, name) for name in args.names]
        if args.photos:
            photos[rows] = photos_of_folder(old, args.photos, args.names)
        bare = [n for n, row in zip(args.names, rows, strict=True) if photos[row].isnan().any()]
        if bare:
            raise ValueError(f'the index has no photo of {bare}; leave --from-index out or them.')
    add_entities(new.model, new.tokenizer, photos)
    return new


def save(new: EICLIPInferencer, args: argparse.Namespace) -> None:
    """Write the checkpoint, whole or not at all; the encoder is of this file from now on."""
    meta = open_checkpoint(args.checkpoint, args.config).meta
    with told(args.out):
        save_checkpoint(args.out, new.model.state_dict(), meta)
    new.checkpoint, new.name = args.out, args.out.name
    print(f'{args.out}: {len(args.names)} of type {args.type} added: {", ".join(args.names)}')
    read = [entity for reading in new.explain(args.names) for entity in reading.entities]
    own = [entity for entity in read if entity.type == args.type and entity.name in args.names]
    dropped = [entity.name for entity in own if not entity.weight]
    if dropped:
        print(
            f'CE-Selector of this model drops {args.type} {", ".join(dropped)}: nothing is read '
            "otherwise. Train one that keeps the type, such as with selector=dict(type='KeepAll')."
        )


def photos_of_folder(encoder: Encoder, folder: Path, names: Sequence[str]) -> torch.Tensor:
    """(n, D) for each name the mean embedding of the photos in ``folder/NAME``.

    Of one name, they may lie in the folder itself.
    """
    means = []
    for name in names:
        own = folder / name if len(names) > 1 or (folder / name).is_dir() else folder
        files = sorted(p for p in own.glob('*') if p.suffix.lower() in PHOTOS)
        if not files:
            raise ValueError(f'{own} has no photo of {name!r}; files that count: {PHOTOS}.')
        with ThreadPoolExecutor() as pool:
            vectors, broken = photo_vectors(encoder, [str(file) for file in files], pool)
        if broken:
            raise ValueError(f'a photo of {name!r} cannot be read: {next(iter(broken.values()))}')
        means.append(torch.from_numpy(vectors).mean(0))
    return torch.stack(means)


def mean_photos(index: CatalogueIndex, encoder: Encoder) -> torch.Tensor:
    """(N, D) for each entity the mean embedding of its products' photos in the index, or NaN."""
    table = EntityTable(encoder.tokenizer.vocab)
    total, count = torch.zeros(table.num_rows, encoder.dim), torch.zeros(table.num_rows)
    for _, vectors, payloads in index.scan(with_vectors=True):
        ids = torch.from_numpy(encoder.read([as_product(p) for p in payloads]).entity_ids)
        holds = torch.zeros(len(ids), table.num_rows)
        holds.scatter_(1, table.rows(ids.long()).flatten(1), 1.0)
        photos = torch.from_numpy(vectors['image'])
        seen = ~photos[:, 0].isnan()
        total += holds[seen].T @ photos[seen]
        count += holds[seen].sum(0)
    return (total / count[:, None])[1:]


def row_of(vocab: EntityVocab, type_: str, name: str) -> int:
    """Which of all N entities a name is."""
    first = int(EntityTable(vocab).first[vocab.types.index(type_)])
    return first + vocab.id(type_, name) - 1


def holders(
    index: CatalogueIndex, encoder: Encoder, type_: str, names: Sequence[str]
) -> dict[str, set[str]]:
    """For each name the ids of the products that have it, as the model reads them."""
    vocab = encoder.tokenizer.vocab
    column, found = vocab.types.index(type_), {name: set() for name in names}
    for ids, _, payloads in index.scan():
        entity_ids = encoder.read([as_product(p) for p in payloads]).entity_ids[:, column]
        for name, own in found.items():
            rows = (entity_ids == vocab.id(type_, name)).any(1).nonzero()[0]
            own.update(ids[row] for row in rows)
    return found


def serve(old: EICLIPInferencer, args: argparse.Namespace, index: CatalogueIndex) -> None:
    """Write the checkpoint and bring the index up to it; print the names' ranks before and after.

    A call that was killed is to be given again: until the end the index is no checkpoint's.
    """
    new = grown(old, args, index)
    having = holders(index, new, args.type, args.names)
    before = ranks(index, old, having)
    save(new, args)
    kept = {key: value for key, value in index.about.items() if key != 'unfinished'}
    index.about = kept | dict(
        sha256='', unfinished=asked(old, args),
        model=f'{old.name}, but a call of add_entities.py was broken off, to be given again: '
        f'--type {args.type} --names {" ".join(args.names)} --out {args.out}',
    )  # fmt: skip
    changed = embed_again(index, old, new)
    index.about = kept | about(new) | dict(added=asked(old, args))
    print(f'{changed:,} of {len(index):,} products are read otherwise and were embedded again\n')
    after = ranks(index, new, having)
    if lost := [name for name, own in having.items() if not own]:
        print(f'no product of the index has {", ".join(map(repr, lost))}\n')
    print(moved(before, after))


def asked(old: Encoder, args: argparse.Namespace) -> list:
    """What tells a call from another."""
    return [old.sha256, args.type, args.names]


def moved(before: Mapping, after: Mapping) -> str:
    """A table of where the names' products stand when the name asks."""
    rows = [['query', 'products', 'searched', 'best rank', 'median rank', 'in the first 10']]
    measures = (min, lambda own: int(np.median(own)), lambda own: sum(r <= 10 for r in own))
    for name, side in before:
        both = before[name, side], after[name, side]
        changes = (' -> '.join(str(of(own)) if own else '-' for own in both) for of in measures)
        searched = 'photos' if side == 'image' else 'texts'
        rows.append([name, f'{len(both[0]):,}', searched, *changes])
    return columns(rows)


def embed_again(index: CatalogueIndex, old: Encoder, new: Encoder) -> int:
    """Embed the texts of products that the new model reads with other ids; how many."""
    changed = 0
    for ids, vectors, payloads in index.scan(with_vectors=True):
        products = [as_product(payload) for payload in payloads]
        a, b = old.read(products), new.read(products)
        differ = (a.entity_ids != b.entity_ids).any((1, 2)) | (a.text != b.text).any(1)
        rows = differ.nonzero()[0].tolist()
        if not rows:
            continue
        texts = new.encode_products([products[row] for row in rows], output='numpy', progress=False)
        index.upsert(
            [ids[row] for row in rows],
            dict(image=vectors['image'][rows], product=texts),
            [payloads[row] for row in rows],
        )
        changed += len(rows)
    return changed


def ranks(
    index: CatalogueIndex, encoder: Encoder, having: Mapping[str, set[str]]
) -> dict[tuple[str, str], list[int]]:
    """For each name and side, the ranks of its products among all when the name asks.

    A product without a photo, or without a text, has no rank on that side.
    """
    queries = encoder.encode_queries(list(having), output='numpy')
    ids, scores = [], {side: [] for side in ('image', 'product')}
    for part, vectors, _ in index.scan(with_vectors=True):
        ids += part
        for side, own in scores.items():
            own.append(vectors[side] @ queries.T)
    found = {}
    for column, (name, theirs) in enumerate(having.items()):
        holds = np.array([id_ in theirs for id_ in ids])
        for side, parts in scores.items():
            own = np.concatenate(parts)[:, column]
            there = own[holds & ~np.isnan(own)]
            found[name, side] = [int((own > score).sum()) + 1 for score in there]
    return found


if __name__ == '__main__':
    main()
