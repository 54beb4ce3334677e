"""Kill a training at random moments, go on with --resume auto, and compare with an unbroken one.

python tools/dev/kill_training.py [--kills 100] [--processes 2] [--seed 0] [--minutes 20]

A small EI-CLIP, its weights averaged by EMAHook, trains on a mini Fashion-Gen. The
whole process group, loaders included, gets SIGKILL, half of the times while or just after a
checkpoint is written. Each run is killed until it ends by itself; then every step (loss to the bit,
products, views, pixels), every validation, and every part of the checkpoints must be those of
the unbroken run, with no file more and none less. Starts fork from a process that has imported
everything.
"""

import argparse
import ctypes
import gc
import importlib
import json
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import mmengine.config
import torch
from mmengine.config import Config
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import DefaultScope

import eiclip_mm
from eiclip_mm.datasets import FashionGen
from eiclip_mm.datasets.synthetic import FILES, write_mini_fashiongen
from eiclip_mm.registry import HOOKS
from eiclip_mm.structures import EntityVocab
from eiclip_mm.utils import register_all_modules

ROOT = Path(eiclip_mm.__file__).resolve().parents[1]
BEST = 'full/first-image/SumR'
SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER: processes whose parent was killed become ours


@HOOKS.register_module(force=True)
class StepRecorder(Hook):
    """Write down each step and each validation of each process, as it happens."""

    def _write(self, runner: Any, **row: Any) -> None:
        with open(Path(runner.work_dir) / f'steps{get_rank()}.jsonl', 'a') as file:
            file.write(json.dumps(row) + '\n')

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """See the class."""
        self._write(
            runner,
            step=runner.iter,
            loss=float(outputs['loss']).hex(),
            products=data_batch['product_id'].tolist(),
            views=data_batch['view'].tolist(),
            pixels=zlib.crc32(data_batch['image'].numpy().tobytes()),
        )

    def after_val_epoch(self, runner: Any, metrics: dict | None = None) -> None:
        """See the class."""
        self._write(runner, validated=runner.epoch, metrics=metrics)


def write_config(folder: Path, processes: int, epochs: int) -> Path:
    """Draw 60 products and write the config of a run on them."""
    DefaultScope.get_instance(str(folder), scope_name='eiclip_mm')
    write_mini_fashiongen(folder, 60, 2, 2, seed=0, progress=False)
    base = Config.fromfile(ROOT / 'configs/eiclip_fashiongen_mini.py')
    records = FashionGen(FILES['train'], base.entity_types, data_root=str(folder)).records()
    vocab = EntityVocab.build((r['entities'] for r in records), base.entity_types)
    vocab.save(folder / 'entities.json')
    cfg = Config.fromstring(base.pretty_text.replace(base.data_root, f'{folder}/'), '.py')
    cfg.model.towers.pretrained = None
    small = dict(
        embed_dim=32,
        vision_cfg=dict(
            image_size=64, patch_size=16, width=32, layers=1, head_width=16, patch_dropout=0.5
        ),
        text_cfg=dict(context_length=77, vocab_size=49408, width=32, heads=2, layers=1),
    )
    cfg.model.towers.model = cfg.model.tokenizer.model = small
    for name in ('train', 'val', 'test'):
        cfg[f'{name}_dataloader'].dataset.tokenizer.model = small
        cfg[f'{name}_dataloader'].dataset.select_share = 0.3
    cfg.train_dataloader.batch_size = 8 // processes
    cfg.val_dataloader.num_workers = 0
    cfg.train_cfg.update(max_epochs=epochs, val_interval=1)
    cfg.custom_hooks = [h for h in cfg.custom_hooks if h.type != 'ImageFeatureCache']
    cfg.custom_hooks[-1].begin = epochs // 2
    cfg.custom_hooks += [dict(type='EMAHook', momentum=0.3), dict(type='StepRecorder')]
    cfg.dump(folder / 'run.py')
    return folder / 'run.py'


