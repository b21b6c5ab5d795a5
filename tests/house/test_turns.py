"""Tests that take turns: each has its day."""

from turns import in_turns


def test_every_test_has_its_turn_and_the_others_are_nightly() -> None:
    days = [{one.values[0]: one.marks[0].name for one in in_turns("abcdefgh", 3, day)} for day in (738_000, 738_001, 738_002)]
    assert sorted(name for day in days for name, mark in day.items() if mark == "slow") == list("abcdefgh")
    assert all(set(day.values()) == {"slow", "nightly"} for day in days)
