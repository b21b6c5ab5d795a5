"""The trained embedding: its gradient is added row by row in fp32, and no table of zeros is made for it.

torch makes a (V, D) gradient at each backward pass and adds a word that stands a hundred times in the text a hundred times in bf16.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class _Rows(torch.autograd.Function):
    """Rows of the table; backward adds to the fp32 gradient that `gradient` gives, and hands nothing on."""

    @staticmethod
    def forward(ctx: Any, ids: Tensor, weight_VD: Tensor, gradient: Callable[[], Tensor], left_out: int | None) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.gradient, ctx.left_out = gradient, left_out
        return nn.functional.embedding(ids, weight_VD)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[None, None, None, None]:
        ids = ctx.saved_tensors[0].flatten()
        rows = grads[0].reshape(len(ids), -1).float()
        if ctx.left_out is not None:  # torch learns nothing for the padding's row
            rows.masked_fill_((ids == ctx.left_out)[:, None], 0.0)
        ctx.gradient().index_add_(0, ids, rows)
        return None, None, None, None


def install(table: Any, gradient_of: Callable[[nn.Parameter], Tensor]) -> Callable[[], None]:
    """Give a trained, plain embedding the function above. Returns the call that gives its own forward back."""
    if type(table) is not nn.Embedding or not table.weight.requires_grad or table.max_norm or table.scale_grad_by_freq or table.sparse:
        return lambda: None

    weight: Any = table.weight

    def forward(ids: Tensor) -> Tensor:
        rows: Tensor = _Rows.apply(ids, weight, lambda: gradient_of(weight), table.padding_idx)  # type: ignore[no-untyped-call]
        return rows

    table.__dict__["forward"] = forward
    return lambda: table.__dict__.pop("forward", None)
