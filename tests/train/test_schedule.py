"""Up in a line, down as asked."""

import math

import pytest
import torch
from transformers import get_scheduler

from luthier.train.schedule import SHAPES, decay_updates, learning_rate, warmup_updates


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


ARGUMENTS = {
    # schedule              (ours, those of Transformers)
    "linear":               ({}, {}),
    "cosine":               ({}, {}),
    "constant":             ({}, {}),
    "cosine_with_restarts": ({"cycles": 3}, {"num_cycles": 3}),
    "warmup_stable_decay":  ({"decay": 13}, {"num_decay_steps": 13}),
}  # fmt: skip


@pytest.mark.parametrize("warmup", [0, 1, 7])
@pytest.mark.parametrize("shape", ARGUMENTS)
def test_every_schedule_is_that_of_transformers(shape: str, warmup: int) -> None:
    ours, theirs = ARGUMENTS[shape]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    name = "constant_with_warmup" if shape == "constant" else shape
    schedule = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=40, scheduler_specific_kwargs=theirs)
    for update in range(40):
        found = learning_rate(update, peak=1.0, shape=shape, warmup=warmup, updates=40, **ours)
        # Theirs has no rate at its first update, and ours rises one update earlier.
        expected = (update + 1) / warmup if update < warmup else schedule.get_last_lr()[0]
        assert found == pytest.approx(expected, abs=1e-12)
        optimizer.step()
        schedule.step()
    assert shape in SHAPES


def test_a_run_that_is_all_decay_falls_from_its_first_update() -> None:
    found = [learning_rate(update, peak=1.0, shape="warmup_stable_decay", warmup=2, updates=6, decay=6) for update in range(6)]
    assert found == pytest.approx([0.5, 1.0, *(0.5 * (1 + math.cos(math.pi * step / 4)) for step in range(4))])


@pytest.mark.parametrize(("steps", "ratio", "expected"), [(None, 0.1, 10), (7, 0.1, 7), (500, 0.1, 100), (None, 1.0, 100), (None, 0.07, 7)])
def test_how_many_updates_fall(steps: int | None, ratio: float, expected: int) -> None:
    assert decay_updates(100, steps, ratio) == expected
