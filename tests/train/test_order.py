"""Every row once an epoch, in an order that the seed alone decides."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.train import order


def whole_run(rows: int, batch_size: int, seed: int, examples_seen: int) -> list[list[int]]:
    updates = -(-examples_seen // batch_size)
    return [order.update_rows(rows, batch_size, seed, update, examples_seen) for update in range(updates)]


@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 2**40), st.integers(1, 4))
def test_every_row_comes_once_an_epoch_however_it_is_cut(rows: int, batch_size: int, seed: int, epochs: int) -> None:
    seen = [row for update in whole_run(rows, batch_size, seed, rows * epochs) for row in update]
    for epoch in range(epochs):
        assert sorted(seen[epoch * rows : (epoch + 1) * rows]) == list(range(rows))


def test_the_last_update_takes_what_is_left() -> None:
    assert [len(rows) for rows in whole_run(10, 4, 0, 10)] == [4, 4, 2]


def test_the_cut_does_not_change_the_order() -> None:
    one_by_one = [row for update in whole_run(10, 1, 3, 25) for row in update]
    assert [row for update in whole_run(10, 7, 3, 25) for row in update] == one_by_one


def test_epochs_differ_and_so_do_seeds_but_the_same_seed_is_the_same_order() -> None:
    assert order.epoch_order(50, 0, 0) != order.epoch_order(50, 0, 1)
    assert order.epoch_order(50, 0, 0) != order.epoch_order(50, 1, 0)
    assert order.epoch_order(50, 7, 2) == order.epoch_order(50, 7, 2)


def test_rows_that_stand_together_stay_so_and_every_row_comes_once() -> None:
    shuffled = order.epoch_order(11, 3, 0, 4)
    assert sorted(shuffled) == list(range(11))
    blocks = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
    assert all(shuffled[shuffled.index(block[0]) :][: len(block)] == block for block in blocks)
    # None stands across two updates, in whatever order they come.
    for seed in range(8):
        updates = [order.update_rows(11, 4, seed, update, 11, 4) for update in range(3)]
        assert sorted(map(sorted, updates)) == blocks
    assert len({tuple(order.epoch_order(40, seed, 0, 4)) for seed in range(5)}) == 5
    assert order.epoch_order(50, 7, 2, 1) == order.epoch_order(50, 7, 2)


def test_more_rows_in_an_update_than_there_are_begin_the_next_epoch() -> None:
    epochs = [order.epoch_order(3, 0, epoch) for epoch in range(3)]
    assert order.update_rows(3, 8, 0, 0, 8) == epochs[0] + epochs[1] + epochs[2][:2]


@pytest.mark.parametrize(
    ("epochs", "max_steps", "seen"),
    [(3, None, 30), (1.5, None, 15), (0.01, None, 1), (3, 2, 8), (1, 100, 400)],
    ids=["epochs", "half an epoch", "less than a row", "max_steps cuts", "max_steps goes on"],
)
def test_how_many_examples_a_run_sees(epochs: float, max_steps: int | None, seen: int) -> None:
    assert order.examples_of_run(10, 4, epochs, max_steps) == seen


@pytest.mark.parametrize(("rows", "epochs", "batch_size"), [(7, 1.2, 4), (33, 0.5, 4), (101, 0.1, 5), (3, 0.1, 4), (896, 1, 4), (10, 3, 4)])
def test_the_plan_and_the_loop_agree_on_the_last_update(rows: int, epochs: float, batch_size: int) -> None:
    from luthier.config.settings import Settings
    from luthier.plan.choose import count_updates

    tree = {"model": "m", "data": {"train": "x"}, "training": {"batch_size": batch_size, "num_train_epochs": epochs}}
    updates = count_updates(Settings.model_validate(tree), rows)
    seen = order.examples_of_run(rows, batch_size, epochs, None)
    dealt = [order.update_rows(rows, batch_size, 0, update, seen) for update in range(updates)]
    assert all(dealt)
    assert sum(map(len, dealt)) == seen
