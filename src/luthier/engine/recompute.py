"""Gradient checkpointing (Chen 2016, arXiv:1604.06174): activations are dropped and computed again in the backward pass.

It costs a part of the forward pass once more, so it is on only where the plan says that memory needs it. The result is the same.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import Cache
from transformers.modeling_layers import GradientCheckpointingLayer

Mode = Literal["off", "selective", "full"]
# An update with and one without, so often; the middle ones are compared.
ROUNDS = 3


def blocks(model: nn.Module) -> list[nn.Module]:
    """Every decoder block: what Transformers itself would compute again."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def _all_but_attention(model: nn.Module) -> list[nn.Module]:
    """The norms and the MLP of every block. Attention is known by its number, which its cache needs."""
    return [part for block in blocks(model) for part in block.children() if not hasattr(part, "layer_idx")]


PARTS: dict[str, Callable[[nn.Module], list[nn.Module]]] = {
    # training.gradient_checkpointing   what is computed again
    "off": lambda model: [],
    "selective": _all_but_attention,
    "full": blocks,
}


class Recomputing:
    """The parts of `mode` with a forward that drops their activations, until `stop` gives their own back."""

    def __init__(self, model: nn.Module, mode: Mode) -> None:
        self.mode, self._parts = mode, PARTS[mode](model)
        self._before: dict[nn.Module, Any] = {}
        self.start()

    def start(self) -> None:
        for part in self._parts:
            self._before[part] = part.__dict__.get("forward")
            part.forward = _dropping(part.forward)

    def stop(self) -> None:
        for part, forward in self._before.items():
            del part.forward
            if forward is not None:
                part.forward = forward
        self._before = {}

    def price(self, update: Callable[[], object]) -> float:
        """The share of time that it adds to `update`, which runs one forward and one backward pass."""
        update()  # the first pass of a process allocates what the others use
        without, within = [], []
        for _ in range(ROUNDS):
            within.append(_seconds(update))
            self.stop()
            without.append(_seconds(update))
            self.start()
        return statistics.median(within) / statistics.median(without) - 1


def _dropping(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        # A cache (in the plain twin, of prefix tuning) would grow again with the second pass.
        if not torch.is_grad_enabled() or any(isinstance(given, Cache) for given in (*args, *kwargs.values())):
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return run


def _seconds(update: Callable[[], object]) -> float:
    start = time.perf_counter()
    update()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start
