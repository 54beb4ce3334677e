"""Connections of the service: how many, and how long one may take to ask and to read."""

import asyncio
import json

from uvicorn.protocols.http.h11_impl import H11Protocol

from .messages import Limits


class Connection(H11Protocol):
    """A connection that is cut when its client takes too long.

    The :class:`~eiclip_mm.apis.gate.Gate` sees a request only once its headers are there. Until
    then, and while an answer is not read, this class keeps the time; so a client that sends a byte
    a second, or nothing, holds its place no longer than any other. Headers may have 16 KiB.
    """

    limits: Limits
    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """asyncio."""
        super().connection_made(transport)
        if len(self.connections) > self.limits.max_connections:
            transport.abort()
        else:
            self._expect_more()

    def data_received(self, data: bytes) -> None:
        """asyncio."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_waiting()  # the gate keeps the time of what is being answered
        else:
            self._expect_more()

    def pause_writing(self) -> None:
        """asyncio: the client does not read."""
        super().pause_writing()
        self._expect_more()

    def resume_writing(self) -> None:
        """asyncio."""
        super().resume_writing()
        self._stop_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio."""
        self._stop_waiting()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP, or has too long headers, is answered as all that fails."""
        message = 'this is no HTTP request that can be read; its headers may have 16 KiB.'
        body = json.dumps(dict(error=dict(code='bad_request', message=message))).encode()
        head = (
            'HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\n'
            f'Content-Length: {len(body)}\r\nConnection: close\r\n\r\n'
        )
        self.transport.write(head.encode() + body)
        self.transport.close()

    def _expect_more(self) -> None:
        if self._late is None:
            self._late = self.loop.call_later(self.limits.timeout_s, self.transport.abort)

    def _stop_waiting(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None


def connection(limits: Limits) -> type[Connection]:
    """The class for ``uvicorn.Config(http=...)``."""
    return type('LimitedConnection', (Connection,), dict(limits=limits))
