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
    """How much one request may send, and how long it may take to send it."""

    body_bytes: int = 1 << 20
    body_s: float = 30.0
    answer_s: float = 600.0


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
