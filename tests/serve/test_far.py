"""`luthier chat --url`: a conversation with a server, ours or another of OpenAI's API."""

import re
import threading
from collections.abc import Iterator

import pytest
from conftest_serve import Running
from stand_in import StandIn
from test_http import ASK, alone
from typer.testing import CliRunner

from luthier.cli.app import _build
from luthier.cli.terminal import harmless
from luthier.data.endpoint import Endpoint, Question
from luthier.errors import LuthierError
from luthier.recipes.conversation import open_far
from luthier.reporting import Silent


class Listener(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture
def other() -> Iterator[StandIn]:
    found = StandIn()
    threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield found
    found.shutdown()
    found.server_close()


def chat(*arguments: str) -> tuple[str, str]:
    done = CliRunner().invoke(_build(), ["chat", *arguments])
    return done.stdout, str(done.exception or "")


def test_a_server_is_talked_to_and_remembers_what_was_said(running: Running, tiny_model, adapters) -> None:  # type: ignore[no-untyped-def]
    content = ASK["messages"][0]["content"]
    said, problem = chat("--url", running.url, "--model", "lora", "--prompt", content, "--max-new-tokens", "12")
    assert [said.strip(), problem] == [harmless(alone(tiny_model, adapters / "lora", ASK)).strip(), ""]
    talk = open_far(running.url, listener := Listener(), max_new_tokens=8)
    # An adapter before the base; which one is the first depends on the tests that this server had before.
    assert re.match(r"asking (?!base )\w+ \(--model NAME asks another; there are: base, .*houlsby", listener.lines[0])
    first = "".join(talk.ask(content))
    "".join(talk.ask("and again"))
    assert [turn.role for turn in talk.session.turns] == ["user", "assistant", "user", "assistant"]
    assert talk.session.turns[1].content == first


def test_pieces_are_shown_as_they_come(other: StandIn) -> None:
    pieces = open_far(f"{other.url}/v1", model="any").ask("long")
    assert next(iter(pieces)) == "word "
    assert other.held.is_set()
    assert len(other.asked) == 1  # and the rest is still being said
    talk = open_far(other.url, model="any", system="Be.", key="k" * 40)
    assert "".join(talk.ask("Hi")).strip() == "any under Be.: Hi"
    assert other.asked[-1]["authorization"] == f"Bearer {'k' * 40}"


def test_what_goes_wrong_is_said(other: StandIn, running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    for prompt, problem in (("refuse", "no such thing here"), ("die", "broke off")):
        assert problem in chat("--url", other.url, "--model", "any", "--prompt", prompt)[1]
    assert "is not served here" in chat("--url", running.url, "--model", "nobody", "--prompt", "Hi")[1]
    assert "cannot be reached" in chat("--url", "http://127.0.0.1:9", "--model", "any", "--prompt", "Hi")[1]
    assert "does not list its models" in chat("--url", other.url, "--prompt", "Hi")[1]
    monkeypatch.delenv("NOT_THERE", raising=False)
    assert "not set, or empty" in chat("--url", other.url, "--model", "any", "--key-env", "NOT_THERE", "--prompt", "Hi")[1]
    assert "talks to one" in chat("last", "--url", other.url)[1]
    assert "talks to one" in chat()[1]
    assert "are for --url" in chat("last", "--model", "any")[1]
    assert "no base beside" in chat("--url", other.url, "--base")[1]


def test_a_stream_that_ends_without_its_end_is_no_answer(other: StandIn) -> None:
    endpoint = Endpoint(other.url)
    pieces = endpoint.stream(Question("1", [{"role": "user", "content": "die"}], {"model": "any"}))
    with pytest.raises(LuthierError, match="broke off"):
        list(pieces)


def test_a_models_folder_is_talked_to(tiny_model) -> None:  # type: ignore[no-untyped-def]
    said, problem = chat(str(tiny_model), "--prompt", "Hi", "--max-new-tokens", "4")
    assert [problem, bool(said)] == ["", True]
    assert "no base beside it" in chat(str(tiny_model), "--base", "--prompt", "Hi")[1]
