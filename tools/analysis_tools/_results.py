"""Runs to results: rows of a table, paired differences, share of the oracle's gap, effects."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from _plan import ROWS, Entry, Run

from eiclip_mm.evaluation import Embeddings, compare, intervals, over_seeds, protocol_card, retrieve
from eiclip_mm.evaluation.published import published
from eiclip_mm.evaluation.report import Row
from eiclip_mm.evaluation.retrieval import Retrieval

PROTOCOL, ALL_VIEWS = 'full/first-image', 'full/product'
STEPS = ((2, 3), (3, 5), (3, 4), (4, 5))
ORACLE = 'clip-meta-neutral'
NAMES = 10  # entities with the largest and the smallest effect


@dataclass(frozen=True, eq=False)
class Scored:
    """An entry with its results: by seed, then by the protocol's name."""

    entry: Entry
    runs: Mapping[int, Mapping[str, Retrieval]] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Its name in tables."""
        row, stem = self.entry.row, self.entry.stem
        return stem if row is None else f'row {row}, {stem}'

    def under(self, protocol: str, seeds: Sequence[int] | None = None) -> list[Retrieval]:
        """Results of one protocol, of all seeds or of these."""
        return [self.runs[seed][protocol] for seed in (self.runs if seeds is None else seeds)]


def score(entry: Entry, runs: Sequence[Run]) -> Scored:
    """All finished runs under the protocols that their embeddings allow."""
    found = {}
    for run in runs:
        if run.done:
            embeddings = Embeddings.load(run.dump)
            views, captions = embeddings.image_view, embeddings.product_caption
            # of one photo and one text a product, both protocols ask the same
            several = bool(views.any() or captions.any())
            names = [PROTOCOL, ALL_VIEWS] if several else [ALL_VIEWS]
            found[run.seed] = {name: retrieve(embeddings, name) for name in names}
    return Scored(entry, found)


def protocols_of(table: Sequence[Scored]) -> list[str]:
    """Names of the protocols, the poster's first."""
    return list(dict.fromkeys(name for s in table for by in s.runs.values() for name in by))


def cards(table: Sequence[Scored]) -> dict[str, dict]:
    """What the numbers of each protocol rest on, whatever the row."""
    found = {}
    for name in protocols_of(table):
        card = protocol_card(next(by[name] for s in table for by in s.runs.values()))
        found[name] = {k: v for k, v in card.items() if k not in ('text', 'model')}
    return found


def models(table: Sequence[Scored]) -> dict[str, dict]:
    """Of each row and seed the checkpoint, with its hash, and what it was chosen on."""
    return {
        s.entry.stem: {
            seed: next(iter(by.values())).card.get('model') for seed, by in s.runs.items()
        }
        for s in table
    }


def mean_row(scored: Scored, protocol: str, options: Mapping) -> Row:
    """Recalls and SumR: mean over seeds, interval over products, deviation over seeds.

    Args:
        options: ``level``, ``samples`` and ``seed`` of :func:`intervals`.
    """
    if not scored.runs:
        return Row(scored.label, {}, note='not run')
    runs = scored.under(protocol)
    bounds = {k: b for k, b in intervals(runs, **options).items() if '/R@' in k or k == 'SumR'}
    spreads = over_seeds(runs, level=options['level']) if len(runs) > 1 else {}
    seeds = ', '.join(map(str, scored.runs))
    return Row(
        scored.label,
        {k: b.value for k, b in bounds.items()},
        low={k: b.low for k, b in bounds.items()},
        high={k: b.high for k, b in bounds.items()},
        std={k: spreads[k].std for k in bounds if spreads},
        note=f'mean over seeds {seeds}' if len(runs) > 1 else f'seed {seeds} alone',
    )


def poster(protocols: Sequence[str], protocol: str) -> dict[int, Row]:
    """The poster's rows by number, in the one table where they belong."""
    if protocol != protocols[0]:
        return {}
    named = {f'EI-CLIP row {row} (': row for row in ROWS}
    rows = {}
    for p in published(PROTOCOL):
        for start, row in named.items():
            if p.method.startswith(start):
                values = {k: v for k, v in p.values().items() if k != 'meanR'}
                label = f'poster, row {row} ({p.method.removeprefix(start)}'
                rows[row] = Row(label, values, source=p.source, note=p.note)
    return rows


