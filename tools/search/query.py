"""Search an index: python tools/search/query.py "red puma shoes" --index WHERE

With --image FILE a photo asks instead of words, for photos like it or, with --side product, for
texts that say what it shows. Filters: --filter brand=Puma,Nike "price<=100" (all must hold).
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from _search import add_index, columns

import eiclip_mm  # noqa: F401  (checks the installation)
from eiclip_mm.apis.encoder import Encoder
from eiclip_mm.apis.index import CatalogueIndex, Condition, Hit, parse_filters
from eiclip_mm.apis.inferencer import EICLIPInferencer
from eiclip_mm.apis.search import Answer, CatalogueSearch

WIDTH = 48  # of a cell


def main(argv: Sequence[str] | None = None) -> None:
    """Ask, print."""
    args = parse_args(argv)
    try:
        where = parse_filters(args.filter)
        asked = queries(args)
        with CatalogueIndex.open(args.index) as index:
            search = CatalogueSearch(encoder_of(args, index), index)
            for answer, about in answers(search, args, asked, where):
                if args.json:
                    print(json.dumps(about | answer.to_dict(), ensure_ascii=False))
                else:
                    print(shown(answer, search.encoder, where), end='\n\n')
    except (ValueError, OSError, ImportError) as error:
        raise SystemExit(str(error)) from error


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('query', nargs='?', help='words')
    add('--queries', metavar='FILE', type=Path, help='a query a line, UTF-8')
    add('--image', metavar='FILE', type=Path, help='a photo')
    add_index(parser)
    add('--side', choices=['image', 'product'], default='image', help='photos or texts are found')
    add('--filter', nargs='+', default=[], metavar='CONDITION', help="e.g. brand=Puma 'price<=100'")
    add('-k', type=int, default=10, help='how many, default 10')
    add('--no-entities', action='store_true', help='read the words without the intervention')
    add('--json', action='store_true', help='a line of JSON for each query, with its times')
    add('--checkpoint', help='default: the one that built the index')
    add('--config', help='of the checkpoint, where it holds none')
    add('--onnx', metavar='FOLDER', help='an exported model instead of the checkpoint')
    args = parser.parse_args(argv)
    if sum(given is not None for given in (args.query, args.queries, args.image)) != 1:
        parser.error('give one of: a query, --queries FILE, --image FILE')
    if args.onnx and (args.checkpoint or args.config):
        parser.error('give --onnx, or --checkpoint with its --config')
    return args


def queries(args: argparse.Namespace) -> list[str | Path]:
    """What asks: words, or the path of a photo.

    Raises:
        FileNotFoundError: there is no file of queries.
        ValueError: it is not UTF-8, or holds none.
    """
    if not args.queries:
        return [args.query if args.image is None else args.image]
    if not args.queries.is_file():  # a pipe would never end
        raise FileNotFoundError(
            f'--queries: {args.queries} is not there, or no file; write a query a line.'
        )
    try:
        lines = args.queries.read_text(encoding='utf-8-sig').splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(
            f'{args.queries} is not UTF-8 ({error.reason}, byte {error.start}); save it as UTF-8.'
        ) from error
    found = [line.strip() for line in lines if line.strip()]
    if not found:
        raise ValueError(f'{args.queries} has no query; write one a line.')
    return found


def encoder_of(args: argparse.Namespace, index: CatalogueIndex) -> Encoder:
    """The model that the index remembers, or the one that is given."""
    if args.onnx:
        from eiclip_mm.apis.onnx import OnnxEncoder

        return OnnxEncoder(args.onnx)
    path = args.checkpoint or index.about.get('checkpoint')
    if not path or not Path(path).is_file():
        raise ValueError(
            f'the index was built with {path}, which is not there; give it: --checkpoint FILE.'
        )
    return EICLIPInferencer(path, config=args.config)


def answers(
    search: CatalogueSearch,
    args: argparse.Namespace,
    asked: Sequence[str | Path],
    where: Sequence[Condition],
) -> Iterator[tuple[Answer, dict[str, float]]]:
    """Each answer, and the milliseconds of its two halves."""
    for query in asked:
        began = time.perf_counter()
        if isinstance(query, Path):
            vector, reading = search.encoder.encode_images(query, output='numpy')[0], None
        else:
            vector, reading = search.embed(query, not args.no_entities)
        embedded = time.perf_counter()
        hits = search.nearest(vector, args.k, where, args.side)
        times = dict(encode_ms=embedded - began, search_ms=time.perf_counter() - embedded)
        times = {name: round(1000 * seconds, 2) for name, seconds in times.items()}
        yield Answer(reading, hits), dict(query=str(query)) | times


def shown(answer: Answer, encoder: Encoder, where: Sequence[Condition]) -> str:
    """An answer for people: how the query was read, and a table."""
    lines = []
    if answer.reading is not None:
        lines.append(answer.reading.text)
        for entity in answer.reading.entities:
            left_out = '' if entity.weight else ', left out'
            lines.append(
                f'  {entity.type}: {entity.name}, weight {entity.weight:.2f}{left_out}, '
                f'{entity.count:,} products of train'
            )
        lines.append('')
    return '\n'.join([*lines, table(answer.hits, encoder, where)])


def table(hits: Sequence[Hit], encoder: Encoder, where: Sequence[Condition]) -> str:
    """Hits with their texts, their entities and the attributes that were asked for."""
    if not hits and where:
        return 'nothing passes the filters; is each value spelt as in the catalogue?'
    if not hits:
        return 'the index holds nothing to find here; built without photos? Then --side product.'
    types = [
        type_
        for type_ in encoder.tokenizer.vocab.types
        if any(type_ in hit.payload['entities'] for hit in hits)
    ]
    asked = dict.fromkeys(condition.field for condition in where)
    more = [name for name in asked if any(name in hit.payload['attributes'] for hit in hits)]
    fields = encoder.text_fields[-1:]
    rows = [['#', 'score', 'id', *fields, *types, *more]]
    for rank, hit in enumerate(hits, 1):
        item = hit.payload
        cells = [item['text_fields'].get(name, '') for name in fields]
        cells += [', '.join(item['entities'].get(type_, ())) for type_ in types]
        cells += [_printed(item['attributes'].get(name, '')) for name in more]
        cut = [cell if len(cell) <= WIDTH else f'{cell[: WIDTH - 1]}…' for cell in cells]
        rows.append([str(rank), f'{hit.score:.3f}', hit.id, *cut])
    return columns(rows)


def _printed(value: object) -> str:
    """A year is 2012, not 2012.0."""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


if __name__ == '__main__':
    main()
