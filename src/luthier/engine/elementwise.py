"""What stands between the products of a block, in fewer passes over memory: RMSNorm and gated activations, forward and backward.

Transformers writes both as eight or more operations over fp32 copies. Here each is one function with its own backward; compiled, it is one
loop. A module gets such a function only after it was seen to compute the same on random input, whatever it is called.

Letters: T tokens, D width.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# A module is taken for what it seems to be when no output differs by more than this (relative to the largest).
SAME = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}


def norm_forward(x: Tensor, weight: Tensor, eps: float, offset: float) -> tuple[Tensor, Tensor]:
    """x / rms(x) * (offset + weight), and 1 / rms(x), (T, 1), in fp32 (Zhang and Sennrich 2019, arXiv:1910.07467)."""
    exact = x.float()
    inverse = torch.rsqrt(exact.square().mean(-1, keepdim=True) + eps)
    return (exact * inverse * (weight.float() + offset)).to(x.dtype), inverse


def norm_backward(dy: Tensor, x: Tensor, weight: Tensor, inverse: Tensor, offset: float) -> Tensor:
    """dx = (g - y mean(g y)) / rms(x), where y = x / rms(x) and g = dy (offset + weight)."""
    y = x.float() * inverse
    g = dy.float() * (weight.float() + offset)
    return ((g - y * (g * y).mean(-1, keepdim=True)) * inverse).to(x.dtype)


def norm_weight_gradient(dy: Tensor, x: Tensor, inverse: Tensor) -> Tensor:
    """(D,), in fp32."""
    return (dy.float() * x.float() * inverse).flatten(0, -2).sum(0)


def silu_gated(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up (Shazeer 2020, arXiv:2002.05202)."""
    exact = gate.float()
    return (exact * torch.sigmoid(exact) * up.float()).to(gate.dtype)


def silu_gated_backward(dy: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    exact, slope = gate.float(), dy.float()
    open_ = torch.sigmoid(exact)
    dgate = slope * up.float() * open_ * (1 + exact * (1 - open_))
    return dgate.to(gate.dtype), (slope * exact * open_).to(up.dtype)


@dataclass(frozen=True, slots=True)
class Functions:
    """The arithmetic that the modules are given; another device or a compiler may hand in its own."""

    norm_forward: Callable[..., Any] = norm_forward
    norm_backward: Callable[..., Any] = norm_backward
    norm_weight_gradient: Callable[..., Any] = norm_weight_gradient
    gated: Callable[..., Any] = silu_gated
    gated_backward: Callable[..., Any] = silu_gated_backward


def compiled() -> Functions:
    """The same functions as single loops. Raises what torch's compiler raises where there is no C++ compiler."""
    plain = (norm_forward, norm_backward, norm_weight_gradient, silu_gated, silu_gated_backward)
    functions = Functions(*(torch.compile(one, dynamic=True) for one in plain))
    for rows in (3, 5):  # the second length makes the code that is kept for every length
        x, weight = torch.randn(1, rows, 8), torch.ones(8)
        _, inverse = functions.norm_forward(x, weight, 1e-6, 0.0)
        functions.norm_backward(x, x, weight, inverse, 0.0)
    return functions


def install_best(model: nn.Module, fused: Functions | None, say: Callable[[str], None], *, compile: bool) -> Callable[[], None]:
    """What `install` does with the functions that a device has, or with compiled ones where they are asked for; where these cannot be
    compiled, `say` is told and the model is left as it is."""
    if fused is None and not compile:
        return lambda: None
    try:
        functions = fused or compiled()
    except Exception as error:  # torch's compiler has no one class for what it lacks
        say(f"not compiled: {str(error).splitlines()[0][:120]}")
        return lambda: None
    return install(model, functions)


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, offset: float, functions: Functions) -> Tensor:
        y, inverse = functions.norm_forward(x, weight, eps, offset)
        ctx.save_for_backward(x, weight, inverse)
        ctx.offset, ctx.functions = offset, functions
        output: Tensor = y
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, weight, inverse = ctx.saved_tensors
        dx = ctx.functions.norm_backward(grads[0], x, weight, inverse, ctx.offset) if ctx.needs_input_grad[0] else None
        dweight = ctx.functions.norm_weight_gradient(grads[0], x, inverse).to(weight.dtype) if ctx.needs_input_grad[1] else None
        return dx, dweight, None, None, None


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, functions: Functions) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.functions = functions
        output: Tensor = functions.gated(gate, up)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return *ctx.functions.gated_backward(grads[0], *ctx.saved_tensors), None


def install(model: nn.Module, functions: Functions) -> Callable[[], None]:
    """Give every norm and every gated MLP of `model` these functions. Returns the call that gives their own forwards back."""
    changed = []
    for module, forward in _found(model, functions):
        module.forward = forward
        changed.append(module)

    def give_back() -> None:
        for module in changed:
            module.__dict__.pop("forward", None)

    return give_back


def _found(model: nn.Module, functions: Functions) -> Iterator[tuple[Any, Callable[..., Tensor]]]:
    for module in model.modules():
        if "forward" in module.__dict__:
            continue
        forward = _as_norm(module, functions) or _as_gated(module, functions)
        if forward is not None:
            yield module, forward


def _as_norm(module: Any, functions: Functions) -> Callable[[Tensor], Tensor] | None:
    """The module as an RMSNorm, if it is one: a vector, an epsilon, and the same output."""
    parameters = dict(module.named_parameters())
    weight, eps = getattr(module, "weight", None), getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if list(parameters) != ["weight"] or not isinstance(weight, Tensor) or weight.dim() != 1 or not isinstance(eps, float):
        return None
    x = _random((1, 3, len(weight)), weight)
    for offset in (0.0, 1.0):  # Gemma's norms count from one

        def forward(x: Tensor, offset: float = offset) -> Tensor:
            y: Tensor = _Norm.apply(x, module.weight, eps, offset, functions)  # type: ignore[no-untyped-call]
            return y

        if _same(module, forward, x):
            return forward
    return None


def _as_gated(module: Any, functions: Functions) -> Callable[[Tensor], Tensor] | None:
    """The module as down(silu(gate(x)) * up(x)), if it is that."""
    names = [name for name, _ in module.named_children()]
    if not {"gate_proj", "up_proj", "down_proj"} <= set(names) or set(names) - {"gate_proj", "up_proj", "down_proj", "act_fn"}:
        return None

    def forward(x: Tensor) -> Tensor:
        y: Tensor = module.down_proj(_Gated.apply(module.gate_proj(x), module.up_proj(x), functions))  # type: ignore[no-untyped-call]
        return y

    parameter = next(module.gate_proj.parameters())
    width = getattr(module.gate_proj, "in_features", None)
    return forward if width and _same(module, forward, _random((1, 3, width), parameter)) else None


def _random(shape: tuple[int, ...], like: Tensor) -> Tensor:
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return drawn.to(like.device, like.dtype if like.is_floating_point() else torch.float32)


@torch.no_grad()
def _same(module: Any, forward: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    try:
        own, other = type(module).forward(module, x), forward(x)
    except (RuntimeError, TypeError, AttributeError):  # a module that is called otherwise is not what was looked for
        return False
    if not isinstance(own, Tensor) or own.shape != other.shape or own.dtype != other.dtype:
        return False
    return bool((own - other).abs().max() <= SAME.get(x.dtype, 0.0) * own.abs().max())
