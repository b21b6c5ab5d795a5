"""Metrics of many rows: the numbers of the libraries, and intervals that come from the rows."""

import math

import pytest
import sacrebleu

from luthier.evaluate.metrics import score
from luthier.evaluate.sums import difference, macro_f1, of_scores, perplexity, token_accuracy
from luthier.records import Likelihood

RIGHT = ["the cat sat on a mat", "the dog runs very fast today", "hello there my friend", "a small house by the sea"] * 8
SAID = ["the cat sat on the mat", "a dog runs fast today ok", "hello my friend", "a house by the sea"] * 8


@pytest.mark.parametrize(("name", "theirs"), [("bleu", sacrebleu.corpus_bleu), ("chrf", sacrebleu.corpus_chrf)])
def test_the_score_of_a_set_is_sacrebleus(name: str, theirs: object) -> None:
    metric = score(name, RIGHT, SAID)
    assert metric.value == theirs(SAID, [RIGHT]).score  # type: ignore[operator]
    assert metric.low < metric.value < metric.high
    assert metric.n == 32


def test_macro_f1_counts_every_label_alike() -> None:
    counted = macro_f1(["a"] * 8 + ["b"] * 2, ["a"] * 8 + ["b", "nothing"])
    # a: 8 of 8, and none too many; b: one of two is found
    assert counted.value == pytest.approx((1 + 2 * 1 / (2 + 1)) / 2)
    assert macro_f1(["A"], ["a."]).value == 1


def test_perplexity_is_of_all_tokens_and_not_a_mean_of_rows() -> None:
    rows = [Likelihood(-1.0, 1, 1), Likelihood(-30.0, 10, 2)]
    assert perplexity(rows).value == pytest.approx(math.exp(31 / 11))
    assert token_accuracy(rows).value == pytest.approx(3 / 11)


def test_a_difference_is_counted_over_the_rows_that_both_have() -> None:
    before, after = of_scores([0.0, 1.0, 0.0], "share"), of_scores([1.0, 1.0, 0.0, 1.0, 1.0], "share")
    assert (difference(before, after).value, difference(before, after).n) == (pytest.approx(1 / 3), 3)


def test_a_small_steady_gain_of_a_sum_is_seen_because_rows_are_paired() -> None:
    before = perplexity([Likelihood(-float(place + 1), 2, 0) for place in range(40)])
    after = perplexity([Likelihood(-float(place + 1) * 0.98, 2, 0) for place in range(40)])
    gain = difference(before, after)
    assert gain.high < 0
    assert after.metric().high > before.metric().low, "two separate intervals would not have seen it"


def test_numbers_without_bounds_have_intervals_too() -> None:
    metric = of_scores([300.0] * 5, "number").metric()
    assert (metric.value, metric.low, metric.high) == (300, 300, 300)
