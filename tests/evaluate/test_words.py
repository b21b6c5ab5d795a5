"""Answers that are words, by the definitions of those who made the metrics."""

import time

import pytest

from luthier.errors import ConfigError
from luthier.evaluate.metrics import METRICS, score
from luthier.evaluate.words import matches_expected, normalized


def test_squads_normalization() -> None:
    assert normalized("The Cat's  hat, an apple; a pear!") == "cats hat apple pear"


@pytest.mark.parametrize(
    ("name", "expected", "answer", "worth"),
    [
        ("squad_em", "the Eiffel Tower", "Eiffel tower.", 1),
        ("squad_em", "Paris", "Paris, France", 0),
        ("squad_f1", "Paris", "Paris, France", 2 / 3),
        ("squad_f1", "a cat cat", "cat dog", 2 * 1 / 4),
        ("squad_f1", "the", "an", 1),  # both are empty
        ("squad_f1", "Paris", "", 0),
        ("squad_em", "", "", 1),  # an empty reference is an answer like others
        ("squad_em", "", "Paris", 0),
        ("accuracy", "", "Paris", 0),
        ("accuracy", "Positive", " positive.\n", 1),
        ("accuracy", "positive", "It is positive", 0),
        ("regex", r"^\d{5}$", "Reno\n89501", 1),
        ("regex", r"^\d{5}$", "89501-1", 0),
        ("rouge1", "the cat sat", "the cats sat down", 2 * (3 / 4 * 1) / (3 / 4 + 1)),  # stems
        ("rougeL", "a b c d", "d c b a", 0.25),
        ("rouge2", "a b c", "a b x", 0.5),
        ("repetition", "", "one two three four five six", 0),
        ("repetition", "", "no no no no no no no no", 1 - 1 / 5),
        ("repetition", "", "", 0),
        ("refusals", "", "I'm sorry, but I can't help with that.", 1),
        ("refusals", "", "Here is how to help with that.", 0),
    ],
)
def test_what_an_answer_is_worth(name: str, expected: str, answer: str, worth: float) -> None:
    assert METRICS[name](expected, answer) == pytest.approx(worth)


def test_a_pattern_for_all_rows() -> None:
    assert score("regex=^yes|^no", ["", "", ""], ["yes!", "maybe", "no"]).value == pytest.approx(2 / 3)


@pytest.mark.parametrize(("pattern", "answer"), [("(a+)+$", "a" * 60 + "b"), ("(x+x+)+y", "x" * 60), (r"(\w+\s*)*,$", "word " * 60)])
def test_a_pattern_that_never_ends_is_given_up(pattern: str, answer: str) -> None:
    begun = time.monotonic()
    assert matches_expected(pattern, answer) == 0
    assert time.monotonic() - begun < 5


def test_what_is_no_pattern_is_named() -> None:
    with pytest.raises(ConfigError, match="is no regular expression"):
        matches_expected("(", "a")
