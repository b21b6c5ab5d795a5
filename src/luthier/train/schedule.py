"""The learning rate of each update: up in a line, then down as asked. The names are those of Transformers' lr_scheduler_type.

Transformers begins to rise at 0; here the first update has a rate already, so that none is lost. After warm-up both are the same.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class After:
    """Where a run stands after warm-up: `progress` is 0 at its end and 1 after the last update; `falling` is the share at the end in
    which warmup_stable_decay falls."""

    progress: float
    cycles: int = 1
    falling: float = 0.0


def _half_cosine(progress: float) -> float:
    """From 1 down to 0 (Loshchilov 2017, arXiv:1608.03983, equation 5)."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def _stable(after: After) -> float:
    """Hu 2024, arXiv:2404.06395, section 4, with Transformers' half cosine at the end."""
    begun = after.progress - (1 - after.falling)
    return _half_cosine(begun / after.falling) if begun > 0 else 1.0


SHAPES: dict[str, Callable[[After], float]] = {
    # name                  share of the peak that is left
    "linear":               lambda after: 1 - after.progress,
    "cosine":               lambda after: _half_cosine(after.progress),
    "constant":             lambda after: 1.0,
    "cosine_with_restarts": lambda after: _half_cosine(after.cycles * after.progress % 1.0),
    "warmup_stable_decay":  _stable,
}  # fmt: skip


def warmup_updates(updates: int, warmup_steps: int | None, warmup_ratio: float) -> int:
    """How many updates the rate rises in."""
    return min(updates, math.ceil(warmup_ratio * updates - 1e-9) if warmup_steps is None else warmup_steps)


def decay_updates(updates: int, decay_steps: int | None, decay_ratio: float) -> int:
    """How many updates warmup_stable_decay falls in."""
    return min(updates, math.ceil(decay_ratio * updates - 1e-9) if decay_steps is None else decay_steps)


def learning_rate(update: int, *, peak: float, shape: str, warmup: int, updates: int, cycles: int = 1, decay: int = 0) -> float:
    """The rate of one update (0-based). The first of `warmup` updates has peak / warmup, the last of them the peak.

    `cycles` are those of cosine_with_restarts, `decay` the updates in which warmup_stable_decay falls.
    """
    if update < warmup:
        return peak * (update + 1) / warmup
    left = max(1, updates - warmup)
    return peak * SHAPES[shape](After((update - warmup) / left, cycles, min(1.0, decay / left)))
