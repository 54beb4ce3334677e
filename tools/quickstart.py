"""The whole walk with no data: draw a mini Fashion-Gen, train, evaluate, print the table.

python tools/quickstart.py          (make quickstart makes the environment first)

Interrupted, it goes on where it was; --fresh starts anew.
"""

import argparse
import json
import multiprocessing
import os
import re
import runpy
import shutil
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

DATA = Path('data/mini_fashiongen')
LOG = Path('work_dirs/quickstart.log')
GENERAL = 'configs/clip_general_mini.py'
ROWS = {
    'CLIP, fine-tuned on the description (row 2)': 'configs/baselines/clip_fashiongen_mini.py',
    'CLIP, metadata in front of the text (row 3)': 'configs/baselines/clip-meta_fashiongen_mini.py',
    'EI-CLIP (row 5)': 'configs/eiclip_fashiongen_mini.py',
}
SHOWN = re.compile(r'Epoch\(train\) +\[(\d+)\].*eta: ([\d:]+).* loss: ([\d.]+)')
CORES = len(os.sched_getaffinity(0))
# The tools' imports take as long as an epoch. A server imports once and forks for each tool, which
# CUDA does not survive.
PROCESSES = multiprocessing.get_context('spawn' if torch.cuda.is_available() else 'forkserver')
ASKING = threading.Lock()  # starting one asks how all are; of two who ask, one loses the exit code
IMPORTS = [f'eiclip_mm.{room}' for room in ('datasets', 'models', 'evaluation', 'engine')]


def main() -> None:
    """Run every step as the command a user would type; the rows side by side."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--fresh', action='store_true', help='forget earlier runs of this script')
    args = parser.parse_args()
    start = time.time()
    if args.fresh:
        for config in [GENERAL, *ROWS.values()]:
            shutil.rmtree(work_dir(config), ignore_errors=True)
    PROCESSES.set_forkserver_preload(IMPORTS)
    run('tools/dataset_converters/make_mini_fashiongen.py', '--out', str(DATA))
    run('tools/dataset_converters/build_entities.py', 'configs/eiclip_fashiongen_mini.py')
    run('tools/train.py', GENERAL, '--no-validate', '--resume', 'auto')
    with ThreadPoolExecutor(len(ROWS)) as pool:  # small models leave cores idle
        tables = list(pool.map(row, ROWS.values()))
    report(dict(zip(ROWS, tables, strict=True)), time.time() - start)


def row(config: str) -> dict:
    """Train and test one config; what test.py found."""
    threads = max(CORES // len(ROWS), 1)
    run('tools/train.py', config, '--resume', 'auto', threads=threads)
    checkpoint = max(work_dir(config).glob('best_*.pth'), key=lambda path: path.stat().st_mtime)
    run('tools/test.py', config, str(checkpoint), threads=threads)
    return json.loads((work_dir(config) / 'test_results.json').read_text())


def work_dir(config: str) -> Path:
    """Where train.py and test.py put a config's files."""
    return Path('work_dirs') / Path(config).stem


def run(*command: str, threads: int = CORES) -> None:
    """Run one of the project's tools; show its progress, keep its output in a log."""
    print('\n$ python', *command, flush=True)
    name = Path(command[1]).stem
    log = work_dir(command[1]) / 'quickstart.log' if command[1].endswith('.py') else LOG
    log.parent.mkdir(parents=True, exist_ok=True)
    process = PROCESSES.Process(target=tool, args=(command, log, threads))
    with log.open('a+', encoding='utf-8') as output:
        with ASKING:
            process.start()
        while True:
            with ASKING:
                running = process.is_alive()  # asked first: what it wrote last is read too
            for line in output:
                if found := SHOWN.search(line):
                    epoch, eta, loss = found.groups()
                    print(f'  {name}: epoch {epoch}, loss {loss}, remaining {eta}', flush=True)
            if not running:
                break
            time.sleep(0.5)
    if process.exitcode:
        sys.exit(f'{command[0]} failed; the end of its output, all of it in {log}:\n{tail(log)}')


def tool(command: tuple[str, ...], log: Path, threads: int) -> None:
    """Be the process of a tool, as the command line would start it."""
    with log.open('a', encoding='utf-8') as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    torch.set_num_threads(threads)
    sys.argv = list(command)
    runpy.run_path(command[0], run_name='__main__')


def tail(log: Path, lines: int = 20) -> str:
    """The last lines of a log."""
    return '\n'.join(log.read_text(encoding='utf-8').splitlines()[-lines:])


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
    path.write_text(table + '\n', encoding='utf-8')
    print(f'\nfull/first-image on the 300 products of the mini validation split\n\n{table}\n')
    for label, config in ROWS.items():
        print(f'{label}: checkpoints and logs in {work_dir(config)}/')
    print(f'causal effects: {work_dir(ROWS["EI-CLIP (row 5)"])}/causal_effects.json')
    print(f'table: {path}; took {seconds / 60:.1f} minutes')


if __name__ == '__main__':
    main()
