"""Many clients at once, wrong keys and names that lead elsewhere: nobody waits for the others' sake, and nothing is left behind.

Fewer clients, and for seconds; thousands of them, and for a minute, are tried by night (test_load.py). 8 hours of mixed requests want a machine
of their own.
"""

import contextlib
import http.client
import json
import os
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, median
from typing import Any

import httpx
import psutil
import pytest
from conftest_serve import Running

from luthier.serve import keys
from luthier.serve.faults import Fault

LONG = {"messages": [{"role": "user", "content": "150 Pierce Rd"}], "temperature": 0, "max_tokens": 24, "logit_bias": {"2": -100, "0": -100}}


def answering(running: Running) -> Any:
    return running.app.app.state.server.answering  # type: ignore[attr-defined]


def settled(running: Running) -> bool:
    latest = time.monotonic() + 20
    while answering(running).in_flight and time.monotonic() < latest:
        time.sleep(0.01)
    return answering(running).in_flight == answering(running).running == 0


def test_no_adapter_waits_for_the_others_and_health_is_quick_while_all_slots_are_busy(running: Running) -> None:
    names = ["base", "lora", "wide", "houlsby", "prefix"]
    took: dict[str, list[float]] = {name: [] for name in names}
    health: list[float] = []
    done = threading.Event()

    def look() -> None:
        with running.client() as client:
            while not done.is_set():
                begun = time.monotonic()
                assert client.get("/health").status_code == 200
                health.append(time.monotonic() - begun)
                time.sleep(0.02)

    with running.client() as client, ThreadPoolExecutor(15) as pool:

        def ask(name: str) -> None:
            begun = time.monotonic()
            assert client.post("/v1/chat/completions", json={"model": name, **LONG}).status_code == 200
            took[name].append(time.monotonic() - begun)

        list(pool.map(ask, names))  # loaded
        took |= {name: [] for name in names}
        looking = threading.Thread(target=look)
        looking.start()
        list(pool.map(ask, names * 6))
        done.set()
        looking.join()
    means = {name: mean(found) for name, found in took.items()}
    assert max(means.values()) < 2 * mean(means.values()), means
    assert median(health) < 0.1


@pytest.mark.slow
def test_more_clients_than_there_is_room_for_are_answered_or_told_to_come_again_and_room_comes_back(running: Running) -> None:
    def ask(_: int) -> tuple[int, str | None]:
        connection = http.client.HTTPConnection(running.url.removeprefix("http://"), timeout=60)
        connection.request("POST", "/v1/chat/completions", json.dumps({"model": "base", **LONG}), {"Content-Type": "application/json"})
        with contextlib.closing(connection), connection.getresponse() as answer:
            answer.read()
            return answer.status, answer.headers["retry-after"]

    with ThreadPoolExecutor(200) as pool:
        counted = Counter(pool.map(ask, range(400)))
    begun = time.monotonic()
    assert ask(0) == (200, None)
    assert time.monotonic() - begun < 2
    assert counted.keys() == {(200, None), (503, "1")}
    assert counted[200, None] >= 20  # slots and queue


@pytest.mark.slow
def test_many_clients_that_leave_leave_nothing_behind(running: Running) -> None:
    def leave(place: int) -> None:
        asked = {"model": "lora", **LONG, "max_tokens": 300, "n": 1 + place % 2}
        with running.client() as client:
            if place % 3:  # in the midst of the answer, or before its first token
                with client.stream("POST", "/v1/chat/completions", json=asked | {"stream": True}) as events:
                    if place % 3 == 1:
                        next(events.iter_lines())
            else:
                with pytest.raises(httpx.ReadTimeout):
                    client.post("/v1/chat/completions", json=asked, timeout=0.1)

    def press(count: int) -> tuple[int, int]:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(leave, range(count)))
        assert settled(running)
        time.sleep(0.3)  # closed connections are taken away
        return psutil.Process().num_fds(), threading.active_count()

    before = press(16)
    after = press(48)
    assert after[0] <= before[0] + 2
    assert after[1] <= before[1] + 2


def test_every_key_is_compared_whole_and_wrong_ones_lock_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = [keys.new(tmp_path / "keys.json", f"key{place}") for place in range(3)]
    known = keys.read(tmp_path / "keys.json", None)
    compared: list[int] = []
    plain = keys.hmac.compare_digest
    monkeypatch.setattr(keys.hmac, "compare_digest", lambda one, other: compared.append(len(other)) or plain(one, other))
    for wrong in [given[0][:-1], "x", "", f"{given[0]}x", "x" * 10_000]:
        with pytest.raises(Fault, match="API key"):
            known.who(f"Bearer {wrong}")
    assert known.who(f"Bearer {given[0]}") == known.keys[0]
    assert compared == [64] * 3 * 6  # hashes, all of them, whichever is right
    for _ in range(2000):
        with pytest.raises(Fault):
            known.who("Bearer guess")
    assert known.who(f"Bearer {given[2]}") == known.keys[2]


def test_a_request_makes_the_server_look_at_no_file_outside_of_the_registry(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    outside = running.registry_folder.parent / "outside"
    outside.mkdir(exist_ok=True)
    names = [
        "../outside",
        str(outside),
        f"lora/../../{outside.name}",
        "..%2foutside",
        "%2e%2e/outside",
        "..\\outside",
        "./../outside",
        "lora\x00/../../outside",
    ]
    touched: list[str] = []
    watching = threading.Event()
    plain = os.stat

    def stat(path: Any, **how: Any) -> os.stat_result:
        touched.append(str(path))
        return plain(path, **how)

    def hear(event: str, about: tuple[Any, ...]) -> None:
        if watching.is_set() and event in ("open", "os.listdir", "os.scandir"):
            touched.append(str(about[0]))

    sys.addaudithook(hear)  # which stays with the process
    monkeypatch.setattr(os, "stat", stat)
    watching.set()
    with running.client() as client:
        for name in names:
            assert client.post("/v1/chat/completions", json={"model": name, **LONG}).status_code in (400, 404)
            assert client.post("/v1/load_lora_adapter", json={"lora_name": name}).status_code in (400, 404)
            assert client.get(f"/v1/models/{name}" if "\x00" not in name else "/v1/models/%00").status_code in (400, 404)
        assert client.post("/v1/chat/completions", json={"model": "lora", **LONG, "max_tokens": 1}).status_code == 200
    watching.clear()
    assert any("registry" in path for path in touched)  # what is allowed is seen
    assert not [path for path in touched if "outside" in path]
