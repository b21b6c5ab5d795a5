"""Which token comes next: the likeliest, or one drawn from the model's distribution.

Names and meaning are those of Transformers' GenerationConfig, in its order: repetition_penalty, temperature, top_k, top_p, min_p.

Letters: B rows, V vocabulary.
"""

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from luthier.errors import CallError

# The tokens that make up top_p are looked for among so many first; only a flat distribution needs all of them sorted (20 times as slow).
FIRST_CANDIDATES = 256
HIDDEN = -math.inf

LIMITS = {
    # field                lowest  highest
    "temperature":         (0.0, math.inf),
    "top_p":               (0.0, 1.0),
    "top_k":               (0, math.inf),
    "min_p":               (0.0, 1.0),
    "repetition_penalty":  (1e-6, math.inf),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sampling:
    """How answers are drawn. The default is greedy: the likeliest token each time.

    `temperature` 0 is greedy; `top_p` 1, `top_k` 0, `min_p` 0 and `repetition_penalty` 1 are off. `seed` decides every draw of a prompt,
    whatever stands beside it. Raises CallError for a value that means nothing.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, (lowest, highest) in LIMITS.items():
            value = getattr(self, name)
            if not lowest <= value <= highest or math.isinf(value):
                allowed = f"from {lowest:g} to {highest:g}" if math.isfinite(highest) else f"{lowest:g} or more"
                raise CallError(f"{name} is {value}", where="sampling", next_step=f"{name}: {allowed}")


GREEDY = Sampling()


class Chooser:
    """Draws the next token of each row. A row's draws come from the seed and its own prompt, so the batch does not matter."""

    def __init__(self, sampling: Sampling, prompts: Sequence[list[int]], draws: Sequence[random.Random], words: int, device: torch.device) -> None:
        self.sampling, self.draws = sampling, list(draws)
        self.seen_BV: Tensor | None = None
        if sampling.repetition_penalty != 1.0:
            self.seen_BV = torch.zeros(len(prompts), words, dtype=torch.bool, device=device)
            for row, prompt in enumerate(prompts):
                self.seen_BV[row, torch.tensor(prompt, device=device)] = True

    def choose(self, logits_BV: Float[Tensor, "B V"]) -> Int[Tensor, "B"]:
        """The next token of each row."""
        logits = logits_BV.float()  # the arg max of bf16 takes five times as long as this copy and that of fp32
        if self.seen_BV is not None:
            logits = penalized(logits, self.seen_BV, self.sampling.repetition_penalty)
        chosen = logits.argmax(dim=-1) if self.sampling.temperature == 0 else self._draw(warped(logits, self.sampling))
        if self.seen_BV is not None:
            self.seen_BV.scatter_(1, chosen[:, None], True)
        return chosen

    def _draw(self, logits_BV: Tensor) -> Tensor:
        # In fp64: the last of 49,152 sums must not depend on how they were added up.
        sums = torch.softmax(logits_BV, dim=-1).double().cumsum(dim=-1)
        draws = torch.tensor([[draw.random()] for draw in self.draws], dtype=torch.float64, device=sums.device)
        return torch.searchsorted(sums, draws * sums[:, -1:], right=True).squeeze(1).clamp_(max=logits_BV.shape[1] - 1)

    def keep_rows(self, rows: list[int]) -> None:
        """Go on with some of the rows only."""
        self.draws = [self.draws[row] for row in rows]
        self.seen_BV = None if self.seen_BV is None else self.seen_BV[rows]


def draws_of(seed: int, prompts: Sequence[list[int]]) -> list[random.Random]:
    """A source of draws for each prompt, from the seed, the prompt's tokens and how often the same prompt stood before it.

    From the tokens, not the place, so that order and neighbors do not matter; and a prompt that is asked twice gets two answers.
    """
    asked: Counter[tuple[int, ...]] = Counter()
    draws = []
    for prompt in prompts:
        draws.append(draws_from(seed, asked[tuple(prompt)], prompt))
        asked[tuple(prompt)] += 1
    return draws


def draws_from(seed: int, place: int, prompt: list[int]) -> random.Random:
    """The draws of one answer; `place` is how often the same prompt was asked before it."""
    return random.Random(f"{seed} {place} {prompt}")


def penalized(logits_BV: Float[Tensor, "B V"], seen_BV: Tensor, penalty: float) -> Float[Tensor, "B V"]:
    """Logits of tokens that were seen, divided by `penalty` where positive and times it where negative (Keskar 2019, arXiv:1909.05858)."""
    return torch.where(seen_BV, torch.where(logits_BV < 0, logits_BV * penalty, logits_BV / penalty), logits_BV)


def warped(logits_BV: Float[Tensor, "B V"], sampling: Sampling) -> Float[Tensor, "B V"]:
    """Logits over the temperature, minus infinity for tokens that must not be drawn.

    `top_p` is nucleus sampling (Holtzman 2019, arXiv:1904.09751), `min_p` a share of the likeliest token's probability
    (Nguyen 2024, arXiv:2407.01082).
    """
    logits = logits_BV / sampling.temperature
    if sampling.top_k:
        least = logits.topk(min(sampling.top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < least, HIDDEN)
    if sampling.top_p < 1:
        logits = logits.masked_fill(logits < _least_of_nucleus(logits, sampling.top_p), HIDDEN)
    if sampling.min_p:
        logits = logits.masked_fill(logits < logits.amax(dim=-1, keepdim=True) + math.log(sampling.min_p), HIDDEN)
    return logits


def _least_of_nucleus(logits_BV: Tensor, top_p: float) -> Tensor:
    """The lowest logit of the likeliest tokens that reach `top_p` together, (B, 1)."""
    log_sum = logits_BV.logsumexp(dim=-1, keepdim=True)
    for candidates in (min(FIRST_CANDIDATES, logits_BV.shape[-1]), logits_BV.shape[-1]):
        highest = logits_BV.topk(candidates).values
        probabilities = (highest - log_sum).exp()
        inside = probabilities.cumsum(dim=-1) - probabilities < top_p  # what stands before it has not reached top_p
        inside[:, 0] = True
        if not inside[:, -1].any():
            break
    return highest.gather(1, inside.sum(dim=-1, keepdim=True) - 1)
