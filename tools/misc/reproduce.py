"""Run a training again and compare what came of it: python tools/misc/reproduce.py WORK_DIR

Reads the record that RunRecordHook left in WORK_DIR, says what differs now (data, code, packages,
machine), trains again with the same config, seed and number of threads, and sets metrics, losses
and weights side by side. Run it in the folder in which the training was started. Broken off, the
same command goes on where it was.

The record is only read. The config that is kept beside its logs is run, and a config is code: read
that of a work dir you did not make. Exit status 0: the same came of it, or, with --checks-only, the
data are the same.
"""

import argparse
import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from mmengine.config import Config

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from _run_again import compare, of_training, report
from _run_state import difference_of, settings_of, state_now
from _runs import CORES, LOG, ends_at_once, run

import eiclip_mm  # noqa: F401  (checks the installation)
from eiclip_mm.engine.record_file import read_record
from eiclip_mm.utils import load_config
from eiclip_mm.utils.digest import file_sha256

TRAIN = Path(__file__).resolve().parents[1] / 'train.py'


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('work_dir', type=Path, help='of a training')
    add('--out', type=Path, help='train here; WORK_DIR/reproduced if not given')
    add('--checks-only', action='store_true', help='say what differs, train nothing')
    add('--anyway', action='store_true', help='train although the data differ')
    add('--trust', action='store_true', help='run a config that is not the one recorded')
    help_ = 'largest relative difference of a metric, loss or weight that is no failure'
    add('--tolerance', type=float, default=0.0, help=help_)
    args = parser.parse_args(argv)
    if not 0 <= args.tolerance < float('inf'):
        parser.error(f'--tolerance is {args.tolerance}; give a number from 0 on, such as 0.01')
    args.out = args.out or args.work_dir / 'reproduced'
    # not Path.resolve, which raises where links go round
    if os.path.realpath(args.out) == os.path.realpath(args.work_dir):
        parser.error(
            f'{args.out} is {args.work_dir} itself, so nothing would be trained; give another --out'
        )
    return args


@ends_at_once('the same command goes on from here')
def main(argv: Sequence[str] | None = None) -> None:
    """Check, train, compare."""
    args = parse_args(argv)
    starts = training(args.work_dir)
    paths = [checked_config(args.work_dir, start, args.trust) for start in starts]
    configs = [load_config(path) for path in paths]
    if not configs[-1].get('train_dataloader'):
        raise SystemExit(f'{paths[-1]} is empty: the run was made in code, without a config.')
    now = state_now(configs[-1])
    same_data = say_differences(starts, configs, now)
    ended = starts[-1].get('result') is not None
    if args.checks_only:
        if not ended:
            print(f'The training in {args.work_dir} did not end.')
        raise SystemExit(not same_data)
    if not same_data and not args.anyway:
        raise SystemExit(
            'The data differ, so another result would say nothing: put them back, or give --anyway.'
        )
    if not ended:
        raise SystemExit(
            f'The training in {args.work_dir} did not end, so there is nothing to compare with: '
            'finish it with tools/train.py CONFIG --resume auto.'
        )
    again = train_again(starts, paths, args.out, now)
    same = report(compare(args.work_dir, starts, args.out, again), args.tolerance)
    raise SystemExit(not same)


def training(work_dir: Path) -> list[dict]:
    """The starts of the latest training in a work dir: from its beginning, with all resumes.

    Raises:
        SystemExit: there is none, or its beginning is not recorded.
    """
    try:
        starts = of_training(read_record(work_dir))
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from error
    if not starts:
        raise SystemExit(f'{work_dir} holds tests alone; give the work dir of their training.')
    if starts[0]['began']['iter']:
        raise SystemExit(
            f'The beginning of the training in {work_dir} is not recorded: its first start went '
            f'on from step {starts[0]["began"]["iter"]}, so it cannot be run again from there.'
        )
    return starts


def checked_config(work_dir: Path, start: dict, trust: bool) -> Path:
    """The config of a start, which is the one that was recorded unless it is trusted.

    Raises:
        SystemExit: it is not there, or not to be run.
    """
    path = work_dir / start['config']['file']
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(work_dir)):
        raise SystemExit(f'The record names a config outside of {work_dir}: {path}; not run.')
    if not path.is_file():
        raise SystemExit(f'{path}, the config of the start at {start["time"]}, is not there.')
    if file_sha256(path) != start['config']['sha256']:
        if not trust:
            raise SystemExit(
                f'{path} is not the config that was recorded, and a config is code: read it, and '
                'if you want it run give --trust.'
            )
        print(f'{path} is not the config that was recorded; trusted.')
    return path


