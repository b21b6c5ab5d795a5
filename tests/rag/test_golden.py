"""Which passage answers a question: as its row says, or by its answer's words."""

from typing import Any

import pytest

from luthier.rag.finding import Finder
from luthier.rag.golden import golden

REFUND = "docs/returns.md:7"
ANSWER = "after 5 working days"


@pytest.mark.parametrize(
    "row",
    [
        {"gold": "docs/returns.md:7"},
        {"source": "returns.md:5-8"},
        {"provenance": {"from": ["/home/me/docs/returns.md:6-9"]}},
        {"context": "A refund arrives after 5 working days on the card that paid."},
        {"gold": "nowhere.md:3"},
        {},
    ],
)
def test_the_passage_is_known_by_its_place_its_text_or_the_answer(row: dict[str, Any], finder: Finder) -> None:
    found = golden(row, "When does the refund come?", ANSWER, finder)
    assert [one.place for one in finder.index.passages(found)] == [REFUND]


def test_of_a_whole_document_the_passage_comes_first_that_says_the_answer(finder: Finder) -> None:
    found = golden({"document": "docs/returns.md"}, "When?", ANSWER, finder)
    assert len(found) == 3
    assert finder.index.passages(found)[0].place == REFUND


def test_an_answer_that_stands_nowhere_has_no_passage(finder: Finder) -> None:
    assert golden({}, "Who was the first emperor of Rome?", "Augustus, in 27 BC", finder) == []
