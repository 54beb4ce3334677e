"""What every request of the service passes: limits, a JSON answer to all that fails, counts."""

import asyncio
import logging
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from math import ceil

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from prometheus_client import CollectorRegistry, Counter, Histogram
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .batching import Busy
from .messages import Limits
from .rate import Rate

logger = logging.getLogger('eiclip_mm.service')

CODES = {
    400: 'bad_request',
    404: 'not_found',
    405: 'method_not_allowed',
    413: 'too_large',
    422: 'invalid',
    429: 'too_many',
    500: 'internal',
    503: 'busy',
    504: 'timeout',
}
UNCOUNTED = ('/health', '/metrics')  # those who watch over the service may always ask
READ_ON_S = 2  # of a body that is too large
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


def failure(status: int, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """An error as the service answers it."""
    content = dict(error=dict(code=CODES.get(status, 'error'), message=message))
    return JSONResponse(content, status, headers)


def busy(message: str) -> JSONResponse:
    """An error that is worth another try."""
    return failure(503, message, {'Retry-After': '1'})


def answer_errors_as_json(app: FastAPI) -> None:
    """Whatever a route or the framework refuses."""

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        message = error.detail
        if error.status_code == 400 and message == 'There was an error parsing the body':
            message = (
                'the body cannot be read as JSON: it must be UTF-8, not compressed, not nested '
                'deeply, without numbers of thousands of digits.'
            )
        if error.status_code in (404, 405) and message in ('Not Found', 'Method Not Allowed'):
            message = f'there is no {request.method} here; GET /docs lists what there is.'
        return failure(error.status_code, message, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return failure(422, '; '.join(map(_reason, error.errors()[:5])))

    @app.exception_handler(Busy)
    async def full(request: Request, error: Busy) -> Response:
        return busy(f'the queue is full ({error}); try again later.')


def _reason(error: Mapping) -> str:
    """One fault of a request, without what was sent."""
    if error['type'] == 'json_invalid':
        return f'the body is not JSON: {error["ctx"]["error"]} at character {error["loc"][1]}'
    if error['loc'] == ('body',) and error['type'] == 'model_attributes_type':
        return 'the body must be a JSON object, with Content-Type: application/json'
    place = '.'.join(map(str, error['loc'][1:]))[:100]  # a key may be long, too
    message = error['msg'].removeprefix('Value error, ')
    return f'{place}: {message}' if place else message


class Gate:
    """ASGI middleware; answers itself what must not reach the routes.

    Once ``app.state.closing`` is true, an answer is the last of its connection.

    Args:
        app: what is behind it.
        limits: of a body, of the time to an answer, and of requests that wait for one.
        registry: of the metrics.
    """

    def __init__(self, app: ASGIApp, limits: Limits, registry: CollectorRegistry):
        self.app, self.limits, self.held = app, limits, 0
        self.max_body = int(limits.max_body_mb * 2**20)
        self.rate = Rate(limits.max_rate) if limits.max_rate else None
        self.requests = Counter(
            'eiclip_requests', 'Answers by route and status.', ['route', 'status'],
            registry=registry,
        )  # fmt: skip
        self.seconds = Histogram(
            'eiclip_request_seconds', 'Time to an answer.', ['route'],
            buckets=SECONDS, registry=registry,
        )  # fmt: skip

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope['type'] != 'http':
            await self.app(scope, receive, send)
            return
        began, status, note = time.perf_counter(), 0, ''

        async def send_and_see(message: Message) -> None:
            nonlocal status
            if message['type'] == 'http.response.start':
                status = message['status']
                if getattr(scope['app'].state, 'closing', False):
                    close = (b'connection', b'close')
                    message = dict(message, headers=[*message.get('headers', ()), close])
            await send(message)

        try:
            answer = await self._pass(scope, receive, send_and_see)
        except Exception as error:  # one line of it: its text may hold what was sent
            answer, note = failure(500, 'the service failed; its log says where.'), _place(error)
        if answer is not None and not status:
            await answer(scope, receive, send_and_see)
        seconds = time.perf_counter() - began
        # what nobody serves counts as one route, whatever clients make up
        route = getattr(scope.get('route'), 'path', 'none')
        self.requests.labels(route, status).inc()
        self.seconds.labels(route).observe(seconds)
        level = logging.ERROR if status >= 500 else logging.INFO
        logger.log(
            level, '%s %s %d %.1f ms%s', scope['method'], route, status, 1000 * seconds, note
        )

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> JSONResponse | None:
        """Let a request through; an answer if it must not pass, or did not in time."""
        if self.rate is not None and scope['path'] not in UNCOUNTED:
            address, _ = scope.get('client') or ('', 0)
            if wait := self.rate.wait(address, time.monotonic()):
                return self._too_many(wait)
        length = Headers(scope=scope).get('content-length', '0')
        if length.isdecimal() and int(length) > self.max_body:
            await self._read_on(receive)
            return failure(413, self._too_large())
        counted = scope['method'] not in ('GET', 'HEAD')  # /health answers under any load
        if counted and self.held >= self.limits.max_queue:
            return busy(f'{self.held} requests are being answered; try again later.')
        self.held += counted
        try:
            async with asyncio.timeout(self.limits.timeout_s) as timer:
                await self.app(scope, self._bounded(receive), send)
        except TimeoutError:
            if not timer.expired():
                raise
            return failure(
                504, f'no answer within {self.limits.timeout_s:g} s; send less, or later.'
            )
        finally:
            self.held -= counted
        return None

    async def _read_on(self, receive: Receive) -> None:
        """Drop what still comes: a connection closed on it would take the answer along."""
        size = 0
        with suppress(TimeoutError):
            async with asyncio.timeout(READ_ON_S):
                while size < 4 * self.max_body:
                    message = await receive()
                    size += len(message.get('body', b''))
                    if not message.get('more_body', False):
                        return

    def _bounded(self, receive: Receive) -> Receive:
        """``receive`` that refuses more than ``max_body``, whatever the headers say."""
        size = 0

        async def bounded() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get('body', b''))
            if size > self.max_body:
                raise HTTPException(413, self._too_large())
            return message

        return bounded

    def _too_many(self, wait: float) -> JSONResponse:
        message = f'an address may ask {self.limits.max_rate:g} times a second; try again later.'
        return failure(429, message, {'Retry-After': str(ceil(wait))})

    def _too_large(self) -> str:
        return f'the body may have {self.limits.max_body_mb:g} MiB; send less at a time.'


def _place(error: Exception) -> str:
    """Type of an error and the line that raised it."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f' {type(error).__name__} at {last.filename}:{last.lineno}'
