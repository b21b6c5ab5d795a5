"""Which row comes when: a number in, a place out. Depends on the seed and the epoch alone, never on the machine or the cut."""

from functools import lru_cache

import numpy as np


@lru_cache(maxsize=2)
def epoch_order(rows: int, seed: int, epoch: int, together: int = 1) -> list[int]:
    """The order of `rows` in one epoch (0-based), as indices: blocks of `together` rows that follow each other are shuffled. A last one that is
    shorter stays last, or all blocks behind it would stand across two updates."""
    blocks: list[int] = np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(rows // together).tolist()
    return [row for block in blocks for row in range(block * together, (block + 1) * together)] + list(range(rows - rows % together, rows))


def update_rows(rows: int, batch_size: int, seed: int, update: int, examples_seen: int, together: int = 1) -> list[int]:
    """The rows of one update (0-based). Epochs follow each other without a gap: an update may end one and begin the next.

    `examples_seen` is the length of the whole run in examples; the last update takes what is left.
    """
    places = range(update * batch_size, min((update + 1) * batch_size, examples_seen))
    orders = {epoch: epoch_order(rows, seed, epoch, together) for epoch in range(places[0] // rows, places[-1] // rows + 1)}
    return [orders[place // rows][place % rows] for place in places]


def examples_of_run(rows: int, batch_size: int, num_train_epochs: float, max_steps: int | None) -> int:
    """How many examples a run sees: all its epochs, or `max_steps` full updates."""
    return max_steps * batch_size if max_steps else max(1, round(rows * num_train_epochs))
