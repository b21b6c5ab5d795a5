"""The API as a client meets it: over a socket, with OpenAI's own client where it has a call for it."""

import contextlib
import json
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from conftest_serve import Running, application, listen
from test_continuous import make

from luthier.engine import Engine
from luthier.engine.continuous import Continuous
from luthier.models import adapters as stored
from luthier.models import load
from luthier.records import Turn
from luthier.serve import keys

ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "150 Pierce Rd, Itasca"}], "temperature": 0, "max_tokens": 12}


@pytest.fixture
def official(running: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0)


def alone(tiny_model: Path, folder: Path | None, asked: dict[str, Any]) -> str:
    """What the engine says with this adapter, without a server."""
    model = load.load_model(tiny_model, "fp32", "cpu")
    engine = Engine((stored.load_adapter(model, folder, trainable=False) if folder else model).eval(), load.load_tokenizer(tiny_model))
    turns = [Turn(one["role"], one["content"]) for one in asked["messages"]]
    return "".join(engine.stream(turns, max_new_tokens=asked["max_tokens"]))


def test_an_adapter_whose_files_are_just_being_replaced_is_waited_for(running: Running, tiny_model: Path, adapters: Path) -> None:
    """One file after the other: between them config and weights belong to two adapters."""
    folder = shutil.copytree(adapters / "prefix", running.registry_folder / "replaced")
    shutil.copyfile(adapters / "lora" / stored.WEIGHTS, folder / stored.WEIGHTS)
    later = threading.Timer(0.3, shutil.copyfile, (adapters / "prefix" / stored.WEIGHTS, folder / stored.WEIGHTS))
    later.start()
    with running.client() as client:
        answer = client.post("/v1/chat/completions", json={"model": "replaced", **ASK})
        later.join()
        client.post("/v1/unload_lora_adapter", json={"lora_name": "replaced"})
    shutil.rmtree(folder)
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"] == alone(tiny_model, adapters / "prefix", ASK)


def test_each_adapter_answers_as_it_does_alone_all_at_once(running: Running, tiny_model: Path, adapters: Path, official: openai.OpenAI) -> None:
    names = ["base", "lora", "wide", "houlsby", "prefix"]
    expected = {name: alone(tiny_model, None if name == "base" else adapters / name, ASK) for name in names}
    assert len(set(expected.values())) == len(names)
    with ThreadPoolExecutor(15) as pool:
        found = list(pool.map(lambda name: official.chat.completions.create(model=name, **ASK), names * 3))
    assert [one.choices[0].message.content for one in found] == [expected[name] for name in names * 3]
    assert {one.choices[0].finish_reason for one in found} <= {"stop", "length"}
    assert found[0].usage is not None
    assert found[0].usage.total_tokens == found[0].usage.prompt_tokens + found[0].usage.completion_tokens


def test_a_stream_says_what_a_whole_answer_says(official: openai.OpenAI) -> None:
    whole = official.chat.completions.create(model="lora", n=2, seed=7, **ASK | {"temperature": 0.9})
    chunks = list(
        official.chat.completions.create(model="lora", n=2, seed=7, stream=True, stream_options={"include_usage": True}, **ASK | {"temperature": 0.9})
    )
    for place in range(2):
        said = [chunk.choices[0] for chunk in chunks if chunk.choices and chunk.choices[0].index == place]
        assert "".join(one.delta.content or "" for one in said) == whole.choices[place].message.content
        assert [one.finish_reason for one in said if one.finish_reason] == [whole.choices[place].finish_reason]
    assert chunks[-1].usage == whole.usage.model_copy(update={"prompt_tokens_details": chunks[-1].usage.prompt_tokens_details})  # type: ignore[union-attr]
    assert whole.choices[0].message.content != whole.choices[1].message.content


def test_models_are_the_base_and_its_adapters(official: openai.OpenAI) -> None:
    found = {model.id: model for model in official.models.list()}
    assert {"base", "lora", "wide", "houlsby", "prefix"} <= found.keys()
    assert [found["base"].parent, found["lora"].parent] == [None, "base"]  # type: ignore[attr-defined]
    assert official.models.retrieve("lora").id == "lora"


