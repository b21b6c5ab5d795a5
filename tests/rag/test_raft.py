"""Rows to train on: each kind in its share, the right passage there or missing, evidence verbatim, passages shared."""

import itertools
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.errors import CallError
from luthier.rag.grounding import NOT_THERE, cited, refuses, said
from luthier.rag.raft import Mixed, Question, Shares, answer_of, evidence, mix

TEXTS = [f"Thing {row} has the color number {row * 7}. It weighs {row} grams. Nobody lends it." for row in range(60)]


def questions(count: int, per_passage: int = 1) -> list[Question]:
    return [Question(place, f"What color has thing {place}?", f"color number {place * 7}", (place // per_passage,)) for place in range(count)]


def near(question: Question) -> list[int]:
    first = question.gold[0]
    return [row for row in range(max(0, first - 6), first + 7) if row != first and row < len(TEXTS)]


def weight(word: str) -> float:
    return 1.0


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 3),
    st.sampled_from([0.0, 0.2, 1.0]),
    st.sampled_from([0.0, 0.3]),
    st.integers(2, 5),
    st.integers(1, 5),
    st.integers(0, 9),
)
def test_every_question_is_one_row_with_its_passage_there_or_missing(
    count: int, per_passage: int, without: float, plain: float, passages: int, together: int, seed: int
) -> None:
    without = min(without, 1 - plain)
    shares = Shares(passages, without, plain, min(together, passages))
    asked = questions(count, per_passage)
    rows = mix(asked, shares, near, seed)
    assert sorted(row.question.number for row in rows) == list(range(count))
    kinds = Counter(row.kind for row in rows)
    assert (kinds["without_gold"], kinds["plain"]) == (round(count * without), min(round(count * plain), count - round(count * without)))
    for row in rows:
        assert len(set(row.passages)) == len(row.passages) <= max(passages, shares.together)
        there = set(row.question.gold) & set(row.passages)
        assert there == (set(row.question.gold) if row.kind == "gold" else set())
        assert bool(row.passages) == (row.kind != "plain")
    assert rows == mix(asked, shares, near, seed)


def test_no_other_passage_that_answers_a_question_distracts_it() -> None:
    """Each question has two passages that answer it; the second one of each is the first one of the next."""
    asked = [replace(question, gold=(question.number, question.number + 1)) for question in questions(40)]
    rows = mix(asked, Shares(passages=4, without_gold=0.2, together=4), near, 0)
    for row in rows:
        wanted = {row.question.gold[0]} if row.kind == "gold" else set()
        assert set(row.question.gold) & set(row.passages) == wanted
    assert any(one.passages == other.passages for one, other in itertools.pairwise(rows))  # they share all the same


def test_questions_about_the_same_things_share_their_passages_in_the_same_order() -> None:
    rows = mix(questions(40, 4), Shares(passages=4, without_gold=0.0, together=4), near, 0)
    assert len({row.passages for row in rows}) <= 14
    sets = [row.passages for row in rows]
    assert sum(one == other for one, other in itertools.pairwise(sets)) >= 26  # those that share stand together
    golds = [row.passages.index(row.question.gold[0]) for row in rows]
    assert len(set(golds)) == 4  # the place says nothing


def test_answers_quote_their_evidence_or_say_that_it_is_not_there() -> None:
    question = questions(5)[3]
    shares = Shares()
    told = answer_of(Mixed(question, (9, 3), "gold"), TEXTS.__getitem__, shares, weight)
    assert told == 'Evidence: "Thing 3 has the color number 21." [2]\nAnswer: color number 21'
    assert said(told) == question.answer
    assert cited(told, 2) == [2]
    assert answer_of(Mixed(question, (9, 3), "gold"), TEXTS.__getitem__, Shares(quote=False), weight) == "color number 21 [2]"
    missing = Mixed(question, (9, 8), "without_gold")
    assert answer_of(missing, TEXTS.__getitem__, shares, weight) == NOT_THERE
    assert refuses(NOT_THERE)
    assert answer_of(missing, TEXTS.__getitem__, Shares(answer_without_gold=True), weight) == question.answer
    assert answer_of(Mixed(question, (), "plain"), TEXTS.__getitem__, shares, weight) == question.answer


def test_long_evidence_is_cut_at_a_word() -> None:
    text = "word " * 200
    cut = evidence(text, Question(0, "?", "word", (0,)), weight)
    assert len(cut) <= 300
    assert text.startswith(cut)
    assert cut.endswith("word")


@pytest.mark.parametrize(
    "shares", [Shares(without_gold=0.7, plain=0.5), Shares(without_gold=-0.1), Shares(passages=1), Shares(passages=3, together=4), Shares(together=0)]
)
def test_shares_that_make_no_rows_are_refused(shares: Shares) -> None:
    with pytest.raises(CallError):
        shares.check()