def prepare() -> None:
    """Have in this process, once, what every start would spend its time on."""
    torch.set_num_threads(1)  # threads do not survive a fork
    ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
    register_all_modules()
    for name in ('matplotlib.pyplot', 'torch.utils.cpp_extension', 'torch._dynamo'):
        importlib.import_module(name)
    # each checkpoint holds the text of the config, whose layout takes longer than a training step
    mmengine.config.config.FormatCode = lambda text, **_: (text, True)
    gc.freeze()  # data sets collect garbage


def start(config: Path, work_dir: Path, processes: int) -> int:
    """Fork a process group that trains; returns its id, which is that of its first process."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    leader = os.fork()
    if leader:
        os.setpgid(leader, leader)  # here as well, or it could be killed before it has its group
        return leader
    os.setpgid(0, 0)
    if processes == 1:
        _train(config, work_dir, [])
    ranks = []
    for rank in range(processes):
        ranks.append(os.fork())
        if not ranks[-1]:
            os.environ |= dict(
                RANK=str(rank),
                LOCAL_RANK=str(rank),
                WORLD_SIZE=str(processes),
                MASTER_ADDR='127.0.0.1',
                MASTER_PORT=str(port),
            )
            _train(config, work_dir, ['--launcher', 'pytorch'])
    os._exit(any([os.waitpid(pid, 0)[1] for pid in ranks]))


def _train(config: Path, work_dir: Path, more: list[str]) -> None:
    """tools/train.py, in this process, which it ends."""
    warnings.simplefilter('ignore')
    log = os.open(f'{work_dir}.log', os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.path.insert(0, str(ROOT / 'tools'))
    code = 1
    try:
        import train

        train.main([str(config), '--work-dir', str(work_dir), '--resume', 'auto', *more])
        code = 0
    except BaseException:  # SystemExit as well: its sentence belongs in the log
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def ended(group: int) -> int | None:
    """Exit status of a group that has ended by itself."""
    pid, status = os.waitpid(group, os.WNOHANG)
    return status if pid else None


def kill(group: int) -> None:
    """End all of its processes at once and wait until none is left."""
    os.killpg(group, signal.SIGKILL)
    try:
        while True:
            os.waitpid(-group, 0)
    except ChildProcessError:
        pass


def kill_or_end(group: int, work_dir: Path, rng: random.Random, seconds: float) -> int | None:
    """Kill at a moment drawn from the run's life; its exit status where it ended before.

    Args:
        group: the run.
        work_dir: its files are watched.
        rng: draws the moment.
        seconds: how long an unbroken run takes.
    """
    deadline = time.monotonic() + rng.uniform(0, seconds)
    aimed, writes, parts = rng.random() < 0.5, rng.randint(1, 6), set()
    while aimed or time.monotonic() < deadline:
        status = ended(group)
        if status is not None:
            return status
        if aimed and work_dir.is_dir():
            before, parts = parts, {name for name in os.listdir(work_dir) if '.pth.' in name}
            writes -= len(parts - before)
            if writes <= 0:
                time.sleep(rng.uniform(0, 0.04))
                break
        time.sleep(0.0005)
    kill(group)
    return None


def what_was_hit(work_dir: Path) -> str:
    """What the kill left behind."""
    names = [p.name for p in work_dir.glob('*')] if work_dir.is_dir() else []
    epochs = [name for name in names if name.startswith('epoch_')]
    if any(name.endswith('.part') for name in names + [p.name for p in work_dir.glob('.*')]):
        return 'a file half written'
    if len(epochs) > 1 or sum(name.startswith('best_') for name in names) > 1:
        return 'new and replaced file both there'
    return 'training or validating' if epochs else 'before the first checkpoint'


def differences(work_dir: Path, unbroken: Path) -> list[str]:
    """Where an ended run differs from the unbroken one."""
    found = []
    names = [
        sorted(p.name for p in d.iterdir() if p.suffix == '.pth' or p.name.endswith('.part'))
        for d in (work_dir, unbroken)
    ]
    if names[0] != names[1]:
        return [f'files {names[0]} for {names[1]}']
    for name in names[0]:
        mine, theirs = (torch.load(d / name, weights_only=True) for d in (work_dir, unbroken))
        for part in ('state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers'):
            if not _equal(mine.get(part), theirs.get(part)):
                found.append(f'{part} of {name}')
        hubs = [c['message_hub']['runtime_info'] for c in (mine, theirs)]
        if hubs[0].get('best_score') != hubs[1].get('best_score'):
            found.append(f'best score of {name}')
    for path in sorted(unbroken.glob('steps*.jsonl')):
        mine, theirs = (_rows(d / path.name) for d in (work_dir, unbroken))
        found += [f'{path.name}: {row}' for row in sorted(mine ^ theirs)]
    causal = [(d / 'causal_effects.json').read_bytes() for d in (work_dir, unbroken)]
    return found + ['causal_effects.json'] * (causal[0] != causal[1])


def _rows(path: Path) -> set[str]:
    """What was recorded; a line that a kill cut off is left out."""
    lines = path.read_text(encoding='utf-8').replace('}{', '}\n{').splitlines()
    return {line for line in lines if line.endswith('}') and line.startswith('{')}


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.equal(b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(_equal, a, b))
    return a == b


def run(folder: Path, args: argparse.Namespace) -> Counter:
    """Kill so often; returns how often what was hit, and the number of runs.

    Raises:
        SystemExit: a run ended in an error, or differs from the unbroken one.
    """
    kills, processes = args.kills, args.processes
    config = write_config(folder, processes, args.epochs)
    rng, counts = random.Random(args.seed), Counter()
    unbroken, began = folder / 'unbroken', time.monotonic()
    _, status = os.waitpid(start(config, unbroken, processes), 0)
    seconds = time.monotonic() - began
    if status:
        raise SystemExit(f'the unbroken run failed:\n{tail(unbroken)}')
    done = 0
    while done < kills and time.monotonic() - began < 60 * args.minutes:
        work_dir = folder / f'run{counts["runs"]}'
        status = None
        while status is None:
            group = start(config, work_dir, processes)
            if done == kills:
                _, status = os.waitpid(group, 0)
            else:
                status = kill_or_end(group, work_dir, rng, seconds)
            if status is None:
                done += 1
                counts[what_was_hit(work_dir)] += 1
        if status:
            raise SystemExit(f'after {done} kills a run ended with {status}:\n{tail(work_dir)}')
        if found := differences(work_dir, unbroken):
            raise SystemExit(f'after {done} kills {work_dir} differs:\n' + '\n'.join(found[:20]))
        counts['runs'] += 1
        print(f'{done} kills, {counts["runs"]} runs', file=sys.stderr, flush=True)
        shutil.rmtree(work_dir)
    return counts


def tail(work_dir: Path) -> str:
    """The end of a run's output."""
    return Path(f'{work_dir}.log').read_text(errors='replace')[-3000:]


def main() -> None:
    """Run and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--kills', type=int, default=100)
    parser.add_argument('--processes', type=int, default=1, choices=[1, 2])
    parser.add_argument('--epochs', type=int, default=4, help='of each run; at least 2')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--minutes', type=float, default=20, help='start no run after so long')
    args = parser.parse_args()
    prepare()
    with tempfile.TemporaryDirectory() as folder:
        counts = run(Path(folder), args)
    runs = counts.pop('runs')
    print(f'\n| killed at ({args.processes} process(es)) | kills |\n|---|--:|')
    for name, count in counts.most_common():
        print(f'| {name} | {count} |')
    print(f'| all | {counts.total()} |\n\n{runs} runs, each equal to the unbroken one.')
    sys.exit(counts.total() < args.kills)


if __name__ == '__main__':
    main()
