"""Two trainings side by side: metrics, losses, weights, and a verdict, for reproduce.py."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch

from eiclip_mm.engine.fingerprints import weights_sha256


@dataclass
class Comparison:
    """What two trainings left.

    Attributes:
        metrics: of the last validation and the best scores; both values of each.
        losses: as logged last in each epoch; both values of each.
        weights: a row for each checkpoint: file, number of tensors, how many differ, largest
            difference, and the same relative to the tensor's largest value; the numbers are
            ``None`` where a file is gone, whether tensors differ is known then all the same.
    """

    metrics: dict[str, tuple[float | None, float | None]]
    losses: dict[int, tuple[float | None, float | None]]
    weights: list[tuple[str, int | None, int | bool, float | None, float | None]] = field(
        default_factory=list
    )

    @property
    def identical(self) -> bool:
        """Metrics and weights, to the bit.

        Losses are not asked: the log has means over the latest steps, and after a resume over
        fewer of them.
        """
        same = all(_relative(*pair) == 0 for pair in self.metrics.values())
        return same and bool(self.weights) and not any(row[2] for row in self.weights)

    @property
    def largest(self) -> float:
        """Largest relative difference of a metric, loss or weight; 0 where identical."""
        if self.identical:
            return 0.0
        pairs = [*self.metrics.values(), *self.losses.values()]
        weights = [row[4] if row[4] is not None else float(row[2] > 0) for row in self.weights]
        return max([_relative(*pair) for pair in pairs] + weights, default=math.inf)

    @property
    def verdict(self) -> str:
        """In words."""
        if self.identical:
            return 'identical'
        digits = -math.log10(self.largest) if self.largest else 15
        return f'equal to {int(digits)} digits' if digits >= 1 else 'differs'


def of_training(starts: Sequence[dict]) -> list[dict]:
    """Those of the latest training: from its beginning on, without starts that found it ended.

    One with no step left belongs to it where the start before was killed behind the last step.
    """
    trained = []
    for start in starts:
        if start['kind'] != 'train':
            continue
        began, ended = start['began']['iter'], (start.get('result') or {}).get('iter')
        if began == 0:
            trained = []
        killed = bool(trained) and trained[-1].get('result') is None
        if began == 0 or began != ended or killed:
            trained.append(start)
    return trained


def compare(a_dir: Path, a: Sequence[dict], b_dir: Path, b: Sequence[dict]) -> Comparison:
    """Two trainings, by their work dirs and starts."""
    results = [starts[-1]['result'] for starts in (a, b)]
    metrics = [_metrics(r, *run) for r, run in zip(results, ((a_dir, a), (b_dir, b)), strict=True)]
    saved = [{str(c.get('role')): c for c in result['checkpoints']} for result in results]
    return Comparison(
        _paired(*metrics),
        _paired(_losses(a_dir, a), _losses(b_dir, b)),
        [
            _weights(role, a_dir, saved[0].get(role), b_dir, saved[1].get(role))
            for role in sorted({*saved[0], *saved[1]})
        ],
    )


def report(found: Comparison, tolerance: float) -> bool:
    """Print it; whether it is identical, or within the tolerance."""
    print('\n| metric | recorded | again | relative difference |\n|---|--:|--:|--:|')
    for name, pair in found.metrics.items():
        print(f'| {name} | {_shown(pair[0])} | {_shown(pair[1])} | {_relative(*pair):.2g} |')
    print('\n| epoch | loss recorded | again | relative difference |\n|--:|--:|--:|--:|')
    for epoch, pair in sorted(found.losses.items()):
        print(f'| {epoch} | {_shown(pair[0])} | {_shown(pair[1])} | {_relative(*pair):.2g} |')
    if found.identical and any(_relative(*pair) for pair in found.losses.values()):
        print('\nThe log has means over the latest steps, after a resume over fewer of them.')
    print('\n| weights | tensors | differ | largest difference | relative |')
    print('|---|--:|--:|--:|--:|')
    for file, tensors, differ, largest, relative in found.weights:
        print(f'| {file} | {_shown(tensors)} | {differ} | {_shown(largest)} | {_shown(relative)} |')
    print(f'\nVerdict: {found.verdict}')
    return found.identical or found.largest <= tolerance


def _metrics(result: Mapping, work_dir: Path, starts: Sequence[dict]) -> dict:
    best = {f'best: {name}': value for name, value in result.get('best', {}).items()}
    metrics = result['metrics']
    if not metrics:  # the last start had no step left, and nothing to validate
        validations = [row for row in _logged(work_dir, starts) if 'loss' not in row]
        last = validations[-1] if validations else {}
        metrics = {k: v for k, v in last.items() if k not in ('step', 'time', 'data_time')}
    return {k: v for k, v in (metrics | best).items() if isinstance(v, int | float)}


def _losses(work_dir: Path, starts: Sequence[dict]) -> dict[int, float]:
    """The loss logged last in each epoch; where steps were trained twice, the later one."""
    rows = (row for row in _logged(work_dir, starts) if 'loss' in row)
    return {row.get('epoch', row.get('step')): row['loss'] for row in rows}


def _logged(work_dir: Path, starts: Sequence[dict]) -> Iterator[dict]:
    """What was logged of steps and validations, in order."""
    for start in starts:
        log = work_dir / Path(start['folder']).name / 'vis_data' / 'scalars.json'
        for line in log.read_text(encoding='utf-8').splitlines() if log.is_file() else ():
            with suppress(ValueError):  # the line at which it was killed
                yield json.loads(line)


def _weights(role: str, a_dir: Path, a: dict | None, b_dir: Path, b: dict | None) -> tuple:
    """A row of :class:`Comparison`."""
    if a is None or b is None:
        return f'{role}, of one training alone', None, True, None, None
    name = Path(a['file']).name
    if a['file'] != b['file']:
        name = f'{name} and {Path(b["file"]).name}'
    states = [_state(a_dir, a), _state(b_dir, b)]
    if None in states:  # compared by what was recorded
        known = a.get('weights') is not None and a.get('weights') == b.get('weights')
        return name, None, not known, None, None
    first, second = states
    if first.keys() != second.keys():
        return f'{name}, of other tensors', len({*first, *second}), True, None, None
    differ, largest, relative = 0, 0.0, 0.0
    for key, old in first.items():
        new = second[key]
        if old.shape != new.shape or old.dtype != new.dtype:
            return f'{name}, {key} of other shape or type', len(first), True, None, None
        if weights_sha256({key: old}) == weights_sha256({key: new}):
            continue
        differ += 1
        step = float((old.double() - new.double()).abs().max())
        size = max(float(t.double().abs().max()) for t in (old, new))
        largest, relative = max(largest, step), max(relative, step / size if size else 0.0)
    return name, len(first), differ, largest, relative


def _state(work_dir: Path, saved: Mapping) -> dict[str, torch.Tensor] | None:
    """The weights of a checkpoint; ``None`` where it is gone or holds other weights by now."""
    path = work_dir / Path(saved['file']).name
    if not path.is_file() or saved.get('weights') is None:
        return None
    try:
        state = torch.load(path, map_location='cpu', weights_only=True, mmap=True)['state_dict']
    except Exception as error:  # torch raises many kinds, depending on where the damage is
        raise SystemExit(f'{path} cannot be read: {error!r}') from error
    state = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    if weights_sha256(state) != saved['weights']:
        print(f'{path} holds other weights than the training left; compared by the record.')
        return None
    return state


def _paired(a: Mapping, b: Mapping) -> dict:
    return {name: (a.get(name), b.get(name)) for name in dict.fromkeys((*a, *b))}


def _relative(a: float | None, b: float | None) -> float:
    """|a − b| over the larger magnitude; of numbers that one lacks, infinite."""
    if a is None or b is None or math.isnan(a) != math.isnan(b):
        return math.inf
    if a == b or math.isnan(a):
        return 0.0
    return abs(a - b) / max(abs(a), abs(b))


def _shown(value: float | None) -> str:
    return '–' if value is None else f'{value:.6g}'
