"""LoRA as one autograd function: no copy of the input in fp32, no gradient for what is frozen (Hu 2021, arXiv:2106.09685).

y = x W^T + s (x A^T) B^T. A and B are kept in fp32 and used in the input's number format.
PEFT's own forward casts every input to fp32 first, which costs as much memory traffic as the layer itself.
"""

from collections.abc import Callable
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn


class _LoraProduct(torch.autograd.Function):
    """Forward and backward of one adapted linear layer; `weight` and `bias` are frozen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        narrow = flat @ a.to(x.dtype).T
        y = torch.nn.functional.linear(flat, weight, bias).addmm_(narrow, b.to(x.dtype).T, alpha=scale)
        ctx.save_for_backward(flat, narrow, weight, a, b)
        ctx.scale = scale
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, None, None, Tensor, Tensor, None]:
        flat, narrow, weight, a, b = ctx.saved_tensors
        dy = grads[0].reshape(-1, weight.shape[0])
        dnarrow = (dy @ b.to(dy.dtype)).mul_(ctx.scale)
        da = (dnarrow.T @ flat).to(a.dtype)
        db = (dy.T @ narrow).to(b.dtype).mul_(ctx.scale)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = (dy @ weight).addmm_(dnarrow, a.to(dy.dtype)).view(*grads[0].shape[:-1], -1)
        return dx, None, None, da, db, None


def is_plain(module: Any) -> bool:
    """Whether the function above computes what PEFT would: one adapter, no dropout, no variant (DoRA...), a full-precision base."""
    if not isinstance(module, LoraLinear) or type(module.base_layer) is not nn.Linear or len(module.active_adapters) != 1:
        return False
    name = module.active_adapters[0]
    if name not in module.lora_A:
        return False
    dropout = module.lora_dropout[name]
    return not (isinstance(dropout, nn.Dropout) and dropout.p > 0) and not module.lora_variant and module.lora_A[name].bias is None


def install(model: nn.Module) -> Callable[[], None]:
    """Give every plain LoRA layer of `model` the function above. Returns the call that gives PEFT's forward back."""
    changed = [module for module in model.modules() if is_plain(module)]
    for module in changed:
        module.forward = _forward_of(module)

    def give_back() -> None:
        for module in changed:
            module.__dict__.pop("forward", None)

    return give_back


def _forward_of(module: Any) -> Callable[..., Tensor]:
    plain = type(module).forward

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if module.disable_adapters or module.merged or args or kwargs:
            output: Tensor = plain(module, x, *args, **kwargs)
            return output
        name = module.active_adapters[0]
        base = module.base_layer
        a, b = module.lora_A[name].weight, module.lora_B[name].weight
        product: Tensor = _LoraProduct.apply(x, base.weight, base.bias, a, b, module.scaling[name])  # type: ignore[no-untyped-call]
        return product

    return forward
