"""One connection around its requests: the deadlines that uvicorn has none of, and faults of HTTP itself in OpenAI's shape.

A client that is slow to ask, or that does not read what it is sent, is cut off; nobody else notices it.
"""

import asyncio
import json
import secrets
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from luthier.serve.doors import Limits
from luthier.serve.faults import Fault, overloaded

# What comes of a body after its request was refused is thrown away for so long: a connection that is closed at once takes the answer with it.
LINGER_S = 2.0


class Connection(H11Protocol):
    """uvicorn's connection with the limits of the application behind it (doors.Doors)."""

    def __init__(self, config: Any, server_state: Any, app_state: dict[str, Any], _loop: asyncio.AbstractEventLoop | None = None) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.limits: Limits = config.app.limits
        self._count = config.app.count
        self._until_request: asyncio.TimerHandle | None = None
        self._until_read: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for a request, but not for long."""
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            self._refuse(overloaded())
        else:
            self._until_request = self.loop.call_later(self.limits.header_s, self._too_slow)

    def data_received(self, data: bytes) -> None:
        """A request's line and headers must be whole within their time, however many pieces they come in."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._until_request = _end(self._until_request)
        elif self._until_request is None:
            self._until_request = self.loop.call_later(self.limits.header_s, self._too_slow)

    def on_response_complete(self) -> None:
        """A client that goes on to send what was refused is not listened to for ever."""
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY:
            self.loop.call_later(LINGER_S, self.transport.close)

    def pause_writing(self) -> None:
        """The client does not read: what it was sent fills the buffers."""
        super().pause_writing()
        self._until_read = self._until_read or self.loop.call_later(self.limits.write_s, self.transport.abort)

    def resume_writing(self) -> None:
        """The client reads again."""
        super().resume_writing()
        self._until_read = _end(self._until_read)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        self._until_request, self._until_read = _end(self._until_request), _end(self._until_read)
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """What came is no HTTP, or its headers have no end."""
        self._refuse(Fault(400, "bad_http", f"send HTTP/1.1, with at most {self.limits.header_bytes:,} bytes of headers"))

    def _too_slow(self) -> None:
        self._until_request = None
        self._refuse(Fault(408, "request_too_slow", f"a request must be there within {self.limits.header_s:.0f} s"))

    def _refuse(self, fault: Fault) -> None:
        """Answer and close; into an answer that has begun nothing can be said."""
        if self.transport.is_closing():
            return
        begun = self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete
        if not begun:
            body = json.dumps(fault.body(f"req-{secrets.token_hex(8)}"))
            retry = "" if fault.retry_after_s is None else f"retry-after: {fault.retry_after_s}\r\n"
            head = f"HTTP/1.1 {fault.status} {HTTPStatus(fault.status).phrase}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
            self.transport.write(f"{head}{retry}connection: close\r\n\r\n{body}".encode())
            self._count("other", "other", fault.status, 0.0)
        self.transport.close()


def _end(timer: asyncio.TimerHandle | None) -> asyncio.TimerHandle | None:
    """No timer any more."""
    if timer is not None:
        timer.cancel()
    return None
