"""/v1/embeddings, as OpenAI's client asks for them."""

import base64
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from conftest_serve import Running, application, listen

from luthier.serve import http, keys

WIDTH = 4


def embed(texts: list[str]) -> Any:
    """A vector that says how long a text is, and how often it has an e."""
    if "fail" in texts:
        raise RuntimeError("at 0x7f")
    return np.array([[len(text), text.count("e"), 0.1, -1.0] for text in texts], dtype=np.float32)


@pytest.fixture(scope="module")
def embedding(tiny_model: Path, adapters: Path) -> Iterator[tuple[Running, str]]:
    app = application(tiny_model, adapters)
    server = replace(app.app.state.server, embed=embed, embed_name="minilm")  # type: ignore[attr-defined]
    allowed = keys.Keys([keys.Key("one", keys._hash("k" * 32), ("base",)), keys.Key("all", keys._hash("a" * 32))])
    found, thread = listen(http.application(server, allowed, frozenset({"127.0.0.1"})), adapters)
    yield found, "a" * 32
    found.server.should_exit = True
    thread.join(timeout=30)


@pytest.fixture
def official(embedding: tuple[Running, str]) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{embedding[0].url}/v1", api_key=embedding[1], max_retries=0)


@pytest.mark.parametrize("form", ["float", "base64", None])
def test_the_official_client_gets_the_vectors_in_either_form(official: openai.OpenAI, form: Any) -> None:
    texts = ["a street", "three e here", "\u20ac"]
    found = official.embeddings.create(model="minilm", input=texts, **({"encoding_format": form} if form else {}))
    vectors = [np.frombuffer(base64.b64decode(one.embedding), "<f4") if isinstance(one.embedding, str) else one.embedding for one in found.data]
    np.testing.assert_allclose(vectors, embed(texts))
    assert [one.index for one in found.data] == [0, 1, 2]
    assert found.usage.total_tokens > 3
    assert found.model == "minilm"
    assert len(official.embeddings.create(model="minilm", input="one text").data) == 1
    assert "minilm" in [model.id for model in official.models.list()]
    assert official.models.retrieve("minilm").id == "minilm"  # what is listed can be asked for


def test_what_cannot_be_embedded_is_named(embedding: tuple[Running, str], running: Running) -> None:
    def status(body: Any, key: str = embedding[1], server: Running = embedding[0]) -> tuple[int, str]:
        with server.client(authorization=f"Bearer {key}") as client:
            answer: httpx.Response = client.post("/v1/embeddings", json=body)
        return answer.status_code, answer.json()["error"]["code"]

    assert status({"model": "nobody", "input": "x"}) == (404, "model_not_found")
    assert status({"model": "base", "input": "x"}) == (404, "model_not_found")
    assert status({"model": "minilm", "input": "x"}, "k" * 32) == (403, "model_not_allowed")
    assert status({"model": "minilm", "input": "x", "dimensions": 3}) == (400, "invalid_value")
    assert status({"model": "minilm", "input": "fail"}) == (500, "internal_error")
    for wrong in ("", [], [""], [1, 2], [[1]], ["x"] * 3000, None, {"a": 1}):
        assert status({"model": "minilm", "input": wrong})[0] == 400
    assert status({"model": "minilm", "input": "x"}, server=running) == (404, "no_embedder")


def test_too_many_texts_at_once_are_told_to_come_again(tiny_model: Path, adapters: Path) -> None:
    go_on = threading.Event()

    def slow(texts: list[str]) -> Any:
        go_on.wait(20)
        return embed(texts)

    app = application(tiny_model, adapters)
    server = replace(app.app.state.server, embed=slow, embed_name="slow")  # type: ignore[attr-defined]
    found, thread = listen(http.application(server, keys.Keys([]), frozenset()), adapters)
    statuses: list[int] = []

    def ask() -> None:
        with found.client() as client:
            statuses.append(client.post("/v1/embeddings", json={"model": "slow", "input": "x"}).status_code)

    asking = [threading.Thread(target=ask) for _ in range(20)]
    for one in asking:
        one.start()
    while len(statuses) < 4:
        go_on.wait(0.01)
    go_on.set()
    for one in asking:
        one.join()
    found.server.should_exit = True
    thread.join(timeout=30)
    assert sorted(statuses) == [200] * 16 + [503] * 4


def test_a_slow_embedder_is_waited_for_as_long_as_an_answer_may_take_and_never_runs_twice_at_once(tiny_model: Path, adapters: Path) -> None:
    running = [0]

    def slow(texts: list[str]) -> Any:
        running.append(running[-1] + 1)
        time.sleep(0.5)
        running.append(running[-1] - 1)
        return embed(texts)

    app = application(tiny_model, adapters, answer_s=0.3)
    server = replace(app.app.state.server, embed=slow, embed_name="slow")  # type: ignore[attr-defined]
    found, thread = listen(http.application(server, keys.Keys([]), frozenset()), adapters)
    with found.client() as client:
        told = [client.post("/v1/embeddings", json={"model": "slow", "input": "x"}) for _ in range(2)]
    found.server.should_exit = True
    thread.join(timeout=30)
    assert [(one.status_code, one.json()["error"]["code"]) for one in told] == [(504, "deadline")] * 2
    assert max(running) == 1
