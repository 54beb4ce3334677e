"""The poster's table again: python tools/analysis_tools/reproduce_table.py --data products

Trains and tests every row with several seeds, each once; then writes the table, the differences
between rows and the effects of entity types as Markdown, JSON and pictures. Killed, it goes on
where it was. Needs pip install 'eiclip_mm[report]'; products also the extra [hf].
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import _results as results
from _lock import alone_in
from _plan import ROWS, SUFFIXES, Run, carry_out, entries, prepare, runs_of
from _runs import ends_at_once

import eiclip_mm  # noqa: F401  (checks the installation)
from eiclip_mm.evaluation.report import Row, Table, check_writable, grid, to_markdown
from eiclip_mm.evaluation.rows import sizes
from eiclip_mm.utils.sentence import told
from eiclip_mm.utils.whole_together import whole_files

BOOTSTRAP = dict(level=0.95, samples=2000, seed=0)
INTERVALS = '95 % intervals over products, of the mean over seeds'


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('--data', required=True, choices=list(SUFFIXES), help='configs of which data set')
    add('--rows', nargs='*', default=['1-5'], metavar='ROW', help='as 1-5, which is the default')
    add('--ablations', nargs='*', metavar='NAME', help='of configs/ablations; no name: all')
    add('--seeds', nargs='+', type=int, default=[0, 1, 2], help='by default 0 1 2')
    add('--jobs', type=int, default=2, help='runs side by side, default 2')
    add('--work-dir', type=Path, default=Path('work_dirs/table'), help='where runs are kept')
    add('--out', type=Path, default=Path('work_dirs/results'), help='folder of the results')
    add('--no-run', action='store_true', help='train and test nothing, show what is there')
    args = parser.parse_args(argv)
    args.rows = row_numbers(args.rows)
    if args.jobs < 1 or len(set(args.seeds)) < len(args.seeds):
        parser.error('--jobs is 1 or more, and each of --seeds is given once')
    return args


def row_numbers(words: Sequence[str]) -> list[int]:
    """Rows as the command line has them.

    >>> row_numbers(['1-3', '5'])
    [1, 2, 3, 5]
    """
    found = []
    for word in words:
        match = re.fullmatch(r'(\d+)(?:-(\d+))?', word)
        if not match:
            raise SystemExit(f'--rows {word}: give numbers as 5 or 1-3, of {list(ROWS)}.')
        first, last = match[1], match[2] or match[1]
        found += range(int(first), int(last) + 1)
    return found


@ends_at_once()
def main(argv: Sequence[str] | None = None) -> None:
    """Run what is missing, then score, print and write what is there."""
    args = parse_args(argv)
    if lacking := [name for name in ('matplotlib', 'scipy') if not find_spec(name)]:
        raise SystemExit(f"{', '.join(lacking)} not installed: pip install 'eiclip_mm[report]'")
    failed = []
    try:
        check_writable(args.out / f'{args.data}.md')  # the others stand beside it
        chosen = entries(args.data, args.rows, args.ablations)
        runs = {e: runs_of(e, args.seeds, args.work_dir / args.data) for e in chosen}
        if not args.no_run:
            with alone_in(args.work_dir / args.data, 'reproduce_table.py'):
                prepare(args.data, chosen)
                failed = carry_out([run for own in runs.values() for run in own], args.jobs)
        table = [results.score(entry, own) for entry, own in runs.items()]
        found = content(args, table, [run for own in runs.values() for run in own])
        text = '\n\n'.join(markdown(found))
    except (ValueError, OSError, ImportError) as error:
        raise SystemExit(str(error)) from error
    print(f'\n{text}')
    write(args.out / args.data, text, found)
    if failed:
        sys.exit('\n'.join([f'{len(failed)} failed:', *failed]))


def content(args: argparse.Namespace, table: Sequence[results.Scored], runs: Sequence[Run]) -> dict:
    """All that is found, as the JSON file has it but for rounding; ``tables`` hold rows as such."""
    protocols = results.protocols_of(table)
    return dict(
        data=args.data,
        command=results.command_of(args.data, args.rows, args.ablations, args.seeds),
        seeds=args.seeds,
        bootstrap=BOOTSTRAP,
        protocols=results.cards(table),
        models=results.models(table),
        tables={name: under(table, protocols, name) for name in protocols},
        effects=results.effects([run for run in runs if run.entry.row == 5]),
        warnings=results.stale(runs),
    )


def under(table: Sequence[results.Scored], protocols: Sequence[str], name: str) -> dict:
    """What is found under one protocol."""
    asked = next(run for s in table if s.runs for run in s.under(name))
    return dict(
        asked=sizes(asked),
        rows={s: results.mean_row(s, name, BOOTSTRAP) for s in table},
        poster=results.poster(protocols, name),
        differences=list(results.differences(table, name, BOOTSTRAP)),
        gap=results.gap_share(table, name),
    )


def markdown(found: Mapping) -> Iterator[str]:
    """Paragraphs of the page."""
    yield f'# Rows again: {found["data"]}\n\n`{found["command"]}`'
    yield from (f'Warning: {line}.' for line in found['warnings'])
    if not found['tables']:
        yield 'No run is finished.'
    for name, part in found['tables'].items():
        rows = []
        for scored, row in part['rows'].items():
            rows += [row, *[part['poster'][n] for n in [scored.entry.row] if n in part['poster']]]
        caption = f'{part["asked"]}; {INTERVALS}'
        if part['poster'] and found['data'] != 'fashiongen':
            caption += "; the poster's numbers are of Fashion-Gen: compare steps, not levels"
        yield to_markdown(Table(name, rows, caption=caption, level=BOOTSTRAP['level']))
        if part['differences']:
            yield f'### Differences of SumR, {name}\n\n{differences_grid(part["differences"])}'
            yield (
                'Paired product by product, of the mean over seeds; p-values of a permutation '
                'test over products, not corrected for how many there are. They take these '
                'trainings as given; another training may differ as the seeds do.'
            )
        if part['gap']:
            yield gap_line(part['gap'])
    if found['effects']:
        yield f'### Effects of entity types in row 5\n\n{effects_grid(found["effects"])}'
        yield 'Nats of the log-likelihood of the right photo, on a slice of train.'
        yield f'The entities of most and of least effect:\n\n{entities_grid(found["effects"])}'


def differences_grid(rows: Sequence[Mapping]) -> str:
    """Markdown, one line a pair."""
    lines = [['', 'A', 'B', 'B − A', 'relative', '95 % interval', 'p', 'each seed']]
    for d in rows:
        a, b, low, high = (f'{d[key]:.2f}' for key in ('a', 'b', 'low', 'high'))
        relative = '–' if d['relative'] is None else f'{d["relative"]:+.1f} %'
        each = ', '.join(f'{value:+.1f}' for value in d['by_seed'].values())
        cells = [f'{d["difference"]:+.2f}', relative, f'[{low}, {high}]', f'{d["p"]:.2g}', each]
        lines.append([d['name'], a, b, *cells])
    return grid(lines)


def gap_line(gap: Mapping) -> str:
    """The share of the oracle's gap in a sentence."""
    sums = '({row5:.2f} − {row3:.2f}) / ({oracle:.2f} − {row3:.2f})'.format(**gap)
    if gap['share'] is None:
        return f'Of the gap to the oracle, {sums}: there is none to close.'
    each = ', '.join('–' if x is None else f'{100 * x:.0f} %' for x in gap['by_seed'].values())
    return (
        f'Of the gap between row 3 and the oracle, row 5 closes {100 * gap["share"]:.0f} %: '
        f'{sums} SumR; by seed {each}.'
    )


