"""The same questions to the trained model and to what was made of it: greedy answers, and what predicts the right answers' tokens.

Letters: T tokens, V vocabulary.
"""

import inspect
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch

from luthier.engine import Engine, update
from luthier.export.parity import Answers
from luthier.records import TokenizedExample

MOST_LOGITS = 64  # of a row: 24 rows of 64 times 49,152 words are 300 MB
# The words of llama.cpp that are compared one by one; all others count as one.
HEAD = 64


@dataclass(frozen=True, slots=True)
class Questions:
    """What is asked: prompts as token ids with the expected answers beside them, and whole rows whose answers are to be predicted."""

    prompts: list[list[int]]
    expecteds: list[str]
    rows: list[TokenizedExample]
    max_new_tokens: int

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt with its answer, or of the longest row."""
        prompts = [len(prompt) + self.max_new_tokens for prompt in self.prompts]
        return max([*prompts, *(row.tokens + 1 for row in self.rows)], default=1)


@runtime_checkable
class LlamaCpp(Protocol):
    """What llama.cpp answers (serve.backends.llama_cpp)."""

    slots: int

    def say(self, prompt: list[int], max_new_tokens: int, *, top: int = 0, adapter: str | None = None) -> Any: ...

    def heads(
        self, row: TokenizedExample, places: int | None = None, *, top: int = 64, adapter: str | None = None, said: Any = None
    ) -> list[dict[int, float]]: ...


def places_of(row: TokenizedExample) -> int:
    """How many tokens at the end of a row are predicted: from the first trained one on, and no more than MOST_LOGITS."""
    return min(row.tokens - row.trained.index(True), MOST_LOGITS)


def of_engine(engine: Engine, asked: Questions) -> Answers:
    """What a model says that torch runs."""
    texts = engine.answer(list(asked.prompts), max_new_tokens=asked.max_new_tokens)
    logits = [_logits(engine, row) for row in asked.rows]
    losses: list[float] = []
    for row, logits_TV in zip(asked.rows, logits, strict=True):
        labels = torch.tensor(row.token_ids[-places_of(row) :])
        losses += torch.nn.functional.cross_entropy(logits_TV, labels, reduction="none").tolist()
    return Answers(texts, logits, [one.argmax(dim=-1).tolist() for one in logits], losses)


def of_llama_cpp(engine: LlamaCpp, asked: Questions, adapter: str | None = None) -> Answers:
    """What llama.cpp says to the same token ids. Where an answer is the row's, what it tells about its places is not asked again."""

    def one(place: int) -> tuple[list[str], list[list[dict[int, float]]]]:
        here = slice(place, place + 1)
        said = [engine.say(prompt, asked.max_new_tokens, top=HEAD, adapter=adapter) for prompt in asked.prompts[here]]
        heads = []
        for row in asked.rows[here]:
            begins = asked.prompts[here] == [row.token_ids[: row.tokens - places_of(row)]]
            heads.append(engine.heads(row, MOST_LOGITS, top=HEAD, adapter=adapter, said=said[0] if begins else None))
        return [one.text for one in said], heads

    with ThreadPoolExecutor(engine.slots) as pool:
        found = list(pool.map(one, range(max(len(asked.prompts), len(asked.rows)))))
    texts = [text for said, _ in found for text in said]
    heads = [head for _, of_rows in found for head in of_rows]
    return Answers(texts, likeliest=[[next(iter(head)) for head in of_row] for of_row in heads], heads=heads)


@torch.no_grad()
def _logits(engine: Engine, row: TokenizedExample) -> torch.Tensor:
    # Only those that predict the answer: 40 whole rows of a vocabulary of 49,152 would be gigabytes. From the end, as PEFT's forward
    # may give logits for virtual tokens before the row.
    last = places_of(row) + 1
    takes = inspect.signature(update.causal_model(engine.model).forward).parameters
    only = {"logits_to_keep": last} if "logits_to_keep" in takes else {}
    logits_TV: Any = engine.model(input_ids=torch.tensor([row.token_ids], device=engine.device), use_cache=False, **only).logits[0]
    found: torch.Tensor = logits_TV[-last:-1]
    # A copy: a slice would keep the logits of the whole row alive.
    return found.to("cpu", torch.float32, copy=True)
