"""What a run was made from and what came of it, in its work dir: ``run_record.json``.

The file is plain JSON, ``dict(format, version, starts)``. ``starts`` has an entry for each start of
training or testing in the work dir, in order, so that a resumed run shows all of its starts::

    kind, time, command      'train' or 'test'; when, in UTC; the command line
    folder, config           its logs; a copy of the config as it ran: file, sha256
    seed, world_size
    began                    epoch and iter that training went on from; 0 where it began anew
    weights                  sha256 of the model's weights before the first step
    environment, host, code  versions; processor and threads; state of this package
    variables                of the environment, those of VARIABLES alone: others hold secrets
    files, photos            that the config and its data sets name; see fingerprints.py
    result                   None until the run ends; seconds, metrics and, of training, epoch,
                             iter, best, checkpoints

``tools/misc/reproduce.py`` reads it.
"""

import os
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from eiclip_mm.registry import HOOKS
from eiclip_mm.utils.collect_env import collect_code, collect_env, collect_host
from eiclip_mm.utils.digest import file_sha256
from eiclip_mm.utils.whole_file import whole_file

from .fingerprints import file_state, named_files, photos_state, weights_sha256
from .hooks import plain, unwrapped
from .record_file import put_start

VARIABLES = (
    'OMP_NUM_THREADS',
    'MKL_NUM_THREADS',
    'MKL_CBWR',
    'ATEN_CPU_CAPABILITY',
    'ONEDNN_MAX_CPU_ISA',
    'CUDA_VISIBLE_DEVICES',
    'CUBLAS_WORKSPACE_CONFIG',
    'NVIDIA_TF32_OVERRIDE',
    'PYTHONHASHSEED',
)


@HOOKS.register_module()
class RunRecordHook(Hook):
    """Write down what each training and each test was made from, and what came of it.

    It changes nothing in the run. The first process alone writes.
    """

    priority = 'HIGHEST'  # before hooks that compute for minutes, such as the feature caches

    def __init__(self) -> None:
        self._start: dict | None = None
        self._clock = 0.0
        self._metrics: dict = {}

    def before_train(self, runner: Runner) -> None:
        """See the class."""
        datasets = dict(train=runner.train_dataloader.dataset)
        if runner.val_loop is not None:
            datasets['val'] = runner.val_dataloader.dataset
        self._begin(runner, 'train', datasets)

    def before_test(self, runner: Runner) -> None:
        """See the class."""
        self._begin(runner, 'test', dict(test=runner.test_dataloader.dataset))

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Remember the metrics."""
        self._metrics = metrics or {}

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Remember the metrics."""
        self._metrics = metrics or {}

    def after_run(self, runner: Runner) -> None:
        """See the class."""
        if self._start is None:
            return
        seconds = round(time.monotonic() - self._clock, 1)
        result = dict(seconds=seconds, metrics=plain(self._metrics))
        if self._start['kind'] == 'train':
            result |= _of_training(runner)
        put_start(runner.work_dir, dict(self._start, result=result), runner.logger)
        self._start = None

    def _begin(self, runner: Runner, kind: str, datasets: Mapping[str, Any]) -> None:
        if not is_main_process():
            return
        self._clock, self._metrics = time.monotonic(), {}
        self._start = dict(
            kind=kind,
            time=datetime.now(UTC).isoformat(),
            command=list(sys.argv),
            folder=runner.timestamp,
            config=_kept_config(runner),
            seed=runner.seed,
            world_size=get_world_size(),
            began=dict(epoch=runner.epoch, iter=runner.iter) if kind == 'train' else None,
            weights=_weights(unwrapped(runner.model)),
            **state_of(runner.cfg, datasets),
            result=None,
        )
        put_start(runner.work_dir, self._start, runner.logger)


def state_of(cfg: Mapping, datasets: Mapping[str, Any]) -> dict[str, Any]:
    """What a run of a config would be made from now: a part of a start, see the module.

    Args:
        cfg: the run's.
        datasets: those that it reads, by the names of their splits.
    """
    files = named_files(cfg, datasets)
    hashed = set(files.values())
    return dict(
        environment=collect_env(),
        host=collect_host(),
        variables={name: os.environ[name] for name in VARIABLES if name in os.environ},
        code=collect_code(),
        files={name: file_state(path) for name, path in files.items()},
        photos={
            split: photos_state(dataset, hashed)
            for split, dataset in datasets.items()
            if hasattr(dataset, 'images')
        },
    )


def _of_training(runner: Runner) -> dict[str, Any]:
    """How far it came, its best scores, and which weights it left."""
    known = runner.message_hub.runtime_info
    return dict(
        epoch=runner.epoch,
        iter=runner.iter,
        best=plain({k: v for k, v in known.items() if k.startswith('best_score')}),
        checkpoints=[
            dict(role=role, file=Path(path).name, weights=_saved_weights(path))
            for role, path in sorted(known.items())
            if role.startswith(('best_ckpt', 'last_ckpt')) and os.path.isfile(path or '')
        ],
    )


def _kept_config(runner: Runner) -> dict[str, str]:
    """Keep the config that the Runner dumped: the next start dumps its own over it."""
    work_dir = Path(runner.work_dir)
    name = Path(runner.cfg.filename or f'{runner.timestamp}.py').name
    folder = Path(runner.log_dir)
    free = (folder / str(i) if i else folder for i in count())  # two starts of one second share it
    kept = next(place / name for place in free if not (place / name).exists())
    kept.parent.mkdir(exist_ok=True)
    with whole_file(kept) as file:
        file.write((work_dir / name).read_bytes())
    return dict(file=kept.relative_to(work_dir).as_posix(), sha256=file_sha256(kept))


def _weights(model: nn.Module) -> str | None:
    """SHA-256 of a model's weights; ``None`` where each process holds a part of them."""
    if any(isinstance(module, FullyShardedDataParallel) for module in model.modules()):
        return None
    return weights_sha256(model.state_dict())


def _saved_weights(path: str) -> str | None:
    """SHA-256 of the weights in a checkpoint; ``None`` where it is not of plain data."""
    try:
        saved = torch.load(path, map_location='cpu', weights_only=True, mmap=True)
    except Exception:  # without PlainCheckpointHook it may hold anything; torch raises many kinds
        return None
    return weights_sha256(saved['state_dict'])
