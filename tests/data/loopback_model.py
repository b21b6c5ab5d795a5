"""A real model behind a real OpenAI-compatible server on loopback, with its own bill: what `luthier data synth` is tried against.

By hand: python tests/data/loopback_model.py MODEL [PORT], then luthier data synth --endpoint http://127.0.0.1:PORT ...
"""

import json
import queue
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from luthier.data.tokenize import prompt_ids
from luthier.engine import Engine
from luthier.engine.opening import open_model
from luthier.records import Turn
from luthier.reporting import Silent

LARGEST_BATCH = 32


@dataclass
class Question:
    prompt: list[int]
    max_tokens: int
    answer: "Future[dict[str, Any]]" = field(default_factory=Future)


class ModelServer:
    """Answers questions in batches. A key that comes twice is answered from the first time and billed once."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.bill = {"requests": 0, "prompt_tokens": 0, "completion_tokens": 0}
        self._waiting: queue.Queue[Question] = queue.Queue()
        self._known: dict[str, Question] = {}
        self._lock = threading.Lock()
        threading.Thread(target=self._answer_forever, daemon=True).start()

    def ask(self, request: dict[str, Any], key: str) -> dict[str, Any]:
        turns = [Turn(message["role"], message["content"]) for message in request["messages"]]
        with self._lock:
            question = self._known.get(key)
            if question is None:
                question = Question(prompt_ids(turns, self.engine.tokenizer), int(request.get("max_tokens") or 256))
                self._known[key or f"no key {id(question)}"] = question
                self._waiting.put(question)
        return question.answer.result()

    def _answer_forever(self) -> None:
        while True:
            batch = [self._waiting.get()]
            while len(batch) < LARGEST_BATCH and not self._waiting.empty():
                batch.append(self._waiting.get())
            for question, text in zip(batch, self._texts(batch), strict=True):
                question.answer.set_result(self._reply(question, text))

    def _texts(self, batch: list[Question]) -> list[str]:
        return self.engine.answer([question.prompt for question in batch], max_new_tokens=max(question.max_tokens for question in batch))

    def _reply(self, question: Question, text: str) -> dict[str, Any]:
        made = len(self.engine.tokenizer.encode(text, add_special_tokens=False)) + 1
        usage = {"prompt_tokens": len(question.prompt), "completion_tokens": made, "total_tokens": len(question.prompt) + made}
        self.bill = {
            "requests": self.bill["requests"] + 1,
            "prompt_tokens": self.bill["prompt_tokens"] + len(question.prompt),
            "completion_tokens": self.bill["completion_tokens"] + made,
        }
        finish = "length" if made > question.max_tokens else "stop"
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
        return {"object": "chat.completion", "choices": [choice], "usage": usage}


class Handler(BaseHTTPRequestHandler):
    model: ModelServer

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        body = json.dumps(self.model.ask(request, self.headers.get("Idempotency-Key", ""))).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


class QuietServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that was killed is no news."""


@contextmanager
def serving(model: str, port: int = 0) -> Iterator[tuple[str, ModelServer]]:
    """The address of a server that answers as `model` does (a name or a folder), and the server with its `bill`."""
    answering = ModelServer(open_model(model, Silent()))
    handler = type("ModelHandler", (Handler,), {"model": answering})
    server = QuietServer(("127.0.0.1", port), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", answering
    finally:
        server.shutdown()
        server.server_close()


if __name__ == "__main__":
    with serving(sys.argv[1], int([*sys.argv, "0"][2])) as (address, answering):
        print(address, flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            print(answering.bill)
