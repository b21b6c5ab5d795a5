"""The plain twin: one example at a time, the model's own forward, full logits. What the fast engine must agree with."""

from typing import Any

import torch
from torch import Tensor

from luthier.records import TokenizedExample


def loss_sum(model: Any, example: TokenizedExample) -> Tensor:
    """Sum over the trained tokens of -log p(token | everything before it), in nats."""
    device = next(model.parameters()).device
    token_ids = torch.tensor([example.token_ids], device=device)
    # fp64: over 49,152 words log_softmax in fp32 is off by 7e-6 of the loss and 2e-4 of a gradient on CPU (torch 2.13).
    logits_TV = model(input_ids=token_ids, use_cache=False).logits[0].double()
    predicted = torch.tensor(example.trained[1:], device=device).nonzero().squeeze(1)
    log_probabilities = torch.log_softmax(logits_TV[predicted], dim=-1)
    return -log_probabilities.gather(1, token_ids[0, predicted + 1, None]).sum()


def forward_backward(model: Any, examples: list[TokenizedExample], by_example: list[float] | None = None, loss_scale: float = 1.0) -> float:
    """Mean loss over all trained tokens of the update; gradients of that mean (times `loss_scale`) are added to the parameters.

    The sum of each example's losses is added to `by_example` where one is given.
    """
    trained_tokens = sum(example.trained_tokens for example in examples)
    total = 0.0
    for place, example in enumerate(examples):
        loss = loss_sum(model, example) / trained_tokens
        (loss * loss_scale).backward()
        total += loss.item()
        if by_example is not None:
            by_example[place] += loss.item() * trained_tokens
    return total
