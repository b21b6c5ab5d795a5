"""The client of OpenAI-compatible endpoints, against a real server on loopback."""

import email.utils
import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest
from canned_server import Canned, canned, said

from luthier.data import endpoint
from luthier.data.endpoint import Callers, Endpoint, Question, Refused, complete, retry_after_s
from luthier.errors import CallError, LuthierError

QUESTION = Question("one", [{"role": "user", "content": "hello"}], {"model": "m", "max_tokens": 16})


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "FIRST_WAIT_S", 0.01)


def in_turn(answers: Sequence[Canned]) -> Any:
    return lambda number, body: answers[min(number, len(answers)) - 1]


def test_an_answer_with_its_counts() -> None:
    with canned(in_turn([said("hi", "length", (7, 3))])) as server:
        reply = Endpoint(server.address, "secret").ask(QUESTION)
    assert (reply.text, reply.cut, reply.prompt_tokens, reply.completion_tokens, reply.tries) == ("hi", True, 7, 3, 1)
    sent = server.asked[0]
    assert sent["path"] == "/v1/chat/completions"
    assert sent["body"] == {"model": "m", "max_tokens": 16, "messages": QUESTION.messages, "stream": False}
    assert (sent["headers"]["Authorization"], sent["headers"]["Idempotency-Key"]) == ("Bearer secret", "one")


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": "7", "completion_tokens": -1}], ids=str)
def test_counts_that_are_not_there_are_unknown_and_not_zero(usage: object) -> None:
    with canned(in_turn([said("hi", usage=usage)])) as server:
        reply = Endpoint(server.address).ask(QUESTION)
    assert (reply.prompt_tokens, reply.completion_tokens) == (None, None)


BROKEN = [
    Canned({"error": {"message": "busy"}}, 503),
    Canned(b"<html>bad gateway</html>", 502),
    Canned({}, 429),
    Canned(b"", 0),
    Canned(b"no json"),
    Canned({"choices": []}),
    Canned({"choices": [{"message": {"content": ["parts"]}}]}),
]


@pytest.mark.parametrize("broken", BROKEN, ids=lambda answer: f"{answer.status}-{answer.body}"[:30])
def test_what_may_pass_is_tried_again_under_the_same_id(broken: Canned) -> None:
    with canned(in_turn([broken, broken, said("hi")])) as server:
        assert Endpoint(server.address).ask(QUESTION).tries == 3
    assert {one["headers"]["Idempotency-Key"] for one in server.asked} == {"one"}


def test_a_server_that_stays_broken_is_given_up() -> None:
    with canned(in_turn([Canned({"error": {"message": "model is loading"}}, 503)])) as server, pytest.raises(LuthierError) as caught:
        Endpoint(server.address).ask(QUESTION)
    assert caught.value.problem == "answered 503 Service Unavailable: model is loading (6 tries)"
    assert len(server.asked) == 6


def test_no_answer_in_time() -> None:
    with canned(in_turn([Canned({}, delay_s=0.5)])) as server, pytest.raises(LuthierError, match=r"no answer within 0 seconds \(6 tries\)"):
        Endpoint(server.address, timeout_s=0.05).ask(QUESTION)


def test_nobody_there() -> None:
    with canned(in_turn([said("hi")])) as server:
        address = server.address
    with pytest.raises(LuthierError, match="cannot be reached"):
        Endpoint(address).ask(QUESTION)


def test_retry_after_is_waited_for() -> None:
    with canned(in_turn([Canned({}, 429, {"Retry-After": "0.4"}), said("hi")])) as server:
        begun = time.monotonic()
        Endpoint(server.address).ask(QUESTION)
    assert time.monotonic() - begun >= 0.4


def test_a_pause_of_hours_is_said_and_not_waited_for() -> None:
    with canned(in_turn([Canned({}, 429, {"Retry-After": "7200"})])) as server, pytest.raises(LuthierError) as caught:
        Endpoint(server.address).ask(QUESTION)
    assert "for 120 minutes" in caught.value.problem
    assert len(server.asked) == 1


def test_retry_after_as_a_date() -> None:
    assert 50 < (retry_after_s(email.utils.formatdate(time.time() + 60)) or 0) <= 60
    assert (retry_after_s("3.5"), retry_after_s("-1"), retry_after_s(""), retry_after_s("soon")) == (3.5, 0.0, None, None)


