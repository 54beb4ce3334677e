"""The file ``run_record.json`` of a work dir: read with checks, written whole."""

import json
import logging
from pathlib import Path
from typing import Any

from eiclip_mm.utils.whole_file import write_whole_text

RECORD = 'run_record.json'
FORMAT, VERSION = 'eiclip_mm.run_record', 1
KINDS = dict(
    kind=str, time=str, command=list, folder=str, config=dict, seed=int, world_size=int,
    environment=dict, host=dict, variables=dict, code=dict, files=dict, photos=dict,
)  # fmt: skip


def read_record(work_dir: str | Path) -> list[dict]:
    """The starts of a work dir, in order, checked as far as they are used.

    Raises:
        FileNotFoundError: it has no record.
        ValueError: the record is damaged, no record, or of another version.
    """
    path = Path(work_dir) / RECORD
    if not path.is_file():
        raise FileNotFoundError(
            f'{path} does not exist: {work_dir} is no work dir, or its runs kept no record. '
            "Train again with dict(type='RunRecordHook') in custom_hooks."
        )
    try:
        record = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:  # also what is not UTF-8
        raise ValueError(f'{path} is damaged, it is not JSON: {error}.') from error
    if not isinstance(record, dict) or record.get('format') != FORMAT:
        raise ValueError(f'{path} is no record of runs: its format is not {FORMAT!r}.')
    if record.get('version') != VERSION:
        raise ValueError(
            f'{path} has version {record.get("version")!r}, this eiclip_mm reads {VERSION}; use '
            'the eiclip_mm that wrote it.'
        )
    starts = record.get('starts')
    if not isinstance(starts, list):
        raise ValueError(f'{path} is damaged: it has no list of starts.')
    for number, start in enumerate(starts, 1):
        if wrong := _wrong(start):
            raise ValueError(f'{path} is damaged: start {number} has no usable {wrong}.')
    return starts


def _wrong(start: Any) -> str | None:
    """What keeps a start from being used."""
    if not isinstance(start, dict) or start.get('kind') not in ('train', 'test'):
        return 'kind'
    for name, kind in KINDS.items():
        if not isinstance(start.get(name), kind):
            return name
    if not all(isinstance(start['config'].get(name), str) for name in ('file', 'sha256')):
        return 'config'
    for name in ('files', 'photos'):
        if not all(isinstance(value, dict) for value in start[name].values()):
            return name
    if start['kind'] == 'train':
        began = start.get('began')
        if not isinstance(began, dict) or not isinstance(began.get('iter'), int):
            return 'began'
    result = start.get('result')
    if not isinstance(result, dict | None):
        return 'result'
    return None if result is None or _is_result(result, start['kind']) else 'result'


def _is_result(result: dict, kind: str) -> bool:
    saved = result.get('checkpoints', [])
    return (
        isinstance(result.get('metrics'), dict)
        and isinstance(result.get('best', {}), dict)
        and isinstance(saved, list)
        and all(isinstance(c, dict) and isinstance(c.get('file'), str) for c in saved)
        and (kind == 'test' or 'checkpoints' in result)
    )


def put_start(work_dir: str | Path, start: dict, logger: logging.Logger) -> None:
    """Add a start to the record of a work dir, or put it where it stood, by its time.

    A record that cannot be read is kept under another name, and a new one begins.
    """
    path = Path(work_dir) / RECORD
    starts = []
    if path.exists():
        try:
            starts = read_record(work_dir)
        except ValueError as error:
            aside = path.with_name(f'{RECORD}.unreadable')
            path.replace(aside)
            logger.warning(f'{error} It is kept as {aside.name}; a new record begins.')
    starts = [s for s in starts if s['time'] != start['time']] + [start]
    record = dict(format=FORMAT, version=VERSION, starts=starts)
    write_whole_text(path, json.dumps(record, indent=1, ensure_ascii=False) + '\n')
