"""Losses that compare whole answers: of the log-probability of each example, and not a sum over tokens (DPO and its kin).

The loss of a micro-batch is a function of a few numbers, the log-probabilities of its examples. Their slopes become the weights of the
examples' tokens, and the gradient of the weighted sum of token losses is the gradient of the loss, exactly.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from luthier.engine import update
from luthier.engine.batches import Document, Step
from luthier.engine.draws import Draws
from luthier.engine.head import Head
from luthier.engine.packed import Pool

# The part of an update's loss that some examples make, of their places in the update and their log-probabilities (E,) in nats, fp64 on the
# CPU. What a loss compares stands together in one micro-batch; the parts are added up.
LossOf = Callable[[list[int], Tensor], Tensor]


def forward_backward(
    model: Any, head: Head, step: Step, loss_of: LossOf, loss_scale: float, drawn: Draws, side: update.SideBySide | None = None
) -> float:
    """The sum of what `loss_of` gives for all micro-batches; its gradients (times `loss_scale`) are added to the parameters."""

    def learn(documents: list[Document], pool: Pool, backward: update.Backward) -> float:
        hidden_ND, targets_N = update.trained_rows(model, documents, pool)
        log_probabilities = _sums(head, documents, hidden_ND, targets_N).requires_grad_()
        part = loss_of([one.place for one in documents], log_probabilities)
        (slopes,) = torch.autograd.grad(part, log_probabilities)
        # The largest weight stands outside, where the loss scale meets it: inside, fp16 would lose small ones.
        largest = float(slopes.abs().max()) or 1.0
        counts = torch.tensor([len(one.targets) for one in documents])
        weights_N = (-slopes / largest).float().repeat_interleave(counts).to(hidden_ND.device)
        total, _ = head.losses(hidden_ND, targets_N, weights_N=weights_N)
        backward(total * (largest * loss_scale))
        return part.item()

    return sum(update.run_step(model, step, learn, drawn, side))


@torch.no_grad()
def log_probabilities(model: Any, head: Head, step: Step) -> list[float]:
    """The log-probability, in nats, of the trained tokens of each example."""
    found = [0.0] * sum(len(documents) for documents in step.micro_batches)
    _, pool = update.run_prefixes(model, step)
    for documents in step.micro_batches:
        sums = _sums(head, documents, *update.trained_rows(model, documents, pool))
        for document, value in zip(documents, sums.tolist(), strict=True):
            found[document.place] = value
    return found


@torch.no_grad()
def _sums(head: Head, documents: list[Document], hidden_ND: Tensor, targets_N: Tensor) -> Tensor:
    _, each_N = head.losses(hidden_ND, targets_N)
    return torch.stack([-part.sum() for part in each_N.cpu().double().split([len(one.targets) for one in documents])])