@pytest.mark.parametrize(
    ("status", "step"), [(401, "--key-env"), (402, "credit"), (403, "may not use"), (404, "--model"), (410, "what the server says")]
)
def test_what_nothing_else_would_mend_ends_at_once_and_hides_the_key(status: int, step: str) -> None:
    refusal = Canned({"error": {"message": "wrong key sk-secret", "code": "nope"}}, status)
    with canned(in_turn([refusal])) as server, pytest.raises(LuthierError) as caught:
        Endpoint(server.address, "sk-secret").ask(QUESTION)
    assert f"answered {status}" in caught.value.problem
    assert "wrong key (key) (nope)" in caught.value.problem
    assert "sk-secret" not in str(caught.value)
    assert step in caught.value.next_step
    assert len(server.asked) == 1


def test_a_quota_that_is_used_up_is_not_tried_again() -> None:
    used_up = Canned({"error": {"message": "over", "code": "insufficient_quota"}}, 429)
    with canned(in_turn([used_up])) as server, pytest.raises(LuthierError, match="insufficient_quota"):
        Endpoint(server.address).ask(QUESTION)
    assert len(server.asked) == 1


@pytest.mark.parametrize("status", [400, 413, 422])
def test_one_question_that_is_refused(status: int) -> None:
    with canned(in_turn([Canned({"error": {"message": "too long"}}, status)])) as server, pytest.raises(Refused, match="too long"):
        Endpoint(server.address).ask(QUESTION)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_named_and_never_followed(status: int) -> None:
    with canned(in_turn([said("hi")])) as other, canned(lambda number, body: Canned({}, status, {"Location": other.address})) as server:
        moved = Endpoint(server.address, "secret")
        with pytest.raises(LuthierError, match=f"answered {status}: moved to {other.address}"):
            moved.ask(QUESTION)
    assert not other.asked


def test_requests_keep_their_distance() -> None:
    with canned(lambda number, body: said("hi")) as server:
        asking = Endpoint(server.address, requests_per_minute=600)
        begun = time.monotonic()
        with Callers(asking, 4) as callers:
            for _ in range(5):
                callers.send(QUESTION)
            while callers.in_flight:
                callers.next_reply()
    assert time.monotonic() - begun >= 0.4


def test_no_more_questions_at_once_than_callers() -> None:
    open_now, most = [0], [0]

    def count(number: int, body: dict[str, Any]) -> Canned:
        most[0] = max(most[0], number - open_now[0])
        return Canned(said("hi").body, delay_s=0.05)

    with canned(count) as server, Callers(Endpoint(server.address), 2) as callers:
        for _ in range(6):
            callers.send(QUESTION)
        while callers.in_flight:
            if callers.next_reply():
                open_now[0] += 1
    assert most[0] <= 3  # two that are open, and one that is just counted


def test_callers_end_with_their_work() -> None:
    def waiting() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if thread.name == "caller"}

    before = waiting()
    with canned(lambda number, body: said("hi")) as server, Callers(Endpoint(server.address), 3) as callers:
        callers.send(QUESTION)
        while not callers.next_reply():
            pass
        ours = waiting() - before
    for thread in ours:
        thread.join(5)
    assert len(ours) == 3
    assert not any(thread.is_alive() for thread in ours)


def test_questions_that_nobody_waits_for_are_not_asked() -> None:
    with canned(lambda number, body: Canned(said("hi").body, delay_s=0.05)) as server:
        with Callers(Endpoint(server.address), 1) as callers:
            for _ in range(6):
                callers.send(QUESTION)
            while not callers.next_reply():
                pass
        time.sleep(0.3)
        assert len(server.asked) <= 3


def test_after_a_stop_nothing_is_sent() -> None:
    with canned(in_turn([said("hi")])) as server:
        asking = Endpoint(server.address)
        asking.stop()
        with pytest.raises(LuthierError, match="stopped before it was sent"):
            asking.ask(QUESTION)
    assert not server.asked


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("http://127.0.0.1:80", "http://127.0.0.1:80/v1/chat/completions"),
        ("https://a.example/v1/", "https://a.example/v1/chat/completions"),
        ("https://a.example/openai", "https://a.example/openai/chat/completions"),
        ("https://a.example/v1/chat/completions", "https://a.example/v1/chat/completions"),
        ("https://a.example/v1?version=2", "https://a.example/v1/chat/completions?version=2"),
    ],
)
def test_an_address_is_completed(address: str, url: str) -> None:
    assert complete(address) == url


@pytest.mark.parametrize("address", ["localhost:8080", "ftp://a/v1", "", "http://", "https://me:pass@a.example"])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(CallError) as caught:
        complete(address)
    assert "pass" not in str(caught.value).replace("password", "")


def test_a_key_in_clear_text_is_noticed() -> None:
    assert Endpoint("http://a.example", "key").shows_key
    assert not Endpoint("http://a.example").shows_key
    assert not Endpoint("https://a.example", "key").shows_key
    assert not Endpoint("http://127.0.0.1:1", "key").shows_key