def differences(table: Sequence[Scored], protocol: str, options: Mapping) -> Iterator[dict]:
    """SumR of B minus that of A: steps between rows, and each ablation against another config.

    That is row 5, or what its config names as ``compare_with``.

    Yields:
        ``a``, ``b`` and ``difference`` as means over the seeds that both have, ``low``, ``high``
        and ``p`` over products as :func:`compare` gives them, ``relative`` in per cent of a, and
        ``by_seed``.
    """
    rows = {s.entry.row: s for s in table if s.entry.row is not None}
    by_config = {s.entry.config: s for s in table}
    pairs = [(rows.get(a), rows.get(b)) for a, b in STEPS]
    for s in table:
        if s.entry.row is None:
            other = s.entry.cfg.get('compare_with')
            pairs.append((by_config.get(other) if other else rows.get(5), s))
    for a, b in pairs:
        seeds = [seed for seed in a.runs if seed in b.runs] if a and b else []
        if not seeds:
            continue
        one, two = a.under(protocol, seeds), b.under(protocol, seeds)
        d = compare(one, two, **options)['SumR']
        by_seed = [y.metrics()['SumR'] - x.metrics()['SumR'] for x, y in zip(one, two, strict=True)]
        yield dict(
            name=f'{short(b)} − {short(a)}',
            a=d.a, b=d.b, difference=d.difference, low=d.low, high=d.high, p=d.p,
            relative=100 * d.difference / d.a if d.a else None,
            by_seed=dict(zip(seeds, by_seed, strict=True)),
        )  # fmt: skip


def short(scored: Scored) -> str:
    """A row's number, an ablation's name."""
    row = scored.entry.row
    return scored.entry.stem if row is None else f'row {row}'


def gap_share(table: Sequence[Scored], protocol: str) -> dict | None:
    """How much of what the wrong prior costs row 5 wins back: (5 - 3) / (oracle - 3), of SumR.

    The oracle is row 3 begun from weights that never read the wrong senses; ``None`` without it.
    ``share`` is of the means over the seeds that all three have; it is ``None`` where the oracle
    is no better than row 3, and so are those of single seeds.
    """
    rows = {s.entry.row or s.entry.stem.partition('_')[0]: s for s in table}
    parts = [rows.get(key) for key in (3, 5, ORACLE)]
    if not all(parts):
        return None
    seeds = [seed for seed in parts[0].runs if all(seed in s.runs for s in parts)]
    if not seeds:
        return None
    sums = [[run.metrics()['SumR'] for run in s.under(protocol, seeds)] for s in parts]
    means = dict(zip(('row3', 'row5', 'oracle'), map(float, np.mean(sums, 1)), strict=True))
    by_seed = {seed: share(*values) for seed, *values in zip(seeds, *sums, strict=True)}
    return means | dict(share=share(*means.values()), by_seed=by_seed)


def share(row3: float, row5: float, oracle: float) -> float | None:
    """Part of the way from row 3 to the oracle that row 5 goes.

    >>> share(200.0, 215.0, 220.0)
    0.75
    """
    return (row5 - row3) / (oracle - row3) if oracle > row3 else None


def effects(runs: Sequence[Run]) -> list[dict]:
    """Mean over seeds of what CE-Selector measured in row 5, by entity type.

    Returns:
        ``type``, ``effect`` in nats, ``by_seed`` with ``effect``, ``low``, ``high`` and ``kept``,
        ``kept_in`` how many seeds, and the entities of most and of least effect, each with its
        mean and the interval of each seed that has it.
    """
    found = {}
    for run in runs:
        path = Path(run.folder, 'causal_effects.json')
        if run.done and path.is_file():
            for row in json.loads(path.read_text(encoding='utf-8')):
                found.setdefault(row['type'], {})[run.seed] = row
    table = []
    for name, rows in found.items():
        of, ends = {}, {}
        for row in rows.values():
            for entity, effect in row.get('names', {}).items():
                of.setdefault(entity, []).append(effect)
                ends.setdefault(entity, []).append(row.get('intervals', {}).get(entity))
        means = sorted(
            ((k, float(np.mean(v)), ends[k]) for k, v in of.items()), key=lambda entity: -entity[1]
        )
        keys = ('effect', 'low', 'high', 'kept')
        table.append(
            dict(
                type=name,
                effect=float(np.mean([row['effect'] for row in rows.values()])),
                by_seed={seed: {k: row[k] for k in keys} for seed, row in rows.items()},
                kept_in=sum(row['kept'] for row in rows.values()),
                most=means[:NAMES],
                least=means[NAMES:][-NAMES:],
            )
        )
    return sorted(table, key=lambda row: -row['effect'])


def stale(runs: Sequence[Run]) -> list[str]:
    """A sentence for each finished run of settings that are not the config's any more."""
    return [
        f'{run.name} was made with other settings than {run.entry.config} has now; run again '
        'without --no-run'
        for run in runs
        if run.done and not run.current
    ]


def command_of(data: str, rows: Sequence[int], ablations, seeds: Sequence[int]) -> str:
    """What makes the same table, wherever its files lie."""
    words = ['python tools/analysis_tools/reproduce_table.py --data', data, '--rows', *rows]
    words += [] if ablations is None else ['--ablations', *ablations]
    return ' '.join(map(str, [*words, '--seeds', *seeds]))
