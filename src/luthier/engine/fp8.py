"""A frozen base whose products run in 8 bits (e4m3, Micikevicius 2022, arXiv:2209.05433): rows of weights and inputs have a scale each.

The weights also stay as they are, for whatever reads them otherwise; what is trained is not touched. On a device without such products the
same rounding is done and the product is made in fp32.

Letters: M rows of an input, I inputs and O outputs of a layer.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from luthier.config.methods import METHODS
from luthier.engine import lora
from luthier.errors import ConfigError

HIGHEST = 448.0  # of e4m3
# Products in 8 bits want multiples of it.
MULTIPLE = 16
FIRST_CAPABILITY = (8, 9)


@dataclass(frozen=True, slots=True)
class Rows:
    """A matrix in 8 bits, (rows, columns), with a scale for each row, (rows, 1) in fp32."""

    values: Tensor
    scales: Tensor


def in_8_bits(x: Tensor) -> Rows:
    """Every row divided by its scale, so that its largest number is the largest that there is."""
    return Rows(*_rounding(x.device.type)(x))


def _round(x: Tensor) -> tuple[Tensor, Tensor]:
    exact = x.float()
    scales = (exact.abs().amax(dim=-1, keepdim=True) / HIGHEST).clamp(min=1e-12)
    return (exact / scales).clamp(-HIGHEST, HIGHEST).to(torch.float8_e4m3fn), scales


@cache
def _rounding(device: str) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """On a GPU as one compiled loop, where there is a compiler: as four it costs what the product saves."""
    if device != "cuda":
        return _round
    compiled = torch.compile(_round, dynamic=True)
    try:
        compiled(torch.ones(3, 32, device=device))
    except Exception:  # torch's compiler has no one class for what it lacks
        return _round
    return compiled


def product(left: Rows, right: Rows, dtype: torch.dtype) -> Tensor:
    """left right^T, summed in fp32: (M, O)."""
    if left.values.device.type != "cuda":
        return ((left.values.float() * left.scales) @ (right.values.float() * right.scales).T).to(dtype)
    result: Tensor = torch._scaled_mm(left.values, right.values.T, scale_a=left.scales, scale_b=right.scales.T, out_dtype=dtype, use_fast_accum=True)
    return result


class Weight8(Tensor):
    """A frozen weight, (O, I), whose products with inputs (x W^T) and with slopes (dy W) are made in 8 bits; else a tensor like others."""

    by_output: Rows  # W
    by_input: Rows  # W^T

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            return PRODUCTS.get(func, func)(*args, **(kwargs or {}))


def weight_in_8_bits(weight: Tensor) -> nn.Parameter:
    held: Any = Weight8._make_subclass(Weight8, weight.detach(), False)
    held._is_param = True  # for torch's modules: it stands where a parameter stood
    held.by_output, held.by_input = in_8_bits(weight.detach()), in_8_bits(weight.detach().T.contiguous())
    return held  # type: ignore[no-any-return]


def _linear(x: Tensor, weight: Any, bias: Tensor | None = None) -> Tensor:
    y: Tensor = _Linear.apply(x, weight.by_output, weight.by_input)  # type: ignore[no-untyped-call]
    return y if bias is None else y + bias


def _times(dy: Tensor, weight: Any) -> Tensor:
    return product(in_8_bits(dy), weight.by_input, dy.dtype)


def _add_times(sum_: Tensor, dy: Tensor, weight: Any) -> Tensor:
    return sum_.add_(_times(dy, weight))


PRODUCTS: dict[Any, Callable[..., Tensor]] = {
    # what is called with a weight   what is done
    nn.functional.linear: _linear,
    Tensor.matmul: _times,
    Tensor.addmm_: _add_times,
}


class _Newest:
    """The input that was rounded last: layers that share one come one after the other."""

    def __init__(self) -> None:
        self.of: Callable[[], Tensor | None] = lambda: None
        self.rows: Rows | None = None

    def rows_of(self, x: Tensor) -> Rows:
        if self.rows is None or self.of() is not x:
            self.of, self.rows = weakref.ref(x), in_8_bits(x.reshape(-1, x.shape[-1]))
        return self.rows


_newest = _Newest()


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, by_output: Rows, by_input: Rows) -> Tensor:
        ctx.by_input = by_input
        return product(_newest.rows_of(x), by_output, x.dtype).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        flat = grads[0].reshape(-1, grads[0].shape[-1])
        return product(in_8_bits(flat), ctx.by_input, flat.dtype).view(*grads[0].shape[:-1], -1), None, None


def install(model: nn.Module) -> Callable[[], None]:
    """Give the frozen layers below plain LoRA adapters weights in 8 bits. Returns the call that gives their own back."""
    layers: list[Any] = [module.base_layer for module in model.modules() if lora.is_plain(module)]
    own = [(layer, layer.weight) for layer in layers if not (layer.in_features % MULTIPLE or layer.out_features % MULTIPLE)]
    for layer, weight in own:
        layer.weight = weight_in_8_bits(weight)

    def give_back() -> None:
        for layer, weight in own:
            layer.weight = weight

    return give_back


def require(asked: str, method: str, precision: str, device: str) -> None:
    """Raises ConfigError where training.frozen_base: fp8 was asked for and cannot be."""
    reason = ""
    if method == "full":
        reason = "needs frozen weights, and method: full leaves none"
    elif "lora" not in METHODS[method].blocks:
        reason = f"stands below LoRA adapters, and method: {method} has none"
    elif precision not in ("auto", "bf16"):
        reason = f"goes with precision: bf16, and it is {precision}"
    elif device != "cuda" or torch.cuda.get_device_capability() < FIRST_CAPABILITY:
        reason = "needs an NVIDIA GPU of compute capability 8.9 or newer (Ada, Hopper, Blackwell)"
    if asked == "fp8" and reason:
        raise ConfigError(f"fp8 {reason}", where="training.frozen_base", next_step="training.frozen_base: bf16")
