"""Load a running service: python tools/deployment/load_test.py http://127.0.0.1:8000

Each client sends a request when it has the answer to its last one. Only a service on this machine
is loaded. Prints Markdown; exits with 1 where a request that was sent was not answered.
"""

import argparse
import asyncio
import base64
import io
import ipaddress
import math
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

try:
    import httpx
except ImportError as error:
    raise SystemExit(
        "httpx is not installed; this tool needs pip install 'eiclip_mm[dev]'."
    ) from error

KINDS = ('search', 'embed-query', 'embed-photo')
MOST_CLIENTS, MOST_SECONDS = 256, 120
COLOURS = ('brown', 'red', 'navy blue', 'black', 'white', 'green', 'grey', 'pink')
THINGS = ('sneakers', 'cotton shirt', 'leather handbag', 'sports watch', 'silk scarf', 'jeans')


@dataclass
class Count:
    """What came of the requests of some clients.

    Attributes:
        seconds: to each answer.
        answers: by status.
        refused: connections that were not made.
        cut: requests that were sent and whose connection closed without an answer.
    """

    seconds: list[float] = field(default_factory=list)
    answers: Counter = field(default_factory=Counter)
    refused: int = 0
    cut: int = 0


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('url', help='where the service listens, on this machine')
    add('--clients', type=int, nargs='+', default=[1, 8, 64], help='at a time, one row for each')
    add('--seconds', type=float, default=10, help='for each row')
    add('--kind', choices=KINDS, default='search', help='what is asked')
    args = parser.parse_args(argv)
    args.url = args.url.rstrip('/')
    if not is_local(args.url):
        parser.error(f'{args.url} is not on this machine; only http://127.0.0.1:PORT is loaded')
    if not all(1 <= n <= MOST_CLIENTS for n in args.clients):
        parser.error(f'--clients must be 1 to {MOST_CLIENTS}, got {args.clients}')
    if not 0 < args.seconds <= MOST_SECONDS:
        parser.error(f'--seconds must be up to {MOST_SECONDS}, got {args.seconds:g}')
    return args


def is_local(url: str) -> bool:
    """Whether a URL is http on a loopback address."""
    parts = urlsplit(url)
    if parts.hostname == 'localhost':
        return parts.scheme == 'http'
    try:
        return parts.scheme == 'http' and ipaddress.ip_address(parts.hostname or '').is_loopback
    except ValueError:
        return False


def main(argv: Sequence[str] | None = None) -> None:
    """One row for each number of clients."""
    args = parse_args(argv)
    print(f'{args.kind}, {args.seconds:g} s a row\n')
    print(
        '| clients | answered | a second | p50 ms | p99 ms | CPU ms a request | by status '
        '| refused | cut |'
    )
    print('|--:|--:|--:|--:|--:|--:|---|--:|--:|')
    lost = 0
    for clients in args.clients:
        before = cpu_seconds(args.url)
        count, seconds = asyncio.run(load(args.url, args.kind, clients, args.seconds))
        print(row(clients, count, seconds, cpu_seconds(args.url) - before), flush=True)
        lost += count.cut
    print(f'\n{lost or "no"} request(s) sent and not answered')
    raise SystemExit(int(lost > 0))


def cpu_seconds(url: str) -> float:
    """CPU time that the service has taken so far; NaN where it does not say, or is gone."""
    try:
        metrics = httpx.get(f'{url}/metrics', timeout=60, trust_env=False).text
    except httpx.TransportError:
        return math.nan
    found = re.search(r'^process_cpu_seconds_total (\S+)', metrics, re.MULTILINE)
    return float(found[1]) if found else math.nan


def row(clients: int, count: Count, seconds: float, cpu: float) -> str:
    """A row of the table; ``cpu``: seconds of the service."""
    n = len(count.seconds)
    p50, p99 = 1000 * np.quantile(count.seconds, (0.5, 0.99)) if n else (math.nan, math.nan)
    status = ', '.join(f'{status}: {n}' for status, n in sorted(count.answers.items()))
    return (
        f'| {clients} | {n} | {n / seconds:.1f} | {p50:.0f} | {p99:.0f} '
        f'| {1000 * cpu / max(n, 1):.1f} | {status} | {count.refused} | {count.cut} |'
    )


async def load(url: str, kind: str, clients: int, seconds: float) -> tuple[Count, float]:
    """What came of it, and how long it took till the last answer."""
    count, began = Count(), time.perf_counter()
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=60, trust_env=False) as http:
        end = began + seconds
        await asyncio.gather(*(ask(http, kind, i, end, count) for i in range(clients)))
    return count, time.perf_counter() - began


async def ask(http: httpx.AsyncClient, kind: str, number: int, end: float, count: Count) -> None:
    """One client: ask till the end, or till nobody listens."""
    path = '/search' if kind == 'search' else '/embed'
    requests = bodies(kind, number)
    while time.perf_counter() < end:
        began = time.perf_counter()
        try:
            answer = await http.post(path, json=next(requests))
        except (httpx.ConnectError, httpx.ConnectTimeout):
            count.refused += 1
            return
        except httpx.TransportError:
            count.cut += 1
            return
        count.seconds.append(time.perf_counter() - began)
        count.answers[answer.status_code] += 1


def bodies(kind: str, number: int) -> Iterator[dict]:
    """Requests of a client, other ones for each; they repeat, the service remembers none."""
    draw = np.random.default_rng(number)
    photos = [photo(draw) for _ in range(4)] if kind == 'embed-photo' else []
    while True:
        if photos:
            yield dict(photos=[photos[draw.integers(len(photos))]])
            continue
        query = f'{draw.choice(COLOURS)} {draw.choice(THINGS)} size {draw.integers(1, 60)}'
        yield dict(query=query) if kind == 'search' else dict(queries=[query])


def photo(draw: np.random.Generator, width: int = 240, height: int = 320) -> str:
    """A soft random picture, as base64 of a JPEG."""
    coarse = Image.fromarray(draw.integers(256, size=(8, 6, 3), dtype=np.uint8))
    file = io.BytesIO()
    coarse.resize((width, height), Image.Resampling.BICUBIC).save(file, 'JPEG')
    return base64.b64encode(file.getvalue()).decode()


if __name__ == '__main__':
    main()
