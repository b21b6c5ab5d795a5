"""Which rows are shown as examples."""

from luthier.evaluate.questions import spread
from luthier.records import Conversation, Source, Turn


def row(number: int, length: int) -> Conversation:
    return Conversation((Turn("user", f"question {number}"), Turn("assistant", "x" * length)), Source("rows", number))


def test_examples_are_spread_and_no_fragments() -> None:
    rows = [row(number, 5 if number % 3 == 0 else 40) for number in range(30)]
    chosen = spread(rows, 5)
    assert [len(one.answer) for one in chosen] == [40] * 5
    places = [one.source.line for one in chosen]
    assert places == sorted(places)
    assert places[0] < 5
    assert places[-1] > 20


def test_few_rows_are_all_shown() -> None:
    rows = [row(number, number) for number in range(1, 4)]
    assert spread(rows, 5) == rows
    assert len(spread(rows, 2)) == 2
