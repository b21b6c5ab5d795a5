"""GPTQ (Frantar 2022, arXiv:2210.17323): a weight in 4 bits, each column's error made good by the columns that are still to come.

Letters: O outputs, I inputs, G groups of a row.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from luthier.export.rounding import Rounded, nearest, scales_of

# Added to the diagonal, as a share of its mean, so that inputs that hardly occur can be inverted (the paper's 1 %).
DAMPING = 0.01
COLUMNS = 128


def solve(weight_OI: Float[Tensor, "O I"], gram_II: Float[Tensor, "I I"], group: int, dtype: torch.dtype) -> Rounded:
    """The weight in 4 bits whose products with the inputs that gave `gram_II` (the sum of x x^T) are near those of `weight_OI`.

    The columns of the largest inputs are rounded first, in groups that stay where they are.
    """
    scales_OG = scales_of(weight_OI, group, dtype)
    order = gram_II.diagonal().argsort(descending=True)
    upper_II = _inverse_root(gram_II[order][:, order])
    left_OI, numbers_OI = weight_OI[:, order].clone(), torch.zeros_like(weight_OI)
    for begin in range(0, len(order), COLUMNS):
        end = min(begin + COLUMNS, len(order))
        errors = torch.zeros(len(weight_OI), end - begin)
        for column in range(begin, end):
            scale = scales_OG[:, order[column] // group].float()
            values = left_OI[:, column]
            numbers = nearest(values, scale)
            error = (values - numbers * scale) / upper_II[column, column]
            left_OI[:, column:end] -= error[:, None] * upper_II[column, column:end]
            numbers_OI[:, column], errors[:, column - begin] = numbers, error
        left_OI[:, end:] -= errors @ upper_II[begin:end, end:]
    return Rounded(numbers_OI[:, order.argsort()].to(torch.int8), scales_OG)


def _inverse_root(gram_II: Float[Tensor, "I I"]) -> Float[Tensor, "I I"]:
    """The upper triangle U with U^T U the inverse of the damped `gram_II`."""
    damped = gram_II.clone()
    diagonal = damped.diagonal()
    diagonal[diagonal == 0] = 1.0  # an input that is always zero
    diagonal += DAMPING * diagonal.mean()
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    upper: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return upper
