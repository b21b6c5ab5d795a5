"""Weights that no rank has all of: each block's are cut over the ranks and put together for the moment that the block runs (FSDP2).

Zhao 2023, arXiv:2304.11277, as torch's `fully_shard` does it. The embedding, the head and the last norm stand on every rank. Every pass
through the blocks is one of all ranks: while the leader evaluates by itself, the others lend their parts.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from luthier.config.settings import Settings
from luthier.engine import ranks, recompute, shards, update
from luthier.engine.batches import Document
from luthier.engine.packed import Packed
from luthier.errors import ConfigError
from luthier.models import quantized

# Optimizers that change each number by itself: what others keep of whole matrices, or of all weights, does not fit their parts.
OPTIMIZERS = {"adamw", "lion"}
METHODS = {"lora", "dora", "qlora", "full"}
# What lies in numbers of the products' format, which can be cut as others are.
FOUR_BITS = {"nf4", "fp4"}


@dataclass(slots=True)
class Sharding:
    """How many ranks hold a whole model together, and how many such models there are (more than one: HSDP).

    `alone`: the leader sends something through the model by itself, and the others are asked for their parts. `same_rows`: the layers
    themselves are cut (tensor.py), and all ranks run each row together.
    """

    ranks: int
    replicas: int
    alone: bool = True
    same_rows: bool = False


def lend_to_leader(model: nn.Module, sharding: Sharding) -> None:
    """From now on, at each pass that the leader makes alone, the others are told to make an empty one."""

    def before(*args: Any) -> None:
        if sharding.alone and ranks.leads():
            ranks.say({"do": "lend"})

    update.decoder(model).register_forward_pre_hook(before, prepend=True)


def require(settings: Settings) -> None:
    """Raises ConfigError for what does not go with sharded weights."""
    training, cuts_layers = settings.training, settings.wrapping == "tp"
    refused = {
        # setting                            cannot be                                         next step
        "method":                           (settings.method not in METHODS,                   "method: lora, dora, qlora or full"),
        "qlora.quantization":               (settings.method == "qlora" and settings.qlora.quantization not in FOUR_BITS, "quantization: nf4"),
        "training.optim":                   (settings.training.optim not in OPTIMIZERS,        "optim: adamw"),
        "training.cache_frozen_layers":     (settings.training.cache_frozen_layers,            "take it out"),
        "lora.init_lora_weights":           (settings.lora.init_lora_weights != "default",     "init_lora_weights: default"),
        # Each rank would draw for its part of a layer.
        "lora.lora_dropout":                (cuts_layers and settings.lora.numbers[2] > 0,      "lora_dropout: 0"),
        "training.precision":               (cuts_layers and settings.method == "full" and training.precision != "fp32", "precision: fp32"),
    }  # fmt: skip
    for name, (wrong, next_step) in refused.items():
        if wrong:
            raise ConfigError(f"this does not go with wrapping: {settings.wrapping}", where=name, next_step=f"{next_step}, or wrapping: ddp")


def shard(model: nn.Module, device: str, *, hosts: bool, offload: bool = False) -> Sharding:
    """Cut the blocks of `model` over all ranks, or (`hosts`) over those of each host, and put everything on `device`.

    What is trained is kept in fp32, and used in the format that it had. With `offload` the parts lie in main memory: a block is put together
    on the device for the moment that it runs, and its gradients leave it again; so the optimizer is the processor's work.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard

    world, of_host = ranks.world(), ranks.local_world() if hosts else ranks.world()
    replicas = world // of_host
    kind = device.partition(":")[0]
    names, shape = (("replicate", "shard"), (replicas, of_host)) if replicas > 1 else (("shard",), (of_host,))
    mesh = init_device_mesh(kind, shape, mesh_dim_names=names)
    place = CPUOffloadPolicy(pin_memory=kind != "cpu") if offload else OffloadPolicy()
    decoder = update.decoder(model)
    blocks = recompute.blocks(decoder)
    for block in blocks:
        trained = {parameter.dtype for parameter in block.parameters() if parameter.requires_grad}
        policy = MixedPrecisionPolicy(cast_forward_inputs=False)
        if trained - {torch.float32}:
            (used,) = trained
            block.float()
            policy = MixedPrecisionPolicy(param_dtype=used, reduce_dtype=torch.float32, cast_forward_inputs=False)
        fully_shard(block, mesh=mesh, reshard_after_forward=True, mp_policy=policy, offload_policy=place)
    inside = {parameter for block in blocks for parameter in block.parameters()}
    whole: Any = fully_shard(decoder, mesh=mesh, ignored_params={one for one in decoder.parameters() if one not in inside})
    for part in (*blocks, whole):
        part.set_gradient_divide_factor(1.0)  # our losses are parts of one mean already: gradients are added up, not averaged
        part.set_force_sum_reduction_for_comms(True)
    for parameter in model.parameters():
        if parameter not in inside:
            parameter.data = parameter.data.to(device)
    for _, layer in quantized.quantized_layers(model):
        layer.quant_state.to(device)  # what 4 bits are read with, of the whole weight
    return Sharding(of_host, replicas)


def fill(model: Any) -> None:
    """A pass of two tokens forward and backward that teaches nothing."""
    hidden_TD = update.run_packed(model, [Document([0, 0], 0)], Packed([2]))
    (hidden_TD.sum() * 0.0).backward()


@contextmanager
def made_whole(model: nn.Module, *, trained: bool) -> Iterator[None]:
    """While it lasts the leader's model holds whole weights on the CPU (all, or those that are trained), to be saved; nothing can be run.

    All other ranks are told to give their parts.
    """
    ranks.say({"do": "gather", "trained": trained})
    held = shards.shared(model, trained=trained)
    for name, weight in held.items():
        _put(model, name, nn.Parameter(shards.whole(weight), requires_grad=weight.requires_grad))
    try:
        yield
    finally:
        for name, weight in held.items():
            _put(model, name, weight)


def _put(model: nn.Module, name: str, weight: Tensor) -> None:
    path, _, own = name.rpartition(".")
    setattr(model.get_submodule(path), own, weight)


def give_parts(model: nn.Module, *, trained: bool) -> None:
    """What the other ranks do while `made_whole` begins."""
    for weight in shards.shared(model, trained=trained).values():
        shards.whole(weight)
