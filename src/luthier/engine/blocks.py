"""Attention of packed documents in blocks of queries, with its own backward pass: exact, for any length, window and shared prefix.

softmax(softcap(scale q k^T) + mask) v. A block of queries meets only the keys that it may see, so nothing above the diagonal and outside of
a window is computed but the block's own corner. On CPU this is two to three times as fast as SDPA, in bf16 and fp32 (docs/experiments.md).

Letters: T packed tokens, H heads, K key/value heads, G = H / K, D head width, B documents of one product, L tokens of the longest of them,
P prefix tokens, b queries of a block, S keys that a block sees.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from luthier.plan.memory import ATTENTION_BLOCK, KEPT_ATTENTION_TOKENS

BLOCK, LONG_BLOCK = ATTENTION_BLOCK, 128
LONG = 512
# A row of scores is a whole number of vectors (32 numbers of bf16): the softmax of a broken one takes twice as long.
VECTOR = 32


@dataclass(frozen=True, slots=True)
class Rule:
    """What a layer's attention does beside its products."""

    scale: float
    window: int | None = None  # keys that a query sees, itself included; None: all before it
    softcap: float | None = None  # softcap(x) = c tanh(x / c)


@dataclass(frozen=True, slots=True)
class Group:
    """Documents that go through one batched product: they follow each other from `start` on and see the same prefix.

    `path` holds the places of the prefix's parts among the leaves that the call is given.
    """

    start: int
    lengths: tuple[int, ...]
    path: tuple[int, ...] = ()

    @property
    def tokens(self) -> int:
        return sum(self.lengths)

    @property
    def longest(self) -> int:
        return max(self.lengths)


def attend(
    q_THD: Float[Tensor, "T H D"],
    k_TKD: Float[Tensor, "T K D"],
    v_TKD: Float[Tensor, "T K W"],
    groups: Sequence[Group],
    rule: Rule,
    leaves: Sequence[tuple[Tensor, Tensor]] = (),
) -> Float[Tensor, "T H W"]:
    """Attention of all groups. `leaves` are keys and values (P, K, D) of prefix parts; their gradients come back in their own format."""
    mixed: Tensor = _Blocks.apply(q_THD, k_TKD, v_TKD, groups, rule, *(tensor for pair in leaves for tensor in pair))  # type: ignore[no-untyped-call]
    return mixed


class _Blocks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, groups: Sequence[Group], rule: Rule, *leaves: Tensor) -> Tensor:
        mixed_THD = q_THD.new_empty(*q_THD.shape[:2], v_TKD.shape[-1])
        kept: list[Tensor] = []
        for group in groups:
            work = _Work(group, rule, q_THD, k_TKD, v_TKD, leaves)
            mixed = work.q.new_empty(*work.q.shape[:-1], v_TKD.shape[-1])
            for block in work.blocks():
                weights = work.weights(work.scores(block), block)
                work.mix(weights, block, mixed)
                if work.keeps:
                    kept.append(weights)
            work.put(mixed_THD, mixed)
        ctx.save_for_backward(q_THD, k_TKD, v_TKD, *leaves, *kept)
        ctx.groups, ctx.rule, ctx.leaves = groups, rule, len(leaves)
        return mixed_THD

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        q_THD, k_TKD, v_TKD, *rest = ctx.saved_tensors
        leaves, kept = rest[: ctx.leaves], iter(rest[ctx.leaves :])
        dq_THD, dk_TKD, dv_TKD = (torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in (q_THD, k_TKD, v_TKD))
        of_leaves = [torch.zeros_like(leaf, dtype=torch.float32) if leaf.requires_grad else None for leaf in leaves]
        for group in ctx.groups:
            work = _Work(group, ctx.rule, q_THD, k_TKD, v_TKD, leaves)
            dq, dk, dv = work.backward(work.rows(grads[0], zero_padding=True), kept, of_leaves)
            work.put(dq_THD, dq)
            work.put(dk_TKD, dk)
            work.put(dv_TKD, dv)
        return dq_THD, dk_TKD, dv_TKD, None, None, *(None if one is None else one.to(leaf.dtype) for one, leaf in zip(of_leaves, leaves, strict=True))


