"""What happens around training steps: exact resuming, plain checkpoints, causal effects."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import broadcast, is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader

from eiclip_mm.registry import HOOKS
from eiclip_mm.utils.whole_file import write_whole_text


@HOOKS.register_module()
class StepSeedHook(Hook):
    """Seed each training step by its number, so that a resumed run repeats the unbroken one.

    mmengine stores no random state in checkpoints; dropout and drawn gates would differ after a
    resume. Crops and views are seeded by ``ProductDataset``.
    """

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None
    ) -> None:
        """See the class. Processes draw alike, so the same gates, but for towers with dropout."""
        torch.manual_seed(hash((runner.seed, runner.iter)) % 2**63)


@HOOKS.register_module()
class PlainCheckpointHook(Hook):
    """Write checkpoints that torch reads with ``weights_only=True``.

    The logged history is left out: it is in the log files already and grows with every step.
    Numbers of numpy become Python's.
    """

    priority = 'LOWEST'  # after the hooks that put something in, such as EMAHook

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """See the class."""
        hub = checkpoint.get('message_hub')
        if hub:
            known = {k: v for k, v in hub['resumed_keys'].items() if k in hub['runtime_info']}
            checkpoint['message_hub'] = dict(hub, log_scalars={}, resumed_keys=known)
        checkpoint.update({k: plain(v) for k, v in checkpoint.items() if k != 'state_dict'})


def plain(value: Any) -> Any:
    """A copy of nested dicts and lists without numpy's scalar types."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(plain(v) for v in value)
    return value.item() if isinstance(value, np.generic) else value


@HOOKS.register_module()
class CausalEffectHook(Hook):
    """Let ``EffectCESelector`` choose its entities before one epoch of training.

    The effects are measured with the model as it is then, all entities kept, on the products of the
    validation loader, which must be a slice of *train* (``fold='select'``): never on the split
    that is reported. The table is logged and written to ``causal_effects.json`` in the work dir.

    Args:
        begin: the epoch, counted from 0, before which to choose; at least 1.
    """

    def __init__(self, begin: int):
        if begin < 1:
            raise ValueError(
                f'begin must be at least 1, an untrained model shows no effect; got {begin}.'
            )
        self.begin = begin

    def before_train(self, runner: Runner) -> None:
        """Check what would otherwise fail an epoch late."""
        loader = getattr(runner.val_loop, 'dataloader', None)
        fold = getattr(getattr(loader, 'dataset', None), 'fold', None)
        if loader is None:
            raise ValueError('CausalEffectHook needs validation: train without --no-validate.')
        if fold != 'select':
            raise ValueError(
                'CausalEffectHook measures on the products of val_dataloader, which must be a '
                f"slice of train: set its dataset's fold='select' (now fold={fold!r})."
            )
        if self.begin >= runner.max_epochs:
            raise ValueError(
                f'CausalEffectHook chooses before epoch {self.begin}, counted from 0, but training '
                f'ends after {runner.max_epochs}: lower begin (two epochs need begin=1), train '
                "longer, or keep all entities, selector=dict(type='KeepAll'), without the hook."
            )
        selector = getattr(unwrapped(runner.model), 'selector', None)
        if not hasattr(selector, 'choose'):
            raise ValueError(
                'CausalEffectHook needs a selector that chooses by effects: set '
                "selector=dict(type='EffectCESelector'), or leave the hook out (now "
                f'{type(selector).__name__}).'
            )

    def before_train_epoch(self, runner: Runner) -> None:
        """See the class."""
        if runner.epoch != self.begin:
            return
        model = unwrapped(runner.model)
        if is_main_process():
            loader = runner.val_dataloader
            batches = DataLoader(loader.dataset, 256, collate_fn=loader.collate_fn)
            table = model.selector.choose(model, batches)
            runner.logger.info('Causal effect of each entity type\n' + effect_table(table))
            path = Path(runner.work_dir) / 'causal_effects.json'
            write_whole_text(path, json.dumps(table, indent=1, ensure_ascii=False))
            if not any(row['kept'] for row in table):
                runner.logger.warning('no entity type is kept: the model goes on without entities')
        broadcast(model.selector.weight)
        # A checkpoint from before the choice is another model: the best is looked for anew.
        found = runner.message_hub.runtime_info
        for name in [name for name in found if name.startswith('best_score')]:  # one a measure
            found.pop(name)


def effect_table(table: list[dict]) -> str:
    """The table of ``EffectCESelector.select`` as Markdown."""
    lines = [
        '| entity type | effect (nats) | 95 % interval | kept | entities kept |',
        '|---|---|---|---|---|',
    ]
    for row in table:
        kept, total = row['entities']
        lines.append(
            f'| {row["type"]} | {row["effect"]:+.4f} | {row["low"]:+.4f} … {row["high"]:+.4f} '
            f'| {"yes" if row["kept"] else "no"} | {kept} of {total} |'
        )
    return '\n'.join(lines)


def unwrapped(model: nn.Module) -> Any:
    """The model inside a DistributedDataParallel wrapper."""
    return model.module if is_model_wrapper(model) else model
