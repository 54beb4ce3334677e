"""What do entities do in a model? python tools/analysis_tools/diagnose.py WHAT CONFIG CHECKPOINT

swap       exchange an entity of each product: do photos of the new one come nearer?
sense      are names nearer to what they mean every day, or to their products, before and after?
tail       recall by how often training saw the entity
tokens     how names fall into sub-words (without a checkpoint)
tags       entities given against entities read from the text alone
new-brand  entities taken out and added again without training

What each measures, and does not, is in docs/diagnostics.md. The products are those of the config's
test_dataloader, their first photo and caption; intervals are over products, of sense over names.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict

import torch
from _diagnose import (
    PROTOCOL,
    SHOWN,
    add_options,
    dataset_of,
    difference_rows,
    embed_photos,
    embed_texts,
    embeddings,
    entity_ids,
    model_of,
    opened,
    plain,
    product_ids,
    texts_of,
    tokenizer_of,
)
from _new_brand import new_brand
from _sense import sense
from _swap import swap
from mmengine.config import Config

from eiclip_mm.evaluation import compare, intervals, retrieve
from eiclip_mm.evaluation.report import check_writable, grid
from eiclip_mm.utils.sentence import told
from eiclip_mm.utils.whole_file import write_whole_text

BINS = ((0, 'never'), (1, '1-9'), (10, '10-99'), (100, '100 or more'))


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print Markdown, write JSON."""
    args = parse_args(argv)
    try:
        if args.out:
            check_writable(args.out)
        result, rows = args.measure(opened(args), args)
    except (ValueError, OSError) as error:
        raise SystemExit(str(error)) from error
    asked = ', '.join(getattr(args, k) for k in ('what', 'type') if k in args)
    print(f'{asked}: {args.config}, {getattr(args, "checkpoint", "no checkpoint")}')
    print(f'\n{result["said"]}\n\n{grid(rows)}')
    if args.out:
        keys = ('what', 'config', 'checkpoint', 'type')
        content = {k: getattr(args, k) for k in keys if k in args} | result
        with told(args.out):
            write_whole_text(args.out, json.dumps(content, indent=1, ensure_ascii=False))


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = parser.add_subparsers(dest='what', required=True, metavar='WHAT')
    parsers = {}
    for what, measure in MEASURES.items():
        parsers[what] = kinds.add_parser(what)
        add_options(parsers[what], checkpoint=what != 'tokens')
        parsers[what].set_defaults(measure=measure)
        if what not in ('tokens', 'tags'):  # those are of all types
            parsers[what].add_argument(
                '--type', default='brand', help='entity type (default brand)'
            )
    for what in ('swap', 'new-brand'):
        parsers[what].add_argument('--seed', type=int, default=0, help='of what is drawn')
    parsers['sense'].add_argument(
        '--truth', metavar='truth.json', help='of the mini Fashion-Gen: also its everyday pictures'
    )
    add = parsers['new-brand'].add_argument
    add('--names', nargs='+', help='entities to take out; by default a random --share')
    add('--share', type=float, default=0.25, help='of the known entities in the gallery (0.25)')
    add('--from-images', action='store_true', help='start learned senses from photos of train')
    return parser.parse_args(argv)


def tail(cfg: Config, args: argparse.Namespace) -> tuple[dict, list]:
    """Recalls by the number of training products of a product's rarest entity."""
    dataset, model = dataset_of(cfg), model_of(cfg, args.checkpoint)
    texts, vocab = texts_of(dataset), model.vocab
    entity_ids(model.tokenizer, texts, args.type)  # refuses a type that is not there
    counts = (0, *vocab.counts[args.type])
    rarest = [
        min((counts[vocab.id(args.type, name)] for name in tags.get(args.type, ())), default=-1)
        for _, tags in texts
    ]
    ids = product_ids(dataset)
    (image,) = embed_photos(cfg, [model], dataset)
    run = retrieve(embeddings(image, embed_texts(model, texts), ids), PROTOCOL)
    rarest, bins = torch.tensor(rarest), {}
    for (low, name), above in zip(BINS, [b[0] for b in BINS[1:]] + [float('inf')], strict=True):
        chosen = ids[(rarest >= low) & (rarest < above)]
        if len(chosen) > 1:
            found = {k: asdict(v) for k, v in intervals(run.of(chosen)).items() if k in SHOWN}
            bins[name] = dict(products=len(chosen), measures=found)
    rows = [['in train', 'products', *SHOWN]]
    for name, own in bins.items():
        cells = (own['measures'][k] for k in SHOWN)
        cells = [f'{m["value"]:.1f} [{m["low"]:.1f}, {m["high"]:.1f}]' for m in cells]
        rows.append([name, str(own['products']), *cells])
    said = (
        f'{len(ids)} products; "never": not in the vocabulary; products without a {args.type} are '
        'left out.'
    )
    return dict(said=said, bins=bins), rows


def tokens(cfg: Config, args: argparse.Namespace) -> tuple[dict, list]:
    """How the names of every type fall into sub-words."""
    tokenizer = tokenizer_of(cfg)
    rows, types = [['type', 'names', 'mean', 'most', 'one token %', 'share one with others %']], {}
    for type_, names in tokenizer.vocab.names.items():
        own = [tokenizer.subwords.encode(name) for name in names]
        types[type_] = found = subword_counts(own)
        shares = (f'{100 * found[k]:.1f}' for k in ('one', 'shared'))
        rows.append([type_, str(len(names)), f'{found["mean"]:.2f}', str(found['most']), *shares])
    said = 'Sub-words of each name, and names that have one in common with another of their type.'
    return dict(said=said, types=types), rows


def subword_counts(names: Sequence[Sequence[int]]) -> dict:
    """Mean and largest number of sub-words; shares of names with one, and that share one."""
    lengths = [len(ids) for ids in names]
    holders = {}
    for number, ids in enumerate(names):
        for id_ in set(ids):
            holders.setdefault(id_, []).append(number)
    shared = {number for own in holders.values() if len(own) > 1 for number in own}
    return dict(
        mean=sum(lengths) / len(names),
        most=max(lengths),
        one=lengths.count(1) / len(names),
        shared=len(shared) / len(names),
    )


def tags(cfg: Config, args: argparse.Namespace) -> tuple[dict, list]:
    """The same products with their metadata, and as texts alone."""
    dataset, model = dataset_of(cfg), model_of(cfg, args.checkpoint)
    texts, ids = texts_of(dataset), product_ids(dataset)
    (image,) = embed_photos(cfg, [model], dataset)
    runs = [
        retrieve(embeddings(image, embed_texts(model, texts, tokenizer), ids), PROTOCOL)
        for tokenizer in (tokenizer_of(cfg, tags=given) for given in ('text', 'given'))
    ]
    found = compare(*runs)
    said = f'{len(ids)} products. Entities of all types given, against read from the text alone.'
    return dict(said=said, measures=plain(found)), difference_rows({'given - text': found})


MEASURES = {
    'swap': swap,
    'sense': sense,
    'tail': tail,
    'tokens': tokens,
    'tags': tags,
    'new-brand': new_brand,
}


if __name__ == '__main__':
    main()