def effects_grid(rows: Sequence[Mapping]) -> str:
    """Markdown, one line an entity type."""
    lines = [['', 'effect, nats', 'interval of each seed', 'kept in']]
    for row in rows:
        each = '; '.join(f'{r["low"]:+.4f} … {r["high"]:+.4f}' for r in row['by_seed'].values())
        kept = f'{row["kept_in"]} of {len(row["by_seed"])}'
        lines.append([row['type'], f'{row["effect"]:+.4f}', each, kept])
    return grid(lines)


def entities_grid(rows: Sequence[Mapping], each: int = 3) -> str:
    """Markdown, one line an entity: so many of most and of least effect of each type."""
    lines = [['', 'entity', 'effect, nats', 'interval of each seed']]
    for row in rows:
        for name, effect, ends in row['most'][:each] + row['least'][-each:]:
            found = '; '.join(f'{end[0]:+.4f} … {end[1]:+.4f}' for end in ends if end)
            lines.append([row['type'], name, f'{effect:+.4f}', found or '–'])
    return grid(lines)


def write(stem: Path, text: str, found: Mapping) -> None:
    """The page, the same for machines, and the pictures."""
    # not at the top of this file, which the process of every run reads
    from _charts import effects_chart, ladder_chart

    path = stem.with_suffix('.md')
    lines = json.dumps(rounded(as_json(found)), indent=1, ensure_ascii=False)
    with told(path), whole_files(path, stem.with_suffix('.json')) as (page, data):
        page.write(f'{text}\n'.encode())
        data.write(f'{lines}\n'.encode())
    for old in (
        *stem.parent.glob(f'{stem.name}_ladder.*'),
        *stem.parent.glob(f'{stem.name}_effects.*'),
    ):
        old.unlink()  # these results may have no such picture
    for name, part in list(found['tables'].items())[:1]:  # the poster's protocol
        rows = {s.entry.row: row for s, row in part['rows'].items() if s.entry.row and row.values}
        if rows:
            ladder_chart(rows, part['poster'], f'{found["data"]}, {name}', Path(f'{stem}_ladder'))
    if found['effects']:
        effects_chart(found['effects'], Path(f'{stem}_effects'))


def as_json(found: Mapping) -> dict:
    """The same with rows as plain dicts, the values of each seed among them."""
    tables = {}
    for name, part in found['tables'].items():
        rows = {s.entry.stem: row_as_json(s, row, name) for s, row in part['rows'].items()}
        poster = {number: dict(row.values) for number, row in part['poster'].items()}
        tables[name] = dict(part, rows=rows, poster=poster)
    return dict(found, tables=tables)


def row_as_json(scored: results.Scored, row: Row, protocol: str) -> dict:
    """One row; ``seeds`` is empty where it was not run."""
    metrics = {seed: run[protocol].metrics() for seed, run in scored.runs.items()}
    measures = {
        key: dict(mean=value, low=row.low[key], high=row.high[key], std=row.std.get(key))
        | dict(by_seed={seed: of[key] for seed, of in metrics.items()})
        for key, value in row.values.items()
    }
    return dict(
        row=scored.entry.row, config=scored.entry.config, seeds=list(scored.runs), measures=measures
    )


def rounded(value):
    """The same with five significant digits: more would be noise in the file's history."""
    if isinstance(value, float):
        return float(f'{value:.5g}')
    if isinstance(value, Mapping):
        return {str(k): rounded(v) for k, v in value.items()}
    return [rounded(v) for v in value] if isinstance(value, (list, tuple)) else value


if __name__ == '__main__':
    main()
