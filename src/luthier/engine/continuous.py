"""Continuous batching: requests come, are answered together token by token, and go, each with its own adapter, sampling and end.

Each `step` runs one forward: the newest token of every request that is being answered, and at most `chunk_tokens` tokens of prompts that are
not read yet (Agrawal 2023, arXiv:2308.16369), so that a long prompt does not make the others wait. What a request's prompt has in common with
what a slot still holds, from the same adapter by its content, is not run again.

Where the room for keys and values runs out, what was left by others goes first, then the request that came last waits again: its prompt and what
it has said are read once more when there is room (Kwon 2023, arXiv:2309.06180, section 4.5), and its client only sees a pause.
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from luthier.engine import update
from luthier.engine.by_row import ByRow, RowAdapter
from luthier.engine.generate import Ended, never
from luthier.engine.head import Head, head_of
from luthier.engine.sampling import GREEDY, Chooser, Sampling, draws_from
from luthier.engine.slots import Mixed, Piece, Slot, Slots
from luthier.errors import DataError
from luthier.plan.shape import common_prefix

CHUNK_TOKENS = 128

Taken = TypeVar("Taken")
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
    # Where it stands: what holds its tokens, and how many places of that are filled.
    held: "Held | None" = None
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
    def tokens(self) -> list[int]:
        """Its prompt, and its answer so far."""
        return self.prompt + self.answer

    @property
    def to_run(self) -> list[int]:
        """Tokens that its slot does not hold yet: of the prompt, or the newest of the answer."""
        done = self.filled - self.virtual_tokens
        return self.tokens[done:] if done < len(self.prompt) else self.answer[done - len(self.prompt) :]

    @property
    def tokens_to_run(self) -> int:
        """How many these are."""
        return self.virtual_tokens + len(self.prompt) + len(self.answer) - self.filled

    @property
    def says(self) -> bool:
        """Whether the newest token of its answer is all that is to be run."""
        return bool(self.answer) and self.tokens_to_run == 1


@dataclass(slots=True, eq=False)
class Held:
    """What stands in a slot: tokens of an adapter, after so many virtual ones."""

    slot: Slot
    key: str
    tokens: list[int]
    busy: bool = True
    used: int = 0  # when last


class Continuous:
    """Requests that are answered together. Not safe for threads: one thread calls `add`, `cancel` and `step`.

    At most `slots` at once, and as many as have room in `most_places` tokens (None: any number).
    """

    def __init__(self, model: Any, slots: int = 16, chunk_tokens: int = CHUNK_TOKENS, most_places: int | None = None) -> None:
        self.model, self.chunk_tokens = model, chunk_tokens
        self.head: Head = head_of(update.causal_model(model))
        self.by_row = ByRow(update.causal_model(model))
        self.device = update.device_of(model)
        self.most, self.slots, self.held = slots, Slots(most_places), list[Held]()
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self._clock = itertools.count(1)
        self._weight_VD: Tensor | None = None

    def add(self, request: Request) -> None:
        """Take a request in; it is answered once there is room. Raises DataError for one that there can never be room for."""
        longest, most = request.virtual_tokens + len(request.prompt) + request.limit, self.slots.most_places
        if most is not None and longest > most:
            raise DataError(f"{longest:,} tokens do not fit into room for {most:,}", where="prompt", next_step="a shorter one, or fewer new tokens")
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
        self._make_room()
        self._admit()
        newest = sorted((request for request in self.running if request.says), key=_place)
        chunks = list(self._chunks())
        if not newest and not chunks:
            return []
        requests = [*newest, *(request for request, _ in chunks)]
        of_newest = [Piece(_slot(request), request.filled, request.to_run) for request in newest]
        of_chunks = [Piece(_slot(request), request.filled, tokens) for request, tokens in chunks]
        hidden_TD = self._run(requests, of_newest, of_chunks)
        rows, asked, row = [], [], 0
        for request, piece in zip(requests, [*of_newest, *of_chunks], strict=True):
            request.filled = piece.end
            _held(request).tokens += piece.tokens
            row += len(piece.tokens)
            if not request.tokens_to_run:
                rows.append(row - 1)
                asked.append(request)
        return self._say(asked, self._logits(hidden_TD[torch.tensor(rows, device=self.device)])) if asked else []

    def _run(self, requests: Sequence[Request], newest: list[Piece], chunks: list[Piece]) -> Tensor:
        pieces = [*newest, *chunks]
        self.by_row.use([request.adapter for request, piece in zip(requests, pieces, strict=True) for _ in piece.tokens])
        mixed = Mixed(newest, chunks, self.device)
        tokens = torch.tensor([mixed.tokens], device=self.device)
        hidden_TD = update.run(self.model, tokens, mixed.places_T[None], mixed)[0]
        self.by_row.rest()
        return hidden_TD

    def _chunks(self) -> Iterator[tuple[Request, list[int]]]:
        """Tokens of prompts that this forward reads: of those that came first, up to `chunk_tokens` together."""
        room = self.chunk_tokens
        for request in self.running:
            if room and not request.says:
                tokens = request.to_run[:room]
                room -= len(tokens)
                yield request, tokens

    def _admit(self) -> None:
        """Answer those that wait, in their order, as far as there is room."""
        while self.waiting and len(self.running) < self.most and (held := self._seat(self.waiting[0])):
            request = self.waiting.popleft()
            request.held, request.filled = held, request.virtual_tokens + len(held.tokens)
            if not request.answer:
                request.reused_tokens = len(held.tokens)
            self.running.append(request)

    def _seat(self, request: Request) -> Held | None:
        """Where a request is answered: what holds most of its beginning, or else a new slot with a copy of that. None where there is no room."""
        tokens = request.tokens
        needed = request.virtual_tokens + len(tokens) + 1
        alike = {held: self._alike(tokens, request.key, held) for held in self.held}
        best = max(self.held, key=lambda held: (alike[held], not held.busy), default=None)
        shared = alike[best] if best else 0
        if best and shared and not best.busy:
            best.busy = True
            if self._room(partial(self.slots.grow, best.slot, needed, request.virtual_tokens + shared)):
                best.tokens = tokens[:shared]
                return best
            self._drop(best)
            best, shared = None, 0
        if len(self.held) == self.most:
            self._drop(min(self._idle(), key=_last_used))
        slot = self._room(lambda: self.slots.take(needed))
        if slot is None:
            return None
        if best and shared:  # it is being answered
            self.slots.copy(best.slot, slot, request.virtual_tokens + shared)
        elif request.adapter and request.adapter.prefix:
            self.slots.begin_with(slot, request.adapter.prefix)
        self.held.append(Held(slot, request.key, tokens[:shared]))
        return self.held[-1]

    def _alike(self, tokens: list[int], key: str, held: Held) -> int:
        """How many of these tokens something held begins with; the last one is always run, for its logits."""
        if held.key != key or not held.tokens:
            return 0
        return min(common_prefix([held.tokens, tokens]), len(tokens) - 1)

    def _room(self, take: Callable[[], Taken]) -> Taken:
        """What `take` gives, once so much was given up of what is left of others, the oldest first, that there is room for it."""
        while not (taken := take()) and (idle := self._idle()):
            self._drop(min(idle, key=_last_used))
        return taken

    def _idle(self) -> list[Held]:
        return [held for held in self.held if not held.busy]

    def _drop(self, held: Held) -> None:
        self.held.remove(held)
        self.slots.give_back(held.slot)

    def _make_room(self) -> None:
        """A place for the next token of everyone that is answered; where there is none, whoever came last waits again."""
        for request in list(self.running):
            while request in self.running and not self._room(partial(self._has_place, request)):
                self._put_back(self.running[-1])

    def _has_place(self, request: Request) -> bool:
        return self.slots.grow(_slot(request), request.filled + request.tokens_to_run, request.filled)

    def _put_back(self, request: Request) -> None:
        self._leave(request)
        self._drop(_held(request))
        request.held = None
        self.waiting.appendleft(request)

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
        self.slots.clear(_slot(request))
        self._drop(_held(request))

    def _end(self, request: Request, finish: str) -> None:
        request.finish = finish
        self._leave(request)

    def _leave(self, request: Request) -> None:
        self.running.remove(request)
        _held(request).busy = False
        _held(request).used = next(self._clock)


def _last_used(held: Held) -> int:
    return held.used


def _held(request: Request) -> Held:
    assert request.held is not None  # whoever is answered has its slot
    return request.held


def _slot(request: Request) -> Slot:
    return _held(request).slot


def _place(request: Request) -> tuple[int, int]:
    slot = _slot(request)
    return slot.shelf.places, slot.row


def _said(token: int, logits_V: Tensor, wanted: int | None) -> Said:
    if wanted is None:
        return Said(token, 0.0)
    log_probabilities_V = logits_V.log_softmax(dim=-1)
    best = log_probabilities_V.topk(wanted) if wanted else None
    likeliest = () if best is None else tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    return Said(token, float(log_probabilities_V[token]), likeliest)
