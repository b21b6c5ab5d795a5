import numpy as np

from luthier.data import dedup
from luthier.data.store import digest
from luthier.records import Conversation, Source, Turn


def digests(*texts: str) -> dedup.Digests:
    return np.frombuffer(b"".join(digest(text) for text in texts), dtype=np.uint64).reshape(-1, 2)


def test_each_row_points_to_the_first_that_is_equal() -> None:
    assert dedup.first_of_each(digests("a", "b", "a", "c", "b", "a")).tolist() == [0, 1, 0, 3, 1, 0]
    assert dedup.first_of_each(digests()).tolist() == []


def test_halves_that_are_equal_are_not_equal_rows() -> None:
    rows = np.asarray([[1, 2], [2, 1], [1, 3], [1, 2]], dtype=np.uint64)
    assert dedup.first_of_each(rows).tolist() == [0, 1, 2, 0]


def test_twins_are_looked_for_among_the_others_only() -> None:
    every = digests("x", "y", "x", "a", "y", "y")
    assert dedup.twins(every, np.arange(3), np.arange(3, 6)).tolist() == [-1, 1, -1]


def test_case_and_white_space_make_no_other_text() -> None:
    turns = (Turn("user", "What  IS\nit?"), Turn("assistant", "a"))
    assert dedup.normalized(turns) == "what is it?\0a"
    assert dedup.group(Conversation(turns, Source("f", 1))) == "what is it?"
    assert dedup.group(Conversation((Turn("text", "Só"),), Source("f", 1), templated=False)) == "só"
