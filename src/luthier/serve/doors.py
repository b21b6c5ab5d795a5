"""What every request passes before any route sees it: its id, host and origin, its key, its size and its pace."""

import asyncio
import json
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from luthier.serve.faults import Fault
from luthier.serve.keys import Keys

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

ACCESS = logging.getLogger("luthier.serve.access")
OPEN_TO_ALL = ("/health",)


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one request may send, and how long it may take for it; how many connections there may be."""

    target_bytes: int = 8 << 10
    header_bytes: int = 16 << 10
    header_lines: int = 100
    body_bytes: int = 1 << 20
    header_s: float = 10.0
    body_s: float = 30.0
    write_s: float = 30.0  # without a byte that the client took
    answer_s: float = 600.0
    connections: int = 1024


class Doors:
    """Around the whole application. `hosts` are the names that a request may call this server by; empty: any."""

    def __init__(self, app: App, keys: Keys, hosts: frozenset[str], limits: Limits, count: Callable[[str, str, int, float], None]) -> None:
        self.app, self.keys, self.hosts, self.limits, self.count = app, keys, hosts, limits, count

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """One request; of other kinds of traffic only the application's own start and end are let through."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        begun, request_id, status = time.monotonic(), f"req-{secrets.token_hex(8)}", 500
        scope.setdefault("state", {})["request_id"] = request_id

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-request-id", request_id.encode()), (b"cache-control", b"no-store")]
            await send(message)

        try:
            self._check_head(scope)
            scope["state"]["key"] = self._let_in(scope)
            await self.app(scope, self._bounded(scope, receive), sending)
        except Fault as fault:
            await _refuse(fault, request_id, sending)
        finally:
            seconds = time.monotonic() - begun
            key = scope["state"].get("key")
            route = scope.get("route")  # a path as it was written would be a label of the client's own
            path, method = (route.path if route else "other"), scope["method"]
            self.count(path, method, status, seconds)
            who = {"key": key.name} if key else {}
            line = {"request_id": request_id, "method": method, "path": path, "status": status, "seconds": round(seconds, 3), **who}
            ACCESS.info(json.dumps(line))

    def _check_head(self, scope: MutableMapping[str, Any]) -> None:
        """The connection bounds only what comes in pieces."""
        if len(scope.get("raw_path", b"")) + len(scope.get("query_string", b"")) > self.limits.target_bytes:
            raise Fault(414, "target_too_long", f"a path may have {self.limits.target_bytes:,} bytes")
        headers = scope["headers"]
        if len(headers) > self.limits.header_lines or sum(len(name) + len(value) for name, value in headers) > self.limits.header_bytes:
            raise Fault(431, "headers_too_large", f"there may be {self.limits.header_lines} headers, and {self.limits.header_bytes:,} bytes of them")

    def _let_in(self, scope: MutableMapping[str, Any]) -> Any:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get("host", "").rpartition(":")[0] or headers.get("host", "")
        if self.hosts and host.lower() not in self.hosts:
            raise Fault(403, "wrong_host", "this server is not called by that name (Host). Try: luthier serve --allowed-host NAME")
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin") or self._is_foreign(headers.get("origin")):
            raise Fault(403, "wrong_origin", "pages of other sites may not ask this server")
        if scope["path"] in OPEN_TO_ALL:
            return None
        return self.keys.who(headers.get("authorization"))

    def _is_foreign(self, origin: str | None) -> bool:
        if origin is None:
            return False
        host = origin.partition("://")[2].rpartition(":")[0] or origin.partition("://")[2]
        return host.lower() not in self.hosts

    def _bounded(self, scope: MutableMapping[str, Any], receive: Receive) -> Receive:
        """The body as it comes, up to its limits; what comes after it (that the client has gone) may come at any time."""
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self.limits.body_bytes:
            raise Fault(413, "too_large", f"the body may have {self.limits.body_bytes:,} bytes")
        taken, whole, latest = 0, False, time.monotonic() + self.limits.body_s

        async def bounded() -> Message:
            nonlocal taken, whole
            if whole:
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), max(0.0, latest - time.monotonic()))
            except TimeoutError as error:
                raise Fault(408, "body_too_slow", f"the body must be there within {self.limits.body_s:.0f} s") from error
            taken += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if taken > self.limits.body_bytes:
                raise Fault(413, "too_large", f"the body may have {self.limits.body_bytes:,} bytes")
            return message

        return bounded


async def _refuse(fault: Fault, request_id: str, send: Send) -> None:
    body = json.dumps(fault.body(request_id)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if fault.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if fault.retry_after_s is not None:
        headers.append((b"retry-after", str(fault.retry_after_s).encode()))
    await send({"type": "http.response.start", "status": fault.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
