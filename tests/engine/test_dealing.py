"""Which rank runs what of an update."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.engine.dealing import deal
from luthier.records import Source, TokenizedExample

FAR = 10**9  # attention costs nothing


def row(tokens: int, beginning: tuple[int, ...] = (), number: int = 0) -> TokenizedExample:
    draw = random.Random(1000 * number + tokens)
    ids = [*beginning, *(draw.randrange(3, 500) for _ in range(tokens - len(beginning)))]
    return TokenizedExample(ids, [False] * (tokens - 2) + [True] * 2, Source("rows.jsonl", number + 1))


def work(rows: list[TokenizedExample], places: list[int]) -> int:
    return sum(rows[place].tokens for place in places)


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(3, 300), min_size=1, max_size=40), ranks=st.integers(1, 9), shared=st.integers(0, 100))
def test_every_row_is_dealt_once_and_always_in_the_same_way(lengths: list[int], ranks: int, shared: int) -> None:
    beginning = tuple(range(3, 3 + shared))
    rows = [row(len(beginning) + length, beginning, place) for place, length in enumerate(lengths)]
    dealt = deal(rows, ranks, share_prefixes=True, quadratic_tokens=400)
    assert len(dealt) == ranks
    assert sorted(place for places in dealt for place in places) == list(range(len(rows)))
    assert dealt == deal(rows, ranks, share_prefixes=True, quadratic_tokens=400)


def test_the_work_is_even_though_rows_are_not() -> None:
    draw = random.Random(0)
    rows = [row(int(draw.lognormvariate(4.5, 0.8)) + 3, (), place) for place in range(64)]
    dealt = deal(rows, 8, share_prefixes=False, quadratic_tokens=FAR)
    loads = [work(rows, places) for places in dealt]
    assert max(loads) < 1.1 * sum(loads) / 8
    in_order = [work(rows, list(range(start, start + 8))) for start in range(0, 64, 8)]
    assert max(in_order) > 1.25 * sum(loads) / 8, "rows as even as that need no dealing"


def test_a_long_row_counts_for_its_attention_too() -> None:
    rows = [row(1000), *(row(100, (), place) for place in range(1, 21))]
    (alone, others) = sorted(deal(rows, 2, share_prefixes=False, quadratic_tokens=500), key=len)
    assert alone == [0], "1,000 tokens beside 2,000 in short rows: with its attention it is the larger half"
    assert len(others) == 20


def test_what_is_compared_stays_on_one_rank() -> None:
    rows = [row(10 + place, (), place) for place in range(12)]
    together = [[place, place + 1] for place in range(0, 12, 2)]
    dealt = deal(rows, 4, share_prefixes=True, quadratic_tokens=FAR, together=together)
    assert all({place ^ 1 for place in places} == set(places) for places in dealt)


def test_rows_with_one_beginning_stay_together_unless_they_are_more_than_a_ranks_share() -> None:
    beginnings = [tuple(range(start, start + 150)) for start in (3, 160, 310)]
    rows = [row(170, beginnings[place % 3], place) for place in range(12)]
    dealt = deal(rows, 3, share_prefixes=True, quadratic_tokens=FAR)
    assert sorted(sorted({place % 3 for place in places}) for places in dealt) == [[0], [1], [2]]
    one = [row(170, beginnings[0], place) for place in range(12)]
    assert [len(places) for places in deal(one, 3, share_prefixes=True, quadratic_tokens=FAR)] == [4, 4, 4]


@pytest.mark.parametrize("ranks", [1, 3, 7])
def test_more_ranks_than_rows_leave_some_without(ranks: int) -> None:
    dealt = deal([row(10), row(20, (), 1)], ranks, share_prefixes=True, quadratic_tokens=FAR)
    assert sum(map(len, dealt)) == 2
    assert sum(not places for places in dealt) == max(0, ranks - 2)
