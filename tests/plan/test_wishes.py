"""Flags, presets and what is usual become wishes, in this order; what is not known is named."""

from typing import Any

import pytest

from luthier.errors import CallError
from luthier.plan import wishes
from luthier.plan.wishes import make_wishes
from luthier.records import Machine

HERE = Machine("cpu", "my laptop", 4, 16_000_000_000, 100.0, 200.0)


def test_what_is_not_given_is_usual_and_on_this_machine():
    made = make_wishes({"task": "chat", "rows": None}, HERE)
    assert (made.rows, made.use, made.domain, made.languages, made.hours) == (1000, "internal", "near", ("en",), 24)
    assert (made.device.name, made.device.gflops, made.device.memory_bytes) == ("my laptop", 200.0, 16_000_000_000)


@pytest.mark.parametrize("profile", wishes.rules()["profiles"])
def test_a_profile_sets_what_no_flag_says(profile: str):
    preset = wishes.rules()["profiles"][profile]
    made = make_wishes({}, HERE, profile)
    assert (made.task, made.use, made.rows) == (preset["task"], preset["use"], preset["rows"])
    assert make_wishes({"rows": 7, "use": "research"}, HERE, profile).rows == 7
    assert make_wishes({"rows": 7, "use": "research"}, HERE, profile).use == "research"


def test_a_named_device_may_have_another_memory():
    made = make_wishes({"task": "chat", "device": "t4", "memory": "8GB", "language": "de, EN"}, HERE)
    assert (made.device.name, made.device.memory_bytes, made.device.bandwidth) == ("t4", 8_000_000_000, 320e9)
    assert made.languages == ("de", "en")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, r"--task: is not given\n  Try: classification \| extraction"),
        ({"task": "singing"}, "--task: 'singing' is not known"),
        ({"task": "chat", "domain": "middle"}, "--domain: 'middle' is not known"),
        ({"task": "chat", "use": "resale"}, r"--use: 'resale' is no use\n  Try: research \| internal"),
        ({"task": "chat", "device": "abacus"}, r"--device: 'abacus' is not known\n  Try: this \| t4"),
        ({"task": "chat", "memory": "much"}, "--memory: 'much' is not a size"),
        ({"task": "chat", "rows": "many"}, "--rows: 'many' is no number"),
        ({"task": "chat", "rows": 0}, "--rows: 0 is too small"),
        ({"task": "chat", "rows": "inf"}, "--rows: 'inf' is no number"),
        ({"task": "chat", "context": -1}, "--context: -1 is too small"),
    ],
)
def test_what_is_not_known_is_named(given: dict[str, Any], words: str):
    with pytest.raises(CallError, match=words):
        make_wishes(given, HERE)


def test_an_unknown_profile_is_named():
    with pytest.raises(CallError, match=r"--profile: 'giant' is not known\n  Try: startup \| enterprise"):
        make_wishes({}, HERE, "giant")


def test_every_question_has_a_usual_answer_that_is_taken():
    answers = {name: usual for name, (_, usual, _) in wishes.questions().items()}
    assert make_wishes(answers, HERE) == make_wishes({"task": "chat"}, HERE)
    assert all(usual in possible for _, usual, possible in wishes.questions().values() if possible)


def test_devices_have_rates_of_this_world():
    for device in wishes.devices().values():
        assert 8e9 <= device.memory_bytes <= 200e9
        assert 5e4 <= device.gflops <= 2e6
        assert 2e11 <= device.bandwidth <= 1e13
