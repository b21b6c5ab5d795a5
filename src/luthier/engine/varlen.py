"""Attention of packed documents through a kernel for variable lengths, where the device has one; it does what blocks.py does.

A document's keys are those of its prefix parts and then its own, gathered into one row of keys for all documents. A kernel aligns the ends
of a document's queries and keys, so a query sees the prefix whole and its own document up to itself.

Letters: T packed tokens, S keys of all documents with their prefixes, N documents, H heads, K key/value heads, D head width, P prefix tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from luthier.engine.blocks import Group, Rule
from luthier.engine.transfer import to_device

# q (T, H, D), k and v (S, K, D), ends of queries and of keys (N + 1,), the longest of each, scale, (keys to the left, to the right) -> (T, H, D)
Product = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, int, int, float, tuple[int, int]], Tensor]
HALF = (torch.bfloat16, torch.float16)
WIDEST_HEAD = 256


@dataclass(frozen=True, slots=True)
class Gathered:
    """Which keys stand where once each document has its prefix before it."""

    rows: Tensor  # (S,) of [own keys (T), then all parts]
    own: Tensor  # (T,) places of the own keys among the S
    of_parts: Tensor  # (S - T,) places of the parts' keys among the S
    part_rows: Tensor  # (S - T,) the rows they come from, counted among the parts


@dataclass(frozen=True, slots=True)
class Places:
    """Where documents begin and end, on the device; made once for all layers. `gathered` is None where nothing is shared."""

    ends_q: Tensor
    ends_k: Tensor
    longest_q: int
    longest_k: int
    gathered: Gathered | None


def places(groups: Sequence[Group], part_tokens: Sequence[int], device: torch.device) -> Places:
    """Places of the documents of `groups`, which see parts of so many tokens."""
    starts = np.cumsum([0, *part_tokens])
    tokens = sum(group.tokens for group in groups)
    rows, from_parts, own, start = [], [], [0], 0
    lengths_k = []
    for group in groups:
        path = [np.arange(starts[part], starts[part + 1]) + tokens for part in group.path]
        start = group.start
        for length in group.lengths:
            pieces = [*path, np.arange(start, start + length)]
            rows += pieces
            from_parts += [np.full(len(piece), place < len(path)) for place, piece in enumerate(pieces)]
            lengths_k.append(sum(len(piece) for piece in pieces))
            own.append(length)
            start += length
    put = partial(to_device, device=device)
    ends_q, ends_k = (put(np.cumsum(lengths), dtype=torch.int32) for lengths in (own, [0, *lengths_k]))
    gathered = None
    if any(group.path for group in groups):
        all_rows, of_part = np.concatenate(rows), np.concatenate(from_parts)
        gathered = Gathered(put(all_rows), put(np.flatnonzero(~of_part)), put(np.flatnonzero(of_part)), put(all_rows[of_part] - tokens))
    return Places(ends_q, ends_k, max(own), max(lengths_k), gathered)


def supports(q_THD: Tensor, v_TKD: Tensor, rule: Rule) -> bool:
    """Whether the kernels take this: half precision, no soft-capping, heads of a usual width."""
    width = q_THD.shape[-1]
    return q_THD.dtype in HALF and rule.softcap is None and width == v_TKD.shape[-1] <= WIDEST_HEAD and width % 8 == 0


def attend(
    product: Product,
    where: Places,
    q_THD: Float[Tensor, "T H D"],
    k_TKD: Float[Tensor, "T K D"],
    v_TKD: Float[Tensor, "T K D"],
    rule: Rule,
    leaves: Sequence[tuple[Tensor, Tensor]] = (),
) -> Float[Tensor, "T H D"]:
    """As blocks.attend: `leaves` are keys and values (P, K, D) of prefix parts, whose gradients are summed in fp32."""
    window = (-1 if rule.window is None else rule.window - 1, 0)
    told = (where.ends_q, where.ends_k, where.longest_q, where.longest_k, rule.scale, window)
    if where.gathered is None:
        return product(q_THD, k_TKD, v_TKD, *told)
    sources = [(own, *parts) for own, parts in zip((k_TKD, v_TKD), zip(*leaves, strict=True), strict=True)]
    k_SKD, v_SKD = (_Gather.apply(where.gathered, *source) for source in sources)  # type: ignore[no-untyped-call]
    again = {wide.data_ptr(): tuple(one.detach() for one in source) for wide, source in zip((k_SKD, v_SKD), sources, strict=True)}

    def kept(tensor: Tensor) -> Any:
        return again.get(tensor.data_ptr(), tensor)

    def given_back(what: Any) -> Tensor:
        return what if isinstance(what, Tensor) else _gather(where.gathered, *what)  # type: ignore[arg-type]

    # A prefix of 8,000 tokens before 64 documents would be kept 64 times in every layer: it is gathered again for the backward pass.
    with saved_tensors_hooks(kept, given_back):
        return product(q_THD, k_SKD, v_SKD, *told)


def _gather(gathered: Gathered, own: Tensor, *parts: Tensor) -> Tensor:
    return torch.cat([own, *(part.to(own.dtype) for part in parts)]).index_select(0, gathered.rows)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gathered: Gathered, own: Tensor, *parts: Tensor) -> Tensor:
        ctx.gathered, ctx.parts = gathered, [(len(part), part.dtype) for part in parts]
        return _gather(gathered, own, *parts)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        grad, gathered = grads[0], ctx.gathered
        of_parts = [None] * len(ctx.parts)
        if any(ctx.needs_input_grad[2:]):
            sums = grad.new_zeros(sum(tokens for tokens, _ in ctx.parts), *grad.shape[1:], dtype=torch.float32)
            sums.index_add_(0, gathered.part_rows, grad.index_select(0, gathered.of_parts).float())
            split = sums.split([tokens for tokens, _ in ctx.parts])
            of_parts = [one.to(dtype) for one, (_, dtype) in zip(split, ctx.parts, strict=True)]
        return None, grad.index_select(0, gathered.own), *of_parts


def _of_torch() -> Product:
    from torch.nn.attention.varlen import varlen_attn  # since torch 2.13 with windows and grouped queries

    def product(
        q: Tensor, k: Tensor, v: Tensor, ends_q: Tensor, ends_k: Tensor, longest_q: int, longest_k: int, scale: float, window: tuple[int, int]
    ) -> Tensor:
        shares = q.shape[1] != k.shape[1]
        mixed: Any = varlen_attn(q, k, v, ends_q, ends_k, longest_q, longest_k, scale=scale, window_size=window, enable_gqa=shares)
        return mixed  # type: ignore[no-any-return]

    return product


def _of_flash_attn() -> Product:
    from flash_attn import flash_attn_varlen_func

    def product(
        q: Tensor, k: Tensor, v: Tensor, ends_q: Tensor, ends_k: Tensor, longest_q: int, longest_k: int, scale: float, window: tuple[int, int]
    ) -> Tensor:
        mixed: Any = flash_attn_varlen_func(q, k, v, ends_q, ends_k, longest_q, longest_k, softmax_scale=scale, causal=True, window_size=window)
        return mixed  # type: ignore[no-any-return]

    return product


KERNELS: dict[str, Callable[[], Product]] = {
    # name         makes it, or raises ImportError
    "varlen_attn": _of_torch,
    "flash_attn":  _of_flash_attn,
}  # fmt: skip
