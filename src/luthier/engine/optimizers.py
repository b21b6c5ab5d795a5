"""The optimizers, each from a library that keeps it; one clipped step; and what a checkpoint holds of them."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from luthier.errors import ConfigError

# One pass over weight, gradient and moments: 6 times as fast as the loop over tensors on a CPU (docs/experiments.md).
FUSED_DEVICES = {"cpu", "cuda"}
# What schedule-free AdamW keeps of a group and not of a weight.
GROUP_NUMBERS = ("k", "weight_sum", "lr_max")

# What an optimizer is made of: weights, or torch's groups of them (groups.py); then betas, eps and weight_decay.
Groups = Sequence[Any]
Make = Callable[[Groups, dict[str, Any]], torch.optim.Optimizer]
NormOf = Callable[[Sequence[Tensor]], Tensor]


def _adamw(groups: Groups, settings: dict[str, Any]) -> torch.optim.Optimizer:
    """Loshchilov 2019, arXiv:1711.05101."""
    fused = all(weight.device.type in FUSED_DEVICES for group in groups for weight in (group["params"] if isinstance(group, dict) else [group]))
    return torch.optim.AdamW(groups, lr=0.0, fused=fused, **settings)


def _adafactor(groups: Groups, settings: dict[str, Any]) -> torch.optim.Optimizer:
    """Shazeer 2018, arXiv:1804.04235, as Transformers' Trainer runs it: with the rate that it is given, not one made of the weights' size."""
    from transformers.optimization import Adafactor

    chosen: Any = Adafactor
    optimizer: torch.optim.Optimizer = chosen(
        groups, lr=0.0, scale_parameter=False, relative_step=False, weight_decay=settings.get("weight_decay", 0.0)
    )
    return optimizer


def _of_bitsandbytes(optim: str, class_name: str, *, takes_eps: bool = True) -> Make:
    """Moments in blocks of 256 numbers of 8 bits (Dettmers 2022, arXiv:2110.02861); tensors below 4,096 numbers keep theirs in fp32."""

    def make(groups: Groups, settings: dict[str, Any]) -> torch.optim.Optimizer:
        try:
            import bitsandbytes.optim as library
        except ImportError as error:
            raise _missing(optim, "bitsandbytes") from error
        taken = {name: value for name, value in settings.items() if takes_eps or name != "eps"}
        optimizer: torch.optim.Optimizer = getattr(library, class_name)(groups, lr=0.0, **taken)
        return optimizer

    return make


def _schedule_free(groups: Groups, settings: dict[str, Any]) -> torch.optim.Optimizer:
    """Defazio 2024, arXiv:2405.15682: no schedule, but a mean of the weights that it went through (`averaged`)."""
    try:
        from schedulefree import AdamWScheduleFree
    except ImportError as error:
        raise _missing("schedule_free", "schedulefree") from error
    optimizer: Any = AdamWScheduleFree(groups, lr=0.0, **settings)
    optimizer.train()
    free: torch.optim.Optimizer = optimizer
    return free


class _MuonAndAdamW(torch.optim.Optimizer):
    """Muon for the matrices inside the layers, with updates as large as AdamW's (Liu 2025, arXiv:2502.16982, equation 4); AdamW for the
    embedding, the head, norms, biases and what has three dimensions (fused experts)."""

    def __init__(self, groups: Groups, settings: dict[str, Any]) -> None:
        inside = [group for part in groups if (group := _part(part, inside=True))["params"]]
        rest = [group for part in groups if (group := _part(part, inside=False))["params"]]
        muon: Any = torch.optim.Muon
        self._two: list[torch.optim.Optimizer] = [_adamw(rest, settings)] if rest else []
        if inside:
            self._two.append(muon(inside, lr=0.0, weight_decay=settings["weight_decay"], adjust_lr_fn="match_rms_adamw"))
        super().__init__([group for one in self._two for group in one.param_groups], {})
        self.param_groups = [group for one in self._two for group in one.param_groups]
        for one in self._two:
            one.state = self.state

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for one in self._two:
            one.step()


def _part(group: dict[str, Any], *, inside: bool) -> dict[str, Any]:
    """The part of a group that are matrices inside the layers, or the others."""
    return group | {"params": [weight for weight in group["params"] if (weight.ndim == 2 and not group["table"]) == inside]}


def _muon(groups: Groups, settings: dict[str, Any]) -> torch.optim.Optimizer:
    """Jordan 2024, kellerjordan.github.io/posts/muon."""
    if not hasattr(torch.optim, "Muon"):
        raise ConfigError(
            f"muon needs torch 2.9 or newer, and this is {torch.__version__}", where="training.optim", next_step="a newer torch, or optim: adamw"
        )
    return _MuonAndAdamW(groups, settings)


def _missing(optim: str, library: str) -> ConfigError:
    return ConfigError(
        f"{optim} needs {library}, which is not here", where="training.optim", next_step='pip install "luthier[optim]", or optim: adamw'
    )


OPTIMIZERS: dict[str, Make] = {
    # training.optim   makes it
    "adamw":         _adamw,
    "adamw_8bit":    _of_bitsandbytes("adamw_8bit", "AdamW8bit"),
    "adafactor":     _adafactor,
    "lion":          _of_bitsandbytes("lion", "Lion", takes_eps=False),
    "lion_8bit":     _of_bitsandbytes("lion_8bit", "Lion8bit", takes_eps=False),
    "muon":          _muon,
    "schedule_free": _schedule_free,
}  # fmt: skip


def norm_of(parameters: Sequence[Tensor]) -> Tensor:
    """The norm of the gradients of all of them together."""
    return torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])


@torch.no_grad()
def step(optimizer: torch.optim.Optimizer, learning_rate: float, max_grad_norm: float, loss_scale: float = 1.0, norm_of: NormOf = norm_of) -> float:
    """Clip and update. Gives the norm of the gradients (over `loss_scale`) before clipping; nothing is updated where it is not finite.

    `norm_of` is another way to it, where other ranks have parts of the weights.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"] if parameter.grad is not None]
    norm = norm_of(parameters) / loss_scale
    found = float(norm)
    if not math.isfinite(found):
        return found
    _set_rates(optimizer, learning_rate)
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
    _set_rates(optimizer, learning_rate)
    told: Any = optimizer
    told.grad_scale = ((norm + 1e-6) / max_grad_norm).clamp(min=1.0)
    told.found_inf = (~(norm.isfinite() & loss.isfinite())).float()
    optimizer.step()
    told.grad_scale = told.found_inf = None
    return norm


