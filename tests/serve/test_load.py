"""Thousands of clients at once, thousands that leave, thousands of requests: memory, health and slots hold throughout."""

import asyncio
import contextlib
import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

pytestmark = pytest.mark.nightly

# Of all counts and seconds; less, to try the tests themselves.
SHARE = float(os.environ.get("LUTHIER_TEST_LOAD", "1"))
NAMES = ["base", "lora", "wide", "houlsby", "prefix"]
ENDLESS = {"messages": [{"role": "user", "content": "150 Pierce Rd"}], "temperature": 0, "max_tokens": 24, "logit_bias": {"2": -100, "0": -100}}
MOST_GROWTH = 1.2


@dataclass(frozen=True, slots=True)
class Loaded:
    """A server in a process of its own, with every adapter loaded: what its clients take is not counted as its own."""

    url: str
    process: psutil.Process

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=300, limits=httpx.Limits(), trust_env=False)

    @property
    def memory(self) -> int:
        return int(self.process.memory_info().rss)

    def settled(self) -> bool:
        """Whether nothing is answered any more, within 2 seconds."""
        latest = time.monotonic() + 2
        with self.client() as client:
            while (idle := "luthier_requests_in_flight 0.0" in client.get("/metrics").text) is False and time.monotonic() < latest:
                time.sleep(0.01)
        return idle


@pytest.fixture
def loaded(tiny_model: Path, adapters: Path, tmp_path: Path) -> Iterator[Loaded]:
    model, said = tmp_path / "base", tmp_path / "said.txt"
    model.symlink_to(tiny_model)
    command = [sys.executable, "-m", "luthier", "serve", str(model), "--adapters", str(adapters), "--port", "0", "--precision", "fp32"]
    with open(said, "w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file)
    latest = time.monotonic() + 120
    while not (found := re.search(r"serving on (http://[\d.:]+)", said.read_text())):
        assert process.poll() is None, said.read_text()
        assert time.monotonic() < latest, said.read_text()
        time.sleep(0.1)
    server = Loaded(found[1], psutil.Process(process.pid))
    with server.client() as client:
        for name in NAMES:
            assert client.post("/v1/chat/completions", json={"model": name, **ENDLESS}).status_code == 200
    yield server
    process.terminate()
    assert process.wait(60) == 0


@contextlib.contextmanager
def health_watched(server: Loaded, took: list[float]) -> Iterator[None]:
    done = threading.Event()

    def look() -> None:
        with server.client() as client:
            while not done.wait(0.05):
                begun = time.monotonic()
                assert client.get("/health").status_code == 200
                took.append(time.monotonic() - begun)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield
    finally:
        done.set()
        looking.join()


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


async def _client(url: str, number: int, until: float, counted: Counter[str]) -> None:
    """One after the other, each on a connection of its own, as so many strangers come."""
    while time.monotonic() < until:
        try:
            async with httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as client:
                answer = await client.post("/v1/chat/completions", json={"model": NAMES[number % len(NAMES)], **ENDLESS})
            counted[str(answer.status_code)] += 1
            await asyncio.sleep(float(answer.headers.get("retry-after", 0)))
        except httpx.ConnectError:
            counted["no connection"] += 1  # more than the machine's backlog holds
            await asyncio.sleep(1)


def test_2000_clients_for_a_minute_are_answered_or_told_to_come_again(loaded: Loaded) -> None:
    async def press(clients: int, seconds: float) -> Counter[str]:
        counted: Counter[str] = Counter()
        until = time.monotonic() + seconds
        await asyncio.gather(*(_client(loaded.url, number, until, counted) for number in range(clients)))
        return counted

    clients = int(2000 * SHARE)
    asyncio.run(press(clients, 5))
    before = loaded.memory
    counted = asyncio.run(press(clients, 60 * SHARE))
    assert counted.keys() <= {"200", "429", "503", "no connection"}, counted
    assert counted["200"] > 0
    begun = time.monotonic()
    with loaded.client() as client:
        assert client.post("/v1/chat/completions", json={"model": "base", **ENDLESS}).status_code == 200
    assert time.monotonic() - begun < 2
    assert loaded.memory < MOST_GROWTH * before, counted


def test_10000_requests_of_256_clients_leave_health_quick_and_memory_flat(loaded: Loaded) -> None:
    count = int(10_000 * SHARE)
    health: list[float] = []
    took: list[float] = []

    def ask(number: int) -> None:
        asked = {"model": NAMES[number % len(NAMES)], **ENDLESS, "stream": number % 2 == 0}
        begun = time.monotonic()
        answer = client.post("/v1/chat/completions", json=asked)
        took.append(time.monotonic() - begun)
        assert answer.status_code == 200, answer.text
        assert number % 2 or answer.text.endswith("data: [DONE]\n\n")

    with loaded.client() as client, ThreadPoolExecutor(256) as pool:
        list(pool.map(ask, range(count // 2)))
        before = loaded.memory
        with health_watched(loaded, health):
            list(pool.map(ask, range(count // 2, count)))
    print(f"{count:,} requests: p50 {percentile(took, 0.5):.2f} s, p99 {percentile(took, 0.99):.2f} s; health p99 {percentile(health, 0.99):.3f} s")
    assert percentile(health, 0.99) < 0.1
    assert loaded.settled()
    assert loaded.memory < MOST_GROWTH * before


def test_5000_clients_that_leave_leave_no_slot_thread_or_file_behind(loaded: Loaded) -> None:
    def leave(number: int) -> None:
        asked = {"model": NAMES[number % len(NAMES)], **ENDLESS, "max_tokens": 300, "n": 1 + number % 2}
        with loaded.client() as client:
            if number % 3 == 0:
                with contextlib.suppress(httpx.ReadTimeout):
                    client.post("/v1/chat/completions", json=asked, timeout=0.1)
                return
            with client.stream("POST", "/v1/chat/completions", json=asked | {"stream": True}) as events:
                for _ in zip(range(number % 7 if number % 3 == 1 else 0), events.iter_lines(), strict=False):
                    pass

    def left(count: int) -> dict[str, float]:
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(leave, range(count)))
        assert loaded.settled()
        time.sleep(0.5)  # closed connections are taken away
        return {"files": loaded.process.num_fds(), "threads": loaded.process.num_threads(), "bytes": loaded.memory}

    before = left(int(1000 * SHARE))
    after = left(int(4000 * SHARE))
    assert after["files"] <= before["files"] + 2
    assert after["threads"] <= before["threads"] + 2
    assert after["bytes"] < MOST_GROWTH * before["bytes"]