class _Work:
    """One group's tensors, laid out for batched products: queries (K, B, L, G, D), keys and values (K * B, L, D), prefix (K, P, D).

    A block of queries is a run of L, so that it is a view: (K * B, b * G, D).
    """

    def __init__(self, group: Group, rule: Rule, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, leaves: Sequence[Tensor]) -> None:
        self.group, self.rule = group, rule
        self.documents, self.length = len(group.lengths), group.longest
        self.kv_heads, self.group_heads = k_TKD.shape[1], q_THD.shape[1] // k_TKD.shape[1]
        # Padding stands on the right, and a query looks only to the left: no real query ever sees it.
        self.padded = group.tokens != self.documents * self.length
        if self.padded:
            self.places, self.real, self.padding = _places(group.lengths, group.start, q_THD.device)
        self.q = self.rows(q_THD, scale=rule.scale)
        self.path = group.path
        pairs = [(leaves[2 * part], leaves[2 * part + 1]) for part in group.path]
        self.part_tokens = [len(keys) for keys, _ in pairs]
        self.prefix = sum(self.part_tokens)
        self.k, self.v = (self._keys(tensor) for tensor in (k_TKD, v_TKD))
        if pairs:
            self.prefix_k, self.prefix_v = (
                torch.cat([pair[which] for pair in pairs]).to(k_TKD.dtype).transpose(0, 1).contiguous() for which in (0, 1)
            )
        self.keeps = self.prefix + self.length <= KEPT_ATTENTION_TOKENS and rule.softcap is None

    def rows(self, x_THD: Tensor, *, scale: float = 1.0, zero_padding: bool = False) -> Tensor:
        """The group's part of a packed tensor, padded, in a buffer of its own: (K, B, L, heads of a key's head, D)."""
        part = x_THD.index_select(0, self.places) if self.padded else x_THD[self.group.start : self.group.start + self.group.tokens]
        if self.padded and zero_padding:
            part.index_fill_(0, self.padding, 0)
        view = part.view(self.documents, self.length, self.kv_heads, -1, part.shape[-1]).permute(2, 0, 1, 3, 4)
        rows = view.new_empty(view.shape)
        return rows.copy_(view) if scale == 1.0 else torch.mul(view, scale, out=rows)

    def _keys(self, x_TKD: Tensor) -> Tensor:
        """(K * B, L + room for a whole vector, D): what stands in the room is zero, and no query sees it."""
        rows = self.rows(x_TKD).view(self.kv_heads * self.documents, self.length, -1)
        room = -(self.prefix + self.length) % VECTOR if self.rule.window is None else VECTOR - 1
        return torch.nn.functional.pad(rows, (0, 0, 0, room)) if room else rows

    def put(self, x_THD: Tensor, rows: Tensor) -> None:
        """Write rows (K, B, L, heads, D), or (K * B, L, D), back to their places in a packed tensor."""
        view = rows.unflatten(0, (self.kv_heads, self.documents)) if rows.dim() == 3 else rows
        view = view.reshape(self.kv_heads, self.documents, self.length, -1, rows.shape[-1]).permute(1, 2, 0, 3, 4)
        part = x_THD[self.group.start : self.group.start + self.group.tokens]
        if self.padded:
            part.copy_(view.reshape(self.documents * self.length, -1, rows.shape[-1]).index_select(0, self.real))
        else:
            part.view(view.shape).copy_(view)

    def blocks(self) -> Iterator[slice]:
        size = LONG_BLOCK if self.length > LONG else BLOCK
        size = -(-self.length // max(1, round(self.length / size)))  # of even size: a short last block would cost as much as a whole one
        return (slice(start, min(start + size, self.length)) for start in range(0, self.length, size))

    def block(self, rows: Tensor, block: slice) -> Tensor:
        """A block of rows (K, B, L, G, D) as (K * B, b * G, D); a view."""
        return rows.view(self.kv_heads * self.documents, -1, rows.shape[-1])[:, block.start * self.group_heads : block.stop * self.group_heads]

    def seen(self, block: slice) -> tuple[slice, slice]:
        """Which prefix keys and which own keys the block's queries may see at all, with room for a whole vector."""
        window = self.rule.window
        first = 0 if window is None else max(0, self.prefix + block.start - window + 1)  # as the first query of the block counts
        keys = self.prefix + block.stop - first
        return slice(min(first, self.prefix), self.prefix), slice(max(0, first - self.prefix), block.stop + -keys % VECTOR)

    def by_head(self, x: Tensor) -> Tensor:
        """(K * B, b * G, n) as (K, B * b * G, n): all documents at once, for what they share."""
        return x.reshape(self.kv_heads, -1, x.shape[-1])

    def scores(self, block: slice) -> Tensor:
        """softcap(scale q k^T), before the mask: (K * B, b * G, S), prefix keys first."""
        of_prefix, own = self.seen(block)
        q = self.block(self.q, block)
        scores = torch.bmm(q, self.k[:, own].transpose(1, 2))
        if of_prefix.stop > of_prefix.start:
            to_prefix = torch.bmm(self.by_head(q), self.prefix_k[:, of_prefix].transpose(1, 2))
            scores = torch.cat([to_prefix.view(*q.shape[:2], -1), scores], dim=-1)
        if self.rule.softcap is not None:
            scores = scores.div_(self.rule.softcap).tanh_().mul_(self.rule.softcap)
        return scores

    def weights(self, scores: Tensor, block: slice) -> Tensor:
        """The softmax of the masked scores, computed in fp32: (K * B, b * G, S). Masks `scores` in place."""
        queries = block.stop - block.start
        by_query = scores.view(len(scores), queries, self.group_heads, -1)
        room = self.seen(block)[1].stop - block.stop
        # Without a window only the keys of the block itself are hidden from some of its queries.
        keys = queries + room if self.rule.window is None else scores.shape[-1]
        by_query[..., -keys:] += _corner(queries, keys, room, self.rule.window, scores.dtype, scores.device)
        return torch.softmax(scores, dim=-1)

    def mix(self, weights: Tensor, block: slice, mixed: Tensor) -> None:
        """weights v, into the block's place in `mixed` (K, B, L, G, D)."""
        of_prefix, own = self.seen(block)
        shared = of_prefix.stop - of_prefix.start
        out = self.block(mixed, block)
        torch.bmm(weights[..., shared:], self.v[:, own], out=out)
        if shared:
            out += torch.bmm(self.by_head(weights[..., :shared]), self.prefix_v[:, of_prefix]).view(out.shape)

    def backward(self, dmixed: Tensor, kept: Iterator[Tensor], of_leaves: list[Tensor | None]) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of q (K, B, L, G, D) and of k and v (K * B, L, D); those of the leaves are added to `of_leaves`."""
        dq = torch.empty_like(self.q)
        dk, dv = torch.zeros_like(self.k), torch.zeros_like(self.v)
        shares = any(of_leaves[2 * part + which] is not None for part in self.path for which in (0, 1))
        if shares:
            prefix_dk, prefix_dv = (torch.zeros_like(tensor, dtype=torch.float32) for tensor in (self.prefix_k, self.prefix_v))
        for block in self.blocks():
            of_prefix, own = self.seen(block)
            shared = of_prefix.stop - of_prefix.start
            q, d = self.block(self.q, block), self.block(dmixed, block)
            weights, capped = self._again(block) if not self.keeps else (next(kept), None)
            dweights = torch.bmm(d, self.v[:, own].transpose(1, 2))
            if shared:
                of_shared = torch.bmm(self.by_head(d), self.prefix_v[:, of_prefix].transpose(1, 2))
                dweights = torch.cat([of_shared.view(*d.shape[:2], -1), dweights], dim=-1)
            dscores = torch._softmax_backward_data(dweights, weights, -1, weights.dtype)
            if capped is not None and self.rule.softcap is not None:
                dscores *= 1 - (capped / self.rule.softcap).square_()
            dv[:, own] += torch.bmm(weights[..., shared:].transpose(1, 2), d)
            dk[:, own] += torch.bmm(dscores[..., shared:].transpose(1, 2), q)
            dq_block = self.block(dq, block)
            torch.bmm(dscores[..., shared:], self.k[:, own], out=dq_block)
            if shared:
                by_head = self.by_head(dscores[..., :shared])
                dq_block += torch.bmm(by_head, self.prefix_k[:, of_prefix]).view(dq_block.shape)
                if shares:
                    prefix_dk[:, of_prefix] += torch.bmm(by_head.transpose(1, 2), self.by_head(q))
                    prefix_dv[:, of_prefix] += torch.bmm(self.by_head(weights[..., :shared]).transpose(1, 2), self.by_head(d))
        if shares:
            self._add_to_leaves(of_leaves, prefix_dk, prefix_dv)
        return dq.mul_(self.rule.scale), dk[:, : self.length], dv[:, : self.length]

    def _again(self, block: slice) -> tuple[Tensor, Tensor | None]:
        """The weights that were not kept, and the capped scores where there is a cap."""
        scores = self.scores(block)
        capped = scores.clone() if self.rule.softcap is not None else None
        return self.weights(scores, block), capped

    def _add_to_leaves(self, of_leaves: list[Tensor | None], dk: Tensor, dv: Tensor) -> None:
        start = 0
        for part, tokens in zip(self.path, self.part_tokens, strict=True):
            for which, gradient in ((0, dk), (1, dv)):
                leaf = of_leaves[2 * part + which]
                if leaf is not None:
                    leaf += gradient[:, start : start + tokens].transpose(0, 1)
            start += tokens


@lru_cache(maxsize=64)
def _corner(queries: int, keys: int, room: int, window: int | None, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(queries, 1, keys): 0 where a query may look, else minus infinity. The last query stands `room` before the last key."""
    query = torch.arange(queries, device=device)[:, None] + keys - room - queries
    key = torch.arange(keys, device=device)
    hidden = (key > query) if window is None else (key > query) | (query - key >= window)
    return torch.zeros(queries, keys, dtype=dtype, device=device).masked_fill_(hidden, float("-inf"))[:, None]


@lru_cache(maxsize=256)  # every layer asks, forward and backward
def _places(lengths: tuple[int, ...], start: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Where each padded place reads from (the document's first token for padding); the flat places that are real; those that are not."""
    longest = max(lengths)
    counts = torch.tensor(lengths, device=device)
    starts = start + counts.cumsum(0) - counts
    offsets = torch.arange(longest, device=device)
    real = offsets < counts[:, None]
    places = (starts[:, None] + torch.where(real, offsets, 0)).flatten()
    return places, real.flatten().nonzero().squeeze(1), (~real).flatten().nonzero().squeeze(1)
