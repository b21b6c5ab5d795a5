"""Memory that is not enough: what is needed to do the same work again in smaller pieces."""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from luthier.engine.batches import Step
from luthier.errors import OutOfMemory, is_shortage
from luthier.records import TokenizedExample, named

LEVERS = "gradient_checkpointing: full, a smaller max_length, or a smaller model"


def smaller_budget(lay_out: Callable[[int], Step], tokens: int) -> int:
    """Half of what went through the model at once, and half again until that is another cut; 0 where every row stood alone already.

    `lay_out` lays the work out for a budget; `tokens` is the one that was too much.
    """

    def passes(step: Step) -> int:
        return len(step.passes) + len(step.micro_batches)

    before = lay_out(tokens)
    budget = min(tokens, before.tokens_at_once)
    while budget > 1:
        budget //= 2
        step = lay_out(budget)
        if step.tokens_at_once < before.tokens_at_once or passes(step) > passes(before):
            return budget
    return 0


def of_one_row(rows: Sequence[TokenizedExample]) -> OutOfMemory:
    """The end: `rows` stand alone (a row, or what a loss compares) and do not fit."""
    tokens = sum(row.tokens for row in rows)
    what = "one row" if len(rows) == 1 else f"{len(rows)} rows that are compared"
    where = named([row.source for row in rows])
    return OutOfMemory(f"the memory is not enough for {what} of {tokens:,} tokens, alone", where=where, next_step=LEVERS)


def beside_gradients(rows: Sequence[TokenizedExample]) -> OutOfMemory:
    """Gradients of an earlier call wait in the engine, and those of this one cannot be told from them."""
    return OutOfMemory(
        "the memory is not enough, and gradients of earlier calls wait for their update",
        where=named([row.source for row in rows]),
        next_step="forget_gradients(), then all calls of the update again with a smaller micro_batch_tokens",
    )


def of_shards(rows: Sequence[TokenizedExample]) -> OutOfMemory:
    """Ranks that share weights or micro-batches run in step: one of them cannot try again by itself."""
    return OutOfMemory(
        "the memory of a rank is not enough, and ranks that share weights or micro-batches cannot try again in smaller pieces",
        where=named([row.source for row in rows]),
        next_step="a smaller training.micro_batch_tokens, gradient_checkpointing: full, or more devices",
    )


def of_an_answer(prompt_tokens: int, new_tokens: int) -> OutOfMemory:
    """One answer alone does not fit."""
    return OutOfMemory(
        f"the memory is not enough for an answer of up to {new_tokens:,} tokens to a prompt of {prompt_tokens:,}",
        where="prompt",
        next_step="a smaller max_new_tokens, a shorter prompt, or a smaller model",
    )


def random_state(device: torch.device) -> Callable[[], None]:
    """Torch's draws as they are now; the call that is returned brings them back."""
    here = torch.get_rng_state()
    there = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def restore() -> None:
        torch.set_rng_state(here)
        if there is not None:
            torch.cuda.set_rng_state(there, device)

    return restore


def collect() -> None:
    """Give back what a failed attempt left behind."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def telling(what: str, where: str, next_step: str = LEVERS) -> Iterator[None]:
    """A shortage in here ends as OutOfMemory, which says what the memory was wanted for."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_shortage(error):
            raise
        raise OutOfMemory(f"the memory is not enough for {what}", where=where, next_step=next_step) from error
