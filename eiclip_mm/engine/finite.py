"""No NaN and no infinity gets into the weights, and none into a checkpoint."""

import json
import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from mmengine.dist import all_reduce, get_rank
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from eiclip_mm.registry import HOOKS

from .hooks import unwrapped

ACTIONS = ('stop', 'skip')
IDS = ('product_id', 'sample_idx')  # of a batch, where it has them
SCALE_SEARCH = 40  # a loss scale of 65536 halved so often is below any that could help
LISTED = 5  # names in an error, of all that it could give


@dataclass
class Seen:
    """A batch whose gradients wait for their step."""

    epoch: int  # from 1, as in the log
    iter: int
    inputs: dict[str, Tensor]  # ids, and what can hold a NaN: pixels are integers
    terms: dict[str, Tensor] = field(default_factory=dict)  # of the loss, each ()

    def plain(self) -> dict:
        """For JSON, which knows no NaN: such a number is its name."""
        terms = {name: value.item() for name, value in self.terms.items()}
        line: dict[str, Any] = dict(
            epoch=self.epoch,
            iter=self.iter,
            losses={k: v if math.isfinite(v) else str(v) for k, v in terms.items()},
            **{k: self.inputs[k].tolist() for k in IDS if k in self.inputs},
        )
        for name, rows in self.inputs.items():
            wrong = ~rows.isfinite().flatten(1).all(1) if rows.ndim > 1 else ~rows.isfinite()
            if wrong.any():  # the places in the lists of ids
                line.setdefault('not_finite', {})[name] = wrong.nonzero().flatten().tolist()
        return line


