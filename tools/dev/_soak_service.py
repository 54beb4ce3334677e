"""The service under clients of all kinds for a long time: its memory, files, threads, answers."""

import argparse
import asyncio
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
from _soak_traffic import (
    ERROR_CASES,
    LARGE_CASES,
    MANY_CASES,
    OPEN_CASES,
    Case,
    fixed_cases,
    hang_up,
)
from _usage import Usage, trend, usage_of_family

from eiclip_mm.apis.index import CatalogueIndex
from eiclip_mm.apis.inferencer import EICLIPInferencer
from eiclip_mm.apis.search import CatalogueSearch

ROOT = Path(__file__).resolve().parents[2]
SHARES = dict(
    fixed=50, open=15, many=0.3, metrics=3, error=17, large=1, rude=14
)  # of what clients do
LATER = (503, 504)  # busy, or not in time: allowed, and counted
GROWTH = 0.05  # that counts as flat
LINE = r'[-\d]+ [\d:,]+ [A-Z]+ \S+ \d{3} [\d.]+ ms'  # of the service's log
STRANGE = 'Invalid HTTP request received.'  # uvicorn's, of bytes that are no HTTP


@dataclass
class Seen:
    """What came of the requests.

    Attributes:
        statuses: by kind of request and status; of a connection that was left, how.
        faults: what should not have come.
        times: of fixed searches, seconds since the start and seconds to the answer.
    """

    statuses: Counter = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    times: list[tuple[float, float]] = field(default_factory=list)


def run(args: argparse.Namespace) -> list[str]:
    """Start, load, watch and end the service; what went wrong."""
    cases = known_cases(args.checkpoint, args.index, args.filters)
    with tempfile.TemporaryFile('w+') as log, served(args.checkpoint, args.index, log) as service:
        process, url = service
        warm(url, cases['fixed'], args.words)
        idle, seen = usage_of_family(process.pid), Seen()
        samples = asyncio.run(soak(process.pid, url, cases, args, seen))
        time.sleep(args.every)  # what clients left is let go
        left = usage_of_family(process.pid)
        process.send_signal(signal.SIGTERM)
        code = process.wait(60)
        log.seek(0)
        others = [line for line in log.read().splitlines() if not re.fullmatch(LINE, line)]
    report(samples, idle, left, args, seen)
    return [
        *seen.faults,
        *growth(samples, args),
        *([f'{left.files} open files are left of {idle.files}'] * (left.files > idle.files + 2)),
        *([f'the service ended with {code}'] * (code != 0)),
        *(f'in its log: {line}' for line in others if STRANGE not in line),
    ]


def known_cases(checkpoint: str, index: str, filters: Sequence[str]) -> dict[str, list[Case]]:
    """By kind; the fixed ones from the library, on an index that is closed afterwards."""
    with CatalogueIndex.open(index) as opened:
        search = CatalogueSearch(EICLIPInferencer(checkpoint, 'cpu'), opened)
        fixed = fixed_cases(search, filters, filters[0].partition('=')[0])
    metrics = [Case('metrics', 'GET', '/metrics')]
    return dict(
        fixed=fixed, open=OPEN_CASES, many=MANY_CASES, metrics=metrics, error=ERROR_CASES,
        large=LARGE_CASES,
    )  # fmt: skip


@contextmanager
def served(checkpoint: str, index: str, log) -> Iterator[tuple[subprocess.Popen, str]]:
    """The service on a free port of this machine, and its address."""
    command = ['tools/deployment/serve.py', checkpoint, '--index', index, '--port', '0']
    process = subprocess.Popen(
        [sys.executable, *map(str, command), '--host', '127.0.0.1', '--threads', '1'],
        cwd=ROOT, env=dict(os.environ, PYTHONPATH=str(ROOT)),  # of this checkout
        stdout=subprocess.PIPE, stderr=log, text=True,
    )  # fmt: skip
    try:
        url = process.stdout.readline().strip().removesuffix('/docs')
        if not url:
            log.seek(0)
            raise SystemExit(f'the service did not start: {log.read()[-2000:]}')
        yield process, url
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def warm(url: str, cases: Sequence[Case], words: int) -> None:
    """Each fixed request once, and many words, so that it holds all it ever remembers.

    A tokenizer remembers 65,536 words, then starts over: growth for hours, and no leak.
    """
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as http:
        for case in cases:
            http.request(case.method, case.path, **case.options).raise_for_status()
        for start in range(0, words, 1000):
            text = ' '.join(f'{number:x}' for number in range(start, min(words, start + 1000)))
            http.post('/embed', json=dict(queries=[text])).raise_for_status()
    time.sleep(1)


async def soak(
    pid: int, url: str, cases: dict[str, list[Case]], args: argparse.Namespace, seen: Seen
) -> list[tuple[float, Usage]]:
    """Clients till the end; (seconds since the start, usage) every so often."""
    began = time.monotonic()
    end, samples = began + 60 * args.minutes, []
    clients = [
        asyncio.create_task(client(number, url, cases, began, end, args, seen))
        for number in range(args.clients)
    ]
    while time.monotonic() < end:
        await asyncio.sleep(args.every)
        samples.append((time.monotonic() - began, usage_of_family(pid)))
        print(f'{samples[-1][0]:.0f} s: {samples[-1][1]}', file=sys.stderr)
    await asyncio.gather(*clients)
    return samples


