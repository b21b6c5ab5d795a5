"""The only decoder: answers to many prompts, what all of them begin with run once, in batches of similar length.

Letters: B rows of a batch, D width, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from luthier.engine import decoding, shortage, virtual
from luthier.engine.batches import Document
from luthier.engine.decoding import Decoding
from luthier.engine.head import Head, head_of
from luthier.engine.packed import KeysValues, Packed
from luthier.engine.sampling import GREEDY, Chooser, Sampling, draws_of
from luthier.engine.update import causal_model, device_of, run, run_packed, run_virtual
from luthier.errors import DataError, is_shortage
from luthier.plan.shape import common_prefix

# A batch is filled up to so many kept tokens (prompts and answers), which bounds its memory; more rows than these win nothing on 2 cores.
BATCH_TOKENS = 16_384
BATCH_ROWS = 128
# A batch goes on with its unfinished rows only, once this share of its rows has ended.
COMPACT_SHARE = 0.25

Ended = Callable[[list[int]], bool]


def never(ids: list[int]) -> bool:
    """No text ends an answer."""
    return False


@dataclass(frozen=True, slots=True)
class How:
    """How a call answers. `ended(ids)` says whether the text of an answer so far ends it (its last token is then kept)."""

    stop_ids: frozenset[int]
    sampling: Sampling = GREEDY
    ended: Ended = never
    plain: bool = False  # run the model's own forward over everything, a row at a time


@dataclass(slots=True)
class Asked:
    """A prompt and its answer so far."""

    prompt: list[int]
    limit: int  # tokens
    answer: list[int]
    open: bool = True
    stopped: bool = False  # by the model's own end of turn, or by a stop string; else it was cut at its limit

    def say(self, token: int, how: How) -> None:
        """Take the next token; close the row where it ends the answer."""
        if token in how.stop_ids:
            self.open, self.stopped = False, True
            return
        self.answer.append(token)
        self.stopped = how.ended(self.answer)
        self.open = len(self.answer) < self.limit and not self.stopped


def answer(
    model: Any,
    prompts: Sequence[list[int]],
    how: How,
    max_new_tokens: int | Sequence[int],
    on_answers: Callable[[int], None] = lambda answers: None,
) -> list[list[int]]:
    """The tokens of `answer_rows` alone."""
    return [row.answer for row in answer_rows(model, prompts, how, max_new_tokens, on_answers)]


@torch.no_grad()
def answer_rows(
    model: Any,
    prompts: Sequence[list[int]],
    how: How,
    max_new_tokens: int | Sequence[int],
    on_answers: Callable[[int], None] = lambda answers: None,
    on_row: Callable[[int, Asked], None] = lambda place, row: None,
) -> list[Asked]:
    """The continuation of each prompt, without the stop token. `on_answers(n)` is told how many are done, `on_row(place, row)` of each
    answer as soon as it has ended (again where the memory was not enough, and its batch is asked again in two).

    Order and batch do not matter in fp32; in bf16 they may turn the last bit of a logit, and then a token that was undecided.
    """
    rows = _asked(prompts, max_new_tokens)
    shared = 0 if how.plain or len(rows) < 2 else max(0, min(common_prefix(list(prompts)), min(map(len, prompts)) - 1))
    prefix = {} if how.plain or not rows else run_prefix(model, prompts[0][:shared])
    draws = draws_of(how.sampling.seed, prompts)
    done = 0
    waiting = list(batches([len(row.prompt) - shared for row in rows], [row.limit for row in rows], 1 if how.plain else BATCH_ROWS))
    while waiting:
        batch = waiting.pop(0)
        runner = Plain(model) if how.plain else Fast(model, prefix, shared)
        if not _answered(runner, {place: rows[place] for place in batch}, how, [copy(draws[place]) for place in batch], on_row):
            half = len(batch) // 2
            waiting[:0] = [batch[:half], batch[half:]]
            del runner
            shortage.collect()
            continue
        done += len(batch)
        on_answers(done)
    return rows


def _answered(runner: "Runner", by_place: dict[int, Asked], how: How, draws: list[Any], on_row: Callable[[int, Asked], None]) -> bool:
    """Decode rows to their end; False where the memory is not enough for so many, which are then as they were."""
    rows, running = list(by_place.values()), dict(by_place)
    try:
        for _ in decode(runner, rows, how, draws):
            for place in [place for place, row in running.items() if not row.open]:
                on_row(place, running.pop(place))
        return True
    except (RuntimeError, MemoryError) as error:
        if not is_shortage(error):
            raise
        if len(rows) == 1:
            raise shortage.of_an_answer(len(rows[0].prompt), rows[0].limit) from error
    for row in rows:
        row.answer, row.open, row.stopped = [], True, False
    return False


@torch.no_grad()
def stream(model: Any, prompt: list[int], how: How, max_new_tokens: int) -> Iterator[int]:
    """The continuation of one prompt, token by token, without the stop token: the same as that of `answer`."""
    row = _asked([prompt], max_new_tokens)[0]
    runner = Plain(model) if how.plain else Fast(model, run_prefix(model, []), 0)
    said = 0
    for _ in decode(runner, [row], how, draws_of(how.sampling.seed, [prompt])):
        yield from row.answer[said:]
        said = len(row.answer)


def _asked(prompts: Sequence[list[int]], max_new_tokens: int | Sequence[int]) -> list[Asked]:
    if not all(prompts):
        raise DataError("the prompt has no tokens", where="prompt", next_step="ask something")
    limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else max_new_tokens
    return [Asked(prompt, limit, []) for prompt, limit in zip(prompts, limits, strict=True)]


def batches(lengths: Sequence[int], limits: Sequence[int], most_rows: int) -> Iterator[list[int]]:
    """Places of rows that are decoded together: short prompts first, up to BATCH_TOKENS kept tokens; a longer row stands alone."""
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda place: lengths[place]):
        tokens = lengths[place] + max(limits[one] for one in [*batch, place])
        if batch and (len(batch) == most_rows or tokens * (len(batch) + 1) > BATCH_TOKENS):
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


@runtime_checkable
class Runner(Protocol):
    """Runs a model over rows that grow; gives the logits of each row's next token, (B, V)."""

    def begin(self, prompts: list[list[int]], room: int) -> Tensor: ...
    def go_on(self, tokens_B: Tensor) -> Tensor: ...
    def keep_rows(self, rows: list[int]) -> None: ...


