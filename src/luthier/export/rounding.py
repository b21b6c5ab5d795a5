"""A weight in few bits: whole numbers, or 8-bit floats, times a scale for each group of a row.

Letters: O outputs, I inputs, G groups of a row. Scales are rounded to the number format that they are stored in before anything is divided by
them, so that what is read back is exactly what was measured.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int8, Int32
from torch import Tensor

GROUPS = (128, 64, 32)
# Of 4 bits with a sign.
LEAST, MOST = -8, 7
MOST_FLOAT8 = 448.0  # of float8_e4m3fn
# Shares of the largest number of a group that its scale is tried at: a few large numbers are cut for the many.
SHARES = tuple(1 - step / 20 for step in range(8))


@dataclass(frozen=True, slots=True)
class Rounded:
    """A weight as it is stored: numbers times scales, a scale for each group."""

    numbers: Tensor  # (O, I), int8 or float8
    scales: Float[Tensor, "O G"]

    def weight(self) -> Float[Tensor, "O I"]:
        """The weight that it stands for."""
        group = self.numbers.shape[1] // self.scales.shape[1]
        return self.numbers.float() * self.scales.float().repeat_interleave(group, dim=1)


def group_size(inputs: set[int]) -> int | None:
    """The largest usual group that divides the rows of all layers; None where there is none."""
    return next((group for group in GROUPS if all(length % group == 0 for length in inputs)), None)


def scales_of(weight_OI: Float[Tensor, "O I"], group: int, dtype: torch.dtype, shares: Sequence[float] = SHARES) -> Float[Tensor, "O G"]:
    """The scale of each group in 4 bits: of these `shares` of its largest number the one that gives the least squared error."""
    groups = weight_OI.reshape(len(weight_OI), -1, group)
    largest = groups.abs().amax(dim=-1).clamp_min(1e-8) / (MOST + 0.5)
    best, least = largest.to(dtype), torch.full_like(largest, float("inf"))
    for share in shares:
        scales = (largest * share).to(dtype)
        divisors = scales.float()[..., None]
        errors = (nearest(groups, divisors) * divisors - groups).square().sum(dim=-1)
        better = errors < least
        best, least = torch.where(better, scales, best), torch.where(better, errors, least)
    return best


def nearest(values: Tensor, scales: Tensor) -> Tensor:
    """The nearest 4-bit numbers."""
    return (values / scales).round().clamp(LEAST, MOST)


def four_bits(weight_OI: Float[Tensor, "O I"], group: int, dtype: torch.dtype, shares: Sequence[float] = SHARES) -> Rounded:
    """4-bit whole numbers, a scale for each group of a row."""
    scales = scales_of(weight_OI, group, dtype, shares)
    numbers = nearest(weight_OI.reshape(len(weight_OI), -1, group), scales.float()[..., None])
    return Rounded(numbers.reshape(weight_OI.shape).to(torch.int8), scales)


def eight_bits(weight_OI: Float[Tensor, "O I"], dtype: torch.dtype) -> Rounded:
    """8-bit whole numbers, a scale for each row."""
    scales = (weight_OI.abs().amax(dim=1, keepdim=True) / 127).clamp_min(1e-8).to(dtype)
    return Rounded((weight_OI / scales.float()).round().clamp(-127, 127).to(torch.int8), scales)


def float8(weight_OI: Float[Tensor, "O I"], dtype: torch.dtype) -> Rounded:
    """8-bit floating point (e4m3), a scale for each row."""
    scales = (weight_OI.abs().amax(dim=1, keepdim=True) / MOST_FLOAT8).clamp_min(1e-8).to(dtype)
    return Rounded((weight_OI / scales.float()).clamp(-MOST_FLOAT8, MOST_FLOAT8).to(torch.float8_e4m3fn), scales)


def packed(numbers: Int8[Tensor, "O I"]) -> Int32[Tensor, "O words"]:
    """4-bit numbers, eight in an int32 along each row, the first one lowest. Rows are a multiple of eight long."""
    shifted = (numbers.to(torch.int64) - LEAST).reshape(len(numbers), -1, 8)
    words = (shifted << (4 * torch.arange(8))).sum(dim=-1)
    # The same 32 bits with a sign.
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)
