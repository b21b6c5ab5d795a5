"""The arithmetic of splits and mixes."""

from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data import portions

SHARES = {"eval": Fraction(1, 10), "test": Fraction(1, 10)}


def test_rows_that_share_a_key_through_others_are_one_group() -> None:
    groups = portions.groups_of([["a"], ["b"], ["a", "c"], ["c", "b"], ["d"]])
    assert len({groups[0], groups[1], groups[2], groups[3]}) == 1
    assert groups[4] != groups[0]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.sampled_from(["x", "y", "z"])), min_size=1, max_size=200), st.integers(0, 5))
def test_a_group_stays_whole_and_no_part_is_larger_than_its_share(rows: list[tuple[int, str]], seed: int) -> None:
    names = [f"{group}" for group, _ in rows]
    groups = portions.groups_of([[name] for name in names])
    parts = portions.divide(groups, names, [stratum for _, stratum in rows], SHARES, seed)
    assert all(len({part for part, other in zip(parts, groups, strict=True) if other == group}) == 1 for group in groups)
    counts = Counter(parts)
    assert all(counts[name] <= round(len(rows) * share) for name, share in SHARES.items())


def test_each_part_has_its_share_of_each_category() -> None:
    strata = ["rare"] * 50 + ["common"] * 950
    names = [str(number) for number in range(1000)]
    parts = portions.divide(list(range(1000)), names, strata, SHARES, 0)
    counts = Counter(zip(parts, strata, strict=True))
    assert counts["eval", "rare"] == counts["test", "rare"] == 5
    assert counts["eval", "common"] == counts["test", "common"] == 95


def test_rows_that_are_added_do_not_shuffle_the_others() -> None:
    names = [str(number) for number in range(500)]
    before = portions.divide(list(range(400)), names[:400], [""] * 400, SHARES, 3)
    after = portions.divide(list(range(500)), names, [""] * 500, SHARES, 3)
    assert sum(one == other for one, other in zip(before, after, strict=False)) > 380
    assert portions.divide(list(range(400)), names[:400], [""] * 400, SHARES, 4) != before


@given(st.integers(0, 1000), st.lists(st.integers(1, 50), min_size=1, max_size=6))
def test_apportioned_rows_sum_up_and_are_within_one_of_their_share(total: int, weights: list[int]) -> None:
    counts = portions.apportion(total, [Fraction(weight) for weight in weights])
    assert sum(counts) == total
    assert all(abs(count - Fraction(total * weight, sum(weights))) < 1 for count, weight in zip(counts, weights, strict=True))


@given(st.lists(st.tuples(st.integers(1, 300), st.integers(1, 20)), min_size=1, max_size=5))
def test_the_largest_mix_uses_no_row_twice_and_could_not_be_larger(sources: list[tuple[int, int]]) -> None:
    rows, weights = [count for count, _ in sources], [Fraction(weight) for _, weight in sources]
    total = portions.largest_total(rows, weights)
    assert all(one <= count for one, count in zip(portions.apportion(total, weights), rows, strict=True))
    assert any((total + 1) * weight / sum(weights) > count for weight, count in zip(weights, rows, strict=True))


def test_rows_are_drawn_by_the_seed_and_repeated_whole() -> None:
    passes = list(portions.drawn(5, 12, 0, 1))
    assert [sum(one) for one in passes] == [5, 5, 2]
    assert passes == list(portions.drawn(5, 12, 0, 1))
    assert any(list(portions.drawn(50, 9, seed, 1)) != list(portions.drawn(50, 9, 0, 1)) for seed in (1, 2))
    assert list(portions.drawn(5, 0, 0, 1)) == []


@given(st.lists(st.integers(0, 40), min_size=1, max_size=5))
def test_sources_come_in_turn_and_none_falls_behind(counts: list[int]) -> None:
    order = list(portions.interleaved(counts))
    assert [order.count(place) for place in range(len(counts))] == counts
    for end in range(1, len(order) + 1):
        assert all(abs(order[:end].count(place) - Fraction(end * count, sum(counts))) < len(counts) for place, count in enumerate(counts))


@pytest.mark.parametrize("text", ["5%", "0.05", "5e-2"])
def test_a_share(text: str) -> None:
    assert portions.share_of(text) == Fraction(1, 20)


@pytest.mark.parametrize("text", ["0", "-1%", "x", "%", "", "1/0", "nan"])
def test_what_is_no_share(text: str) -> None:
    assert portions.share_of(text) is None
