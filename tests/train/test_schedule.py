"""Up in a line, down as asked."""

import math

import pytest

from luthier.train.schedule import learning_rate, warmup_updates


def rates(shape: str, warmup: int, updates: int) -> list[float]:
    return [learning_rate(update, peak=1.0, shape=shape, warmup=warmup, updates=updates) for update in range(updates)]


def test_warm_up_rises_in_a_line_to_the_peak() -> None:
    assert rates("constant", 4, 8) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0]


def test_without_warm_up_the_first_update_has_the_peak() -> None:
    assert {shape: rates(shape, 0, 10)[0] for shape in ("linear", "cosine", "constant")} == {"linear": 1.0, "cosine": 1.0, "constant": 1.0}


def test_linear_ends_one_step_above_zero() -> None:
    assert rates("linear", 2, 6) == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]


def test_cosine_is_at_half_in_the_middle_and_low_at_the_end() -> None:
    found = rates("cosine", 0, 10)
    assert found[5] == pytest.approx(0.5)
    assert found[9] == pytest.approx(0.5 * (1 + math.cos(0.9 * math.pi)))
    assert found == sorted(found, reverse=True)


def test_a_run_that_is_all_warm_up_divides_by_nothing() -> None:
    assert rates("cosine", 3, 3) == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert rates("linear", 0, 1) == [1.0]


@pytest.mark.parametrize(
    ("updates", "steps", "ratio", "expected"),
    [(100, None, 0.03, 3), (10, None, 0.03, 1), (10, None, 0.0, 0), (100, 7, 0.03, 7), (100, 0, 0.03, 0), (5, 50, 0.0, 5), (100, None, 0.07, 7)],
)
def test_how_many_updates_warm_up(updates: int, steps: int | None, ratio: float, expected: int) -> None:
    assert warmup_updates(updates, steps, ratio) == expected
