"""Continuous batching: requests come, are answered together token by token, and go, each with its own adapter, sampling and end.

Each `step` runs one forward: the newest token of every request that is being answered, and at most `chunk_tokens` tokens of prompts that are
not read yet (Agrawal 2023, arXiv:2308.16369), so that a long prompt does not make the others wait. What a request's prompt has in common with
what a slot still holds, from the same adapter by its content, is not run again.
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from luthier.engine import update
from luthier.engine.by_row import ByRow, RowAdapter
from luthier.engine.generate import Ended, never
from luthier.engine.head import Head, head_of
from luthier.engine.sampling import GREEDY, Chooser, Sampling, draws_from
from luthier.engine.slots import Mixed, Piece, Slots
from luthier.errors import DataError
from luthier.plan.shape import common_prefix

CHUNK_TOKENS = 128

# Changes the logits (V,) of a request's next token, given its answer so far: penalties, words that a grammar does not allow.
Bend = Callable[[Tensor, list[int]], Tensor]


@dataclass(frozen=True, slots=True)
class Said:
    """One token of an answer: its id, the logarithm of its probability, and those of the likeliest tokens where they were asked for."""

    token: int
    log_probability: float
    likeliest: tuple[tuple[int, float], ...] = ()


@dataclass(slots=True, eq=False)
class Request:
    """A prompt to be answered with up to `limit` tokens. `ended(ids)` says whether the text of an answer so far ends it.

    `log_probabilities` of the model before sampling are given with each token where it is not None, with so many of the likeliest ones.
    """

    prompt: list[int]
    limit: int
    stop_ids: frozenset[int]
    sampling: Sampling = GREEDY
    adapter: RowAdapter | None = None
    ended: Ended = never
    bend: Bend | None = None
    log_probabilities: int | None = None
    tenant: str = ""  # what is kept of its prompt is used again for the same one alone
    place: int = 0  # among requests of the same prompt and seed, which get draws of their own
    answer: list[int] = field(default_factory=list)
    finish: str = ""  # "stop", "length", "cancelled" or "failed" (its numbers are not finite) once it has ended
    reused_tokens: int = 0  # of the prompt, which were not run again
    # Where it stands: its slot, and how many places of it are filled.
    slot: int = -1
    filled: int = 0
    chooser: Chooser | None = None  # made with its first token, where it is not greedy

    def __post_init__(self) -> None:
        if not self.prompt:
            raise DataError("the prompt has no tokens", where="prompt", next_step="ask something")

    @property
    def key(self) -> str:
        """Whose kept keys it may use: those of its own tenant and of its adapter's content."""
        return f"{self.tenant}/{self.adapter.key if self.adapter else ''}"

    @property
    def virtual_tokens(self) -> int:
        return self.adapter.virtual_tokens if self.adapter else 0

    @property
    def to_run(self) -> list[int]:
        """Tokens that its slot does not hold yet: of the prompt, or the newest of the answer."""
        done = self.filled - self.virtual_tokens
        return self.prompt[done:] if done < len(self.prompt) else self.answer[done - len(self.prompt) :]


@dataclass(slots=True)
class _Left:
    """What a slot holds: tokens of an adapter, after so many virtual ones."""

    key: str = ""
    virtual_tokens: int = 0
    tokens: list[int] = field(default_factory=list)
    busy: bool = False
    used: int = 0  # when last


