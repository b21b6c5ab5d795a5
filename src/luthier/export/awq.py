"""AWQ (Lin 2023, arXiv:2306.00978): inputs that are large make their columns large before these are rounded to 4 bits, and smaller afterwards.

The factor is taken out of what gives the inputs, a norm or another layer, so that nothing is multiplied when the model runs.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from luthier.errors import ModelError
from luthier.export.rounding import four_bits

# What gives the inputs of which layers, by the names that Llama, Mistral, Qwen and those built like them have.
FOLDS: dict[str, tuple[str, ...]] = {
    "input_layernorm":          ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
    "self_attn.v_proj":         ("self_attn.o_proj",),
    "mlp.up_proj":              ("mlp.down_proj",),
}  # fmt: skip
# How much of an input's size goes into its column.
SHARES = tuple(step / 10 for step in range(10))
# Of the largest number that a block gives: fp32 is exact to 1e-6 of it.
TOLERANCE = 1e-3


@torch.no_grad()
def fold(
    block: nn.Module, grams: Mapping[str, Float[Tensor, "I I"]], run: Callable[[], Tensor], group: int, dtype: torch.dtype, where: str
) -> list[str]:
    """Make the columns of a block's layers easier to round; the block computes what it did. `grams` is the sum of x x^T of each layer,
    and `run()` gives what the block makes of a row.

    Gives the names of what gave factors away. Raises ModelError for a block that is built otherwise.
    """
    expected = run()
    modules = dict(block.named_modules())
    if missing := [name for name in FOLDS if name not in modules]:
        raise ModelError(f"awq knows blocks with {', '.join(FOLDS)}, and here is no {missing[0]}", where=where, next_step="--to gptq")
    found: dict[str, Tensor] = {}
    for source, names in FOLDS.items():
        layers: list[Any] = [modules[name] for name in names]
        # Heads that share their values have fewer of them than the layer after them has inputs.
        if modules[source].weight.shape[0] == layers[0].weight.shape[1]:
            found[source] = _factors([layer.weight.float() for layer in layers], grams[names[0]], group, dtype)
    for source, factors in found.items():
        _move(modules[source], [modules[name] for name in FOLDS[source]], factors, dtype)
    # A norm that multiplies by 1 + its weight, or stands elsewhere, shows here.
    if float((run() - expected).abs().max()) > TOLERANCE * float(expected.abs().max()):
        raise ModelError("awq's factors change what its blocks compute: they are built otherwise than Llama's", where=where, next_step="--to gptq")
    return list(found)


def _factors(weights: Sequence[Float[Tensor, "_ I"]], gram_II: Float[Tensor, "I I"], group: int, dtype: torch.dtype) -> Float[Tensor, "I"]:
    """The factor of each input with which the layers' products come nearest to what they were."""
    sizes = gram_II.diagonal().sqrt().clamp_min(1e-6)
    best, least = torch.ones_like(sizes), float("inf")
    for share in SHARES:
        factors = sizes**share
        factors = factors / (factors.max() * factors.min()).sqrt()
        error = sum(_error(four_bits(weight * factors, group, dtype, (1.0,)).weight() / factors - weight, gram_II) for weight in weights)
        if error < least:
            best, least = factors, error
    return best


def _error(change_OI: Float[Tensor, "O I"], gram_II: Float[Tensor, "I I"]) -> float:
    """The squared change of the products with the inputs that gave `gram_II`."""
    return float(((change_OI @ gram_II) * change_OI).sum())


def _move(source: Any, layers: Sequence[Any], factors: Tensor, dtype: torch.dtype) -> None:
    if source.weight.dim() == 1:
        # A norm is stored rounded: what is left after that is what the layers get.
        before = source.weight.clone()
        source.weight.copy_((before / factors).to(dtype))
        factors = torch.where(source.weight == 0, factors, before / source.weight)
    else:
        source.weight.copy_(source.weight / factors[:, None])
    if getattr(source, "bias", None) is not None:
        source.bias.copy_(source.bias / factors)
    for layer in layers:
        layer.weight.copy_(layer.weight * factors)
