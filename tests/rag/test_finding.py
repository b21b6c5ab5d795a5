"""Passages are found by words and by meaning, merged by rank, and known not to fit."""

from collections.abc import Sequence

import numpy as np
import pytest

from luthier.rag.embedding import embedder_of
from luthier.rag.finding import RRF, Finder, Ways
from luthier.rag.questions import fellows, group
from luthier.rag.vectors import best


@pytest.mark.parametrize(
    ("question", "place"),
    [
        ("After how many days does a refund arrive?", "docs/returns.md:7"),
        ("How long is the warranty of an amplifier?", "docs/warranty.pdf page 1"),
        ("When does the shop in Elgin open in the morning?", "docs/hours.txt:1-5"),
        ("Who mends violins?", "docs/words.jsonl:1"),
        ("May customs open my parcel at the border?", "docs/delivery.html section 2"),
    ],
)
def test_the_passage_that_answers_comes_first(question: str, place: str, finder: Finder) -> None:
    found = finder.find(question, 3)
    assert found.found[0].passage.place == place
    assert found.fits()


@pytest.mark.parametrize("question", ["Who was the first emperor of Rome?", "Solve x + 3 = 8.", "zzz qqq", "..."])
def test_what_the_documents_do_not_hold_does_not_fit(question: str, finder: Finder) -> None:
    assert not finder.find(question, 3).fits()


def test_both_ways_are_merged_by_their_ranks(finder: Finder) -> None:
    question = "Is a parcel sent back within days?"
    rank = {way: [one.row for one in finder.find(question, 50, ways=(way,)).found] for way in ("words", "meaning")}
    for one in finder.find(question, 50).found:
        expected = sum(1 / (RRF + rows.index(one.row) + 1) for rows in rank.values() if one.row in rows)
        assert one.score == pytest.approx(expected)
    scores = [one.score for one in finder.find(question, 50).found]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("ways", [("words",), ("meaning",), ("words", "meaning")])
def test_passages_can_be_left_out(ways: Ways, finder: Finder) -> None:
    question = "After how many days does a refund arrive?"
    gold = finder.find(question, 1).found[0].row
    out = fellows(finder.index, [gold])
    left = finder.find(question, 50, without=out, ways=ways)
    assert left.found
    assert not {one.row for one in left.found} & set(out)
    assert all(one.passage.document != "docs/returns.md" for one in left.found)


def test_rows_of_one_file_belong_together_by_their_title(finder: Finder) -> None:
    [row] = [row for row in finder.index.rows_of("docs/words.jsonl") if finder.index.passages([row])[0].title == "fret"]
    assert fellows(finder.index, [row]) == [row]
    assert group(finder.index, row) == "docs/words.jsonl fret"


def test_a_cross_encoder_has_the_last_word(finder: Finder) -> None:
    def shortest_first(question: str, texts: Sequence[str]) -> list[float]:
        return [-float(len(text)) for text in texts]

    again = Finder(finder.index, embedder_of("wordllama"), shortest_first)
    lengths = [len(one.passage.whole) for one in again.find("a guitar in the shop", 5).found]
    assert lengths == sorted(lengths)


def test_the_best_scores_come_first_and_equal_ones_in_their_order() -> None:
    scores = np.array([0, 2, 1, 2, -1, 1, 1], np.float32)
    assert best(scores, 3).tolist() == [1, 3, 2]
    assert best(scores, 50).tolist() == [1, 3, 2, 5, 6]
    assert best(scores, 0).tolist() == best(np.zeros(3, np.float32), 2).tolist() == []
