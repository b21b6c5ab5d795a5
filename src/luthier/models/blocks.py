"""The parts of a decoder, found by what they are and not by a model's name: its blocks, and in each the attention and the MLP."""

from typing import Any

from torch import nn

from luthier.errors import ModelError


def blocks(model: Any) -> nn.ModuleList | None:
    """The blocks of a causal language model, in order; None where they are not one list."""
    decoder = model.get_decoder()
    wanted = model.config.get_text_config().num_hidden_layers
    lists = [module for module in decoder.children() if isinstance(module, nn.ModuleList) and len(module) == wanted]
    return lists[0] if len(lists) == 1 else None


def known_blocks(model: Any, what: str) -> nn.ModuleList:
    """The blocks of a model whose blocks `what` needs. Raises ModelError where they are not one list."""
    found = blocks(model)
    if found is None:
        there = ", ".join(name for name, _ in model.get_decoder().named_children())
        raise ModelError(
            f"{what} needs one list of blocks, and this decoder has {there}", where=model.name_or_path or "this model", next_step="method: lora"
        )
    return found


def sublayers(block: nn.Module, where: str) -> tuple[str, str]:
    """The names of a block's attention and MLP. Raises ModelError, with what is there, where it has not one of each."""
    attention = [name for name, child in block.named_children() if hasattr(child, "layer_idx")]
    mlps = [name for name, child in block.named_children() if name not in attention and _has_matrices(child)]
    if len(attention) == len(mlps) == 1:
        return attention[0], mlps[0]
    there = ", ".join(f"{name} ({type(child).__name__})" for name, child in block.named_children())
    raise ModelError(f"bottleneck needs blocks of one attention and one MLP, and here is {there}", where=where, next_step="method: lora")


def _has_matrices(module: nn.Module) -> bool:
    return bool(list(module.children())) and any(parameter.dim() > 1 for parameter in module.parameters())
