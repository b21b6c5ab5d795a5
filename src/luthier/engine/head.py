"""The loss at the head: logits of trained tokens only, in chunks, with the gradient in the same pass.

Letters: N trained tokens, D width, V vocabulary.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

# 128 rows of a 49,152-word vocabulary are 25 MB in fp32: about the size of a shared cache.
CHUNK_ROWS = 128


class _FrozenHeadLoss(torch.autograd.Function):
    """Sum of the cross entropies, in fp32; the gradient of the hidden rows is made while the logits are there."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden_ND.device)
        gradient = torch.empty_like(hidden_ND) if ctx.needs_input_grad[0] else None
        for start in range(0, len(targets_N), CHUNK_ROWS):
            piece = slice(start, start + CHUNK_ROWS)
            targets = targets_N[piece, None]
            logits = (hidden_ND[piece] @ weight_VD.T).float()
            log_sum = logits.logsumexp(dim=-1, keepdim=True)
            total += (log_sum - logits.gather(1, targets)).sum()
            if gradient is not None:
                # d loss / d logits = softmax - one-hot
                slope = logits.sub_(log_sum).exp_()
                slope.scatter_add_(1, targets, slope.new_full(targets.shape, -1.0))
                gradient[piece] = slope.to(hidden_ND.dtype) @ weight_VD
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None]:
        return ctx.saved_tensors[0] * grads[0], None, None  # a number beside a tensor keeps its own digits


def loss_sum(hidden_ND: Float[Tensor, "N D"], weight_VD: Float[Tensor, "V D"], targets_N: Int[Tensor, "N"]) -> Float[Tensor, ""]:
    """Sum over N tokens of -log p(target), in nats. The head's weight is frozen: it gets no gradient."""
    total: Tensor = _FrozenHeadLoss.apply(hidden_ND, weight_VD, targets_N)  # type: ignore[no-untyped-call]
    return total