def test_completions_logprobs_stop_and_penalties(official: openai.OpenAI) -> None:
    free = official.completions.create(model="base", prompt="street city", max_tokens=10, temperature=0, logprobs=2)
    logprobs = free.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert len(logprobs.tokens) == 10
    assert all(value <= 0 for value in logprobs.token_logprobs or [])
    text = free.choices[0].text
    stop = text[4:7]
    stopped = official.completions.create(model="base", prompt="street city", max_tokens=10, temperature=0, stop=[stop])
    assert stopped.choices[0].text == text[: text.index(stop)]
    assert stopped.choices[0].finish_reason == "stop"
    banned = official.completions.create(model="base", prompt="street city", max_tokens=10, temperature=0, logit_bias={"20": 100})
    assert banned.choices[0].text == banned.choices[0].text[0] * 10 != text
    often = official.completions.create(model="base", prompt="street city", max_tokens=10, temperature=0, logit_bias={"20": 12})
    seldom = official.completions.create(
        model="base", prompt="street city", max_tokens=10, temperature=0, logit_bias={"20": 12}, frequency_penalty=2.0, presence_penalty=2.0
    )
    said = banned.choices[0].text[0]
    assert seldom.choices[0].text.count(said) < often.choices[0].text.count(said)


def test_an_answer_keeps_to_its_schema(official: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 8}, "n": {"enum": [1, 2]}},
        "required": ["city", "n"],
        "additionalProperties": False,
    }
    form: Any = {"type": "json_schema", "json_schema": {"name": "address", "schema": schema}}
    found = official.chat.completions.create(model="lora", response_format=form, **ASK | {"max_tokens": 200})
    value = json.loads(found.choices[0].message.content or "")
    assert value.keys() == {"city", "n"}
    assert value["n"] in (1, 2)
    with pytest.raises(openai.BadRequestError, match="schema"):
        official.chat.completions.create(model="lora", response_format={**form, "json_schema": {"name": "x", "schema": {"type": "nothing"}}}, **ASK)


@pytest.mark.parametrize(
    "name", ["nobody", "../lora", "/etc/passwd", "a/../../b", "LORA", "lora\x00", "", "..", "CON", "l" * 300, "ｌｏｒａ", "lora "]
)
def test_an_unknown_model_is_never_the_base(client: httpx.Client, name: str) -> None:
    answer = client.post("/v1/chat/completions", json={"model": name, **ASK})
    assert answer.status_code in (400, 404)
    assert answer.json()["error"]["request_id"] == answer.headers["x-request-id"]


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"", 400, "JSON"),
        (b"{", 400, "JSON"),
        (b"[]", 400, "object"),
        (b'"\xff"', 400, "UTF-8"),
        (b'{"model": "base", "model": "lora"}', 400, "twice"),
        (b'{"model": "base", "messages": [], "temperature": NaN}', 400, "NaN"),
        (b'{"model": "base", "temperature": 1e999}', 400, ""),
        (b'{"model": "base", "max_tokens": ' + b"9" * 1000 + b"}", 400, "digits"),
        (b'{"a":' * 5000 + b"1" + b"}" * 5000, 400, "deep"),
        (b'{"model": "base", "messages": [{"role": "user", "content": "\\ud800"}]}', 400, "UTF-8"),
        (b'{"model": "base", "messages": [{"role": "user", "content": "x"}], "max_tokens": "9"}', 400, "max_tokens"),
        (b'{"model": "base", "messages": [{"role": "king", "content": "x"}]}', 400, "role"),
        (b'{"model": "base", "messages": [{"role": "user", "content": [{"type": "image_url"}]}]}', 400, "text"),
        (b'{"model": "base", "messages": [{"role": "user", "content": "x"}], "tempreature": 1}', 400, "tempreature"),
        (b'{"model": "base", "messages": [{"role": "user", "content": "x"}], "n": 1000}', 400, "n"),
        (b'{"model": "base", "messages": [{"role": "user", "content": "x"}], "repetition_penalty": 5e-324}', 400, "repetition_penalty"),
        (b'{"model": "base", "messages": [{"role": "user", "content": "x"}], "top_p": 0}', 400, "top_p"),
        (b'{"model": "base", "messages": [{"role": "user", "content": "x"}], "stop": [""]}', 400, "stop"),
        (b'{"model": "base", "messages": [{"role": "user", "content": "x"}], "logit_bias": {"9999999": 1}}', 400, "logit_bias"),
        (b'{"model": "base", "messages": [{"role": "user", "content": "' + b"long " * 9000 + b'"}]}', 400, "context"),
    ],
)  # fmt: skip
def test_bad_bodies_are_named_and_never_an_error_of_the_server(client: httpx.Client, body: bytes, status: int, said: str) -> None:
    answer = client.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == status, answer.text
    assert said in answer.json()["error"]["message"]


