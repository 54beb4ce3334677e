"""Break one rank of a small training, or stop all from outside, and see how it ends.

    python tools/dev/rank_faults.py [--faults row kill exit hang interrupt terminate single-...]

Each training has two processes (gloo, CPU), those called single one; all have loader workers, and
train on a small synthetic Fashion-Gen. The table says how many seconds passed from the fault to the
end of all, the exit code, what a user reads last, and what was left: processes, shared
memory. Exit code 1: a training did not end within --limit seconds, ended as if all were well, or
left something.
"""

import argparse
import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from _faults import SIGN
from mmengine.config import Config

from eiclip_mm.datasets import FashionGen
from eiclip_mm.datasets.synthetic import FILES, write_mini_fashiongen
from eiclip_mm.structures import EntityVocab

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / 'configs/eiclip_fashiongen_mini.py'
MARK = 'RANK_FAULTS_RUN'  # in the environment of all processes of a run, which finds them again
SIGNALS = dict(interrupt=signal.SIGINT, terminate=signal.SIGTERM)
FAULTS = (
    'row', 'kill', 'exit', 'hang', 'interrupt', 'terminate', 'single-interrupt', 'single-terminate',
)  # fmt: skip


@dataclass
class Ending:
    """How a training ended; ``seconds`` from the fault, ``None`` where it did not."""

    seconds: float | None
    code: int | None
    output: str
    left: list[str]

    @property
    def good(self) -> bool:
        """In time, not as if all were well, and tidy."""
        return self.seconds is not None and self.code != 0 and not self.left

    @property
    def reason(self) -> str:
        """The last line that says something; of torchrun's table, of the process that was first."""
        lines = [line.strip() for line in self.output.splitlines() if line.strip(' =-^~')]
        last = (lines or [''])[-1]
        if last.startswith('traceback :'):  # it left none, as one that was killed
            last = next(line for line in reversed(lines) if line.startswith('exitcode'))
        return last[:120]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the faults, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--faults', nargs='+', choices=FAULTS, default=FAULTS)
    parser.add_argument('--limit', type=float, default=60, help='seconds from the fault to the end')
    parser.add_argument('--timeout', type=int, default=10, help='env_cfg.dist_cfg.timeout, seconds')
    args = parser.parse_args(argv)
    rows = []
    be_parent_of_orphans()
    with tempfile.TemporaryDirectory() as folder:
        data = write_data(Path(folder))
        for fault in args.faults:
            ending = run_fault(fault, data, args.limit, args.timeout)
            rows.append((fault, ending))
            if not ending.good:
                print(f'{fault}:\n{ending.output[-4000:]}\n', file=sys.stderr)
    print('| fault | seconds to the end of all | exit code | last said | left |')
    print('|---|--:|--:|---|---|')
    for fault, end in rows:
        seconds = 'never' if end.seconds is None else f'{end.seconds:.1f}'
        left = ', '.join(end.left) or 'nothing'
        print(f'| {fault} | {seconds} | {end.code} | `{end.reason}` | {left} |')
    sys.exit(not all(end.good for _, end in rows))


def write_data(folder: Path) -> Path:
    """96 products and their entities."""
    write_mini_fashiongen(folder, 96, 8, 2, seed=0, progress=False)
    types = Config.fromfile(CONFIG).entity_types
    products = FashionGen(FILES['train'], types, data_root=str(folder)).records()
    EntityVocab.build((p['entities'] for p in products), types).save(folder / 'entities.json')
    return folder


