"""LoRA as one autograd function: no copy of the input in fp32, no gradient for what is frozen (Hu 2021, arXiv:2106.09685).

y = x W^T + s drop(x) A^T B^T. A and B are kept in fp32 and used in the input's number format.
PEFT's own forward casts every input to fp32 first, which costs as much memory traffic as the layer itself.
Projections that share an input (q, k, v; gate, up) go through one function: the narrow products of all A are one product, and their
gradients meet in one buffer. Which share one is found by a trace, by the input's identity and not by name.

Letters: T tokens, I inputs, O outputs, R all ranks of a group together.
"""

from collections.abc import Callable
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

from luthier.engine import draws
from luthier.engine.draws import Draws
from luthier.engine.lanes import here
from luthier.models import quantized


class _Projections(torch.autograd.Function):
    """Forward and backward of adapted linear layers with one input; their weights and biases are frozen.

    `dropped` is the adapters' input where it is not x. After it come the scales, the frozen layers, then (weight, bias, A, B) of each. A
    quantized layer has no weight: it is made when it is needed, and again in the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dropped: Tensor | None, scales: tuple[float, ...], layers: tuple[Any, ...], *tensors: Tensor | None
    ) -> tuple[Tensor, ...]:
        weights, biases, a_s, b_s = (tensors[place::4] for place in range(4))
        flat_TI = x.reshape(-1, x.shape[-1])
        narrow_in_TI = flat_TI if dropped is None else dropped.reshape(flat_TI.shape)
        a_RI = torch.cat([a.to(x.dtype) for a in a_s])  # type: ignore[union-attr]
        narrow_TR = narrow_in_TI @ a_RI.T
        outputs = []
        for weight, layer, bias, b, narrow, scale in zip(weights, layers, biases, b_s, _parts(narrow_TR, a_s), scales, strict=True):
            y = torch.nn.functional.linear(flat_TI, _weight(weight, layer, x.dtype), None if bias is None else bias.to(x.dtype))
            outputs.append(y.addmm_(narrow, b.to(x.dtype).T, alpha=scale).view(*x.shape[:-1], -1))
        ctx.save_for_backward(narrow_in_TI, narrow_TR, a_RI, *weights, *a_s, *b_s)
        ctx.scales, ctx.layers, ctx.dropped = scales, layers, dropped is not None
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        count = len(ctx.scales)
        narrow_in_TI, narrow_TR, a_RI, *rest = ctx.saved_tensors
        weights, a_s, b_s = rest[:count], rest[count : 2 * count], rest[2 * count :]
        dys = [dy.reshape(-1, dy.shape[-1]) for dy in grads]
        dnarrow_TR = torch.cat([(dy @ b.to(dy.dtype)).mul_(scale) for dy, b, scale in zip(dys, b_s, ctx.scales, strict=True)], dim=1)
        das = _parts((dnarrow_TR.T @ narrow_in_TI).T, a_s)
        dbs = [(narrow.T @ dy).mul_(scale).T for dy, narrow, scale in zip(dys, _parts(narrow_TR, a_s), ctx.scales, strict=True)]
        dx = ddropped = None
        if ctx.needs_input_grad[0]:
            dx = dys[0] @ _weight(weights[0], ctx.layers[0], dys[0].dtype)
            for dy, weight, layer in zip(dys[1:], weights[1:], ctx.layers[1:], strict=True):
                dx.addmm_(dy, _weight(weight, layer, dy.dtype))
            if not ctx.dropped:
                dx.addmm_(dnarrow_TR, a_RI)
            dx = dx.view(*grads[0].shape[:-1], -1)
        if ctx.dropped and ctx.needs_input_grad[1]:
            ddropped = (dnarrow_TR @ a_RI).view(*grads[0].shape[:-1], -1)
        each = ((None, None, da.T.to(a.dtype), db.to(b.dtype)) for da, a, db, b in zip(das, a_s, dbs, b_s, strict=True))
        return dx, ddropped, None, None, *(one for four in each for one in four)


def _parts(wide: Tensor, a_s: Any) -> tuple[Tensor, ...]:
    """The columns of each adapter."""
    return tuple(wide.split([len(a) for a in a_s], dim=1))


def _weight(weight: Tensor | None, layer: Any, dtype: torch.dtype) -> Tensor:
    return quantized.weight_of(layer, dtype) if weight is None else weight


def is_plain(module: Any) -> bool:
    """Whether the function above computes what PEFT would: adapters of one scale, no variant (DoRA...), a frozen base, be it quantized."""
    if not isinstance(module, LoraLayer) or not module.active_adapters:
        return False
    if not quantized.is_quantized(module.base_layer) and not (isinstance(module, LoraLinear) and type(module.base_layer) is nn.Linear):
        return False
    names = module.active_adapters
    if any(name not in module.lora_A for name in names) or module.base_layer.weight.requires_grad:
        return False
    # Several are one wide adapter where they scale alike and read the same input, dropped or not.
    if len(names) > 1 and (len({module.scaling[name] for name in names}) > 1 or any(_drops(module.lora_dropout[name]) for name in names)):
        return False
    return not module.lora_variant and all(module.lora_A[name].bias is None and module.lora_B[name].bias is None for name in names)


def install(model: nn.Module, run: Callable[[], object], drawn: Draws) -> Callable[[], None]:
    """Give every plain LoRA layer of `model` the function above, and every LoRA layer masks from `drawn`.

    `run` sends a few tokens through the model, so that layers with one input are found. Returns the call that gives PEFT's forwards back.
    """
    dropouts = [one for layer in model.modules() if isinstance(layer, LoraLayer) for one in layer.lora_dropout.values() if _drops(one)]
    give_dropouts_back = draws.install(dropouts, drawn)
    changed = [module for module in model.modules() if is_plain(module)]
    for group in _groups(changed, run):
        shared = _SharedInput(group)
        for module in group:
            module.forward = _forward_of(module, shared)

    def give_back() -> None:
        give_dropouts_back()
        for module in changed:
            module.__dict__.pop("forward", None)

    return give_back


def _drops(module: Any) -> bool:
    return isinstance(module, nn.Dropout) and module.p > 0


def _dropout(module: Any) -> Any:
    return module.lora_dropout[module.active_adapters[0]]


def _groups(modules: list[Any], run: Callable[[], object]) -> list[list[Any]]:
    """Layers by the input they are called with. With dropout each has its own mask, so each stands alone."""
    inputs: list[Tensor] = []  # kept, so that no two have one identity
    by_input: dict[int, list[Any]] = {}
    seen: set[int] = set()

    def note(module: Any, arguments: tuple[Any, ...]) -> None:
        inputs.append(arguments[0])
        alone = _drops(_dropout(module)) or id(module) in seen  # one that is called twice is not like the others
        seen.add(id(module))
        by_input.setdefault(id(module) if alone else id(arguments[0]), []).append(module)

    hooks = [module.register_forward_pre_hook(note) for module in modules]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    groups = [group for group in by_input.values() if len(group) > 1]
    grouped = {id(module) for group in groups for module in group}
    return groups + [[module] for module in modules if id(module) not in grouped]


class _SharedInput:
    """Layers that are called one after the other with the same input: the first call computes for all. Each lane has its own."""

    def __init__(self, modules: list[Any]) -> None:
        self.modules = modules
        self._of_lanes: dict[int, tuple[Tensor, dict[int, Tensor]]] = {}  # the input, and the outputs that were not asked for yet

    def output(self, module: Any, x: Tensor) -> Tensor:
        known, waiting = self._of_lanes.get(here(), (None, {}))
        if x is not known or id(module) not in waiting:
            waiting = dict(zip(map(id, self.modules), _project(self.modules, x), strict=True))
            self._of_lanes[here()] = x, waiting
        result = waiting.pop(id(module))
        if not waiting:
            del self._of_lanes[here()]
        return result


def _project(modules: list[Any], x: Tensor) -> tuple[Tensor, ...]:
    tensors: list[Tensor | None] = []
    for module in modules:
        weight = None if quantized.is_quantized(module.base_layer) else module.base_layer.weight
        tensors += [weight, module.base_layer.bias, *_factors(module)]
    dropout = _dropout(modules[0])
    dropped = dropout(x) if _drops(dropout) and modules[0].training else None
    scales = tuple(float(module.scaling[module.active_adapters[0]]) for module in modules)
    layers = tuple(module.base_layer for module in modules)
    products: tuple[Tensor, ...] = _Projections.apply(x, dropped, scales, layers, *tensors)  # type: ignore[no-untyped-call]
    return products


def _factors(module: Any) -> tuple[Tensor, Tensor]:
    """A and B, of all adapters that are on side by side."""
    a_s, b_s = ([half[name].weight for name in module.active_adapters] for half in (module.lora_A, module.lora_B))
    return (a_s[0], b_s[0]) if len(a_s) == 1 else (torch.cat(a_s), torch.cat(b_s, dim=1))


def _as_it_comes(module: Any, x: Tensor) -> bool:
    """Whether the frozen product is made in the input's own format (qlora.compute_dtype may ask for another)."""
    return not quantized.is_quantized(module.base_layer) or module.base_layer.compute_dtype == x.dtype


def _forward_of(module: Any, shared: _SharedInput) -> Callable[..., Tensor]:
    plain = type(module).forward

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if args or kwargs or any(one.disable_adapters or one.merged or not is_plain(one) for one in shared.modules) or not _as_it_comes(module, x):
            output: Tensor = plain(module, x, *args, **kwargs)
            return output
        return shared.output(module, x)

    return forward