def test_sizes_kinds_and_paths(client: httpx.Client) -> None:
    large = client.post("/v1/chat/completions", content=b" " * ((1 << 20) + 1), headers={"content-type": "application/json"})
    assert large.status_code == 413

    def endless() -> Any:
        for _ in range(40):
            yield b" " * 50_000

    assert client.post("/v1/chat/completions", content=endless(), headers={"content-type": "application/json"}).status_code == 413
    assert client.post("/v1/chat/completions", content=b"a=b").status_code == 415
    packed = client.post("/v1/chat/completions", content=b"{}", headers={"content-type": "application/json", "content-encoding": "gzip"})
    assert packed.status_code == 415
    assert client.get("/nothing").status_code == 404
    assert client.delete("/v1/models").status_code == 405


def test_pages_of_other_sites_and_other_names_are_refused(client: httpx.Client) -> None:
    for headers in [{"origin": "https://evil.example"}, {"origin": "null"}, {"host": "evil.example"}, {"sec-fetch-site": "cross-site"}]:
        assert client.get("/v1/models", headers=headers).status_code == 403
    assert client.get("/v1/models", headers={"origin": "http://localhost:8000"}).status_code == 200


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_its_slot_at_once(running: Running, stream: bool) -> None:
    answering = running.app.app.state.server.answering  # type: ignore[attr-defined]
    before = answering.tokens
    long = {"model": "base", **ASK, "max_tokens": 3000, "n": 8, "logit_bias": {"2": -100, "0": -100}, "stream": stream}
    asked = {"url": "/v1/chat/completions", "json": long, "timeout": 60 if stream else 0.5}
    with running.client() as leaving, contextlib.suppress(httpx.ReadTimeout), leaving.stream("POST", **asked) as answer:
        next(answer.iter_lines())
    latest = time.monotonic() + 30
    while answering.in_flight and time.monotonic() < latest:
        time.sleep(0.02)
    assert answering.in_flight == 0
    assert answering.tokens - before < 8 * 300  # the context has room for more than 450 each


def test_too_many_requests_are_told_to_come_again(running: Running, client: httpx.Client) -> None:
    long = {"model": "base", **ASK, "max_tokens": 80, "n": 8, "logit_bias": {"2": -100, "0": -100}}

    def ask(_: int) -> httpx.Response:
        with running.client() as own:
            return own.post("/v1/chat/completions", json=long)

    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(ask, range(6)))
    statuses = [one.status_code for one in found]
    assert set(statuses) == {200, 503}
    refused = next(one for one in found if one.status_code == 503)
    assert refused.headers["retry-after"] == "1"
    assert client.post("/v1/chat/completions", json={"model": "base", **ASK}).status_code == 200


def test_what_the_memory_has_no_room_for_is_refused_and_the_rest_waits_for_its_turn(tiny_model: Path, adapters: Path) -> None:
    place_bytes = 2 * 2 * 2 * 16 * 4  # layers, keys and values, heads, width, fp32
    found, thread = listen(application(tiny_model, adapters, slots=4, queue=16, kept_bytes=300 * place_bytes), adapters)
    fitting = {"model": "base", **ASK, "max_tokens": 24}
    long = {**fitting, "messages": [{"role": "user", "content": "street " * 290}]}
    with found.client() as client:
        early = client.post("/v1/chat/completions", json=long)  # while the first forward still runs
        refused = client.post("/v1/chat/completions", json=long)
        with ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(lambda _: client.post("/v1/chat/completions", json=fitting), range(6)))
    found.server.should_exit = True
    thread.join(timeout=30)
    assert [early.status_code, refused.status_code] == [400, 400]
    assert "the memory of this server 300" in refused.json()["error"]["message"]
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.json()["choices"][0]["message"]["content"] for answer in answers} == {alone(tiny_model, None, fitting)}


