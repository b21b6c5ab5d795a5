"""Fixtures of the server's tests; what is behind them is in conftest_serve.py."""

import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))

from conftest_serve import Running, application, listen
from test_continuous import make


@pytest.fixture(scope="session")
def adapters(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("registry")
    for seed, kind in enumerate(["lora", "wide", "houlsby", "prefix"]):
        make(tiny_model, home / kind, kind, seed)
    return home


@pytest.fixture(scope="session")
def running(tiny_model: Path, adapters: Path) -> Iterator[Running]:
    found, thread = listen(application(tiny_model, adapters, slots=4, queue=16), adapters)
    yield found
    found.server.should_exit = True
    thread.join(timeout=30)


@pytest.fixture
def client(running: Running) -> Iterator[httpx.Client]:
    with running.client() as found:
        yield found
