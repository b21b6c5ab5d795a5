"""How likely a model finds what is written: the log-probability of the trained tokens, and how many of them it would have said itself.

Letters: N trained tokens, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from luthier.engine import update
from luthier.engine.batches import Step
from luthier.engine.head import Head
from luthier.plan.memory import LOGITS_CHUNK_ROWS
from luthier.records import Likelihood, TokenizedExample

# Rows are laid out together up to so many tokens: enough for what they begin with to be shared, and little to repeat where memory is short.
BATCH_TOKENS = 16_384


def batches(examples: Sequence[TokenizedExample]) -> Iterator[list[TokenizedExample]]:
    """The examples in their order, up to BATCH_TOKENS at once; a longer one stands alone."""
    batch: list[TokenizedExample] = []
    tokens = 0
    for example in examples:
        if batch and tokens + example.tokens > BATCH_TOKENS:
            yield batch
            batch, tokens = [], 0
        batch.append(example)
        tokens += example.tokens
    if batch:
        yield batch


def of_step(model: Any, head: Head, step: Step) -> list[Likelihood]:
    """That of each example of a step, in their order. Wants torch.no_grad."""
    found: dict[int, Likelihood] = {}
    _, pool = update.run_prefixes(model, step)
    weight: Tensor | None = None
    for documents in step.micro_batches:
        hidden_ND, targets_N = update.trained_rows(model, documents, pool)
        weight = head.weight.to(hidden_ND.dtype) if weight is None else weight
        pieces = [
            _judged(head.logits(rows, weight), targets)
            for rows, targets in zip(hidden_ND.split(LOGITS_CHUNK_ROWS), targets_N.split(LOGITS_CHUNK_ROWS), strict=True)
        ]
        lengths = [len(one.targets) for one in documents]
        each, right = (torch.cat(parts).split(lengths) for parts in zip(*pieces, strict=True))
        for document, one, hits in zip(documents, each, right, strict=True):
            found[document.place] = Likelihood(float(one.sum()), len(one), int(hits.sum()))
    return [found[place] for place in range(len(found))]


def plain(model: Any, example: TokenizedExample) -> Likelihood:
    """The plain twin: one example, the model's own forward, full logits."""
    device = update.device_of(model)
    token_ids = torch.tensor([example.token_ids], device=device)
    logits_TV = model(input_ids=token_ids, use_cache=False).logits[0, -len(example.token_ids) :]
    places = torch.tensor(example.trained[1:], device=device).nonzero().squeeze(1)
    each, right = _judged(logits_TV[places], token_ids[0, places + 1])
    return Likelihood(float(each.sum()), len(each), int(right.sum()))


def _judged(logits_NV: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """log p of each target, in fp64 on the CPU, and whether it is the likeliest token."""
    exact = logits_NV.float()
    chosen = exact.gather(1, targets_N[:, None]).squeeze(1) - exact.logsumexp(dim=-1)
    return chosen.double().cpu(), (exact.argmax(dim=-1) == targets_N).cpu()
