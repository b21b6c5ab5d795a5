import math

import pytest

from luthier.evaluate.intervals import mean_interval, paired_difference, wilson


def test_wilson_against_the_published_example():
    # 81 of 263: Newcombe 1998, table I, method 3.
    low, high = wilson(81.0, 263)
    assert (low, high) == (pytest.approx(0.2553, abs=5e-5), pytest.approx(0.3662, abs=5e-5))


def test_none_and_all_still_leave_doubt():
    assert wilson(0.0, 10) == (0.0, pytest.approx(0.2775, abs=1e-4))
    assert wilson(10.0, 10) == (pytest.approx(0.7225, abs=1e-4), 1.0)


@pytest.mark.parametrize("n", [1, 3, 300, 100_000])
def test_an_interval_holds_its_share_and_stays_between_0_and_1(n):
    for successes in {0, 1, n // 2, n - 1, n}:
        low, high = wilson(float(successes), n)
        assert 0 <= low <= successes / n <= high <= 1


def test_the_bootstrap_agrees_with_the_normal_interval_where_that_holds():
    values = [0.2, 0.4, 0.6, 0.8, 1.0] * 100
    low, high = mean_interval(values)
    half = 1.96 * math.sqrt(0.08 / 500)
    assert low == pytest.approx(0.6 - half, abs=0.004)
    assert high == pytest.approx(0.6 + half, abs=0.004)


def test_the_same_rows_give_the_same_interval():
    values = [(index * 37 % 101) / 101 for index in range(60)]
    assert mean_interval(values) == mean_interval(values)
    assert mean_interval(values, seed=1) != mean_interval(values, seed=2)


def test_five_perfect_rows_are_not_certainty():
    low, high = mean_interval([1.0] * 5)
    assert low < 0.6
    assert high == 1.0


def test_a_small_gain_on_every_row_is_seen_although_rows_differ_widely():
    before = [0.1, 0.9, 0.2, 0.8, 0.3, 0.7] * 10
    after = [value + 0.05 + 0.01 * (index % 3) for index, value in enumerate(before)]
    gain = paired_difference(before, after)
    assert gain.value == pytest.approx(0.06)
    assert gain.low > 0.05
    assert gain.n == 60
    assert mean_interval(before)[1] > mean_interval(after)[0], "two separate intervals would not have seen it"


def test_no_difference_is_not_called_one():
    before = [0.0, 1.0] * 50
    after = [1.0, 0.0] * 50
    gain = paired_difference(before, after)
    assert gain.low < 0 < gain.high


def test_pairs_must_be_pairs():
    with pytest.raises(ValueError, match="shapes"):
        paired_difference([0.0, 1.0], [1.0, 1.0, 0.0])


def test_the_same_difference_in_every_row_still_leaves_doubt():
    for before, after, value in ((0.0, 1.0, 1.0), (1.0, 0.0, -1.0), (0.5, 0.5, 0.0)):
        found = paired_difference([before] * 5, [after] * 5)
        assert found.value == value
        assert -1 <= found.low <= value <= found.high <= 1
        assert found.high - found.low > 0.4
    assert paired_difference([0.0] * 5, [1.0] * 5).low == pytest.approx(1 - 2 * wilson(0, 5)[1])
    assert paired_difference([3.0] * 5, [9.0] * 5).low == 6.0, "of numbers that are no shares nothing is known of what else there could be"
