"""Fused norms and gated activations for GPUs, from liger-kernel where it is installed (Hsu 2024, arXiv:2410.10989)."""

import functools
from typing import Any

import torch
from torch import Tensor

from luthier.engine import elementwise
from luthier.engine.elementwise import Functions

# The arithmetic in fp32, the result in the input's format: as elementwise.py does it.
CASTING = "gemma"
# Largest relative distance from elementwise.py's own functions in bf16 before the library's are not used.
SAME = 2e-2
ROWS, WIDTH = 64, 1024


@functools.cache
def fused(device: torch.device) -> Functions | None:
    """The library's functions; None on a CPU, without the library, and where it gives something else than our own on random input."""
    if device.type != "cuda":
        return None
    try:
        functions = _of_liger()
        return functions if agree(functions, device) else None
    except (ImportError, RuntimeError, TypeError):  # not installed, another version, or a GPU that its compiler does not know
        return None


def agree(functions: Functions, device: torch.device) -> bool:
    """Whether they give, forward and backward, what elementwise.py's own do."""
    draw: Any = functools.partial(torch.randn, generator=torch.Generator(device).manual_seed(0), device=device, dtype=torch.bfloat16)
    x, other, slope, weight = draw(1, ROWS, WIDTH), draw(1, ROWS, WIDTH), draw(1, ROWS, WIDTH), draw(WIDTH)
    found, wanted = (_results(one, x, other, slope, weight) for one in (functions, Functions()))
    return all(
        mine.shape == theirs.shape and float((mine - theirs).float().norm() / theirs.float().norm()) < SAME
        for mine, theirs in zip(found, wanted, strict=True)
    )


def _results(functions: Functions, x: Tensor, other: Tensor, slope: Tensor, weight: Tensor) -> list[Tensor]:
    y, inverse = functions.norm_forward(x, weight, 1e-6, 1.0)
    norm = [y, inverse, functions.norm_backward(slope, x, weight, inverse, 1.0), functions.norm_weight_gradient(slope, x, inverse)]
    gated = [functions.gated(x, other), *functions.gated_backward(slope, x, other)]
    return [*norm, *gated, *functions.gated_backward(slope, x, other)]  # a second time: the inputs must still be there


def _of_liger() -> Functions:
    from liger_kernel.ops.rms_norm import rms_norm_backward, rms_norm_forward
    from liger_kernel.ops.swiglu import swiglu_backward, swiglu_forward
    from liger_kernel.ops.utils import calculate_settings

    def norm_forward(x: Tensor, weight: Tensor, eps: float, offset: float) -> tuple[Tensor, Tensor]:
        y, _, inverse, *_ = rms_norm_forward(x.contiguous(), weight, eps, offset, CASTING, None)
        return y, inverse.view(*x.shape[:-1], 1)

    def norm_backward(dy: Tensor, x: Tensor, weight: Tensor, inverse: Tensor, offset: float) -> Tensor:
        block, warps = calculate_settings(x.shape[-1])
        flat = x.contiguous().view(-1, x.shape[-1])
        dx, _ = rms_norm_backward(dy.contiguous(), flat, weight, inverse.view(-1), offset, 1, block, warps, False, None, needs_dw=False)
        result: Tensor = dx
        return result

    def gated(gate: Tensor, up: Tensor) -> Tensor:
        result: Tensor = swiglu_forward(gate.contiguous(), up.contiguous())[2]
        return result

    def gated_backward(dy: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
        # The kernel writes over what it is given.
        dgate, dup = swiglu_backward(*(one.clone(memory_format=torch.contiguous_format) for one in (gate, up)), dy.contiguous())
        return dgate, dup

    return Functions(norm_forward, norm_backward, elementwise.norm_weight_gradient, gated, gated_backward)
