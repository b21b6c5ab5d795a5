"""Thousands of requests at once, while adapters are replaced, unloaded and loaded: each is answered as its own adapter answers alone."""

import os
import random
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from conftest_serve import Running, application, listen
from test_continuous import make

from luthier.engine import Engine, row_adapters
from luthier.engine.by_row import RowAdapter
from luthier.engine.continuous import Continuous, Request
from luthier.engine.sampling import Sampling
from luthier.models import adapters as stored
from luthier.models import load

QUESTIONS = ["150 Pierce Rd, Itasca", "A luthier builds guitars.", "The quick brown fox", "state and zip?", "150 Pierce Rd, Itasca, IL 60143"]
TOKENS = 10
# Enough to see a leak of a request's keys (2 layers of a tiny model: 2 KB a token) or of its tasks, above what an allocator keeps for itself.
GROWTH_BYTES = 48 << 20


@dataclass(slots=True)
class Soak:
    """A server, and what each version of each adapter answers to each question, by itself."""

    running: Running
    thread: threading.Thread
    engine: Engine
    versions: dict[str, list[Path]]
    said: dict[tuple[str, str], list[str]] = field(default_factory=dict)  # by name and question, a version after the other


def solo(engine: Engine, adapter: RowAdapter | None, question: str) -> str:
    """The greedy answer of one adapter, with nothing beside it and nothing kept from before."""
    server = Continuous(engine.model, slots=1)
    prompt = engine.tokenizer.apply_chat_template([{"role": "user", "content": question}], add_generation_prompt=True, return_dict=False)
    request = Request(prompt, TOKENS, frozenset(engine.stop_ids), Sampling(), adapter)
    server.add(request)
    while not server.idle:
        server.step()
    server.by_row.give_back()
    text: str = engine.tokenizer.decode(request.answer, skip_special_tokens=True)
    return text


def soaked(tiny_model: Path, home: Path, kinds: list[str], replaced: int) -> Soak:
    """A server over adapters of these kinds; the first `replaced` of them have two versions."""
    engine = Engine(load.load_model(tiny_model, "fp32", "cpu").requires_grad_(False).eval(), load.load_tokenizer(tiny_model))
    versions: dict[str, list[Path]] = {}
    for place, kind in enumerate(kinds):
        made = [make(tiny_model, home / "versions" / f"a{place}-{version}", kind, 100 * version + place) for version in range(1 + (place < replaced))]
        versions[f"a{place}"] = made
        shutil.copytree(made[0], home / "registry" / f"a{place}")
    running, thread = listen(application(tiny_model, home / "registry", slots=16, queue=256, most_loaded=len(kinds) - 2), home / "registry")
    soak = Soak(running, thread, engine, versions)
    for question in QUESTIONS:
        soak.said["base", question] = [solo(engine, None, question)]
        for name, folders in versions.items():
            soak.said[name, question] = [solo(engine, row_adapters.load(engine.model, folder), question) for folder in folders]
    return soak


def replace_adapter(soak: Soak, name: str, version: int) -> None:
    """As an operator does: beside it, and then renamed."""
    folder, beside = soak.running.registry_folder / name, soak.running.registry_folder / f".{name}"
    shutil.copytree(soak.versions[name][version], beside)
    for file in (stored.CONFIG, stored.WEIGHTS):
        os.replace(beside / file, folder / file)
    shutil.rmtree(beside)


def unloaded_between(soak: Soak) -> str:
    """The adapter that is unloaded and loaded all the time, and not asked."""
    return next(name for name, folders in soak.versions.items() if len(folders) == 1)


