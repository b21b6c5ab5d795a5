"""Keys and values of requests that come and go: each has a slot, in which its tokens stand from the first place on.

Slots of the same length stand on one shelf, which grows by rows; a request that outgrows its slot moves to one of twice the length. So a long
request takes memory and time for itself, and not for all that are answered beside it. All shelves together hold at most `most_places`.

One forward runs the newest token of every request that is being answered and a few tokens of prompts that are not read yet (chunks).
What a request leaves in its slot stays until the room is needed: a later one of the same adapter that begins alike goes on from there.

Letters: R rows of a shelf, C places of a row, T tokens of one forward, N requests with one token, H heads, K key/value heads, G = H / K,
D head width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from luthier.engine.blocks import Rule
from luthier.engine.packed import KeysValues

# The shortest slot; each next length is twice as long.
PLACES = 256


@dataclass(slots=True, eq=False)
class Slot:
    """Room for the tokens of one request: a row of a shelf. Both change when it moves."""

    shelf: "Shelf"
    row: int


@dataclass(slots=True, eq=False)
class Shelf:
    """Slots of one length, in places. `kept[layer]` are keys and values, (R, K, C, D); a row without a slot is free."""

    places: int
    slots: list[Slot | None] = field(default_factory=list)
    kept: dict[int, KeysValues] = field(default_factory=dict)

    @property
    def total_places(self) -> int:
        return self.places * len(self.slots)

    def of_layer(self, layer: int, keys_like: Tensor, values_like: Tensor) -> KeysValues:
        """The keys and values of a layer; at first zeros of the kind of these (..., K, ..., D) with K heads in place -3."""
        if layer not in self.kept:
            shape = (len(self.slots), keys_like.shape[-3], self.places)
            self.kept[layer] = (keys_like.new_zeros((*shape, keys_like.shape[-1])), values_like.new_zeros((*shape, values_like.shape[-1])))
        return self.kept[layer]

    def add_rows(self, count: int) -> None:
        """More free rows, of zeros."""
        self.slots += [None] * count
        for layer, pair in self.kept.items():
            keys, values = (torch.cat([kept, kept.new_zeros(count, *kept.shape[1:])]) for kept in pair)
            self.kept[layer] = (keys, values)

    def give_up_free_rows(self) -> None:
        """Free rows cost memory: only those with a slot stay."""
        taken = [slot for slot in self.slots if slot is not None]
        if len(taken) == len(self.slots):
            return
        for layer, (keys, values) in self.kept.items():
            rows_R = torch.tensor([slot.row for slot in taken], dtype=torch.long, device=keys.device)
            self.kept[layer] = (keys.index_select(0, rows_R), values.index_select(0, rows_R))
        self.slots = [*taken]
        for row, slot in enumerate(taken):
            slot.row = row


@dataclass(slots=True)
class Slots:
    """The slots of all requests. `most_places`: tokens for which there is room at once; None: as many as come."""

    most_places: int | None = None
    shelves: dict[int, Shelf] = field(default_factory=dict)

    def take(self, tokens: int) -> Slot | None:
        """A slot for at least so many tokens; None where there is no room for it now."""
        length = self._length(tokens)
        shelf = self.shelves.setdefault(length, Shelf(length))
        if None not in shelf.slots and not self._widen(shelf):
            return None
        slot = Slot(shelf, shelf.slots.index(None))
        shelf.slots[slot.row] = slot
        return slot

    def give_back(self, slot: Slot) -> None:
        """The slot is not needed any more."""
        slot.shelf.slots[slot.row] = None

    def grow(self, slot: Slot, tokens: int, filled: int) -> bool:
        """Move a slot to where there is room for `tokens`, with what stands in its first `filled` places. False where there is none now."""
        if tokens <= slot.shelf.places:
            return True
        wider = self.take(tokens)
        if wider is None:
            return False
        self.copy(slot, wider, filled)
        self.give_back(slot)
        slot.shelf, slot.row = wider.shelf, wider.row
        slot.shelf.slots[slot.row] = slot
        return True

    def copy(self, source: Slot, target: Slot, tokens: int) -> None:
        """Give one slot the first `tokens` places of another."""
        for layer, (keys, values) in source.shelf.kept.items():
            own_keys, own_values = target.shelf.of_layer(layer, keys, values)
            own_keys[target.row, :, :tokens] = keys[source.row, :, :tokens]
            own_values[target.row, :, :tokens] = values[source.row, :, :tokens]

    def clear(self, slot: Slot) -> None:
        """Forget what a slot holds: values that are no numbers would reach whoever comes next, hidden or not."""
        for pair in slot.shelf.kept.values():
            for kept in pair:
                kept[slot.row] = 0

    def begin_with(self, slot: Slot, prefix: dict[int, KeysValues]) -> None:
        """Virtual tokens, (P, K, D) in each layer, at the beginning of a slot."""
        for layer, (keys, values) in prefix.items():
            keys_KPD, values_KPD = keys.transpose(0, 1), values.transpose(0, 1)
            kept_keys, kept_values = slot.shelf.of_layer(layer, keys_KPD, values_KPD)
            kept_keys[slot.row, :, : len(keys)] = keys_KPD
            kept_values[slot.row, :, : len(values)] = values_KPD

    @property
    def places(self) -> int:
        """Places of all rows, free or not."""
        return sum(shelf.total_places for shelf in self.shelves.values())

    @property
    def place_bytes(self) -> int:
        """Bytes that one token takes, in all layers; 0 before any was run."""
        shelf = next((shelf for shelf in self.shelves.values() if shelf.kept), None)
        return 0 if shelf is None else sum(kept.nbytes for pair in shelf.kept.values() for kept in pair) // shelf.total_places

    def _length(self, tokens: int) -> int:
        """The length of the slot for so many tokens: the shortest of PLACES, 2 PLACES, 4 PLACES ..., and all the room at most."""
        length = PLACES
        while length < tokens:
            length *= 2
        return length if self.most_places is None else max(min(length, self.most_places), tokens)

    def _widen(self, shelf: Shelf) -> bool:
        """Another free row, or some of them, as far as there is room."""
        wanted = 1 + len(shelf.slots) // 2  # to grow is to copy
        if self.most_places is not None and self.places + wanted * shelf.places > self.most_places:
            for other in self.shelves.values():
                other.give_up_free_rows()
            wanted = min(wanted, (self.most_places - self.places) // shelf.places)
        if wanted < 1:
            return False
        shelf.add_rows(wanted)
        return True


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens of one request in a forward: they stand from place `start` of its slot on."""

    slot: Slot
    start: int
    tokens: list[int]

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)


