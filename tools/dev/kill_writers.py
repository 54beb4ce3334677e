"""Kill the tools that write files at random moments, run them again, and compare the results.

    PYTHONPATH=. python tools/dev/kill_writers.py --kills 16

Each tool runs once unbroken, then is killed so often: every second time when it touches a file for
the n-th time, n drawn, else after a time that is drawn. What then stands is read as a user would
read it: each part must be the old or the new one, and of files that belong together all must be.
The same command again must end well, give what the unbroken one gave, and leave nothing else. Last,
the tool runs on a disk that is full: it must say so in a sentence.
"""

import argparse
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path

from _kills import Trial

COLUMNS = ('tool', 'kills', 'inside writing', 'ended before', 'differences', 'full disks')


def main(argv: Sequence[str] | None = None) -> None:
    """Kill each tool, print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--kills', type=int, default=16, help='of each tool, default 16')
    parser.add_argument('--tools', nargs='+', metavar='NAME', help='such as pack_images; all')
    parser.add_argument(
        '--full', nargs='*', type=int, default=[200, 50_000], metavar='BYTES',
        help='largest file that a disk takes; a run with each, default 200 50000',
    )  # fmt: skip
    parser.add_argument('--seed', type=int, default=0, help='of the moments')
    args = parser.parse_args(argv)
    from _kill_cases import cases  # imports all that the tools import, once

    rows, problems = [], []
    with tempfile.TemporaryDirectory() as scratch:
        inputs = Path(scratch, 'inputs')
        inputs.mkdir()
        for name, make in cases().items():
            if args.tools and name not in args.tools:
                continue
            place = Path(scratch, name)
            place.mkdir()
            trial = Trial(make(inputs), place)
            draw = random.Random(args.seed)
            for i in range(3 * args.kills):
                if trial.counts['kills'] < args.kills:
                    trial.kill(draw, at_a_write=i % 2 == 0)
            for bytes_ in args.full:
                trial.fill_the_disk(bytes_)
            rows.append([name, *(str(trial.counts[column]) for column in COLUMNS[1:])])
            print('| ' + ' | '.join(rows[-1]) + ' |', flush=True)
            print('\n'.join(trial.problems), flush=True)
            problems += trial.problems
    total = [str(sum(int(row[i]) for row in rows)) for i in range(1, len(COLUMNS))]
    print(f'\n| {" | ".join(COLUMNS)} |\n|:--|' + '--:|' * (len(COLUMNS) - 1))
    print('\n'.join(f'| {" | ".join(row)} |' for row in [*rows, ['all', *total]]))
    if problems:
        raise SystemExit(f'{len(problems)} problems')


if __name__ == '__main__':
    main()
