"""Rows of tables: one result, one config over its seeds, one label value by value, papers.

And what is said about them all: sizes, and where they must not be compared.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict

import numpy as np
import torch

from .by_product import tables
from .embeddings import Embeddings
from .manifest import DIRECTIONS, Manifest
from .measures import SUM_KS, first_ranks, recall_at, sum_recall
from .protocols import Protocol
from .published import published
from .report import Row
from .retrieval import Retrieval
from .statistics import intervals, over_seeds

KEYS = ('products', 'images (product, view)', 'texts (product, caption)')
DRAWN_BY = ('candidates', 'queries', 'unit', 'repeats')  # what lists depend on beside the seed


def result_row(
    method: str,
    run: Retrieval,
    ks: Sequence[int] = SUM_KS,
    level: float = 0.95,
    samples: int = 2000,
    seed: int = 0,
) -> Row:
    """All measures with their intervals over products, see :func:`intervals`; 0 samples: none."""
    bounds = intervals(run, ks, level, samples, seed) if samples else {}
    return Row(
        method,
        run.metrics(ks),
        low={key: bound.low for key, bound in bounds.items()},
        high={key: bound.high for key, bound in bounds.items()},
    )


def seed_rows(
    runs: Sequence[Retrieval], ks: Sequence[int] = SUM_KS, level: float = 0.95
) -> Iterator[Row]:
    """A row for each config of which the cards name two seeds or more, with their spread.

    Only runs whose cards agree in ``data`` and ``text`` are taken together, and none of a config
    where a seed occurs twice: which of the two is meant cannot be known. Runs that were not asked
    the same have no mean; the row is empty then and its note says why.
    """
    groups: list[tuple[tuple, list[Retrieval]]] = []
    for run in runs:
        config, seed = config_and_seed(run.card)
        if config and seed is not None:
            key = config, run.card.get('data'), run.card.get('text')
            same = [own for other, own in groups if other == key]
            if same:
                same[0].append(run)
            else:
                groups.append((key, [run]))
    for (config, *_), own in groups:
        seeds = [config_and_seed(run.card)[1] for run in own]
        if len(own) < 2 or len(set(seeds)) < len(seeds):
            continue
        method = f'{config} ({len(own)} seeds)'
        try:
            tables(own, ks)
        except ValueError as error:
            yield Row(method, {}, note=f'no mean: {error}')
            continue
        spreads = over_seeds(own, ks, level)
        mean, std, low, high = (
            {key: getattr(spread, of) for key, spread in spreads.items()}
            for of in ('mean', 'std', 'low', 'high')
        )
        listed = ', '.join(map(str, seeds))
        note = f"mean over seeds {listed}; Student's interval: what training again may give"
        yield Row(method, mean, low, high, std, note=note)


def published_rows(protocol: str) -> list[Row]:
    """What papers print for a protocol."""
    return [
        Row(f'{p.method}, published', p.values(), source=p.source, note=p.note)
        for p in published(protocol)
    ]


def slice_rows(
    method: str,
    run: Retrieval,
    embeddings: Embeddings,
    label: str,
    ks: Sequence[int] = SUM_KS,
) -> list[Row]:
    """Recalls of the queries of each value of a label, most queries first.

    Galleries and candidates stay whole. A direction in which a value has no query is left blank.
    """
    values, which = np.unique(embeddings.label(label), return_inverse=True)
    rows = []
    for number, value in enumerate(values.tolist()):
        part = run.of(embeddings.product_id[torch.from_numpy(which == number)])
        cells: dict[str, float] = {
            f'{d}/queries': len(getattr(part, d).product_id) for d in DIRECTIONS
        }
        asked = [d for d in DIRECTIONS if cells[f'{d}/queries']]
        recalls = {d: recall_at(first_ranks(getattr(part, d).ahead), ks) for d in asked}
        cells |= {f'{d}/R@{k}': recall for d in asked for k, recall in recalls[d].items()}
        if len(asked) == 2 and set(SUM_KS) <= set(ks):
            cells['SumR'] = sum_recall(**recalls)
        if asked:
            rows.append(Row(method, cells, slice=value or 'no value'))
    return sorted(rows, key=lambda row: -sum(row.values[f'{d}/queries'] for d in DIRECTIONS))


def sizes(run: Retrieval) -> str:
    """How many ask among how many, in words, and the hash of the candidates."""
    i2t, t2i = (f'{len(getattr(run, d).product_id):,}' for d in DIRECTIONS)
    up_to, candidates = ('up to ', f', candidates {run.manifest}') if run.manifest else ('', '')
    return (
        f'{i2t} images ask among {up_to}{run.i2t.gallery:,} texts, '
        f'{t2i} texts ask among {up_to}{run.t2i.gallery:,} images{candidates}'
    )


def different(dumps: Mapping[str, Embeddings]) -> Iterator[str]:
    """A sentence for each dump that holds other products, images or texts than the first."""
    (first_name, first), *others = dumps.items()
    for name, dump in others:
        for what, one, two in zip(KEYS, contents(first), contents(dump), strict=True):
            if one != two:
                yield (
                    f'{name} holds other {what} than {first_name}, {len(two - one)} in it alone '
                    f'and {len(one - two)} in {first_name} alone, e.g. {min(one ^ two)}: their '
                    'rows are not comparable; give embeddings of one split.'
                )
                break


def contents(embeddings: Embeddings) -> Iterator[set]:
    """What embeddings hold, of each of :data:`KEYS`."""
    yield set(embeddings.product_id.tolist())
    for ids, numbers in (('image_product_id', 'image_view'), ('product_id', 'product_caption')):
        columns = (getattr(embeddings, name).tolist() for name in (ids, numbers))
        yield set(zip(*columns, strict=True))


def other_lists(manifest: Manifest, protocol: Protocol) -> str:
    """A sentence if the lists were drawn for another protocol; '' if not, or if nobody knows."""
    origin, asked = manifest.origin, asdict(protocol)
    differ = [name for name in DRAWN_BY if origin and origin.get(name) != asked[name]]
    if not differ:
        return ''
    return (
        f'the lists of the manifest were drawn for {origin.get("name")!r}, not for '
        f'{protocol.name}: {", ".join(differ)} differ, so do not call the result '
        f'{protocol.name}; take lists drawn for it.'
    )


def config_and_seed(card: Mapping) -> tuple[str | None, int | None]:
    """Which model a card names; ``None`` for what it does not say, or not as it should."""
    model = card_part(card, 'model')
    config, seed = model.get('config'), model.get('seed')
    return (
        config if isinstance(config, str) and config else None,
        seed if isinstance(seed, int) else None,
    )


def card_part(card: Mapping, name: str) -> Mapping:
    """A part of a card; empty where a foreign card lacks it or has something else there."""
    return card[name] if isinstance(card.get(name), Mapping) else {}
