"""The learning rate of each update: up in a line, then down as asked."""

import math
from collections.abc import Callable

SHAPES: dict[str, Callable[[float], float]] = {
    # name       share of the peak that is left at `progress` (0 at the end of warm-up, 1 after the last update)
    "linear": lambda progress: 1 - progress,
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
    "constant": lambda progress: 1.0,
}


def warmup_updates(updates: int, warmup_steps: int | None, warmup_ratio: float) -> int:
    return min(updates, math.ceil(warmup_ratio * updates - 1e-9) if warmup_steps is None else warmup_steps)


def learning_rate(update: int, *, peak: float, shape: str, warmup: int, updates: int) -> float:
    """The rate of one update (0-based). The first of `warmup` updates has peak / warmup, the last of them the peak."""
    if update < warmup:
        return peak * (update + 1) / warmup
    return peak * SHAPES[shape]((update - warmup) / max(1, updates - warmup))