@HOOKS.register_module()
class NonFiniteHook(Hook):
    """Look at losses and gradients before each step of the optimiser; stop, or leave it out.

    Gradients are looked at as the step would take them: unscaled, clipped, of all batches that
    accumulated. All processes take one decision. A step left out changes no weight, no momentum
    and no decay; what a forward changes, such as running statistics of batch norm, has seen the
    batch. The search of float16 for its loss scale, which overflows on purpose, goes
    on undisturbed while the loss itself is finite.

    Each event is a line of ``nonfinite.jsonl`` in the work dir (``nonfinite.rank1.jsonl`` and so
    on of other processes) with losses, parameters and products. Losses far above their recent
    course are written there too and logged, nothing more. A checkpoint that is not finite is
    refused, whatever made it so.

    Args:
        action: ``'stop'`` or ``'skip'``.
        max_skipped: stop all the same where so many steps in a row would be left out.
        spike: warn of a loss so many robust standard deviations (1.4826 times the median absolute
            deviation) above the median of the last ``window``; ``None`` never.
        window: steps; a tenth of them must be there before the first warning.

    Raises:
        FloatingPointError: in training; says where, what and what to try. The weights are those
            before the step.
    """

    priority = 'LOWEST'  # sees a checkpoint as it is written, after EMAHook's exchange

    def __init__(
        self,
        action: str = 'stop',
        max_skipped: int = 10,
        spike: float | None = 10.0,
        window: int = 200,
    ):
        if action not in ACTIONS:
            raise ValueError(f'action={action!r} is not known; choose one of {ACTIONS}.')
        if max_skipped < 1 or window < 10 or (spike is not None and spike <= 0):
            raise ValueError(
                'max_skipped must be at least 1, window at least 10 and spike above 0 or None, got '
                f'{max_skipped}, {window} and {spike}.'
            )
        self.action, self.max_skipped, self.spike, self.window = action, max_skipped, spike, window
        self._course: deque[float] = deque(maxlen=window)
        self._seen: list[Seen] = []
        self._skipped = self._overflowed = 0  # steps in a row

    def before_run(self, runner: Runner) -> None:
        """Know where to write, before a resumed run makes up for a validation."""
        self._runner = runner
        rank = f'.rank{get_rank()}' if get_rank() else ''
        self._file = Path(runner.work_dir) / f'nonfinite{rank}.jsonl'

    def before_train(self, runner: Runner) -> None:
        """Watch the model's losses and the optimiser's steps."""
        unwrapped(runner.model).register_forward_hook(self._after_forward, with_kwargs=True)
        runner.optim_wrapper.optimizer.register_step_pre_hook(self._before_step)

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None
    ) -> None:
        """Remember what the batch is."""
        batch = data_batch if isinstance(data_batch, dict) else {}
        inputs = {
            k: v
            for k, v in batch.items()
            if isinstance(v, Tensor) and (k in IDS or v.is_floating_point())
        }
        self._seen.append(Seen(runner.epoch + 1, runner.iter + 1, inputs))

    def _after_forward(self, model: Any, _: tuple, kwargs: dict, output: Any) -> None:
        if kwargs.get('mode') == 'loss' and self._seen:
            with torch.no_grad():
                self._seen[-1].terms = dict(model.parse_losses(output)[1])

    def _before_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        # a fused one is given scaled gradients, with what the loss scaler found in them
        overflow = getattr(optimizer, 'found_inf', None)
        if overflow is not None and overflow.item():
            return  # it leaves the step out by itself
        trained = [p for g in optimizer.param_groups for p in g['params'] if p.grad is not None]
        self._overflowed = 0
        if self._finite([p.grad for p in trained] if overflow is None else []):
            self._skipped = 0
        else:
            self._refuse(trained)
        self._seen = []

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: Any = None
    ) -> None:
        """Judge a step that float16's loss scaler left out before the optimiser saw it."""
        if not self._seen or not runner.optim_wrapper.should_update():
            return
        self._overflowed += 1
        if not self._finite([]):
            self._refuse([])
        elif self._overflowed >= SCALE_SEARCH:
            self._refuse([], always=True)
        self._seen = []

    def _finite(self, gradients: list[Tensor]) -> bool:
        """Of all processes, in one wait for the device; losses that are finite join the course."""
        values = [seen.terms['loss'].float() for seen in self._seen if 'loss' in seen.terms]
        losses = len(values)
        if gradients:
            values.append(get_total_norm(gradients).float())
        if not values:
            return True
        numbers = torch.stack(values)
        wrong = (~numbers.isfinite()).any().float()[None]
        all_reduce(wrong, 'max')
        *found, refused = torch.cat([numbers, wrong]).tolist()
        if not refused:
            for seen, loss in zip(self._seen, found[:losses], strict=False):
                self._watch(seen, loss)
        return not refused

    def _watch(self, seen: Seen, loss: float) -> None:
        """Warn where a loss leaves its recent course."""
        past = self._course
        if self.spike is not None and len(past) >= self.window / 10:
            middle = median(past)
            spread = 1.4826 * median(abs(value - middle) for value in past)
            # of a course that hardly moves, a small move is none to warn of
            limit = middle + self.spike * max(spread, 0.01 * abs(middle))
            if loss > limit:
                self._write('spike', [seen.plain()], median=middle, limit=limit)
                self._runner.logger.warning(
                    f'loss {loss:.4g} at iteration {seen.iter} is far above the last {len(past)}, '
                    f'whose median is {middle:.4g}; its products are in {self._file}'
                )
        past.append(loss)

    def _refuse(self, trained: list[nn.Parameter], always: bool = False) -> None:
        """Leave the step out, or end the run."""
        self._skipped += 1
        stop = always or self.action == 'stop' or self._skipped >= self.max_skipped
        model = unwrapped(self._runner.model)
        names = {id(p): name for name, p in model.named_parameters()}
        grads = {names.get(id(p), '?'): p.grad for p in trained if p.grad is not None}
        wrong = [name for name, grad in grads.items() if not grad.norm().isfinite()]
        batches = [seen.plain() for seen in self._seen]
        kind = 'stop' if stop else 'skip'
        self._write(kind, batches, in_a_row=self._skipped, parameters=wrong[:LISTED])
        last = batches[-1]
        what = (
            f'losses or gradients are not finite at iteration {last["iter"]} (epoch '
            f'{last["epoch"]}, rank {get_rank()}, {self._skipped} in a row): losses '
            f'{last["losses"]}, gradients of {len(wrong)} parameters, first {wrong[:LISTED]}, '
            f'products {last.get("product_id", [])[:LISTED]} and others'
        )
        if stop:
            raise FloatingPointError(f'{what}. {self._advice()}')
        self._runner.logger.warning(f'{what}. The step is left out; see {self._file}')
        for parameter in trained:
            parameter.grad = None  # the optimiser then passes it by

    def _advice(self) -> str:
        hooks = self._runner.cfg.get('custom_hooks') or ()
        types = [hook['type'] if isinstance(hook, dict) else '' for hook in hooks]
        ours = [i for i, type_ in enumerate(types) if str(type_).endswith('NonFiniteHook')]
        skip = f'--cfg-options custom_hooks.{ours[0]}.action=skip' if ours else "action='skip'"
        return (
            f'What was seen is in {self._file}. Look at its products (python '
            'tools/misc/verify_dataset.py CONFIG), set optim_wrapper.clip_grad, take bfloat16 '
            f'instead of float16, or leave single steps out ({skip}); --resume auto then goes on '
            'from the last checkpoint. A lower learning rate takes a new start in another '
            '--work-dir, since a resumed run keeps that of its checkpoint.'
        )

    def _write(self, kind: str, batches: list[dict], **more: Any) -> None:
        """One line of JSON."""
        line = dict(kind=kind, rank=get_rank(), **more, batches=batches)
        with self._file.open('a', encoding='utf-8') as file:
            file.write(json.dumps(line, allow_nan=False) + '\n')

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Refuse what no run could go on from.

        Raises:
            FloatingPointError: names the tensors.
        """
        names = (name for name, _ in unwrapped(runner.model).named_parameters())
        parameters = {name.replace('_fsdp_wrapped_module.', '') for name in names}
        parts = {k: checkpoint.get(k) for k in ('state_dict', 'ema_state_dict', 'optimizer')}
        wrong = [
            name
            for name, tensor in floats(parts)
            if tensor.isnan().any()
            # a buffer, such as a mask, may mean its infinities
            or (tensor.isinf().any() and name.split('/')[-1].removeprefix('module.') in parameters)
        ]
        if wrong:
            self._write('checkpoint', [], iter=runner.iter, tensors=wrong[:LISTED])
            raise FloatingPointError(
                f'{len(wrong)} tensors of the checkpoint after iteration {runner.iter} are not '
                f'finite, first {wrong[:LISTED]}; it is not written. {self._advice()}'
            )


def floats(value: Any, name: str = '') -> Iterator[tuple[str, Tensor]]:
    """The floating-point tensors in nested dicts and lists, with the keys that lead to them."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield name, value
    elif isinstance(value, (dict, list, tuple)):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from floats(inner, f'{name}/{key}'.removeprefix('/'))
