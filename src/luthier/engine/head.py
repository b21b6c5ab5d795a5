"""The loss at the head: logits of trained tokens only, in chunks, with the gradient in the same pass.

Letters: N trained tokens, D width, V vocabulary.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

# 128 rows of a 49,152-word vocabulary are 25 MB in fp32: about the size of a shared cache.
CHUNK_ROWS = 128


class _HeadLoss(torch.autograd.Function):
    """Sum of the cross entropies, in fp32; the gradients of the hidden rows and of a trained head are made while the logits are there."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden_ND.device)
        needs_hidden, needs_weight, _ = ctx.needs_input_grad
        gradient = torch.empty_like(hidden_ND) if needs_hidden else None
        weight_gradient = torch.zeros_like(weight_VD, dtype=torch.float32) if needs_weight else None
        head_VD = weight_VD.to(hidden_ND.dtype)  # a trained head is kept in fp32
        for start in range(0, len(targets_N), CHUNK_ROWS):
            piece = slice(start, start + CHUNK_ROWS)
            targets = targets_N[piece, None]
            logits = (hidden_ND[piece] @ head_VD.T).float()
            log_sum = logits.logsumexp(dim=-1, keepdim=True)
            total += (log_sum - logits.gather(1, targets)).sum()
            if gradient is None and weight_gradient is None:
                continue
            # d loss / d logits = softmax - one-hot
            slope = logits.sub_(log_sum).exp_()
            slope.scatter_add_(1, targets, slope.new_full(targets.shape, -1.0))
            slope = slope.to(hidden_ND.dtype)
            if gradient is not None:
                gradient[piece] = slope @ head_VD
            if weight_gradient is not None:
                weight_gradient += slope.T @ hidden_ND[piece]
        ctx.save_for_backward(gradient, weight_gradient)
        ctx.weight_dtype = weight_VD.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, Tensor | None, None]:
        hidden, weight = ctx.saved_tensors
        # A number beside a tensor keeps its own digits.
        return None if hidden is None else hidden * grads[0], None if weight is None else (weight * grads[0]).to(ctx.weight_dtype), None


def loss_sum(hidden_ND: Float[Tensor, "N D"], weight_VD: Float[Tensor, "V D"], targets_N: Int[Tensor, "N"]) -> Float[Tensor, ""]:
    """Sum over N tokens of -log p(target), in nats. The head's weight gets a gradient where it is trained."""
    total: Tensor = _HeadLoss.apply(hidden_ND, weight_VD, targets_N)  # type: ignore[no-untyped-call]
    return total
