"""An engine of an API like vLLM's, to be put in its place: what it says follows from what it is asked, and it keeps what it was sent.

As a program (python stand_in.py serve MODEL --port N ...) it is the whole process; `tokens` in the file that STAND_IN names are the ids that it
makes of messages.
"""

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

STOP_ID = 2


class StandIn(ThreadingHTTPServer):
    """Listens on a free port of this machine, or on a given one."""

    daemon_threads = True

    def __init__(self, port: int = 0, tokens: dict[str, list[int]] | None = None) -> None:
        super().__init__(("127.0.0.1", port), Speaking)
        self.tokens = tokens or {}
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.asked: list[dict[str, Any]] = []
        self.broken_off = threading.Event()  # a client went away in the midst of an answer
        self.held = threading.Event()
        self.running = True
        self.stops = True
        self.counts = True  # else /tokenize is never answered

    def wait(self) -> None:
        """It answers from the beginning."""

    def last_words(self) -> list[str]:
        return ["the stand-in has said its last word"]

    def close(self) -> None:
        self.running = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        self.broken_off.set()


class Speaking(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: StandIn

    def log_message(self, format: str, *arguments: Any) -> None:
        return

    def do_GET(self) -> None:
        self._say({"status": "ok"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path == "/tokenize":
            if self.server.counts:
                self._say({"tokens": self._tokens(body)})
            else:
                self._wait_for_the_end()
            return
        self.server.asked.append({**body, "path": self.path, "authorization": self.headers.get("authorization")})
        said = body["messages"][-1]["content"] if "messages" in body else str(body["prompt"])
        if said == "refuse":
            self._say({"error": {"message": "no such thing here", "code": 400}}, 400)
        elif said == "fail":
            self._say({"error": {"message": "secret address 0x7f", "code": 500}}, 500)
        elif said == "wait":
            self._wait_for_the_end()
        elif body.get("stream"):
            self._stream(body, said)
        else:
            self._say(whole(body, said, self._finish(body)))

    def _tokens(self, body: dict[str, Any]) -> list[int]:
        if "messages" in body:
            known = self.server.tokens.get(json.dumps(body["messages"]))
            return known or [ord(letter) % 97 for message in body["messages"] for letter in message["content"]]
        return self.server.tokens.get(body["prompt"]) or [ord(letter) for letter in body["prompt"]]

    def _finish(self, body: dict[str, Any]) -> str:
        return "stop" if str(STOP_ID) not in body.get("logit_bias", {}) or self.server.stops else "length"

    def _wait_for_the_end(self) -> None:
        """Until the client goes away, which a socket only tells to one who looks."""
        self.server.held.set()
        self.connection.settimeout(10)
        with contextlib.suppress(OSError):
            if self.connection.recv(1) == b"":
                self.server.broken_off.set()
        self.close_connection = True

    def _stream(self, body: dict[str, Any], said: str) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for number, piece in enumerate(pieces(body, said)):
            if said == "die" and number == 2:
                self.close_connection = True
                self.connection.close()
                return
            self._chunk(f"data: {json.dumps(piece)}\n\n")
            if said == "long":
                self.server.held.set()
                time.sleep(0.02)
        self._chunk("data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")

    def _chunk(self, text: str) -> None:
        data = text.encode()
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def _say(self, value: Any, status: int = 200) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def answer_to(body: dict[str, Any], said: str) -> str:
    """Names who was asked, under which system message, and what."""
    system = next((message["content"] for message in body.get("messages", []) if message["role"] == "system"), "none")
    return f"{body.get('model')} under {system}: {said}"


def head(body: dict[str, Any], kind: str) -> dict[str, Any]:
    """With what only this engine has: nothing of it may reach a client."""
    return {"id": "engine-1", "object": kind, "created": 7, "model": "engine", "kv_transfer_params": None, "timings": {"ms": 1}}


USAGE = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8, "prompt_tokens_details": {"cached_tokens": 2}}


def whole(body: dict[str, Any], said: str, finish: str) -> dict[str, Any]:
    if "messages" in body:
        message = {"role": "assistant", "content": answer_to(body, said), "reasoning": None, "tool_calls": []}
        choices = [{"index": place, "message": message, "logprobs": None, "finish_reason": finish, "stop_reason": 2} for place in range(body["n"])]
        return {**head(body, "chat.completion"), "choices": choices, "usage": USAGE}
    choices = [{"index": 0, "text": answer_to(body, said), "logprobs": None, "finish_reason": finish}]
    return {**head(body, "text_completion"), "choices": choices, "usage": USAGE}


def pieces(body: dict[str, Any], said: str) -> Iterator[dict[str, Any]]:
    begin = head(body, "chat.completion.chunk")
    yield {**begin, "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}
    words = answer_to(body, said).split(" ") if said != "long" else ["word"] * 400
    for word in words:
        yield {**begin, "choices": [{"index": 0, "delta": {"content": f"{word} ", "reasoning": None}, "logprobs": None, "finish_reason": None}]}
    yield {**begin, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    yield {**begin, "choices": [], "usage": USAGE}


def _as_a_program(arguments: list[str]) -> None:
    if "--fails" in os.environ.get("STAND_IN_FLAGS", ""):
        sys.exit("ValueError: (EngineCore pid=3) the model's head size is not supported")
    given = json.loads(Path(os.environ["STAND_IN"]).read_text())
    server = StandIn(int(arguments[arguments.index("--port") + 1]), given["tokens"])
    Path(given["started"]).write_text(json.dumps({"arguments": arguments, "key": os.environ["VLLM_API_KEY"], "process": os.getpid()}))
    server.serve_forever()


if __name__ == "__main__":
    _as_a_program(sys.argv[1:])