class Continuous:
    """Requests that are answered together. Not safe for threads: one thread calls `add`, `cancel` and `step`."""

    def __init__(self, model: Any, slots: int = 16, chunk_tokens: int = CHUNK_TOKENS) -> None:
        self.model, self.chunk_tokens = model, chunk_tokens
        self.head: Head = head_of(update.causal_model(model))
        self.by_row = ByRow(update.causal_model(model))
        self.device = update.device_of(model)
        self.slots, self._left = Slots(slots), [_Left() for _ in range(slots)]
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self._clock = itertools.count(1)
        self._weight_VD: Tensor | None = None

    def add(self, request: Request) -> None:
        """Take a request in; it is answered once there is a slot."""
        self.waiting.append(request)

    def cancel(self, request: Request) -> None:
        """Stop answering a request, whether it has a slot or waits for one."""
        if request in self.waiting:
            self.waiting.remove(request)
            request.finish = "cancelled"
        elif request in self.running:
            self._end(request, "cancelled")

    @property
    def idle(self) -> bool:
        return not self.waiting and not self.running

    @torch.inference_mode()
    def step(self) -> list[tuple[Request, Said | None]]:
        """Run one forward. Gives the requests that got a token, in turn with it, or None where they ended without one (at a stop token)."""
        self._admit()
        newest = [request for request in self.running if request.answer]
        chunks = list(self._chunks())
        if not newest and not chunks:
            return []
        of_newest = [Piece(request.slot, request.filled, request.to_run) for request in newest]
        of_chunks = [Piece(request.slot, request.filled, tokens) for request, tokens in chunks]
        hidden_TD = self._run([*newest, *(request for request, _ in chunks)], of_newest, of_chunks)
        rows, asked, row = list(range(len(newest))), list(newest), len(newest)
        for request, piece in zip([*newest, *(request for request, _ in chunks)], [*of_newest, *of_chunks], strict=True):
            request.filled = piece.end
            self._left[request.slot].tokens += piece.tokens
        for request, tokens in chunks:
            row += len(tokens)
            if not request.to_run:
                rows.append(row - 1)
                asked.append(request)
        return self._say(asked, self._logits(hidden_TD[torch.tensor(rows, device=self.device)])) if asked else []

    def _run(self, requests: Sequence[Request], newest: list[Piece], chunks: list[Piece]) -> Tensor:
        pieces = [*newest, *chunks]
        self.by_row.use([request.adapter for request, piece in zip(requests, pieces, strict=True) for _ in piece.tokens])
        mixed = Mixed(self.slots, newest, chunks, self.device)
        tokens = torch.tensor([mixed.tokens], device=self.device)
        return update.run(self.model, tokens, mixed.places_T[None], mixed)[0]

    def _chunks(self) -> Iterator[tuple[Request, list[int]]]:
        """Tokens of prompts that this forward reads: of those that came first, up to `chunk_tokens` together."""
        room = self.chunk_tokens
        for request in self.running:
            if room and not request.answer:
                tokens = request.to_run[:room]
                room -= len(tokens)
                yield request, tokens

    def _admit(self) -> None:
        """Give waiting requests the free slots: to each the one that holds most of its beginning, or else the one unused for longest."""
        while self.waiting and (free := [place for place, left in enumerate(self._left) if not left.busy]):
            request = self.waiting.popleft()
            alike = [self._alike(request, left) for left in self._left]
            best = max(range(len(alike)), key=lambda place: (alike[place], not self._left[place].busy))
            slot = best if alike[best] and best in free else min(free, key=lambda place: (alike[place] > 0, self._left[place].used))
            if best != slot and alike[best] > alike[slot]:
                self.slots.copy(best, slot, request.virtual_tokens + alike[best])
            elif not alike[slot] and request.adapter and request.adapter.prefix:
                self.slots.begin_with(slot, request.adapter.prefix)
            request.slot, request.reused_tokens = slot, max(alike[best], alike[slot])
            request.filled = request.virtual_tokens + request.reused_tokens
            self._left[slot] = _Left(request.key, request.virtual_tokens, request.prompt[: request.reused_tokens], True, next(self._clock))
            self.running.append(request)

    def _alike(self, request: Request, left: _Left) -> int:
        """Tokens at the beginning of a prompt that a slot holds; the prompt's last one is always run, for its logits."""
        if left.key != request.key or not left.tokens:
            return 0
        return min(common_prefix([left.tokens, request.prompt]), len(request.prompt) - 1)

    def _logits(self, hidden_ND: Tensor) -> Tensor:
        if self._weight_VD is None:
            self._weight_VD = self.head.weight.to(hidden_ND.dtype)
        return self.head.logits(hidden_ND, self._weight_VD).float()

    def _say(self, asked: list[Request], logits_NV: Tensor) -> list[tuple[Request, Said | None]]:
        finite = torch.isfinite(logits_NV).all(dim=-1).tolist()
        bent_NV = logits_NV if all(request.bend is None and request.sampling == GREEDY for request in asked) else logits_NV.clone()
        for row, request in enumerate(asked):
            if request.bend and finite[row]:
                bent_NV[row] = request.bend(bent_NV[row], request.answer)
        likeliest = bent_NV.argmax(dim=-1).tolist()
        said: list[tuple[Request, Said | None]] = []
        for row, request in enumerate(asked):
            if not finite[row]:
                self._fail(request)
                said.append((request, None))
                continue
            token = likeliest[row] if request.sampling == GREEDY else int(self._chooser(request).choose(bent_NV[row : row + 1]))
            said.append((request, None if token in request.stop_ids else _said(token, logits_NV[row], request.log_probabilities)))
            if token in request.stop_ids:
                self._end(request, "stop")
                continue
            request.answer.append(token)
            if request.ended(request.answer):
                self._end(request, "stop")
            elif len(request.answer) >= request.limit:
                self._end(request, "length")
        return said

    def _chooser(self, request: Request) -> Chooser:
        """Draws the request's tokens: from its own seed and prompt, whatever stands beside it."""
        if request.chooser is None:
            draws = draws_from(request.sampling.seed, request.place, request.prompt)
            request.chooser = Chooser(request.sampling, [request.prompt], [draws], len(self.head.weight), self.device)
        return request.chooser

    def _fail(self, request: Request) -> None:
        """End a request whose numbers are not finite, and leave nothing of them."""
        self._end(request, "failed")
        self._left[request.slot] = _Left()
        self.slots.clear(request.slot)

    def _end(self, request: Request, finish: str) -> None:
        request.finish = finish
        self.running.remove(request)
        self._left[request.slot].busy = False
        self._left[request.slot].used = next(self._clock)


def _said(token: int, logits_V: Tensor, wanted: int | None) -> Said:
    if wanted is None:
        return Said(token, 0.0)
    log_probabilities_V = logits_V.log_softmax(dim=-1)
    best = log_probabilities_V.topk(wanted) if wanted else None
    likeliest = () if best is None else tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    return Said(token, float(log_probabilities_V[token]), likeliest)
