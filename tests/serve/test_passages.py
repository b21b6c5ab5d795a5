"""Answers of a server with documents: the passages stand beside them, a request can do without, and nothing is guessed."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest_serve import application, listen

from luthier.rag import embedding, indexing
from luthier.rag.grounding import NOT_THERE
from luthier.rag.splitting import Split
from luthier.records import Turn
from luthier.serve import http, passages
from luthier.serve.keys import Keys

QUESTION = "Where does the postman of Elgin go to?"


@pytest.fixture(scope="module")
def grounded(tiny_model: Path, adapters: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("documents")
    (folder / "docs").mkdir()
    for town in ("Elgin", "Boston", "Joliet"):
        (folder / "docs" / f"{town}.md").write_text(f"# {town}\n\nThe postman of {town} goes to Pierce Rd.\n", encoding="utf-8")
    indexing.build([("docs", folder / "docs")], folder / "index", embedding.embedder_of("wordllama"), Split())
    running, thread = listen(application(tiny_model, adapters, slots=2, queue=4, index=folder / "index"), adapters)
    with running.client() as client:
        yield client
    running.server.should_exit = True
    thread.join(timeout=30)


def ask(client: httpx.Client, question: str, **more: Any) -> httpx.Response:
    body = {"model": "base", "messages": [{"role": "user", "content": question}], "max_tokens": 8, "temperature": 0, **more}
    return client.post("/v1/chat/completions", json=body)


def test_an_answer_carries_the_passages_it_was_made_from(grounded: httpx.Client) -> None:
    with_passages, without = ask(grounded, QUESTION).json(), ask(grounded, QUESTION, rag=False).json()
    assert with_passages["passages"][0]["source"] == "docs/Elgin.md:3"
    assert with_passages["passages"][0]["text"] == "Elgin\nThe postman of Elgin goes to Pierce Rd."
    assert "passages" not in without
    assert with_passages["usage"]["prompt_tokens"] > without["usage"]["prompt_tokens"] + 50
    assert with_passages["choices"][0]["message"]["content"] != without["choices"][0]["message"]["content"]


def test_where_nothing_fits_no_model_is_asked(grounded: httpx.Client) -> None:
    told = ask(grounded, "Who was the first emperor of Rome?", n=2).json()
    assert [choice["message"]["content"] for choice in told["choices"]] == [NOT_THERE] * 2
    assert told["passages"] == []
    assert told["usage"]["total_tokens"] == 0
    assert told["choices"][0]["finish_reason"] == "stop"


def test_where_nothing_fits_and_json_was_asked_for_the_request_is_refused(grounded: httpx.Client) -> None:
    """A sentence would break whoever parses the answer."""
    told = ask(grounded, "Who was the first emperor of Rome?", response_format={"type": "json_object"})
    assert (told.status_code, told.json()["error"]["code"]) == (400, "not_in_documents")
    plain = ask(grounded, "Who was the first emperor of Rome?", response_format={"type": "text"})
    assert plain.json()["choices"][0]["message"]["content"] == NOT_THERE
    fits = ask(grounded, QUESTION, response_format={"type": "json_object"})
    assert [fits.status_code, len(fits.json()["passages"])] == [200, 3]


def test_what_a_tool_gave_is_not_looked_up(grounded: httpx.Client) -> None:
    """It has nothing to do with the documents, and is no question either: the model goes on with it."""
    called = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "How warm is it in Rome?"},
        {"role": "assistant", "content": "", "tool_calls": [called]},
        {"role": "tool", "tool_call_id": "1", "content": "31 degrees"},
    ]
    told = grounded.post("/v1/chat/completions", json={"model": "base", "messages": messages, "max_tokens": 4, "temperature": 0}).json()
    assert "passages" not in told
    assert told["usage"]["completion_tokens"] > 0


@pytest.mark.parametrize("question", [QUESTION, "Who was the first emperor of Rome?"])
def test_a_stream_carries_them_in_its_first_piece(question: str, grounded: httpx.Client) -> None:
    whole = ask(grounded, question).json()
    lines = [line[6:] for line in ask(grounded, question, stream=True).text.split("\n") if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    pieces = [json.loads(line) for line in lines[:-1]]
    assert pieces[0]["passages"] == whole["passages"]
    assert not any("passages" in piece for piece in pieces[1:])
    text = "".join(piece["choices"][0]["delta"].get("content") or "" for piece in pieces)
    assert text == whole["choices"][0]["message"]["content"]


def test_a_question_that_leaves_no_room_is_refused(grounded: httpx.Client) -> None:
    told = ask(grounded, "where " * 150)
    assert told.status_code == 400
    assert "leaves no room for passages" in told.text


def test_the_embedder_of_the_index_answers_too(grounded: httpx.Client) -> None:
    told = grounded.post("/v1/embeddings", json={"model": "wordllama", "input": ["a guitar", "a violin"]}).json()
    assert [len(one["embedding"]) for one in told["data"]] == [256, 256]


def test_a_server_without_documents_says_so(client: httpx.Client) -> None:
    told = ask(client, QUESTION, rag=True)
    assert told.status_code == 400
    assert "luthier serve RUN --rag INDEX" in told.text
    assert ask(client, QUESTION, rag=False).status_code == 200


def test_a_look_up_and_its_answer_have_one_deadline_together(tiny_model: Path, adapters: Path) -> None:
    def look_up(turns: list[Turn], most: int | None, tools: str, left: Callable[[], float]) -> passages.LookedUp:
        time.sleep(max(0.0, left() - 0.02))  # all but nothing is left for the answer
        return passages.LookedUp(turns, [])

    app = application(tiny_model, adapters, answer_s=1.0)
    server = replace(app.app.state.server, look_up=look_up)  # type: ignore[attr-defined]
    running, thread = listen(http.application(server, Keys([]), frozenset()), adapters)
    with running.client() as client:
        late = ask(client, QUESTION, n=8, max_tokens=48)
    running.server.should_exit = True
    thread.join(timeout=30)
    assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline")
