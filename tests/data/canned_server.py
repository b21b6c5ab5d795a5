"""A real HTTP server on loopback that answers as it is told: a list of answers, or a function of the question."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Canned:
    """One answer: a status with headers and a body, after so many seconds. A status of 0 hangs up without a word."""

    body: Any
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0.0


def said(text: str, finish: str = "stop", usage: object = (10, 5)) -> Canned:
    """A chat completion."""
    counts = {"prompt_tokens": usage[0], "completion_tokens": usage[1]} if isinstance(usage, tuple) else usage
    return Canned({"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": finish}], "usage": counts})


class CannedServer:
    """`asked` holds each request: its path, headers and body."""

    def __init__(self, answer: Callable[[int, dict[str, Any]], Canned]) -> None:
        self.asked: list[dict[str, Any]] = []
        self.answer = answer
        self.lock = threading.Lock()
        self.address = ""

    def next_answer(self, path: str, headers: dict[str, str], body: dict[str, Any]) -> Canned:
        with self.lock:
            self.asked.append({"path": path, "headers": headers, "body": body})
            return self.answer(len(self.asked), body)


class Handler(BaseHTTPRequestHandler):
    canned: CannedServer

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        answer = self.canned.next_answer(self.path, dict(self.headers), request)
        threading.Event().wait(answer.delay_s)
        if not answer.status:
            self.close_connection = True
            return
        body = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST

    def log_message(self, *arguments: object) -> None:
        pass


class QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is no news."""


@contextmanager
def canned(answer: Callable[[int, dict[str, Any]], Canned]) -> Iterator[CannedServer]:
    """A server on loopback; `answer(n, body)` gives the answer to the n-th request."""
    serving = CannedServer(answer)
    server = QuietServer(("127.0.0.1", 0), type("CannedHandler", (Handler,), {"canned": serving}))
    serving.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=lambda: server.serve_forever(poll_interval=0.02), daemon=True).start()
    try:
        yield serving
    finally:
        server.shutdown()
        server.server_close()
