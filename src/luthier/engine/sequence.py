"""Ranks that share each micro-batch: each holds a run of its tokens, and attention meets all of them (Jacobs 2023, arXiv:2309.14509, Ulysses).

All that a model does but attention goes token by token. Around attention the ranks of a team swap: each gives the heads that are not its own
of its tokens, gets its heads of all tokens, and after it the other way round. What is swapped goes backward by the same swap, and the
gradients of what is trained are added up over all ranks as ever.

Letters: T packed tokens, S those of one rank, N ranks of a team, H heads, K key/value heads, D head width, W that of the values.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from luthier.engine import ranks
from luthier.engine.batches import Document
from luthier.engine.ranks import Team

_at_work: Team | None = None


@contextmanager
def together(team: Team | None) -> Iterator[None]:
    """While it lasts, micro-batches are the team's; otherwise this rank runs whole ones."""
    global _at_work
    _at_work = team
    try:
        yield
    finally:
        _at_work = None


def team() -> Team | None:
    """Whom this rank shares its micro-batches with at the moment, if with anyone."""
    return _at_work


def run_of(tokens: int) -> slice:
    """Which of a micro-batch's tokens stand on this rank."""
    if _at_work is None:
        return slice(0, tokens)
    count = tokens // _at_work.size
    return slice(_at_work.place * count, (_at_work.place + 1) * count)


def shared(documents: list[Document]) -> list[Document]:
    """The documents of a micro-batch with the targets that this rank has to predict, and with fillers behind them: all runs are of one length."""
    if _at_work is None:
        return documents
    fillers = -sum(len(one.inputs) for one in documents) % _at_work.size
    filled = [*documents, Document([0] * fillers, 0, token_ids=[0] * fillers)] if fillers else documents
    run = run_of(sum(len(one.inputs) for one in filled))
    found, start = [], 0
    for document in filled:
        here = [(row, target) for row, target in zip(document.rows, document.targets, strict=True) if run.start <= start + row < run.stop]
        found.append(replace(document, rows=[row for row, _ in here], targets=[target for _, target in here]))
        start += len(document.inputs)
    return found


def to_heads(team: Team, q_SHD: Tensor, k_SKD: Tensor, v_SKW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All tokens' queries, keys and values of this rank's heads: (T, H / N, D), (T, K / N, D), (T, K / N, W). Heads of one key stay together."""
    each = [x.unflatten(1, (team.size, -1)).transpose(0, 1) for x in (q_SHD, k_SKD, v_SKW)]
    one = _Swap.apply(torch.cat([x.flatten(2) for x in each], dim=-1), team)  # type: ignore[no-untyped-call]
    parts = one.flatten(0, 1).split([x.shape[2] * x.shape[3] for x in each], dim=-1)
    q, k, v = (part.unflatten(-1, x.shape[2:]) for part, x in zip(parts, each, strict=True))
    return q, k, v


def to_tokens(team: Team, mixed_THW: Tensor) -> Tensor:
    """What attention gives of this rank's heads for all tokens, (T, H / N, W), as that of all heads for its own tokens: (S, H, W)."""
    swapped: Tensor = _Swap.apply(mixed_THW.unflatten(0, (team.size, -1)), team)  # type: ignore[no-untyped-call]
    return swapped.transpose(0, 1).flatten(1, 2)


class _Swap(torch.autograd.Function):
    """Piece i, along the first dimension, goes to the team's rank i; what came from there takes its place. Backward it goes back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, team: Team) -> Tensor:
        ctx.team = team
        return ranks.swap(team, x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        return ranks.swap(ctx.team, grads[0]), None
