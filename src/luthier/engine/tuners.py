"""What the layers of a PEFT method do with tokens, found by a trial of one layer of each class: rows run together only where each token goes alone.

A fresh adapter often changes nothing yet, so `Engine.check` cannot tell: the trial gives a copy of the layer other weights first.
"""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

TOKENS = 6
# Of the copy's weights: large enough that what a layer mixes shows in its output.
DISTURBANCE = 0.3
ALIKE = 1e-4  # relative to the largest output, fp32


@torch.no_grad()
def hindrance(model: nn.Module) -> str:
    """Why rows cannot run together through these layers; "" where every token goes through alone (LoRA's do)."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for layer, x in _one_of_each(model):
            name = type(layer).__module__.rpartition(".")[0].rpartition(".")[2]
            try:
                whole, part = layer(x), layer(x[:, : TOKENS // 2])
            except Exception as error:  # what a foreign layer raises has no common class
                return f"a trial of a layer of {name} failed ({type(error).__name__})"
            if not _alike(whole[:, : TOKENS // 2], part):
                return f"the layers of {name} mix the tokens that they are given"
    return ""


def only_lora(model: nn.Module) -> bool:
    """Whether no layer of `model` is one of another PEFT method."""
    return all(isinstance(module, LoraLayer) for module in model.modules() if isinstance(module, BaseTunerLayer))


@torch.no_grad()
def draw(model: nn.Module) -> bool:
    """Whether a layer gives something else each time while it trains, without a dropout that can be seen."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return any(not torch.equal(layer.train()(x), layer(x)) for layer, x in _one_of_each(model))


def _one_of_each(model: nn.Module) -> Iterator[tuple[Any, Tensor]]:
    """A disturbed fp32 copy of one adapted layer of each class, and an input for it."""
    seen: set[type] = set()
    for layer in model.modules():
        if not isinstance(layer, BaseTunerLayer) or isinstance(layer, LoraLayer) or type(layer) in seen:
            continue
        base = layer.get_base_layer()
        weight = getattr(base, "weight", None)
        if not isinstance(weight, Tensor) or isinstance(base, nn.Embedding):
            continue
        seen.add(type(layer))
        disturbed = copy.deepcopy(layer).float().eval()
        for parameter in disturbed.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * DISTURBANCE)
        yield disturbed, torch.randn(1, TOKENS, getattr(base, "in_features", len(weight)), device=weight.device)


def _alike(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().max() <= ALIKE * one.abs().max())
