"""A judge behind a real server on loopback."""

from typing import Any

import pytest
from canned_server import Canned, canned, said

from luthier.config.checks import CheckSettings
from luthier.data import judging
from luthier.data.quality.check import Given
from luthier.data.quality.judged import judge
from luthier.errors import ConfigError, LuthierError
from luthier.records import Conversation, Source, Turn


@pytest.mark.parametrize(
    ("reply", "read"),
    [
        ("RIGHT", ""),
        ("right.\nBecause ...", ""),
        ("**WRONG**: Paris is not in Spain", "Paris is not in Spain"),
        ("\n- Wrong - it is 5", "it is 5"),
        ("WRONG", "the judge does not say what"),
        ("I think that the answer may be right", None),
        ("", None),
    ],
)
def test_a_reply_is_right_wrong_or_unreadable(reply: str, read: str | None) -> None:
    assert judging.verdict(reply) == read


def rows(count: int) -> list[Conversation]:
    answers = [str(number + 1 + (number == 3)) for number in range(count)]
    return [
        Conversation((Turn("user", f"What is {number} + 1?"), Turn("assistant", answer)), Source("sums.jsonl", number + 1))
        for number, answer in enumerate(answers)
    ]


def opinion(number: int, body: dict[str, Any]) -> Canned:
    text = body["messages"][0]["content"]
    return said("WRONG: 3 + 1 is 4" if "What is 3 + 1?" in text and "\n5\n" in text else "mumble" if "What is 7 + 1?" in text else "RIGHT")


def test_rows_that_the_judge_calls_wrong_are_found() -> None:
    with canned(opinion) as server:
        settings = CheckSettings(judge_endpoint=f"{server.address}/v1", judge_model="referee", judge_rows=10)
        finding = judge(rows(10), Given(settings, judge=lambda pairs: judging.judge(pairs, settings)))
    assert (finding.verdict, finding.places, finding.of) == ("look", [3], 9)
    assert [(str(one.source), one.detail) for one in finding.worst] == [("sums.jsonl:4", "3 + 1 is 4")]
    assert finding.said == "1 of 9 rows (11 %) that referee judged are wrong; 1 replies of the judge could not be read"
    assert len(server.asked) == 10
    assert {request["body"]["model"] for request in server.asked} == {"referee"}


def test_a_sample_is_judged_and_is_the_same_each_time() -> None:
    with canned(lambda number, body: said("RIGHT")) as server:
        settings = CheckSettings(judge_endpoint=f"{server.address}/v1", judge_model="referee", judge_rows=4)
        given = Given(settings, judge=lambda pairs: judging.judge(pairs, settings))
        assert judge(rows(50), given).of == 4
        assert judge(rows(50)[::-1], given).of == 4
    asked = [request["body"]["messages"][0]["content"] for request in server.asked]
    assert sorted(asked[:4]) == sorted(asked[4:])


def test_what_stops_the_judge_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with canned(lambda number, body: Canned({"error": {"message": "no such key"}}, status=401)) as server:
        settings = CheckSettings(judge_endpoint=f"{server.address}/v1", judge_model="m", judge_key_env="JUDGE_KEY")
        with pytest.raises(ConfigError, match=r"checks.judge_key_env: JUDGE_KEY: this environment variable is not set"):
            judging.judge([("q", "a")], settings)
        monkeypatch.setenv("JUDGE_KEY", "secret-1")
        with pytest.raises(LuthierError, match="401 Unauthorized: no such key"):
            judging.judge([("q", "a")], settings)
    assert server.asked[0]["headers"]["Authorization"] == "Bearer secret-1"
