"""Rows of tables: one result, one config over its seeds, one label value by value, papers."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch

from .embeddings import Embeddings
from .manifest import DIRECTIONS
from .measures import SUM_KS, first_ranks, recall_at, sum_recall
from .published import published
from .report import Row
from .retrieval import Retrieval
from .statistics import intervals, over_seeds


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
    where a seed occurs twice: which of the two is meant cannot be known.
    """
    groups = []
    for run in runs:
        model = card_part(run.card, 'model')
        if model.get('config') and model.get('seed') is not None:
            key = model['config'], run.card.get('data'), run.card.get('text')
            same = [own for other, own in groups if other == key]
            if same:
                same[0].append(run)
            else:
                groups.append((key, [run]))
    for (config, *_), own in groups:
        seeds = [run.card['model']['seed'] for run in own]
        if len(own) < 2 or len(set(seeds)) < len(seeds):
            continue
        spreads = over_seeds(own, ks, level)
        mean, std, low, high = (
            {key: getattr(spread, of) for key, spread in spreads.items()}
            for of in ('mean', 'std', 'low', 'high')
        )
        listed = ', '.join(map(str, seeds))
        note = f"mean over seeds {listed}; Student's interval: what training again may give"
        yield Row(f'{config} ({len(own)} seeds)', mean, low, high, std, note=note)


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
        cells = {f'{d}/queries': len(getattr(part, d).product_id) for d in DIRECTIONS}
        asked = [d for d in DIRECTIONS if cells[f'{d}/queries']]
        recalls = {d: recall_at(first_ranks(getattr(part, d).ahead), ks) for d in asked}
        cells |= {f'{d}/R@{k}': recall for d in asked for k, recall in recalls[d].items()}
        if len(asked) == 2 and set(SUM_KS) <= set(ks):
            cells['SumR'] = sum_recall(**recalls)
        if asked:
            rows.append(Row(method, cells, slice=value or '(none)'))
    return sorted(rows, key=lambda row: -sum(row.values[f'{d}/queries'] for d in DIRECTIONS))


def sizes(run: Retrieval) -> str:
    """How many ask among how many, in words, and the hash of the candidates."""
    i2t, t2i = (f'{len(getattr(run, d).product_id):,}' for d in DIRECTIONS)
    up_to, candidates = ('up to ', f', candidates {run.manifest}') if run.manifest else ('', '')
    return (
        f'{i2t} images ask among {up_to}{run.i2t.gallery:,} texts, '
        f'{t2i} texts ask among {up_to}{run.t2i.gallery:,} images{candidates}'
    )


def card_part(card: Mapping, name: str) -> Mapping:
    """A part of a card; empty where a foreign card lacks it or has something else there."""
    return card[name] if isinstance(card.get(name), Mapping) else {}
