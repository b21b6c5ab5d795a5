"""Layers that no rank has all of: each computes its part of every layer, for the same rows, and what they compute is added up (Shoeybi 2019,
arXiv:1909.08053), as Transformers' own plan of the model says it.

The attention's heads and the MLP's columns are cut; the embedding, the norms and the head stand on every rank. An adapter is cut as its
layer is: B with the columns, A with the rows. Every pass is one of all ranks, over the same tokens: while the leader measures or answers by
itself, it tells the others which.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers.integrations.tensor_parallel import ALL_PARALLEL_STYLES, replace_layer_number_by_wildcard

from luthier.engine import ranks, recompute, update
from luthier.engine.sharding import Sharding
from luthier.errors import ConfigError

OTHERS = "wrapping: ddp, or fsdp where the weights do not fit one device"


def cut(model: Any, device: str) -> Sharding:
    """Cut the layers of `model` over all ranks, and put everything on `device`. Raises ConfigError for a model that cannot be cut so."""
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh(device.partition(":")[0], (ranks.world(),))
    for layer, style in list(_planned(model)):
        part = ALL_PARALLEL_STYLES[style]
        for linear in _linears(layer, style):
            for name in list(linear._parameters):
                part.shard_param(linear, name, mesh)
            part.install_forward(linear, mesh)
    model.to(device)
    return Sharding(ranks.world(), 1, same_rows=True)


def _planned(model: Any) -> Iterator[tuple[Any, str]]:
    """The layers inside the model's blocks that its plan cuts, and how."""
    causal = update.causal_model(model)
    inside = {module for block in recompute.blocks(update.decoder(model)) for module in block.modules()}
    plan = causal.tp_plan or {}
    found = [(module, plan.get(replace_layer_number_by_wildcard(name), "")) for name, module in causal.named_modules() if module in inside]
    cut_here = [(module, style) for module, style in found if style]
    if not cut_here:
        raise _refused(f"Transformers has no plan for {type(causal).__name__} that cuts its layers")
    for module, style in cut_here:
        base = module.get_base_layer() if isinstance(module, LoraLayer) else module
        if style not in ("colwise", "rowwise") or not isinstance(base, nn.Linear):
            raise _refused(f"the plan of {type(causal).__name__} has a part that is {style}, which is not known here")
        if style == "rowwise" and base.bias is not None:
            raise _refused(f"{type(causal).__name__} adds a bias to what the ranks add up")
    if beside := _beside(causal, {module for module, _ in cut_here}):
        raise _refused(f"{type(causal).__name__} has weights beside those that its plan cuts ({beside})")
    if getattr(causal.config.get_text_config(), "attention_dropout", 0.0):
        raise _refused(f"{type(causal).__name__} drops a part of its attention, and each rank would drop by itself")
    yield from cut_here


def _beside(causal: nn.Module, layers: set[nn.Module]) -> str | None:
    """A weight of the same attention or MLP as one of `layers` that none of them has: it stands whole, and would meet a part of the numbers."""
    cut_weights = {weight for layer in layers for weight in layer.parameters()}
    around = [module for module in causal.modules() if layers & set(module.children())]
    beside = {weight for module in around for weight in module.parameters()} - cut_weights
    return next((name for name, weight in causal.named_parameters() if weight in beside), None)


def _linears(layer: Any, style: str) -> list[Any]:
    """The matrices of a layer that are cut: its own, and of its adapters the one that has the layer's own columns or rows."""
    if not isinstance(layer, LoraLayer):
        return [layer]
    return [layer.get_base_layer(), *(layer.lora_B if style == "colwise" else layer.lora_A).values()]


def _refused(problem: str) -> ConfigError:
    return ConfigError(problem, where="wrapping", next_step=OTHERS)


def follow_leader(model: Any, sharding: Sharding) -> None:
    """From now on, at each pass that the leader makes alone, the others are told to make the same one."""

    def before(decoder: nn.Module, args: Any, given: dict[str, Any]) -> None:
        if sharding.alone and ranks.leads():
            ranks.say({"do": "join", "tokens": given["input_ids"].tolist(), "bare": _is_bare(model)})

    update.decoder(model).register_forward_pre_hook(before, prepend=True, with_kwargs=True)


def _is_bare(model: nn.Module) -> bool:
    """Whether the adapter is switched off at the moment."""
    return any(module.disable_adapters for module in model.modules() if isinstance(module, BaseTunerLayer))


@torch.no_grad()
def join(model: Any, tokens: list[list[int]], *, bare: bool) -> None:
    """The pass that the leader makes."""
    training = model.training
    model.eval()
    try:
        with model.disable_adapter() if bare else nullcontext():
            update.decoder(model)(input_ids=torch.tensor(tokens, device=update.device_of(model)), use_cache=False)
    finally:
        model.train(training)
