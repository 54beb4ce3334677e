"""Pictures of a table of results, as PNG and SVG; the same numbers give the same files."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from eiclip_mm.evaluation.report import Row
from eiclip_mm.utils.whole_file import whole_file

OURS, POSTER, FAINT = '#1f5fa8', '#555555', '#b9cbe3'


def ladder_chart(
    rows: Mapping[int, Row], poster: Mapping[int, Row], title: str, stem: Path
) -> None:
    """SumR of the rows with their intervals, the poster's beside them as hollow marks.

    Rows that train are shown again on a scale of their own: the first row is far below.
    """
    trained = {number: row for number, row in rows.items() if number > 1}
    parts = [rows, trained] if 0 < len(trained) < len(rows) else [rows]
    figure = Figure(figsize=(4.5 * len(parts), 3.6), layout='constrained')
    for axes, shown in zip(figure.subplots(1, len(parts), squeeze=False)[0], parts, strict=True):
        numbers = sorted(shown)
        values = [shown[n].values['SumR'] for n in numbers]
        below = [v - shown[n].low['SumR'] for v, n in zip(values, numbers, strict=True)]
        above = [shown[n].high['SumR'] - v for v, n in zip(values, numbers, strict=True)]
        axes.errorbar(
            numbers, values, [below, above], fmt='o-', color=OURS, capsize=3, label='here'
        )
        theirs = [n for n in numbers if n in poster]
        sums = [poster[n].values['SumR'] for n in theirs]
        label = 'poster (Fashion-Gen)'
        axes.plot(theirs, sums, 'o--', color=POSTER, markerfacecolor='none', label=label)
        axes.set_xticks(numbers, [f'row {n}' for n in numbers])
        axes.set_ylabel('SumR')
        axes.grid(axis='y', color='#e5e5e5')
        axes.spines[['top', 'right']].set_visible(False)
    axes.legend(frameon=False)
    figure.suptitle(f'{title}: mean over seeds, 95 % interval over products', fontsize='medium')
    save(figure, stem)


def effects_chart(rows: Sequence[Mapping], stem: Path) -> None:
    """Mean effect of each entity type as a bar, the interval of each seed on it.

    Dark bars are of types that were kept in most seeds.
    """
    figure = Figure(figsize=(6, 0.9 + 0.55 * len(rows)), layout='constrained')
    axes = figure.subplots()
    for place, row in enumerate(rows):
        seeds = list(row['by_seed'].values())
        kept = row['kept_in'] > len(seeds) / 2
        axes.barh(place, row['effect'], 0.7, color=OURS if kept else FAINT)
        for number, one in enumerate(seeds):
            y = place + 0.5 * ((number + 0.5) / len(seeds) - 0.5)
            ends = [[one['effect'] - one['low']], [one['high'] - one['effect']]]
            axes.errorbar(one['effect'], y, xerr=ends, fmt='.', color='black', markersize=3, lw=0.8)
    axes.axvline(0, color='black', lw=0.8)
    axes.set_yticks(range(len(rows)), [row['type'] for row in rows])
    axes.invert_yaxis()
    axes.locator_params(axis='x', nbins=6)
    axes.set_xlabel('effect, nats; bar: mean over seeds, lines: interval of each; dark: kept')
    axes.spines[['top', 'right']].set_visible(False)
    save(figure, stem)


def save(figure: Figure, stem: Path) -> None:
    """Write both formats, without dates and drawn ids."""
    with whole_file(f'{stem}.svg') as file, matplotlib.rc_context({'svg.hashsalt': stem.name}):
        figure.savefig(file, format='svg', metadata={'Date': None})
    with whole_file(f'{stem}.png') as file:
        figure.savefig(file, format='png', dpi=150)
