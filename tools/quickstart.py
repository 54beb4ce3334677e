"""The whole walk with no data: draw a mini Fashion-Gen, train, evaluate, print the table.

python tools/quickstart.py          (make quickstart makes the environment first)

Interrupted, it goes on where it was; --fresh starts anew.
"""

import argparse
import json
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from _runs import CORES, best_checkpoint, draw_mini, ends_at_once, run, train_start, work_dir

from eiclip_mm.utils.sentence import told
from eiclip_mm.utils.whole_file import write_whole_text

GENERAL = 'configs/clip_general_mini.py'
ROWS = {
    'CLIP, fine-tuned on the description (row 2)': 'configs/baselines/clip_fashiongen_mini.py',
    'CLIP, metadata in front of the text (row 3)': 'configs/baselines/clip-meta_fashiongen_mini.py',
    'EI-CLIP (row 5)': 'configs/eiclip_fashiongen_mini.py',
}


@ends_at_once()
def main(argv: Sequence[str] | None = None) -> None:
    """Run every step as the command a user would type; the rows side by side."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--fresh', action='store_true', help='forget earlier runs of this script')
    args = parser.parse_args(argv)
    start = time.time()
    if args.fresh:
        for config in [GENERAL, *ROWS.values()]:
            shutil.rmtree(work_dir(config), ignore_errors=True)
    draw_mini()
    train_start(GENERAL)
    with ThreadPoolExecutor(len(ROWS)) as pool:  # small models leave cores idle
        tables = list(pool.map(row, ROWS.values()))
    report(dict(zip(ROWS, tables, strict=True)), time.time() - start)


def row(config: str) -> dict:
    """Train and test one config; what test.py found."""
    threads = max(CORES // len(ROWS), 1)
    run('tools/train.py', config, '--resume', 'auto', threads=threads)
    run('tools/test.py', config, str(best_checkpoint(work_dir(config))), threads=threads)
    return json.loads((work_dir(config) / 'test_results.json').read_text())


def report(results: dict[str, dict], seconds: float) -> None:
    """Print the table and where everything lies."""
    from eiclip_mm.evaluation import recall_table

    prefix = 'full/first-image/'
    rows = {
        label: {k.removeprefix(prefix): v for k, v in metrics.items() if k.startswith(prefix)}
        for label, metrics in results.items()
    }
    table = recall_table(rows)
    path = Path('work_dirs') / 'quickstart_table.md'
    with told(path):
        write_whole_text(path, table + '\n')
    print(f'\nfull/first-image on the 300 products of the mini validation split\n\n{table}\n')
    for label, config in ROWS.items():
        print(f'{label}: checkpoints and logs in {work_dir(config)}/')
    print(f'causal effects: {work_dir(ROWS["EI-CLIP (row 5)"])}/causal_effects.json')
    print(f'table: {path}; took {seconds / 60:.1f} minutes')


if __name__ == '__main__':
    main()
