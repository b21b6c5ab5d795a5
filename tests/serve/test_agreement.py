"""A run's contract, asked of another engine: what differs by one token, one template or one stop token does not start."""

import hashlib
from collections.abc import Sequence
from typing import Any

import pytest

from luthier.errors import RunError
from luthier.serve import agreement
from luthier.serve.agreement import Asking
from luthier.serve.dialects import DIALECTS, Body, Forwarded
from luthier.serve.faults import bad_request
from luthier.serve.registry import Served

TEMPLATE = "the template"
GOLDEN = [{"role": "system", "content": "Be."}, {"role": "user", "content": "Hi"}]


def letters(messages: Sequence[Body]) -> list[int]:
    return [ord(letter) for message in messages for letter in f"<{message['role']}>{message['content']}"]


class Engine:
    """Renders with letters as tokens; `stops` are those that end an answer."""

    def __init__(self, stops: Sequence[str] = ("#",), system: bool = True) -> None:
        self.stops, self.system = [ord(stop) for stop in stops], system

    def post(self, path: str, body: Body) -> Body:
        if path == "/tokenize":
            if "prompt" in body:
                return {"tokens": [ord(letter) for letter in body["prompt"]]}
            if not self.system and body["messages"][0]["role"] == "system":
                raise bad_request("messages", "no system", "leave it out")
            return {"tokens": letters(body["messages"])}
        forced = [int(token) for token in body["logit_bias"]]
        return {"choices": [{"finish_reason": "stop" if forced[0] in self.stops else "length"}]}


def asking(engine: Engine, template: str | None = TEMPLATE) -> Asking:
    return Asking(DIALECTS["vllm"], engine.post, Forwarded(Served("base")), 0, lambda: template)


def promised(**changes: Any) -> Body:
    sha256 = hashlib.sha256(TEMPLATE.encode()).hexdigest()
    golden = {"messages": GOLDEN, "tools": "", "ids": letters(GOLDEN)}
    return {"template_sha256": sha256, "template": TEMPLATE, "stop_tokens": ["#"], "golden": [golden], **changes}


def test_what_agrees_gives_the_ids_of_its_stop_tokens() -> None:
    assert agreement.check(asking(Engine()), promised(), "run") == (ord("#"),)
    assert agreement.check(asking(Engine(), None), promised(), "run") == (ord("#"),)  # an engine that does not tell its template


@pytest.mark.parametrize(
    ("changes", "engine", "said"),
    [
        ({"golden": [{"messages": GOLDEN, "tools": "", "ids": [*letters(GOLDEN)[:4], 7, *letters(GOLDEN)[5:]]}]}, Engine(), "token 4: .* for .7"),
        ({"golden": [{"messages": GOLDEN, "tools": "", "ids": letters(GOLDEN)[:-1]}]}, Engine(), "golden prompt 1"),
        ({"template_sha256": "0" * 64}, Engine(), "another chat template"),
        ({"stop_tokens": ["#", "!"]}, Engine(), "goes on after the stop token !"),
        ({"stop_tokens": ["<|end|>"]}, Engine(), "does not know the stop token"),
    ],
)
def test_what_differs_is_named(changes: Body, engine: Engine, said: str) -> None:
    with pytest.raises(RunError, match=said):
        agreement.check(asking(engine), promised(**changes), "run/contract.json")


def test_a_template_that_writes_the_date_is_compared_itself() -> None:
    dated = "{{ strftime_now('%d') }}"
    golden = [{"messages": GOLDEN, "tools": "", "ids": [1]}]
    changes = {"template": dated, "template_sha256": hashlib.sha256(dated.encode()).hexdigest(), "golden": golden}
    agreement.check(asking(Engine(), dated), promised(**changes), "run")
    with pytest.raises(RunError, match="another chat template"):
        agreement.check(asking(Engine(), dated + " "), promised(**changes), "run")


def test_a_template_without_a_system_role_is_asked_as_it_was_trained() -> None:
    engine = Engine(system=False)
    assert not agreement.knows_system(asking(engine))
    assert agreement.knows_system(asking(Engine()))
    ids = letters([{"role": "user", "content": "Be.\n\nHi"}])
    agreement.check(asking(engine), promised(golden=[{"messages": GOLDEN, "tools": "", "ids": ids}]), "run")


def test_a_run_without_a_template_is_compared_as_text() -> None:
    golden = {"messages": [{"role": "prompt", "content": "Once"}], "tools": "", "ids": [ord(letter) for letter in "Once"]}
    agreement.check(asking(Engine()), promised(golden=[golden]), "run")
