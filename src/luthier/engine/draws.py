"""Dropout that does not depend on the cut: every mask is drawn from (update, module, example), wherever the example runs."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from luthier.engine import lanes, sequence

# Shares are rounded to this many levels; what is kept is scaled by the rounded share, so the mean stays exact.
LEVELS = 65536


@dataclass(slots=True)
class Draws:
    """What the masks of the micro-batch at hand are drawn from: the update's seed, and each document's place and length."""

    seed: int = 0
    # Of an update that several ranks run: the leader's draw, and the places in the whole update of the examples that run here.
    given: int | None = None
    places: list[int] | None = None
    _at_hand: dict[int, tuple[list[tuple[int, int]], list[int]]] = field(default_factory=dict)  # by lane

    def begin_micro_batch(self, documents: list[tuple[int, int]], row_tokens: list[int]) -> None:
        """`documents` are place and length of each; `row_tokens` the lengths of the whole rows that they are the beginnings of."""
        if self.places is not None:
            documents = [(self.places[place], length) for place, length in documents]
        self._at_hand[lanes.here()] = documents, row_tokens

    @property
    def documents(self) -> list[tuple[int, int]]:
        return self._at_hand.get(lanes.here(), ([], []))[0]

    @property
    def row_tokens(self) -> list[int]:
        return self._at_hand.get(lanes.here(), ([], []))[1]

    @property
    def run(self) -> slice:
        """Which of the documents' tokens are here."""
        return sequence.run_of(sum(length for _, length in self.documents))

    @property
    def tokens(self) -> int:
        """How many of the documents' tokens are here."""
        run = self.run
        return int(run.stop) - int(run.start)

    def begin_update(self) -> None:
        """One number from torch's generator, which the training loop seeds for every update, stands for all draws of an update."""
        self.seed = draw() if self.given is None else self.given

    def kept(self, module: int, width: int, p: float, device: torch.device) -> Tensor:
        """(T, width), True where the input of `module` is kept."""
        return torch.cat([self._kept([self.seed, module, place], (tokens, width), p, device) for place, tokens in self.documents])[self.run]

    def _kept(self, key: list[int], shape: tuple[int, int], p: float, device: torch.device) -> Tensor:
        if device.type == "cpu":
            drawn = np.random.Generator(np.random.SFC64(key)).integers(0, LEVELS, shape, dtype=np.uint16)
            return torch.from_numpy(drawn >= round(p * LEVELS))
        generator = torch.Generator(device).manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1))
        return torch.randint(LEVELS, shape, generator=generator, device=device, dtype=torch.int32) >= round(p * LEVELS)


def draw() -> int:
    """What all draws of an update are made from."""
    return int(torch.randint(2**62, ()))


def install(dropouts: list[Any], draws: Draws) -> Callable[[], None]:
    """Give these modules masks from `draws`. Returns the call that gives torch's own back."""
    for place, module in enumerate(dropouts):
        module.forward = _forward_of(module, place, draws)

    def give_back() -> None:
        for module in dropouts:
            module.__dict__.pop("forward", None)

    return give_back


def _forward_of(module: nn.Dropout, place: int, draws: Draws) -> Callable[[Tensor], Tensor]:
    plain: Any = type(module).forward

    def forward(x: Tensor) -> Tensor:
        tokens = x.numel() // x.shape[-1]
        if not module.training or tokens != draws.tokens:
            output: Tensor = plain(module, x)  # a call from elsewhere, which knows no documents
            return output
        kept = draws.kept(place, x.shape[-1], module.p, x.device).view(x.shape)
        return x * kept * (LEVELS / (LEVELS - round(module.p * LEVELS)))

    return forward