async def client(
    number: int,
    url: str,
    cases: dict,
    began: float,
    end: float,
    args: argparse.Namespace,
    seen: Seen,
) -> None:
    """One client: half of its requests leave their connection open for the next."""
    draw, pause = random.Random(number), args.clients / args.rate
    async with httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as http:
        while time.monotonic() < end:
            await asyncio.sleep(draw.uniform(0, 2 * pause))
            [kind] = draw.choices(list(SHARES), SHARES.values())
            try:
                if kind == 'rude':
                    seen.statuses['left', await hang_up(url, draw)] += 1
                else:
                    await ask(http, draw.choice(cases[kind]), draw, began, seen)
            except (httpx.TransportError, OSError) as error:
                if kind == 'large':  # answered and closed while the body still comes
                    seen.statuses['error', 'cut'] += 1
                else:
                    seen.faults.append(f'{kind}: {error!r}')


async def ask(
    http: httpx.AsyncClient, case: Case, draw: random.Random, began: float, seen: Seen
) -> None:
    """Send a request and look at the answer."""
    options = case.options(draw) if isinstance(case.options, Callable) else case.options
    headers = {'Connection': 'close'} if draw.random() < 0.5 else {}
    if 'content' in options and case.path == '/search':
        headers['Content-Type'] = 'application/json'
    start = time.monotonic()
    answer = await http.request(case.method, case.path, headers=headers, **options)
    now = time.monotonic()
    seen.statuses[case.kind, answer.status_code] += 1
    if answer.status_code in LATER:
        return
    if case.kind in ('query', 'filtered'):
        seen.times.append((now - began, now - start))
    is_json = answer.headers['content-type'] == 'application/json'
    wrong = f'status {answer.status_code} is not {case.status}'
    if answer.status_code == case.status:
        wrong = case.wrong(answer.json()) if is_json else ''
    if wrong:
        seen.faults.append(f'{case.method} {case.path} ({case.kind}): {wrong}')


def growth(samples: Sequence[tuple[float, Usage]], args: argparse.Namespace) -> list[str]:
    """What has grown by more than :data:`GROWTH` since the warm-up."""
    after = [(t, usage) for t, usage in samples if t >= 60 * args.warm_up]
    found = {name: trend_of(after, name) for name in ('rss', 'uss', 'files', 'threads')}
    return [
        f'{name} grew from {t.first:.1f} to {t.last:.1f}'
        for name, t in found.items()
        if t.last > t.first * (1 + GROWTH)
    ]


def trend_of(samples: Sequence[tuple[float, Usage]], name: str):
    """Of one attribute of :class:`Usage`."""
    return trend([t for t, _ in samples], [getattr(usage, name) for _, usage in samples])


def report(
    samples: Sequence[tuple[float, Usage]],
    idle: Usage,
    left: Usage,
    args: argparse.Namespace,
    seen: Seen,
) -> None:
    """Print what was seen."""
    after = [(t, usage) for t, usage in samples if t >= 60 * args.warm_up]
    print(
        f'{args.minutes:g} min, {args.clients} clients, {seen.statuses.total():,} requests, '
        f'{len(seen.faults)} wrong; usage every {args.every:g} s after {args.warm_up:g} min\n'
    )
    print('| | idle before | first fifth | last fifth | change | an hour | idle after |')
    print('|---|--:|--:|--:|--:|--:|--:|')
    for name in ('rss', 'pss', 'uss', 'files', 'threads', 'processes'):
        t, ends = trend_of(after, name), [getattr(usage, name) for usage in (idle, left)]
        form = '.1f' if name.endswith('ss') else '.0f'
        print(
            f'| {name} | {ends[0]:{form}} | {t.first:{form}} | {t.last:{form}} | {t.change:+.2%} '
            f'| {t.per_hour:+.2f} | {ends[1]:{form}} |'
        )
    print('\n| fixed searches | answers | p50 ms | p99 ms |\n|---|--:|--:|--:|')
    times = [pair for pair in seen.times if pair[0] >= 60 * args.warm_up]
    fifth = max(1, len(times) // 5)
    for name, part in (('first fifth', times[:fifth]), ('last fifth', times[-fifth:])):
        p50, p99 = 1000 * np.quantile([s for _, s in part] or [np.nan], (0.5, 0.99))
        print(f'| {name} | {len(part)} | {p50:.0f} | {p99:.0f} |')
    print('\n| kind | answers |\n|---|---|')
    for kind in dict.fromkeys(kind for kind, _ in sorted(seen.statuses, key=str)):
        own = {str(s): n for (k, s), n in seen.statuses.items() if k == kind}
        print(f'| {kind} | {", ".join(f"{s}: {n}" for s, n in sorted(own.items()))} |')