class _Newest:
    """The newest tokens of requests on one shelf: they stand at `tokens` of the forward, in the order of their rows."""

    def __init__(self, pieces: Sequence[Piece], begin: int, device: torch.device) -> None:
        self.shelf, self.tokens = pieces[0].slot.shelf, slice(begin, begin + len(pieces))
        # All rows from the first to the last that are answered: a slice of the kept keys, where a choice would be a copy.
        self.first, self.last = pieces[0].slot.row, pieces[-1].slot.row + 1
        self.whole = len(pieces) == self.last - self.first
        self.rows_N = torch.tensor([piece.slot.row for piece in pieces], device=device)
        self.places_N = torch.tensor([piece.start for piece in pieces], device=device)
        self.longest = max(piece.end for piece in pieces)

    def attend(self, layer: int, q_HND: Tensor, k_KND: Tensor, v_KND: Tensor, rule: Rule, mask_R11C: Tensor) -> Tensor:
        """(N, H, D)"""
        keys, values = self.shelf.of_layer(layer, k_KND, v_KND)
        keys[self.rows_N, :, self.places_N] = k_KND.transpose(0, 1)
        values[self.rows_N, :, self.places_N] = v_KND.transpose(0, 1)
        seen_keys, seen_values = (kept[self.first : self.last, :, : self.longest] for kept in (keys, values))
        q_NKGD = q_HND.transpose(0, 1).unflatten(1, (keys.shape[1], -1))
        if self.whole:
            return _mix(q_NKGD, seen_keys, seen_values, mask_R11C, rule).flatten(1, 2)
        rows_N = self.rows_N - self.first
        q_RKGD = q_NKGD.new_zeros(self.last - self.first, *q_NKGD.shape[1:]).index_copy_(0, rows_N, q_NKGD)
        return _mix(q_RKGD, seen_keys, seen_values, mask_R11C, rule).index_select(0, rows_N).flatten(1, 2)

    def mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """What each row's query sees: (R, 1, 1, C)."""
        newest_R = self.places_N.new_zeros(self.last - self.first).index_copy_(0, self.rows_N - self.first, self.places_N)
        return _hidden(newest_R, self.longest, window, dtype)[:, None, None]


