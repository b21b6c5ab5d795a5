"""Keys and values of requests that come and go: each has a slot, in which its tokens stand from the first place on.

One forward runs the newest token of every request that is being answered and a few tokens of prompts that are not read yet (chunks).
What a request leaves in its slot stays until the slot is needed: a later one of the same adapter that begins alike goes on from there.

Letters: S slots, C places of a slot, T tokens of one forward, N requests with one token, H heads, K key/value heads, G = H / K, D head width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from luthier.engine.blocks import Rule
from luthier.engine.packed import KeysValues

# Slots grow by so many places at once: growing copies all of them.
PLACES = 256


@dataclass(slots=True)
class Slots:
    """The slots of all requests. `kept[layer]` are keys and values, (S, K, C, D)."""

    count: int
    kept: dict[int, KeysValues] = field(default_factory=dict)

    def put(self, layer: int, slots_T: Tensor, places_T: Tensor, keys_TKD: Tensor, values_TKD: Tensor, longest: int) -> KeysValues:
        """Write the keys and values of one forward to their places; there is room for `longest`. Gives those of all slots."""
        have = self.kept.get(layer)
        if have is None or have[0].shape[2] < longest:
            have = self.kept[layer] = self._grown(have, keys_TKD, longest)
        for kept, new in zip(have, (keys_TKD, values_TKD), strict=True):
            kept[slots_T, :, places_T] = new
        return have

    def _grown(self, have: KeysValues | None, like_TKD: Tensor, longest: int) -> KeysValues:
        places = -(-longest // PLACES) * PLACES
        shape = (self.count, like_TKD.shape[1], places, like_TKD.shape[2])
        keys, values = like_TKD.new_zeros(shape), like_TKD.new_zeros(shape)
        if have is not None:
            keys[:, :, : have[0].shape[2]] = have[0]
            values[:, :, : have[1].shape[2]] = have[1]
        return keys, values

    def clear(self, slot: int) -> None:
        """Forget what a slot holds: values that are no numbers would reach whoever comes next, hidden or not."""
        for pair in self.kept.values():
            for kept in pair:
                kept[slot] = 0

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Give one slot the first `tokens` places of another."""
        for keys, values in self.kept.values():
            keys[target, :, :tokens] = keys[source, :, :tokens]
            values[target, :, :tokens] = values[source, :, :tokens]

    def begin_with(self, slot: int, prefix: dict[int, KeysValues]) -> None:
        """Virtual tokens, (P, K, D) in each layer, at the beginning of a slot."""
        for layer, (keys, values) in prefix.items():
            places = torch.arange(len(keys), device=keys.device)
            self.put(layer, torch.full_like(places, slot), places, keys, values, len(keys))


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens of one request in a forward: they stand from place `start` of its slot on."""

    slot: int
    start: int
    tokens: list[int]

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)


class Mixed:
    """How the tokens of one forward attend: `newest` (pieces of one token), then `chunks`, packed in that order."""

    def __init__(self, slots: Slots, newest: Sequence[Piece], chunks: Sequence[Piece], device: torch.device) -> None:
        self.slots, self.newest, self.chunks, self.device = slots, newest, chunks, device
        pieces = [*newest, *chunks]
        self.tokens = [token for piece in pieces for token in piece.tokens]
        self.slots_T = torch.tensor([piece.slot for piece in pieces for _ in piece.tokens], device=device)
        self.places_T = torch.tensor([place for piece in pieces for place in range(piece.start, piece.end)], device=device)
        self.longest = max(piece.end for piece in pieces)
        if newest:
            # All slots from the first to the last that are answered: a slice of the kept keys, where a choice would be a copy.
            self.first, self.last = min(piece.slot for piece in newest), max(piece.slot for piece in newest) + 1
            self.rows_N = torch.tensor([piece.slot - self.first for piece in newest], device=device)
        self._masks: dict[int | None, list[Tensor]] = {}

    def attend(self, layer: int, q_HTD: Tensor, k_KTD: Tensor, v_KTD: Tensor, rule: Rule) -> Tensor:
        """Attention of every token over its own slot up to itself: (T, H, D)."""
        keys, values = self.slots.put(layer, self.slots_T, self.places_T, k_KTD.transpose(0, 1), v_KTD.transpose(0, 1), self.longest)
        if rule.window not in self._masks:
            self._masks[rule.window] = self._make_masks(rule.window)
        masks = iter(self._masks[rule.window])
        kv_heads, count = keys.shape[1], len(self.newest)
        mixed_THD = q_HTD.new_empty(q_HTD.shape[1], q_HTD.shape[0], values.shape[-1])
        if count:
            mask_N11C = next(masks)
            q_NKGD = q_HTD[:, :count].transpose(0, 1).unflatten(1, (kv_heads, -1))
            q_SKGD = q_NKGD.new_zeros(self.last - self.first, *q_NKGD.shape[1:]).index_copy_(0, self.rows_N, q_NKGD)
            seen_keys, seen_values = (kept[self.first : self.last, :, : mask_N11C.shape[-1]] for kept in (keys, values))
            mixed_THD[:count] = _mix(q_SKGD, seen_keys, seen_values, mask_N11C, rule).index_select(0, self.rows_N).flatten(1, 2)
        begin = count
        for piece in self.chunks:
            end = begin + len(piece.tokens)
            # A key's heads stand behind each other as if they were more queries of it.
            q_KQD = q_HTD[:, begin:end].unflatten(0, (kv_heads, -1)).flatten(1, 2)
            own_keys, own_values = (kept[piece.slot, :, : piece.end][None] for kept in (keys, values))
            mixed = _mix(q_KQD[None], own_keys, own_values, next(masks), rule)[0]
            mixed_THD[begin:end] = mixed.unflatten(1, (-1, end - begin)).permute(2, 0, 1, 3).flatten(1, 2)
            begin = end
        return mixed_THD

    def _make_masks(self, window: int | None) -> list[Tensor]:
        """True where a query sees a key; for `newest` of all its slots together (S, 1, 1, C), for each chunk (1, 1, queries, C)."""
        masks = []
        if self.newest:
            newest_S = torch.full((self.last - self.first,), 0, device=self.device)
            newest_S[self.rows_N] = torch.tensor([piece.start for piece in self.newest], device=self.device)
            masks.append(_seen(newest_S, int(newest_S.max()) + 1, window)[:, None, None])
        for piece in self.chunks:
            seen_LC = _seen(torch.arange(piece.start, piece.end, device=self.device), piece.end, window)
            masks.append(seen_LC[None, None])
        return masks


def _seen(places_Q: Tensor, keys: int, window: int | None) -> Tensor:
    """(Q, keys): whether a query at its place sees each of the first keys."""
    behind = places_Q[:, None] - torch.arange(keys, device=places_Q.device)
    return (behind >= 0) if window is None else (behind >= 0) & (behind < window)


def _mix(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor, rule: Rule) -> Tensor:
    """softmax(softcap(scale q k^T) + mask) v of (B, K, Q, D) queries; a mask of fewer queries is used for each of their heads."""
    if (repeats := q.shape[2] // mask.shape[2]) > 1 and mask.shape[2] > 1:
        mask = mask.repeat(1, 1, repeats, 1)
    if rule.softcap is None:
        return scaled_dot_product_attention(q, keys, values, attn_mask=mask, scale=rule.scale)
    scores = torch.tanh(q @ keys.transpose(-1, -2) * (rule.scale / rule.softcap)) * rule.softcap
    return torch.softmax(scores.masked_fill_(~mask, float("-inf")), dim=-1) @ values
