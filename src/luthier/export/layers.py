"""Where two models part: what each of their modules gives for one row, compared in the order in which they run."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

# How PEFT's wrappers call what they hold.
WRAPPED = ("base_model.model.",)
# Of the length of a module's output: in honest exports of the default model rounding to bf16 has changed at most 0.031.
ROUNDING = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 6e-2}


def outputs(model: Any, token_ids: list[int]) -> dict[str, Tensor]:
    """What every linear layer, norm and embedding gives for one row, by name, in the order in which they ran."""
    with _listening(model) as found, torch.no_grad():
        device = next(model.parameters()).device
        model(input_ids=torch.tensor([token_ids], device=device), use_cache=False)
    return found


@contextmanager
def _listening(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    found: dict[str, Tensor] = {}
    hooks = []

    def listen(name: str, module: nn.Module) -> None:
        def keep(_: nn.Module, __: Any, given: Any) -> None:
            if isinstance(given, Tensor) and given.is_floating_point():
                found[name] = given.detach().to("cpu", torch.float32, copy=True)

        hooks.append(module.register_forward_hook(keep))

    for name, module in model.named_modules():
        if not _inside_adapter(name) and (_plain(module) or _adapted(module)):
            listen(_short(name), module)
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _plain(module: nn.Module) -> bool:
    return not list(module.children()) and bool(list(module.parameters(recurse=False)))


def _adapted(module: nn.Module) -> bool:
    """Whether it is a layer with an adapter around it, which the other model has as one plain layer."""
    return any(name == "base_layer" for name, _ in module.named_children())


def _inside_adapter(name: str) -> bool:
    return any(part in ("base_layer", "original_module") or part.startswith("lora_") for part in name.split("."))


def _short(name: str) -> str:
    for prefix in WRAPPED:
        name = name.removeprefix(prefix)
    return name


def first_difference(trained: Mapping[str, Tensor], exported: Mapping[str, Tensor], stored: str) -> str:
    """The first module whose outputs are further apart than rounding makes them, in words; "" where none is."""
    limit = ROUNDING.get(stored, 0.3)
    for name, one in trained.items():
        other = exported.get(name)
        if other is None or other.shape != one.shape:
            continue  # of the adapter alone
        apart = float((one - other).norm() / one.norm().clamp_min(1e-12))
        if not apart <= limit:
            return f"{name} is the first layer that differs (by {apart:.2g} of what it gives; rounding makes less than {limit:g})"
    return ""