def write_config(fault: str, data: Path, timeout: int) -> Path:
    """A training without an end, and the fault in it."""
    cfg = Config.fromfile(CONFIG)
    cfg = Config.fromstring(cfg.pretty_text.replace(cfg.data_root, f'{data}/'), '.py')
    cfg.model.towers.pretrained = None
    cfg.train_cfg.max_epochs = 10_000
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', interval=1_000)
    cfg.default_hooks.logger.interval = 1
    cfg.train_dataloader.batch_size, cfg.train_dataloader.num_workers = 16, 2
    cfg.custom_hooks = [h for h in cfg.custom_hooks if h.type != 'CausalEffectHook']
    cfg.custom_imports.imports.append('_faults')
    cfg.env_cfg.dist_cfg.timeout = timeout
    if fault == 'row':
        cfg.train_dataloader.dataset.pipeline.insert(0, dict(type='FaultyRow'))
    elif fault in ('kill', 'exit', 'hang'):
        cfg.custom_hooks.append(dict(type='FaultHook', kind=fault))
    path = data / f'{fault}.py'
    cfg.dump(path)
    return path


def run_fault(fault: str, data: Path, limit: float, timeout: int) -> Ending:
    """Start a training, wait for its fault and its end, and tidy up what it left."""
    config, mark = write_config(fault, data, timeout), uuid.uuid4().hex
    env = dict(os.environ, OMP_NUM_THREADS='1', PYTHONWARNINGS='ignore', PYTHON=sys.executable)
    env[MARK] = mark
    env['PYTHONPATH'] = os.pathsep.join([str(ROOT), str(ROOT / 'tools/dev')])
    own = ['--work-dir', str(data / f'work-{fault}')]
    command = ['bash', str(ROOT / 'tools/dist_train.sh'), str(config), '2', *own]
    if fault.startswith('single'):
        command = [sys.executable, str(ROOT / 'tools/train.py'), str(config), *own]
    log = data / f'{fault}.log'
    with log.open('wb') as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=env, stdout=output, stderr=output, start_new_session=True
        )
    began = wait_for_fault(process, log, SIGNALS.get(fault.rpartition('-')[2]))
    ended, members = None, set()
    while ended is None and time.monotonic() - began < limit:
        members |= processes_of(mark)
        reap(members - {process.pid})
        if process.poll() is not None and not any(map(state_of, members)):
            ended = time.monotonic()
        time.sleep(0.05)
    left = [f'process {pid} {state_of(pid)}' for pid in sorted(members) if state_of(pid)]
    left += [f'/dev/shm/{p.name}' for p in Path('/dev/shm').iterdir() if owner(p.name) in members]
    for pid in processes_of(mark):
        os.kill(pid, signal.SIGKILL)
    seconds = None if ended is None else ended - began
    return Ending(seconds, process.wait(), log.read_text(errors='replace'), left)


def wait_for_fault(process: subprocess.Popen, log: Path, sent: int | None) -> float:
    """When it happened; a signal from outside is sent once a step is logged."""
    sign = SIGN if sent is None else 'Epoch(train)'
    deadline = time.monotonic() + 120
    while sign not in log.read_text(errors='replace'):
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f'the training ended or hung before its fault:\n{log.read_text()}')
        time.sleep(0.02)
    if sent is not None:
        process.send_signal(sent)
    return time.monotonic()


def processes_of(mark: str) -> set[int]:
    """All that have the mark in their environment; a zombie shows none."""
    found = set()
    for folder in Path('/proc').iterdir():
        try:
            if (
                folder.name.isdigit()
                and f'{MARK}={mark}'.encode() in (folder / 'environ').read_bytes()
            ):
                found.add(int(folder.name))
        except OSError:  # it ended, or is another user's
            continue
    return found


def be_parent_of_orphans() -> None:
    """Be what init is elsewhere: containers often have none, and orphans stay as zombies."""
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def reap(pids: set[int]) -> None:
    """Let orphans go that ended."""
    for pid in pids:
        with suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


def state_of(pid: int) -> str:
    """``'R'``, ``'Z'`` and so on, or nothing where there is no such process."""
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0]
    except OSError:
        return ''


def owner(name: str) -> int | None:
    """The process in the name of a piece of torch's shared memory."""
    parts = name.split('_')
    return int(parts[1]) if len(parts) > 2 and parts[1].isdigit() else None


if __name__ == '__main__':
    main()
