"""A real server on 127.0.0.1 over the tiny model, with adapters that change what it says."""

import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from luthier.engine import Engine
from luthier.models import load
from luthier.recipes import serving
from luthier.serve import listening
from luthier.serve.doors import Doors
from luthier.serve.keys import Keys


@dataclass(frozen=True, slots=True)
class Running:
    """A server that listens, and what stands behind it."""

    url: str
    app: Doors
    server: uvicorn.Server
    registry_folder: Path

    def client(self, **headers: str) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers=headers, timeout=60)


def listen(app: Doors, registry_folder: Path) -> tuple[Running, threading.Thread]:
    open_socket = listening.listen("127.0.0.1", 0)
    server = listening.server(app)
    thread = threading.Thread(target=server.run, args=([open_socket],))
    thread.start()
    latest = time.monotonic() + 60
    while not server.started and time.monotonic() < latest:
        time.sleep(0.01)
    return Running(f"http://127.0.0.1:{open_socket.getsockname()[1]}", app, server, registry_folder), thread


def application(tiny_model: Path, adapters: Path, keys: Keys | None = None, **wanted: Any) -> Doors:
    engine = Engine(load.load_model(tiny_model, "fp32", "cpu").requires_grad_(False).eval(), load.load_tokenizer(tiny_model))
    opened = serving.Opened(engine, serving.Served("base"), [])
    return serving.application(serving.Wanted(["base"], adapters, **wanted), opened, keys or Keys([]))