def say_differences(starts: Sequence[dict], configs: Sequence[Config], now: Mapping) -> bool:
    """Print what differed between the starts, and what differs now; whether the data are equal."""
    for number, ((before, old), (after, new)) in enumerate(
        pairwise(zip(starts, configs, strict=True)), 1
    ):
        rows = difference_of(before, after) + settings_of(old, new)
        print_table(f'Between start {number} and start {number + 1}', rows)
    rows = difference_of(starts[-1], now)
    print_table('Now', rows)
    return not any(kind == 'data' for kind, *_ in rows)


def print_table(title: str, rows: Sequence[tuple]) -> None:
    """Differences as a Markdown table."""
    print(f'\n{title}: ' + ('these differ' if rows else 'nothing differs'))
    if rows:
        print('\n| | what | before | after |\n|---|---|---|---|')
        for row in rows:
            print('| ' + ' | '.join(str(cell).replace('|', '¦') for cell in row) + ' |')
    print(flush=True)


def train_again(
    starts: Sequence[dict], configs: Sequence[Path], out: Path, now: Mapping
) -> list[dict]:
    """Train with the config of the last start from the beginning; the starts that it recorded.

    What ``out`` holds already, as of a run by several processes, is taken as it is; if it did not
    end, it goes on.

    Args:
        starts: of the recorded training.
        configs: theirs.
        out: is trained in.
        now: what a training would be made from.

    Raises:
        SystemExit: it needs several processes, failed, or ``out`` holds something else.
    """
    last, begun = starts[-1], load_config(configs[0])
    if not is_unused(out, configs[-1]):
        again = trained_already(last, configs[-1], out, now)
        if again[-1].get('result') is not None:
            return again
    # a resume takes the place of weights to start from, which the first start had
    weights = None if begun.get('resume') else begun.get('load_from')
    options = ['--work-dir', str(out), '--resume', 'auto', '--cfg-options', '+resume=False']
    options += [f'+load_from={weights}', f'+randomness.seed={last["seed"]}']
    if last['world_size'] > 1:
        command = ['bash', str(TRAIN.with_name('dist_train.sh')), str(configs[-1])]
        raise SystemExit(
            f'It was trained by {last["world_size"]} processes. Start them with\n\n  '
            f'{shlex.join([*command, str(last["world_size"]), *options])}\n\n'
            'and give the command of now again: it compares.'
        )
    threads = last['host'].get('threads')
    run(
        str(TRAIN),
        str(configs[-1]),
        *options,
        threads=threads if isinstance(threads, int) and threads > 0 else CORES,
        log=out / LOG,
    )
    return training(out)


def is_unused(out: Path, config: Path) -> bool:
    """Whether a folder is missing, or holds no more than what a start left that has no record yet.

    Args:
        out: the folder.
        config: of that start, which keeps a copy beside its logs.
    """
    names = {path.name for path in out.iterdir()} if out.is_dir() else set()
    ours = re.compile(rf'{re.escape(config.name)}|\d{{8}}_\d{{6}}|\..*\.part')
    made = {LOG, '.lock'}  # before anything else
    return not names or (bool(names & made) and all(map(ours.fullmatch, names - made)))


def trained_already(last: Mapping, config: Path, out: Path, now: Mapping) -> list[dict]:
    """The starts in ``out``: of a training with the settings of the last start's config.

    Raises:
        SystemExit: it is another one, or did not end and was begun with other data.
    """
    again = training(out)
    made = load_config(checked_config(out, again[-1], trust=False))
    wanted = load_config(config)
    wanted.merge_from_dict({'randomness.seed': last['seed']})  # the one drawn, if it names none
    if rows := settings_of(wanted, made):
        print_table(f'Settings of {out}', rows)
        raise SystemExit(f'{out} holds another training; give another --out.')
    if again[-1].get('result') is not None:
        print(f'{out} holds this training already, of {again[-1]["time"]}; compared as it is.')
        return again
    print(f'{out} holds this training already, of {again[-1]["time"]}; it did not end and goes on.')
    if rows := difference_of(again[-1], now):
        print_table('Since then', rows)
    if any(kind == 'data' for kind, *_ in rows):
        raise SystemExit(f'It was begun with other data: remove {out}, or give another --out.')
    return again


if __name__ == '__main__':
    main()