def _set_rates(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group.get("rate_factor", 1.0)


@contextmanager
def averaged(optimizer: torch.optim.Optimizer | None) -> Iterator[bool]:
    """While this lasts the weights are those that a schedule-free optimizer has found (the mean of those that it went through), and then
    those that it goes on from, to the bit. Gives whether it is such an optimizer, and not in such a block already."""
    if optimizer is None or not optimizer.param_groups[0].get("train_mode"):
        yield False
        return
    found: Any = optimizer
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    trained = [weight.detach().clone() for weight in weights]
    found.eval()
    try:
        yield True
    finally:
        found.train()
        with torch.no_grad():
            for weight, value in zip(weights, trained, strict=True):
                weight.copy_(value)


def moments(optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    """What the optimizer keeps of a parameter and its group, as tensors that a file can hold; nothing before its first step."""
    kept: dict[str, Any] = optimizer.state.get(parameter, {})
    of_group = {name: torch.tensor(value, dtype=_exact(value)) for name, value in _numbers_of_group(optimizer, parameter).items()} if kept else {}
    # The tables that 8-bit numbers are read with belong to the optimizer and are the same for all.
    return of_group | {name: torch.as_tensor(value).detach().contiguous() for name, value in kept.items() if not name.startswith("qmap")}


def _exact(value: int | float) -> torch.dtype:
    return torch.float64 if isinstance(value, float) else torch.int64


def _numbers_of_group(optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Any]:
    if not any(name in optimizer.defaults for name in GROUP_NUMBERS):
        return {}
    group = _group_of(optimizer, parameter)
    return {name: group[name] for name in GROUP_NUMBERS}


def _group_of(optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Any]:
    group: dict[str, Any] = next(group for group in optimizer.param_groups if any(weight is parameter for weight in group["params"]))
    return group


def restore(optimizer: torch.optim.Optimizer, parameter: Tensor, stored: dict[str, Tensor]) -> None:
    """Give the optimizer back what `moments` gave."""
    if not stored:
        return
    of_group = {name: stored[name].item() for name in GROUP_NUMBERS if name in stored}
    if of_group:
        _group_of(optimizer, parameter).update(of_group)
    # The count of steps stays on the CPU, or is a plain number, but for a fused optimizer; the rest lies beside the weight.
    fused = optimizer.defaults.get("fused") or isinstance(optimizer, _MuonAndAdamW)
    own = {name: value for name, value in stored.items() if name not in of_group}
    state: dict[str, Any] = {name: value if name == "step" and not fused else value.to(parameter.device) for name, value in own.items()}
    if "step" in stored and not stored["step"].is_floating_point():
        state["step"] = int(stored["step"])
    tables: Any = optimizer
    for moment, table in (("1", "dynamic"), ("2", "udynamic")):
        if f"absmax{moment}" in state:
            state[f"qmap{moment}"] = tables.name2qmap[table].to(parameter.device)
    optimizer.state[parameter] = state