def churn(soak: Soak, end: threading.Event, done: Counter[str]) -> None:
    """Replace those with two versions in turn, unload and load another, until the end."""
    two = [name for name, folders in soak.versions.items() if len(folders) == 2]
    with soak.running.client() as client:
        for turn in range(10_000):
            if end.wait(0.1):
                return
            replace_adapter(soak, two[turn % len(two)], 1 - (turn // len(two)) % 2)
            done["replaced"] += 1
            if turn % 5 == 0:
                for verb in ("unload", "load"):
                    done[str(client.post(f"/v1/{verb}_lora_adapter", json={"lora_name": unloaded_between(soak)}).status_code)] += 1


def ask(client: httpx.Client, soak: Soak, name: str, question: str, how: str) -> str:
    """One request; "" for one that is not compared (it was sampled, or its client went away)."""
    asked: dict[str, Any] = {"model": name, "messages": [{"role": "user", "content": question}], "max_tokens": TOKENS, "temperature": 0}
    if how == "whole":
        answer = client.post("/v1/chat/completions", json=asked)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["choices"][0]["message"]["content"])
    if how == "sampled":
        answer = client.post("/v1/chat/completions", json=asked | {"temperature": 1.5, "n": 2, "seed": 3, "logprobs": True})
        assert answer.status_code == 200, answer.text
        return ""
    said, place = "", 0
    with client.stream("POST", "/v1/chat/completions", json=asked | {"stream": True}) as events:
        assert events.status_code == 200
        for line in events.iter_lines():
            if line.startswith("data: {"):
                delta = httpx.Response(200, text=line[6:]).json()["choices"][0]["delta"]
                said += delta.get("content") or ""
                place += 1
            if how == "leaves" and place == 3:
                return ""
    return said


def press(soak: Soak, count: int, clients: int, seed: int) -> tuple[Counter[str], list[str]]:
    """So many requests from so many clients at once; gives what was counted, and what was answered wrongly."""
    draw = random.Random(seed)
    kept = ["base", *(name for name in soak.versions if name != unloaded_between(soak))]
    work = [
        (draw.choice(kept), draw.choice(QUESTIONS), draw.choices(["whole", "stream", "sampled", "leaves"], [5, 3, 1, 1])[0]) for _ in range(count)
    ]
    counted: Counter[str] = Counter()
    wrong: list[str] = []
    lock = threading.Lock()

    def one(item: tuple[str, str, str]) -> None:
        name, question, how = item
        said = ask(client, soak, name, question, how)
        with lock:
            counted[how] += 1
            if how in ("whole", "stream"):
                versions = soak.said[name, question]
                if said not in versions:
                    wrong.append(f"{name} ({how}): {said!r}, not one of {versions}")
                elif len(set(versions)) == 2:
                    counted[f"version {versions.index(said)}"] += 1

    with soak.running.client() as client, ThreadPoolExecutor(clients) as pool:
        list(pool.map(one, work))
    return counted, wrong


def settled(soak: Soak) -> int:
    """Memory of this process once nothing is answered any more."""
    answering: Any = soak.running.app.app.state.server.answering  # type: ignore[attr-defined]
    latest = time.monotonic() + 30
    while answering.in_flight and time.monotonic() < latest:
        time.sleep(0.05)
    assert answering.in_flight == 0
    assert answering.running == 0
    return int(psutil.Process().memory_info().rss)


def run(soak: Soak, count: int, clients: int) -> None:
    """Half of the requests, then the other half: nothing grows between them."""
    end, done = threading.Event(), Counter[str]()
    churning = threading.Thread(target=churn, args=(soak, end, done))
    churning.start()
    try:
        before, wrong = press(soak, count // 2, clients, seed=1)
        memory = settled(soak)
        after, wrong_too = press(soak, count - count // 2, clients, seed=2)
    finally:
        end.set()
        churning.join()
    assert not wrong + wrong_too
    assert sum((before + after)[how] for how in ("whole", "stream", "sampled", "leaves")) == count
    assert min((before + after)[version] for version in ("version 0", "version 1")) > count // 20
    assert done["replaced"] > 4
    assert done.keys() == {"replaced", "200"}
    grown = settled(soak) - memory
    assert grown < GROWTH_BYTES, f"{grown:,} bytes more after the second half"


@pytest.fixture
def stopped() -> Iterator[list[Soak]]:
    soaks: list[Soak] = []
    yield soaks
    for soak in soaks:
        soak.running.server.should_exit = True
        soak.thread.join(timeout=30)


@pytest.mark.slow
def test_2000_requests_of_64_clients_for_8_adapters_that_are_replaced(tiny_model: Path, tmp_path: Path, stopped: list[Soak]) -> None:
    stopped.append(soaked(tiny_model, tmp_path, ["lora", "wide", "lora", "houlsby", "patterns", "prefix", "wide", "lora"], replaced=4))
    run(stopped[0], 2000, 64)


@pytest.mark.nightly
def test_5000_requests_of_64_clients_for_16_adapters_that_are_replaced(tiny_model: Path, tmp_path: Path, stopped: list[Soak]) -> None:
    stopped.append(soaked(tiny_model, tmp_path, ["lora", "wide", "houlsby", "prefix", "patterns", "parallel", "prompt", "lora"] * 2, replaced=8))
    run(stopped[0], 5000, 64)


def test_a_client_that_leaves_frees_its_slot_within_250_ms(running: Running) -> None:
    answering: Any = running.app.app.state.server.answering  # type: ignore[attr-defined]
    asked = {"model": "base", "messages": [{"role": "user", "content": "x"}], "max_tokens": 400, "logit_bias": {"2": -100, "0": -100}}
    waited = []
    for stream in (True, False, True):
        with running.client() as client:
            if stream:
                with client.stream("POST", "/v1/chat/completions", json=asked | {"stream": True}) as events:
                    next(events.iter_lines())
            else:
                with pytest.raises(httpx.ReadTimeout):
                    client.post("/v1/chat/completions", json=asked, timeout=0.2)
        begun = time.monotonic()
        while answering.in_flight:
            assert time.monotonic() - begun < 10
            time.sleep(0.005)
        waited.append(time.monotonic() - begun)
    assert min(waited) < 0.25  # the machine may be busy
