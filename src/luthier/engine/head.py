"""The last step of a model: hidden rows to logits, and the loss with its gradient in the same pass, for trained tokens only.

No logits of a whole text ever exist: rows go in chunks through two buffers that are kept. Fresh buffers of this size would cost more
than the products, because the system hands every page out anew (2 cores: 60 % of the head's time; docs/experiments.md).

Letters: N trained tokens, D width, V vocabulary.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from luthier.engine import lanes
from luthier.plan.memory import LOGITS_CHUNK_BYTES, LOGITS_CHUNK_ROWS


@dataclass(slots=True)
class Head:
    """How this model makes logits of hidden rows: softcap(scale * (h W^T + bias)).

    `softcap(x) = c tanh(x / c)` (Gemma 2, arXiv:2408.00118); `scale` is Cohere's logit_scale or one over Granite's logits_scaling.
    """

    model: Any  # the causal language model
    scale: float = 1.0
    softcap: float | None = None
    label_smoothing: float = 0.0  # of the losses that an update learns from
    buffers: dict[tuple[str, int], Tensor] = field(default_factory=dict)

    @property
    def weight(self) -> Tensor:
        """(V, D). Where some rows are trained this is a new tensor at each call, which leads to their gradient."""
        weight: Tensor = self.model.get_output_embeddings().weight
        return weight

    @property
    def bias(self) -> Tensor | None:
        bias: Tensor | None = getattr(self.model.get_output_embeddings(), "bias", None)
        return bias

    def logits(self, hidden_ND: Float[Tensor, "N D"], weight_VD: Float[Tensor, "V D"]) -> Float[Tensor, "N V"]:
        """Logits of a few rows, without gradients of their own. `weight_VD` is `weight` in the hidden rows' number format, made once."""
        bias = self.bias
        logits = torch.nn.functional.linear(hidden_ND, weight_VD, None if bias is None else bias.to(hidden_ND.dtype))
        logits = logits if self.scale == 1.0 else logits * self.scale
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap

    def losses(
        self, hidden_ND: Float[Tensor, "N D"], targets_N: Int[Tensor, "N"], smoothing: float = 0.0, weights_N: Float[Tensor, "N"] | None = None
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "N"]]:
        """The sum over N tokens of -log p(target) in nats, which can be sent backward, and the addends, which cannot; both in fp32.

        With `smoothing` e each is (1 - e) * -log p(target) + e * the mean of -log p over all words (Szegedy 2016, arXiv:1512.00567).
        With `weights_N` the sum is that of the addends times their weights.
        """
        total, each = _HeadLoss.apply(hidden_ND, self.weight, self.bias, targets_N, self, smoothing, weights_N)  # type: ignore[no-untyped-call]
        return total, each

    def buffer(self, name: str, rows: int, like: Tensor, dtype: torch.dtype, columns: int) -> Tensor:
        """A (rows, columns) buffer that is kept from call to call and may hold anything."""
        key = name, lanes.here()
        kept = self.buffers.get(key)
        if kept is None or kept.shape[0] < rows or kept.shape[1] != columns or kept.dtype != dtype or kept.device != like.device:
            kept = self.buffers[key] = torch.empty(rows, columns, dtype=dtype, device=like.device)
        return kept[:rows]


def head_of(model: Any) -> Head:
    """The head of a causal language model, with what its config says about logits."""
    config = model.config
    scale = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
    return Head(model, scale=float(scale), softcap=getattr(config, "final_logit_softcapping", None))


class _HeadLoss(torch.autograd.Function):
    """The losses, in fp32; the gradients of the hidden rows and of a trained head are made while the logits are there."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        targets_N: Tensor,
        head: Head,
        smoothing: float,
        weights_N: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        gradient = torch.empty_like(hidden_ND) if needs_hidden else None
        weight_gradient = torch.zeros_like(weight_VD, dtype=torch.float32) if needs_weight else None
        bias_gradient = torch.zeros_like(bias_V, dtype=torch.float32) if needs_bias and bias_V is not None else None
        head_VD = weight_VD.to(hidden_ND.dtype)  # a trained head is kept in fp32
        each_N = torch.empty(len(targets_N), dtype=torch.float32, device=hidden_ND.device)
        rows = min(LOGITS_CHUNK_ROWS, LOGITS_CHUNK_BYTES // (4 * weight_VD.shape[0])) // lanes.sharing()
        rows = max(1, min(rows, len(targets_N)))
        for start in range(0, len(targets_N), rows):
            piece = slice(start, start + rows)
            slopes = ctx.needs_input_grad[0] or needs_weight
            slope = _chunk(head, hidden_ND[piece], head_VD, bias_V, targets_N[piece, None], each_N[piece], slopes, smoothing)
            if weights_N is not None:
                slope *= weights_N[piece, None]
            if gradient is not None:
                torch.mm(slope, head_VD, out=gradient[piece])
            if weight_gradient is not None:
                weight_gradient += slope.T @ hidden_ND[piece]
            if bias_gradient is not None:
                bias_gradient += slope.sum(0, dtype=torch.float32)
        ctx.save_for_backward(gradient, weight_gradient, bias_gradient)
        ctx.weight_dtype = weight_VD.dtype
        ctx.mark_non_differentiable(each_N)
        return (each_N if weights_N is None else each_N * weights_N).sum(), each_N

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None, None, None]:
        hidden, weight, bias = ctx.saved_tensors
        # A number beside a tensor keeps its own digits.
        of_weight, of_bias = (None if one is None else one.mul_(grads[0]).to(ctx.weight_dtype) for one in (weight, bias))
        return None if hidden is None else hidden * grads[0], of_weight, of_bias, None, None, None, None


def _chunk(
    head: Head, hidden_ND: Tensor, head_VD: Tensor, bias_V: Tensor | None, targets_N1: Tensor, each_N: Tensor, slopes: bool, smoothing: float
) -> Tensor:
    """Fills the losses of some rows. Gives d loss / d (h W^T), (N, V), in a buffer that the next call writes over."""
    rows, words = len(hidden_ND), len(head_VD)
    exact = head.buffer("exact", rows, hidden_ND, torch.float32, words)
    if hidden_ND.dtype == torch.float32:
        raw = torch.mm(hidden_ND, head_VD.T, out=exact)
    else:
        raw = torch.mm(hidden_ND, head_VD.T, out=head.buffer("raw", rows, hidden_ND, hidden_ND.dtype, words))
        exact.copy_(raw)
    if bias_V is not None:
        exact += bias_V
    if head.scale != 1.0:
        exact *= head.scale
    bent = None
    if head.softcap is not None:
        bent = exact.div_(head.softcap).tanh_().clone() if slopes else exact.div_(head.softcap).tanh_()
        exact *= head.softcap
    highest = exact.amax(dim=-1)
    chosen = exact.gather(1, targets_N1).squeeze(1)
    if smoothing:
        chosen = chosen.mul_(1 - smoothing).add_(exact.mean(dim=-1), alpha=smoothing)
    torch.ops.aten._softmax.out(exact, -1, False, out=exact)
    # log sum exp = highest logit - log of its probability, which is never small
    each_N.copy_(highest - exact.amax(dim=-1).log_() - chosen)
    if not slopes:
        return exact
    # d loss / d logits = softmax - one-hot, which smoothing spreads over all words
    if smoothing:
        exact -= smoothing / words
    exact.scatter_add_(1, targets_N1, exact.new_full(targets_N1.shape, smoothing - 1.0))
    if bent is not None:
        exact *= bent.square_().neg_().add_(1.0)
    if head.scale != 1.0:
        exact *= head.scale
    return exact if raw is exact else raw.copy_(exact)
