"""What a number format asks of an update: fp16 needs its loss scaled (Micikevicius 2018, arXiv:1710.03740, section 3.2)."""

from dataclasses import dataclass

import torch

HIGHEST, FLOOR = 2.0**24, 1.0
GROWTH, BACKOFF, GROWTH_STEPS = 2.0, 0.5, 2000


@dataclass(slots=True)
class LossScale:
    """The factor that lifts fp16 gradients above the least number they can hold (6e-8). The rule is torch.amp.GradScaler's.

    Half of it after an update whose gradients overflowed, twice of it after GROWTH_STEPS good ones in a row.
    """

    value: float = 2.0**16
    good_steps: int = 0
    lowered: bool = False  # by the last update

    def update(self, finite: bool) -> None:
        """Learn whether the gradients of an update were finite."""
        self.lowered = not finite and self.value > FLOOR
        self.good_steps = self.good_steps + 1 if finite else 0
        if not finite:
            self.value = max(FLOOR, self.value * BACKOFF)
        elif self.good_steps == GROWTH_STEPS:
            self.value, self.good_steps = min(HIGHEST, self.value * GROWTH), 0


def loss_scale_of(dtype: torch.dtype) -> LossScale | None:
    """A scale for a model that computes in fp16; bf16 and fp32 hold small numbers by themselves."""
    return LossScale() if dtype == torch.float16 else None