class Mixed:
    """How the tokens of one forward attend: `newest` (pieces of one token, in the order of shelves and rows), then `chunks`, packed in
    that order."""

    def __init__(self, newest: Sequence[Piece], chunks: Sequence[Piece], device: torch.device) -> None:
        self.chunks, self.device = chunks, device
        pieces = [*newest, *chunks]
        self.tokens = [token for piece in pieces for token in piece.tokens]
        self.places_T = torch.tensor([place for piece in pieces for place in range(piece.start, piece.end)], device=device)
        self.newest: list[_Newest] = []
        begin = 0
        for _, together in groupby(newest, key=lambda piece: piece.slot.shelf):
            self.newest.append(_Newest(list(together), begin, device))
            begin = self.newest[-1].tokens.stop
        self.first_of_chunks = begin
        self._masks: dict[tuple[int | None, torch.dtype], list[Tensor]] = {}

    def attend(self, layer: int, q_HTD: Tensor, k_KTD: Tensor, v_KTD: Tensor, rule: Rule) -> Tensor:
        """Attention of every token over its own slot up to itself: (T, H, D)."""
        masks = iter(self._masks_of(rule.window, q_HTD.dtype))
        mixed_THD = q_HTD.new_empty(q_HTD.shape[1], q_HTD.shape[0], v_KTD.shape[-1])
        for group in self.newest:
            q, k, v = (tensor[:, group.tokens] for tensor in (q_HTD, k_KTD, v_KTD))
            mixed_THD[group.tokens] = group.attend(layer, q, k, v, rule, next(masks))
        begin = self.first_of_chunks
        for piece in self.chunks:
            end = begin + len(piece.tokens)
            q, k, v = (tensor[:, begin:end] for tensor in (q_HTD, k_KTD, v_KTD))
            mixed_THD[begin:end] = self._attend_chunk(piece, layer, q, k, v, rule, next(masks))
            begin = end
        return mixed_THD

    def _attend_chunk(self, piece: Piece, layer: int, q_HLD: Tensor, k_KLD: Tensor, v_KLD: Tensor, rule: Rule, mask_11LC: Tensor) -> Tensor:
        """(L, H, D) of the L tokens of a chunk."""
        keys, values = piece.slot.shelf.of_layer(layer, k_KLD, v_KLD)
        keys[piece.slot.row, :, piece.start : piece.end] = k_KLD
        values[piece.slot.row, :, piece.start : piece.end] = v_KLD
        own_keys, own_values = (kept[piece.slot.row, :, : piece.end][None] for kept in (keys, values))
        # A key's heads stand behind each other as if they were more queries of it.
        q_KQD = q_HLD.unflatten(0, (keys.shape[1], -1)).flatten(1, 2)
        mixed_KQD = _mix(q_KQD[None], own_keys, own_values, mask_11LC, rule)[0]
        mixed_LHD: Tensor = mixed_KQD.unflatten(1, (-1, len(piece.tokens))).permute(2, 0, 1, 3).flatten(1, 2)
        return mixed_LHD

    def _masks_of(self, window: int | None, dtype: torch.dtype) -> list[Tensor]:
        """A mask for each group of `newest`, (R, 1, 1, C), and for each chunk, (1, 1, L, C)."""
        if (window, dtype) not in self._masks:
            masks = [group.mask(window, dtype) for group in self.newest]
            for piece in self.chunks:
                masks.append(_hidden(torch.arange(piece.start, piece.end, device=self.device), piece.end, window, dtype)[None, None])
            self._masks[window, dtype] = masks
        return self._masks[window, dtype]


def _hidden(places_Q: Tensor, keys: int, window: int | None, dtype: torch.dtype) -> Tensor:
    """(Q, keys): 0 where a query at its place sees a key, and minus infinity where it does not."""
    behind = places_Q[:, None] - torch.arange(keys, device=places_Q.device)
    seen = (behind >= 0) if window is None else (behind >= 0) & (behind < window)
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, float("-inf"))


def _mix(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor, rule: Rule) -> Tensor:
    """softmax(softcap(scale q k^T) + mask) v of (B, K, Q, D) queries; a mask of fewer queries is used for each of their heads."""
    if (repeats := q.shape[2] // mask.shape[2]) > 1 and mask.shape[2] > 1:
        mask = mask.repeat(1, 1, repeats, 1)
    if rule.softcap is None:
        return scaled_dot_product_attention(q, keys, values, attn_mask=mask, scale=rule.scale)
    scores = torch.tanh(q @ keys.transpose(-1, -2) * (rule.scale / rule.softcap)) * rule.softcap
    return torch.softmax(scores + mask, dim=-1) @ values
