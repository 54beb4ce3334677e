"""What a recorded run was made from beside what there is now, for reproduce.py."""

from collections.abc import Mapping
from typing import Any

from mmengine.config import Config
from mmengine.registry import init_default_scope

from eiclip_mm.datasets.photo_check import records_alone
from eiclip_mm.engine.run_record import state_of
from eiclip_mm.registry import DATASETS

NOT_SETTINGS = ('resume', 'load_from', 'work_dir', 'launcher')  # how it is run, not what
TIMES = ('times', 'modified')  # of photos and files: copying changes them
KINDS = dict(environment='package', host='machine', variables='machine')


def state_now(cfg: Config) -> dict:
    """What a training with this config would be made from; see ``eiclip_mm.engine.run_record``.

    Raises:
        SystemExit: a data set cannot be read, as where data were moved.
    """
    init_default_scope(cfg.get('default_scope') or 'eiclip_mm')
    datasets = {}
    for split in ('train', 'val'):
        if not cfg.get(f'{split}_dataloader'):
            continue
        try:
            datasets[split] = DATASETS.build(records_alone(cfg[f'{split}_dataloader'].dataset))
        except (OSError, ValueError, KeyError) as error:
            raise SystemExit(
                f'The data of {split} cannot be read: {error} If they were moved, put them, or a '
                'link, where the config names them; run this in the folder the training ran in.'
            ) from error
    return state_of(cfg, datasets)


def difference_of(before: Mapping, after: Mapping) -> list[tuple[str, str, str, str]]:
    """What differs between two starts, as kind, what, before, after; kind ``data`` decides.

    Kind ``time`` is of data whose names, sizes and hashes are equal, as after copying.
    """
    rows = _data(before['files'], after['files'], _file)
    for kind, split, old, new in _data(before['photos'], after['photos'], _photos):
        rows.append((kind, f'photos of {split}', old, new))
    if before['code'].get('sha256') != after['code'].get('sha256'):
        rows.append(('code', 'eiclip_mm', _code(before['code']), _code(after['code'])))
    for part, kind in KINDS.items():
        rows += [(kind, *row) for row in _differing(before[part], after[part], str)]
    if 'world_size' in after and before['world_size'] != after['world_size']:
        rows.append(('machine', 'processes', before['world_size'], after['world_size']))
    return rows


def settings_of(before: Config, after: Config) -> list[tuple[str, str, str, str]]:
    """Settings in which two configs differ."""
    flat = [
        dict(_flat({k: v for k, v in cfg.to_dict().items() if k not in NOT_SETTINGS}))
        for cfg in (before, after)
    ]
    return [('setting', *row) for row in _differing(*flat, repr)]


def _differing(before: Mapping, after: Mapping, show: Any) -> list[tuple[str, str, str]]:
    missing = object()
    rows = []
    for name in dict.fromkeys((*before, *after)):
        old, new = before.get(name, missing), after.get(name, missing)
        if old != new:
            rows.append((name, *('not there' if v is missing else show(v) for v in (old, new))))
    return rows


def _data(before: Mapping, after: Mapping, show: Any) -> list[tuple[str, str, str, str]]:
    rows = []
    for name, old, new in _differing(before, after, show):
        states = [
            {k: v for k, v in part[name].items() if k not in TIMES} if name in part else None
            for part in (before, after)
        ]
        rows.append(('time' if states[0] == states[1] else 'data', name, old, new))
    return rows


def _flat(value: Any, name: str = '') -> list[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        return [row for k, v in value.items() for row in _flat(v, f'{name}.{k}' if name else k)]
    if isinstance(value, list | tuple) and value:
        return [row for i, v in enumerate(value) for row in _flat(v, f'{name}.{i}')]
    return [(name, value)]


def _file(state: Mapping) -> str:
    text = f'{state.get("size")} bytes, {str(state.get("sha256"))[:12]}'
    return text + (f', time {state["modified"]}' if 'modified' in state else '')


def _photos(state: Mapping) -> str:
    return (
        f'{state.get("count")} files, {state.get("bytes")} bytes, '
        f'names and sizes {str(state.get("names_and_sizes"))[:12]}, '
        f'times {str(state.get("times"))[:12]}'
    )


def _code(state: Mapping) -> str:
    commit = state.get('commit')
    where = f', commit {str(commit)[:12]}{" changed" if state.get("changed") else ""}'
    return f'{state.get("version")}, {str(state.get("sha256"))[:12]}' + (where if commit else '')