def test_an_adapter_is_loaded_again_when_it_changes_and_unloaded_by_name(running: Running, tiny_model: Path, client: httpx.Client) -> None:
    folder = make(tiny_model, running.registry_folder / "changing", "lora", 11)

    def said() -> httpx.Response:
        return client.post("/v1/chat/completions", json={"model": "changing", **ASK})

    first = said().json()["choices"][0]["message"]["content"]
    assert first == alone(tiny_model, folder, ASK)
    make(tiny_model, running.registry_folder / "other", "lora", 12)
    for name in (stored.CONFIG, stored.WEIGHTS):
        (folder / name).write_bytes((running.registry_folder / "other" / name).read_bytes())
    second = said().json()["choices"][0]["message"]["content"]
    assert second == alone(tiny_model, folder, ASK) != first
    assert client.post("/v1/unload_lora_adapter", json={"lora_name": "changing"}).status_code == 200
    assert said().status_code == 404
    assert "changing" not in [one["id"] for one in client.get("/v1/models").json()["data"]]
    assert client.post("/v1/load_lora_adapter", json={"lora_name": "changing"}).status_code == 200
    assert said().json()["choices"][0]["message"]["content"] == second
    (folder / stored.WEIGHTS).write_bytes(b"broken")
    assert said().json()["choices"][0]["message"]["content"] == second
    broken = client.post("/v1/load_lora_adapter", json={"lora_name": "changing"})
    assert broken.status_code == 422
    assert str(folder) not in broken.text
    assert client.post("/v1/load_lora_adapter", json={"lora_name": "../x"}).status_code == 404
    assert client.post("/v1/load_lora_adapter", json={"lora_name": "x", "lora_path": "/etc"}).status_code == 400


def test_no_label_holds_what_a_client_wrote(client: httpx.Client) -> None:
    client.get("/v1/models/somebody-wrote-this")
    client.get("/somebody-wrote-this-too")
    assert "somebody" not in client.get("/metrics").text


def test_a_model_that_cannot_answer_any_more_says_so(tiny_model: Path, adapters: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("the device is gone")

    found, thread = listen(application(tiny_model, adapters), adapters)
    with found.client() as asking:
        assert asking.post("/v1/chat/completions", json={"model": "base", **ASK}).status_code == 200
        monkeypatch.setattr(Continuous, "_run", fail)
        statuses = [asking.post("/v1/chat/completions", json={"model": "base", **ASK}).status_code for _ in range(7)]
        assert statuses == [500] * 5 + [503] * 2
        assert [asking.get("/ready").status_code, asking.get("/health").status_code] == [503, 503]
        assert asking.post("/v1/chat/completions", json={"model": "lora", **ASK}).status_code == 503
    found.server.should_exit = True
    thread.join(timeout=30)


def test_a_forward_that_fails_ends_its_requests_alone(running: Running, client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    answering: Any = running.app.app.state.server.answering  # type: ignore[attr-defined]

    def fail(*_: Any) -> Any:
        raise RuntimeError("secret address 0x7f")

    with monkeypatch.context() as patch:
        patch.setattr(answering._continuous, "_run", fail)
        failed = client.post("/v1/chat/completions", json={"model": "base", **ASK})
    assert failed.status_code == 500
    assert "0x7f" not in failed.text
    assert client.post("/v1/chat/completions", json={"model": "lora", **ASK}).status_code == 200
    assert client.get("/ready").status_code == 200


@pytest.fixture(scope="module")
def guarded(tiny_model: Path, adapters: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    every, one = keys.new(path, "every", admin=True), keys.new(path, "one", ("lora",))
    assert every not in path.read_text()
    found, thread = listen(application(tiny_model, adapters, keys.read(path, None)), adapters)
    yield found, every, one
    found.server.should_exit = True
    thread.join(timeout=30)


def test_every_path_but_health_asks_for_a_key(guarded: Any) -> None:
    found, every, one = guarded
    with found.client() as nobody:
        for route in found.app.app.routes:
            path = route.path.replace("{name}", "lora")
            for method in ("GET", "POST", "OPTIONS", "HEAD", "DELETE", "PUT", "PATCH"):
                assert (nobody.request(method, path).status_code == 401) == (path != "/health"), (method, path)
        for wrong in ["", "Bearer", "Bearer x", f"Basic {every}", f"Bearer {every}x", f"Bearer {every[:-1]}"]:
            assert nobody.get("/v1/models", headers={"authorization": wrong}).status_code == 401
        assert nobody.get(f"/v1/models?api_key={every}").status_code == 401
        assert nobody.get("/health").status_code == 200
    with found.client(authorization=f"bearer {every}") as all_models:
        assert all_models.post("/v1/chat/completions", json={"model": "base", **ASK}).status_code == 200
    with found.client(authorization=f"Bearer {one}") as only:
        assert [model["id"] for model in only.get("/v1/models").json()["data"]] == ["lora"]
        assert only.post("/v1/chat/completions", json={"model": "lora", **ASK}).status_code == 200
        assert only.post("/v1/chat/completions", json={"model": "base", **ASK}).status_code == 403
        assert only.post("/v1/unload_lora_adapter", json={"lora_name": "lora"}).status_code == 403
        assert only.get("/metrics").status_code == 403
