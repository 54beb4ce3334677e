"""The search as a web service: concurrent requests, encoded together."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Annotated, Any

try:
    from fastapi import FastAPI, HTTPException, Query, Response
    from prometheus_client import (
        CONTENT_TYPE_LATEST,
        CollectorRegistry,
        ProcessCollector,
        generate_latest,
    )
except ImportError as error:
    raise ImportError(
        f"{error.name} is not installed; the service needs pip install 'eiclip_mm[serve]'."
    ) from error

from eiclip_mm.version import __version__

from .encoder import Encoder
from .gate import Gate, answer_errors_as_json
from .index import Condition, Hit, parse_filters
from .messages import (
    EmbedRequest,
    EmbedResponse,
    ErrorResponse,
    Filter,
    HealthResponse,
    Limits,
    SearchRequest,
    SearchResponse,
)
from .search import CatalogueSearch
from .shared_encoder import SharedEncoder

__all__ = ['Limits', 'create_app']

REASONS = {
    413: 'the body is too large',
    422: 'not what can be answered; the message says why',
    429: 'one address asks too often; Retry-After says when to ask again',
    500: 'our fault; the log says where',
    503: 'the queue is full; Retry-After says when to ask again',
    504: 'no answer in time',
}
ERRORS: dict[int | str, dict[str, Any]] = {
    status: dict(model=ErrorResponse, description=text) for status, text in REASONS.items()
}
DEFAULT = Limits()


def create_app(
    search: CatalogueSearch | None, encoder: Encoder, limits: Limits = DEFAULT
) -> FastAPI:
    """The service, as an ASGI application; ``/docs`` of it describes what it answers.

    Args:
        search: what ``/search`` and ``/facets`` ask; without it there are none. It stays open.
        encoder: embeds, on one thread for photos and one for texts.
        limits: of a request and of all together.
    """
    registry = CollectorRegistry()  # its own, so that a process may have two
    ProcessCollector(registry=registry)
    # of the index alone: /health must not wait for photos that are decoded
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    shared = SharedEncoder(encoder, limits, registry)

    @asynccontextmanager
    async def running(app: FastAPI) -> AsyncIterator[None]:
        shared.start()
        yield
        await shared.stop()

    app = FastAPI(
        title='EI-CLIP', version=__version__, summary='Products by text or photo.', lifespan=running
    )
    app.add_middleware(Gate, limits=limits, registry=registry)
    answer_errors_as_json(app)
    _add_embedding(app, shared)
    if search is not None:
        _add_search(app, search, shared, pool)

    @app.get('/health', responses={500: ERRORS[500]})
    async def health() -> HealthResponse:
        """What runs."""
        products = None if search is None else await _asked(pool, len, search.index)
        return HealthResponse(
            ok=True, model=encoder.name, dim=encoder.dim, products=products, version=__version__
        )

    @app.get('/metrics', response_class=Response)
    async def metrics() -> Response:
        """Counts, for Prometheus."""
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return app


def _add_embedding(app: FastAPI, shared: SharedEncoder) -> None:
    @app.post('/embed', responses=ERRORS)
    async def embed(asked: EmbedRequest) -> EmbedResponse:
        """Unit vectors of photos, products or queries."""
        kind, items = next((kind, items) for kind, items in asked if items is not None)
        most = shared.limits.max_items
        if not 1 <= len(items) <= most:
            raise HTTPException(422, f'{kind} must be 1 to {most} items, got {len(items)}.')
        if kind == 'photos':
            rows = await shared.photos(items)
        else:
            rows = [row for row, _ in await shared.texts(items, kind + '[{}]')]
        encoder, vectors = shared.encoder, [row.tolist() for row in rows]
        return EmbedResponse(embeddings=vectors, dim=encoder.dim, model=encoder.name)


def _add_search(
    app: FastAPI, search: CatalogueSearch, shared: SharedEncoder, pool: ThreadPoolExecutor
) -> None:
    @app.post('/search', responses=ERRORS)
    async def search_(asked: SearchRequest) -> SearchResponse:
        """Products that fit a query or look like a photo, best first."""
        began = time.perf_counter()
        where, reading = _conditions(asked.filters), None
        if asked.photo is not None:
            [vector] = await shared.photos([asked.photo], 'photo')
        else:
            query = asked.query or ''  # one of the two is there
            [(vector, reading)] = await shared.texts([query], 'query', asked.entities)
        hits = await _asked(pool, search.index.search, vector, asked.side, asked.k, where)
        return SearchResponse.model_validate(
            dict(
                reading=reading and reading.to_dict(),
                hits=[_public(hit) for hit in hits],
                took_ms=1000 * (time.perf_counter() - began),
            )
        )

    @app.get('/facets', responses=ERRORS)
    async def facets(
        field: Annotated[str, Query(max_length=200, examples=['brand'])],
        filters: Annotated[
            list[Filter] | None, Query(alias='filter', max_length=32, examples=[['price<=100']])
        ] = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 20,
    ) -> dict[str, dict[str, int]]:
        """How many products have each value of a field, most frequent first."""
        where = _conditions(filters or ())
        return {field: await _asked(pool, search.index.facets, field, where, limit)}


def _public(hit: Hit) -> dict:
    """A hit without what is the shop's own business: where its files lie."""
    own = {key: value for key, value in hit.payload.items() if key != 'digest'}
    return dict(id=hit.id, score=hit.score, payload=own | dict(photo=bool(own.get('photo'))))


def _conditions(filters: Sequence[str]) -> list[Condition]:
    try:
        return parse_filters(filters)
    except ValueError as error:
        raise HTTPException(422, str(error)) from error


async def _asked(pool: ThreadPoolExecutor, function: Callable, *args: object) -> Any:
    """What the index says, on a thread."""
    try:
        return await asyncio.get_running_loop().run_in_executor(pool, function, *args)
    except ValueError as error:
        raise HTTPException(422, str(error)) from error
    except ConnectionError as error:
        raise HTTPException(503, str(error), {'Retry-After': '1'}) from error