def decode(runner: Runner, rows: list[Asked], how: How, draws: list[Any]) -> Iterator[None]:
    """Answer rows token by token, in step; yields after each token of all of them."""
    logits_BV = runner.begin([row.prompt for row in rows], max(row.limit for row in rows))
    chooser = Chooser(how.sampling, [row.prompt for row in rows], draws, logits_BV.shape[1], logits_BV.device)
    running = list(rows)
    while True:
        tokens_B = chooser.choose(logits_BV)
        for row, token in zip(running, tokens_B.tolist(), strict=True):
            if row.open:
                row.say(token, how)
        yield
        going = [place for place, row in enumerate(running) if row.open]
        if not going:
            return
        if len(going) <= (1 - COMPACT_SHARE) * len(running):
            runner.keep_rows(going)
            chooser.keep_rows(going)
            tokens_B, running = tokens_B[going], [running[place] for place in going]
        logits_BV = runner.go_on(tokens_B)


def run_prefix(model: Any, tokens: list[int]) -> dict[int, KeysValues]:
    """Keys and values, (P, K, D), of what all prompts begin with, by layer: virtual tokens, where there are any, then `tokens`."""
    root = run_virtual(model).recorded if virtual.tokens(model) else {}
    if not tokens:
        return root
    path = (0,) if root else ()
    layout = Packed([len(tokens)], [path], {0: root}, record=True, before=virtual.tokens(model))
    run_packed(model, [Document(tokens, 0, path=path)], layout)
    if not root:
        return layout.recorded
    return {layer: (torch.cat([root[layer][0], keys]), torch.cat([root[layer][1], values])) for layer, (keys, values) in layout.recorded.items()}


class Fast:
    """Prompts run packed, without padding; then one token of each row at a time over kept keys and values.

    `prefix[layer]` are those of what all rows begin with: perhaps virtual tokens, then the first `prefix_tokens` of each prompt.
    """

    def __init__(self, model: Any, prefix: dict[int, KeysValues], prefix_tokens: int) -> None:
        self.model, self.prefix, self.prefix_tokens = model, prefix, prefix_tokens
        self.head: Head = head_of(causal_model(model))
        self.weight_VD: Tensor | None = None
        self.state: Decoding

    def begin(self, prompts: list[list[int]], room: int) -> Tensor:
        """Run the prompts after the prefix."""
        path = (0,) if self.prefix else ()
        documents = [Document(prompt[self.prefix_tokens :], place, self.prefix_tokens, path) for place, prompt in enumerate(prompts)]
        before = len(self.prefix[0][0]) - self.prefix_tokens if self.prefix else 0
        layout = Packed([len(one.inputs) for one in documents], [path] * len(documents), {0: self.prefix}, record=True, before=before)
        hidden_TD = run_packed(self.model, documents, layout)
        last = torch.tensor(layout.lengths, device=hidden_TD.device).cumsum(0) - 1
        self.state = decoding.after(layout, room, self.prefix)
        return self._logits(hidden_TD[last])

    def go_on(self, tokens_B: Tensor) -> Tensor:
        """Run the newest token of each row."""
        hidden_BLD = run(self.model, tokens_B[:, None], self.state.make_place(), self.state)
        return self._logits(hidden_BLD[:, -1])

    def _logits(self, hidden_BD: Tensor) -> Tensor:
        if self.weight_VD is None:  # once: of a trained head this is a new tensor
            self.weight_VD = self.head.weight.to(hidden_BD.dtype)
        return self.head.logits(hidden_BD, self.weight_VD)

    def keep_rows(self, rows: list[int]) -> None:
        """Go on with some of the rows only."""
        self.state.keep_rows(rows)


class Plain:
    """The model's own forward over everything so far, a row at a time: for models that keep another kind of state."""

    def __init__(self, model: Any) -> None:
        self.model, self.device = model, device_of(model)
        self.sequences: list[list[int]] = []

    def begin(self, prompts: list[list[int]], room: int) -> Tensor:
        """Run the prompts."""
        self.sequences = [list(prompt) for prompt in prompts]
        return self._logits()

    def go_on(self, tokens_B: Tensor) -> Tensor:
        """Run every row again with its newest token."""
        for sequence, token in zip(self.sequences, tokens_B.tolist(), strict=True):
            sequence.append(token)
        return self._logits()

    def keep_rows(self, rows: list[int]) -> None:
        """Go on with some of the rows only."""
        self.sequences = [self.sequences[row] for row in rows]

    def _logits(self) -> Tensor:
        return torch.stack([self.model(input_ids=torch.tensor([ids], device=self.device), use_cache=False).logits[0, -1] for ids in self.sequences])
