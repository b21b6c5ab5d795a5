"""A kernel library's functions are used where they give what our own do, and only there."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from luthier.engine import kernels
from luthier.engine.elementwise import Functions, norm_backward, norm_forward, silu_gated, silu_gated_backward

CPU = torch.device("cpu")


def shifted(function: Callable[..., Any]) -> Callable[..., Any]:
    def run(*told: Any) -> Any:
        result = function(*told)
        return result + 0.1 if isinstance(result, Tensor) else (result[0] + 0.1, *result[1:])

    return run


def overwriting(dy: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    dgate, dup = silu_gated_backward(dy, gate, up)
    return gate.copy_(dgate), up.copy_(dup)


def test_functions_that_compute_the_same_are_taken() -> None:
    assert kernels.agree(Functions(), CPU)


@pytest.mark.parametrize("wrong", [
    {"norm_forward": shifted(norm_forward)},
    {"norm_forward": lambda x, weight, eps, offset: norm_forward(x, weight, eps, 0.0)},
    {"norm_backward": shifted(norm_backward)},
    {"gated": shifted(silu_gated)},
    {"gated_backward": shifted(silu_gated_backward)},
    {"gated_backward": overwriting},
])  # fmt: skip
def test_functions_that_compute_something_else_are_not(wrong: dict[str, Any]) -> None:
    assert not kernels.agree(dataclasses.replace(Functions(), **wrong), CPU)


def test_a_cpu_has_none() -> None:
    assert kernels.fused(CPU) is None
