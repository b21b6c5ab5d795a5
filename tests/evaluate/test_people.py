import csv
import io
from collections import Counter

import pytest

from luthier.errors import DataError
from luthier.evaluate.people import QUESTIONS, Rating, blind, from_csv, most, result, to_csv

ROWS = [(f"eval.jsonl:{n}", f"question {n}", f"ours {n}", f"theirs {n}") for n in range(1, 21)]
PAIRS = blind(ROWS, seed=0)


def rated(rater, letters, pairs=PAIRS):
    """One letter a pair, for all five questions: m(odel), r(ival) or =."""
    sides = {"m": "model", "r": "rival", "=": "tie"}
    return [Rating(pair.id, rater, dict.fromkeys(QUESTIONS, sides[letter])) for pair, letter in zip(pairs, letters, strict=False)]


def test_half_of_the_pairs_show_the_model_first_and_the_seed_says_which():
    assert Counter(pair.first for pair in PAIRS) == {"model": 10, "rival": 10}
    assert blind(ROWS, seed=0) == PAIRS != blind(ROWS, seed=1)
    for pair, (_, _, ours, theirs) in zip(PAIRS, ROWS, strict=True):
        assert (pair.a, pair.b) == ((ours, theirs) if pair.first == "model" else (theirs, ours))
        assert {pair.side("a"), pair.side("b")} == {"model", "rival"}
        assert pair.side("a") == pair.first
        assert (pair.side("="), pair.side("x")) == ("tie", None)


def test_win_rates_count_ties_as_half_and_equal_answers_as_ties():
    found = result(PAIRS[:8], rated("ann", "mmmmrr=="), equal=2)
    assert found.win_rates["correctness"].value == pytest.approx(5 / 8)
    assert (found.win_rates["overall"].value, found.win_rates["overall"].n) == (0.6, 10)
    assert found.win_rates["overall"].low < 0.6 < found.win_rates["overall"].high
    assert (found.kappa, found.rated, found.raters) == ({}, 8, {"ann": 8})


def test_equal_answers_count_by_the_share_that_is_rated():
    found = result(PAIRS, rated("ann", "mm"), equal=40)
    assert (found.win_rates["overall"].value, found.win_rates["overall"].n) == (4 / 6, 6)
    assert found.equal == 40
    assert result(PAIRS, [], equal=40).win_rates == {}
    assert result([], [], equal=3).win_rates["overall"].n == 3


def test_two_raters_have_cohens_kappa_and_three_fleiss():
    # The same marks as in test_agreement.py, whose numbers are scikit-learn's and statsmodels'.
    letters = {"ann": "aabb=abbab=aab=babba", "ben": "aabbaabbbb=aaa=ba=ba", "eve": "abbb=aab=b=bab=babba"}
    ratings = {name: rated(name, marks.replace("a", "m").replace("b", "r")) for name, marks in letters.items()}
    two = result(PAIRS, [*ratings["ann"], *ratings["ben"]], 0)
    assert (two.kappa_of, two.kappa_pairs, two.kappa["safety"]) == ("Cohen", 20, pytest.approx(0.6761133603238867))
    three = result(PAIRS, [one for found in ratings.values() for one in found], 0)
    assert (three.kappa_of, three.kappa["overall"]) == ("Fleiss", pytest.approx(0.5985727029438002))


def test_a_later_rating_replaces_the_earlier_and_kappa_is_over_what_all_rated():
    ratings = [*rated("ann", "mmm"), *rated("ben", "mr"), *rated("ann", "r")]
    found = result(PAIRS, ratings, 0)
    assert found.raters == {"ann": 3, "ben": 2}
    assert found.kappa_pairs == 2
    assert found.win_rates["format"].value == pytest.approx((0.5 + 0.5 + 1) / 3)


def test_most_of_the_five_marks_decide():
    assert most({"a": "model", "b": "model", "c": "rival", "d": "tie", "e": "tie"}) == "model"
    assert most({"a": "model", "b": "rival", "c": "tie"}) == "tie"


def test_the_table_for_raters_says_nothing_of_the_sides_and_comes_back():
    nasty = blind([("eval.jsonl:1", "=1+1", "@SUM(A1)", 'a "quoted"\nanswer, with a comma'), *ROWS[:3]], seed=4)
    text = to_csv(nasty)
    assert not any(word in text for word in ("model", "rival", "eval.jsonl", "first"))
    rows = list(csv.DictReader(io.StringIO(text)))
    assert rows[0]["question"] == "'=1+1", "no formula for a spreadsheet"
    assert {row["answer_A"] for row in rows} == {pair.a if not pair.a.startswith("@") else "'" + pair.a for pair in nasty}
    for row, mark in zip(rows, "ab=", strict=False):
        row.update(dict.fromkeys(QUESTIONS, mark))
    filled = io.StringIO()
    writer = csv.DictWriter(filled, list(rows[0]), delimiter=";")  # as a spreadsheet of many countries writes it
    writer.writeheader()
    writer.writerows(rows)
    ratings, left_out = from_csv(filled.getvalue(), "ann.csv", nasty, "ann")
    assert left_out == []
    assert [one.marks["safety"] for one in ratings] == [nasty[0].side("a"), nasty[1].side("b"), "tie"]


def test_rows_that_cannot_be_counted_are_listed_and_another_table_is_refused():
    head = ",".join(("pair", *QUESTIONS))
    text = f"{head}\n1,a,a,a,a,a\n2,a,,a,a,a\n3,a,a,a,x,a\n99,a,a,a,a,a\n4,,,,,\n"
    ratings, left_out = from_csv(text, "ann.csv", PAIRS, "ann")
    assert [one.pair for one in ratings] == ["1"]
    assert [line.split(":")[1] for line in left_out] == ["3", "4", "5"]
    assert "safety is 'x'" in left_out[1]
    with pytest.raises(DataError, match="no column relevance"):
        from_csv("pair,best\n1,a\n", "ann.csv", PAIRS, "ann")
