"""The plain twin: one example at a time, the model's own forward, full logits. What the fast engine must agree with."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from luthier.engine.draws import Draws
from luthier.records import TokenizedExample


def loss_sum(model: Any, example: TokenizedExample, label_smoothing: float = 0.0) -> Tensor:
    """Sum over the trained tokens of -log p(token | everything before it), in nats; smoothed as torch's cross_entropy does."""
    device = next(model.parameters()).device
    token_ids = torch.tensor([example.token_ids], device=device)
    # fp64: over 49,152 words log_softmax in fp32 is off by 7e-6 of the loss and 2e-4 of a gradient on CPU (torch 2.13).
    # Before them stand those of virtual embeddings, where PEFT puts some.
    logits_TV = model(input_ids=token_ids, use_cache=False).logits[0, -len(example.token_ids) :]
    predicted = torch.tensor(example.trained[1:], device=device).nonzero().squeeze(1)
    log_probabilities = torch.log_softmax(logits_TV[predicted].double(), dim=-1)  # of trained tokens alone: they take 8 bytes a word
    right = -log_probabilities.gather(1, token_ids[0, predicted + 1, None]).sum()
    return right if not label_smoothing else (1 - label_smoothing) * right - label_smoothing * log_probabilities.mean(-1).sum()


def forward_backward(
    model: Any,
    examples: list[TokenizedExample],
    by_example: list[float] | None = None,
    loss_scale: float = 1.0,
    drawn: Draws | None = None,
    label_smoothing: float = 0.0,
) -> float:
    """Mean loss over all trained tokens of the update; gradients of that mean (times `loss_scale`) are added to the parameters.

    The sum of each example's losses is added to `by_example` where one is given. `drawn` is told which example runs.
    """
    drawn = drawn or Draws()
    drawn.begin_update()
    trained_tokens = sum(example.trained_tokens for example in examples)
    total = 0.0
    for place, example in enumerate(examples):
        drawn.begin_micro_batch([(place, len(example.token_ids))], [len(example.token_ids)])
        loss = loss_sum(model, example, label_smoothing) / trained_tokens
        (loss * loss_scale).backward()
        total += loss.item()
        if by_example is not None:
            by_example[place] += loss.item() * trained_tokens
    return total


def forward_backward_judged(
    model: Any,
    examples: Sequence[TokenizedExample],
    together: Sequence[Sequence[int]],
    loss_of: Callable[[list[int], Tensor], Tensor],
    loss_scale: float = 1.0,
    drawn: Draws | None = None,
) -> float:
    """The loss that `loss_of` makes of the examples' log-probabilities (judged.py), one group at a time; gradients as above."""
    drawn = drawn or Draws()
    drawn.begin_update()
    total = 0.0
    for group in together:
        sums = []
        for place in group:
            drawn.begin_micro_batch([(place, len(examples[place].token_ids))], [len(examples[place].token_ids)])
            sums.append(loss_sum(model, examples[place]))
        loss = loss_of(list(group), -torch.stack(sums).cpu())
        (loss * loss_scale).backward()
        total += loss.item()
    return total
