"""What shoppers, programs and rude strangers send to a service, and what must come back."""

import asyncio
import base64
import io
import json
import random
import socket
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from eiclip_mm.apis.index import Hit, parse_filters
from eiclip_mm.apis.search import CatalogueSearch

NEAR = 1e-4  # by which a cosine may differ with what it was batched with
LARGE = 2**23 + 1  # bytes; the service takes 2**23
WORDS = [
    'red', 'blue', 'cotton', 'silk', 'dress', 'shirt', 'golden', 'goose', 'diesel', 'scarf',
    'jeans', 'puma', 'black', 'wool',
]  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A request, and what must come of it.

    Attributes:
        kind: what it is counted as.
        method, path, options: of httpx; ``options`` may be a function that makes them.
        status: of the answer.
        wrong: what is wrong with the JSON of the answer; '' if nothing.
    """

    kind: str
    method: str
    path: str
    options: dict | Callable[[random.Random], dict] = field(default_factory=dict)
    status: int = 200
    wrong: Callable[[Any], str] = lambda found: ''


def photo(seed: int) -> bytes:
    """A JPEG of 240 x 320 pixels, other ones for each seed."""
    coarse = np.random.default_rng(seed).integers(256, size=(8, 6, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((240, 320), Image.Resampling.BICUBIC).save(file, 'JPEG')
    return file.getvalue()


def fixed_cases(search: CatalogueSearch, filters: Sequence[str], field: str) -> list[Case]:
    """Requests whose answers are known: the library gives them, without a service.

    Args:
        search: of the same checkpoint and index.
        filters: conditions to search under, one at a time.
        field: whose values are counted.
    """
    cases = []
    for i, word in enumerate(WORDS):
        query = f'{word} {WORDS[(3 * i + 1) % len(WORDS)]}'
        asked = dict(query=query, k=5, side=('image', 'product')[i % 2])
        hits = search.text(query, k=50, side=asked['side']).hits
        cases.append(_search('query', asked, hits))
        where = filters[i % len(filters)]
        hits = search.text(query, k=50, where=parse_filters([where])).hits
        cases.append(_search('filtered', dict(query=query, k=5, filters=[where]), hits))
    for seed in range(6):
        hits, file = search.photo(photo(seed), k=50).hits, base64.b64encode(photo(seed)).decode()
        cases.append(_search('photo', dict(photo=file, k=5), hits))
    vectors = search.encoder.encode_queries(WORDS, output='numpy', progress=False)
    products, counts = len(search.index), {field: search.index.facets(field)}
    return [
        *cases,
        Case('embed', 'POST', '/embed', dict(json=dict(queries=WORDS)), 200, _embeds(vectors)),
        Case('facets', 'GET', f'/facets?field={field}', wrong=_equals(counts)),
        Case('health', 'GET', '/health', wrong=lambda found: _differ(found['products'], products)),
    ]


def _search(kind: str, asked: dict, expected: Sequence[Hit]) -> Case:
    scores = {hit.id: hit.score for hit in expected}

    def wrong(found: dict) -> str:
        hits = [(hit['id'], hit['score']) for hit in found['hits']]
        own = [scores.get(id_, 9.0) for id_, _ in hits]
        best = sorted(scores.values(), reverse=True)[: asked['k']]
        # near ties may change places; so each id has its own score, and these are the best
        if len(hits) == len(best) and np.allclose([s for _, s in hits], own, atol=NEAR):
            return '' if np.allclose(own, best, atol=NEAR) else f'not the best: {hits}'
        return f'{hits} of {list(scores.items())[:5]}'

    return Case(kind, 'POST', '/search', dict(json=asked), 200, wrong)


def _embeds(vectors: np.ndarray) -> Callable[[dict], str]:
    return lambda found: (
        '' if np.allclose(found['embeddings'], vectors, atol=NEAR) else 'other vectors'
    )


def _equals(expected: object) -> Callable[[Any], str]:
    return lambda found: _differ(found, expected)


def _differ(found: object, expected: object) -> str:
    return '' if found == expected else f'{found} is not {expected}'


def _fresh(draw: random.Random) -> dict:
    """A query that nobody has asked before, so that nothing remembered hides growth."""
    return dict(json=dict(query=f'{draw.choice(WORDS)} {draw.getrandbits(64):x}', k=3))


def _fresh_photo(draw: random.Random) -> dict:
    return dict(json=dict(photo=base64.b64encode(photo(draw.getrandbits(32))).decode(), k=3))


def _in_parts(draw: random.Random) -> dict:
    """A body whose length no header tells."""

    async def parts() -> AsyncIterator[bytes]:
        for _ in range(9):
            yield bytes(2**20)

    return dict(content=parts())


def _refused(code: str) -> Callable[[dict], str]:
    return lambda found: _differ(found['error']['code'], code)


def _bad(path: str, status: int, code: str, **options: Any) -> Case:
    return Case('error', 'POST', path, options, status, _refused(code))


OPEN_CASES = [
    Case('fresh', 'POST', '/search', _fresh),
    Case('fresh', 'POST', '/search', _fresh_photo),
]
MANY_CASES = [
    Case(
        'many', 'POST', '/embed', lambda draw: dict(json=dict(queries=WORDS * draw.randint(9, 18)))
    )
]
ERROR_CASES = [
    _bad('/search', 422, 'invalid', content=b'{"query": '),
    _bad('/search', 422, 'invalid', json=dict(quary='shoes')),
    _bad('/search', 422, 'invalid', json=dict(query=' ')),
    _bad('/search', 422, 'invalid', json=dict(query='a' * 300)),
    _bad('/search', 422, 'invalid', json=dict(query='a', filters=['nothing=1'])),
    _bad('/search', 422, 'invalid', json=dict(photo=base64.b64encode(b'no photo').decode())),
    _bad('/search', 422, 'invalid', json=dict(photo=base64.b64encode(photo(0)[:900]).decode())),
    _bad('/embed', 422, 'invalid', json=dict(queries=['a'] * 257)),
    _bad('/health', 405, 'method_not_allowed'),
    Case(
        'error', 'GET', '/nowhere', lambda draw: dict(params=dict(q=draw.getrandbits(64))), 404,
        _refused('not_found'),
    ),
]  # fmt: skip
LARGE_CASES = [
    _bad('/embed', 413, 'too_large', content=bytes(LARGE)),
    Case('error', 'POST', '/embed', _in_parts, 413, _refused('too_large')),
]


async def hang_up(url: str, draw: random.Random) -> str:
    """Open a connection and leave it rudely; what was done."""
    parts = urlsplit(url)
    how = draw.choice(['silent', 'half a head', 'half a body', 'no wait', 'reset', 'garbage'])
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    body = json.dumps(dict(query=f'shoes {draw.getrandbits(64)}')).encode()
    head = f'POST /search HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n'.encode()
    whole = head + b'Content-Type: application/json\r\n\r\n' + body
    sent = dict(silent=b'', garbage=bytes(range(256)) + b'\r\n\r\n')
    sent |= {'half a head': head, 'half a body': whole[:-5]}
    try:
        writer.write(sent.get(how, whole))
        await writer.drain()
        if how == 'garbage':
            await reader.read(1000)
        elif how != 'no wait':
            long = draw.random() < 0.02  # longer than the service waits
            await asyncio.sleep(12 if long else draw.uniform(0, 0.05))
        if how == 'reset':
            linger = struct.pack('ii', 1, 0)
            writer.get_extra_info('socket').setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    finally:
        writer.close()
    return how
