"""AdamW (Loshchilov 2019, arXiv:1711.05101): torch's fused one, or one whose moments are kept in 8 bits; and one clipped step of it."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from luthier.errors import ConfigError

# One pass over weight, gradient and moments: 6 times as fast as the loop over tensors on a CPU (docs/experiments.md).
FUSED_DEVICES = {"cpu", "cuda"}


def _adamw(parameters: Sequence[Tensor], settings: dict[str, Any]) -> torch.optim.Optimizer:
    fused = all(parameter.device.type in FUSED_DEVICES for parameter in parameters)
    return torch.optim.AdamW(parameters, lr=0.0, fused=fused, **settings)


def _adamw_8bit(parameters: Sequence[Tensor], settings: dict[str, Any]) -> torch.optim.Optimizer:
    """Moments in blocks of 256 numbers of 8 bits (Dettmers 2022, arXiv:2110.02861); tensors below 4,096 numbers keep theirs in fp32."""
    try:
        from bitsandbytes.optim.adamw import AdamW8bit
    except ImportError as error:
        raise ConfigError(
            "adamw_8bit needs bitsandbytes, which is not here", where="training.optim", next_step='pip install "luthier[optim]", or optim: adamw'
        ) from error
    optimizer: torch.optim.Optimizer = AdamW8bit(parameters, lr=0.0, **settings)  # type: ignore[no-untyped-call, unused-ignore]
    return optimizer


OPTIMIZERS: dict[str, Callable[[Sequence[Tensor], dict[str, Any]], torch.optim.Optimizer]] = {
    # training.optim   makes it
    "adamw": _adamw,
    "adamw_8bit": _adamw_8bit,
}


@torch.no_grad()
def step(optimizer: torch.optim.Optimizer, learning_rate: float, max_grad_norm: float, loss_scale: float = 1.0) -> float:
    """Clip and update. Gives the norm of the gradients (over `loss_scale`) before clipping; nothing is updated where it is not finite."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"] if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters]) / loss_scale
    found = float(norm)
    if not math.isfinite(found):
        return found
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    divisor = loss_scale * max(1.0, (found + 1e-6) / max_grad_norm)
    if optimizer.defaults.get("fused"):
        # The fused kernel divides while it reads them anyway. GradScaler hands its scale over in the same way.
        optimizer.grad_scale = norm.new_tensor(divisor) if divisor != 1.0 else None  # type: ignore[attr-defined]
    elif divisor != 1.0:
        torch._foreach_div_([parameter.grad for parameter in parameters], divisor)
    optimizer.step()
    return found


@torch.no_grad()
def step_unread(optimizer: torch.optim.Optimizer, learning_rate: float, max_grad_norm: float, loss: Tensor) -> Tensor:
    """As `step`, for a fused optimizer, without a look at any number: the kernel itself updates nothing where the norm or `loss` is not finite."""
    gradients = [parameter.grad for group in optimizer.param_groups for parameter in group["params"] if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    told: Any = optimizer
    told.grad_scale = ((norm + 1e-6) / max_grad_norm).clamp(min=1.0)
    told.found_inf = (~(norm.isfinite() & loss.isfinite())).float()
    optimizer.step()
    told.grad_scale = told.found_inf = None
    return norm


def moments(optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    """What the optimizer keeps of a parameter, as tensors that a file can hold; nothing before its first step."""
    kept: dict[str, Any] = optimizer.state.get(parameter, {})
    # The tables that 8-bit numbers are read with belong to the optimizer and are the same for all.
    return {name: torch.as_tensor(value).detach().contiguous() for name, value in kept.items() if not name.startswith("qmap")}


def restore(optimizer: torch.optim.Optimizer, parameter: Tensor, stored: dict[str, Tensor]) -> None:
    """Give the optimizer back what `moments` gave."""
    if not stored:
        return
    # The count of steps stays on the CPU, or is a plain number, but for a fused optimizer; the rest lies beside the weight.
    fused = optimizer.defaults.get("fused")
    state: dict[str, Any] = {name: value if name == "step" and not fused else value.to(parameter.device) for name, value in stored.items()}
    if not stored["step"].is_floating_point():
        state["step"] = int(stored["step"])
    if "absmax1" in state:
        tables: Any = optimizer
        state |= {"qmap1": tables.name2qmap["dynamic"].to(parameter.device), "qmap2": tables.name2qmap["udynamic"].to(parameter.device)}
    optimizer.state[parameter] = state
