"""How rows stand while a model answers: keys and values kept, aligned at the newest token, the prompts' shared beginning once for all rows.

Letters: B rows, H heads, K key/value heads, G = H / K, D head width, S kept places of a row, P keys of the shared prefix.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from luthier.engine.blocks import Rule
from luthier.engine.packed import KeysValues, Packed

# Keys stand in blocks that are whole in memory: a product with a part of a larger buffer copies that part first (bf16 on CPU: 2 to 4 times
# as slow), and one buffer that grows copies itself. A new block holds as many tokens as were answered so far, so there are few of them.
LEAST_BLOCK = 32


@dataclass(frozen=True, slots=True)
class View:
    """What the newest tokens see in layers of one window: the last `shared` keys of the prefix, then `pieces` (block, places of it).

    `hidden` (B, 1, shared + places of all pieces) is True at empty places and at keys that have left a row's window.
    """

    shared: int
    pieces: list[tuple[int, slice]]
    hidden_B1S: Tensor

    @property
    def sizes(self) -> list[int]:
        return [self.shared, *(places.stop - places.start for _, places in self.pieces)]


@dataclass(slots=True)
class Decoding:
    """B rows that each get one token at a time. All write at the same place; a row begins after `padding_B` empty places.

    `prefix[layer]` are keys and values (K, P, D) that every row sees before its own; `kept[layer]` those of the rows in blocks
    (K * B, places, D), `sizes` the places of each block, of which the first holds the prompts; `end` are the places written so far.
    """

    padding_B: Tensor
    end: int
    room: int  # places that may still be asked for
    prefix_tokens: int = 0
    prefix: dict[int, KeysValues] = field(default_factory=dict)
    kept: dict[int, list[KeysValues]] = field(default_factory=dict)
    sizes: list[int] = field(init=False)
    most_padding: int = field(init=False)
    views: dict[int | None, View] = field(init=False, default_factory=dict)  # by window; of this step

    def __post_init__(self) -> None:
        self.sizes, self.most_padding = [self.end], int(self.padding_B.max())

    def make_place(self) -> Tensor:
        """Make place for each row's next token. Gives their positions, (B, 1)."""
        if self.end == sum(self.sizes):
            self.sizes.append(min(self.room, max(LEAST_BLOCK, self.end - self.sizes[0])))
            self.room -= self.sizes[-1]
        self.end += 1
        self.views.clear()
        return (self.prefix_tokens + self.end - 1 - self.padding_B)[:, None]

    def attend(self, layer: int, q_BHLD: Tensor, k_BKLD: Tensor, v_BKLD: Tensor, rule: Rule) -> Tensor:
        """Attention of each row's newest token over everything before it and itself: (B, 1, H, D)."""
        rows, heads, _, width = q_BHLD.shape
        kv_heads = k_BKLD.shape[1]
        self._write(layer, k_BKLD, v_BKLD)
        view = self._view(rule.window)
        q = (q_BHLD * rule.scale).reshape(rows, kv_heads, -1, width).transpose(0, 1).reshape(kv_heads * rows, -1, width)
        blocks = [(keys[:, places], values[:, places]) for (block, places) in view.pieces for keys, values in [self.kept[layer][block]]]
        parts = [torch.bmm(q, keys.transpose(1, 2)) for keys, _ in blocks]
        if view.shared:
            prefix_keys, prefix_values = (tensor[:, -view.shared :] for tensor in self.prefix[layer])
            parts.insert(0, torch.bmm(q.view(kv_heads, -1, width), prefix_keys.transpose(1, 2)).view(*q.shape[:2], -1))
        scores = torch.cat(parts, dim=-1)
        if rule.softcap is not None:
            scores = scores.div_(rule.softcap).tanh_().mul_(rule.softcap)
        scores.view(kv_heads, rows, -1, scores.shape[-1]).masked_fill_(view.hidden_B1S, float("-inf"))
        to_prefix, *weights = torch.softmax(scores, dim=-1).split(view.sizes, dim=-1)  # in fp32 within
        mixed = torch.bmm(weights[0], blocks[0][1])
        for share, (_, values) in zip(weights[1:], blocks[1:], strict=True):
            mixed += torch.bmm(share, values)
        if view.shared:
            mixed += torch.bmm(to_prefix.reshape(kv_heads, -1, view.shared), prefix_values).view_as(mixed)
        return mixed.view(kv_heads, rows, -1, mixed.shape[-1]).transpose(0, 1).reshape(rows, 1, heads, -1)

    def _write(self, layer: int, *newest: Tensor) -> None:
        blocks = self.kept[layer]
        if len(blocks) < len(self.sizes):
            keys, values = (one.new_zeros(one.shape[0] * one.shape[1], self.sizes[-1], one.shape[-1]) for one in newest)
            blocks.append((keys, values))
        place = self.end - 1 - sum(self.sizes[:-1])
        for block, one in zip(blocks[-1], newest, strict=True):
            block[:, place] = one[:, :, 0].transpose(0, 1).flatten(0, 1)

    def _view(self, window: int | None) -> View:
        """Made once a step for all layers of a window."""
        if window not in self.views:
            first = 0 if window is None else max(0, self.end - window)
            pieces, places, start = [], [], 0
            for block, size in enumerate(self.sizes):
                begin = first - start if 2 * (first - start) > size else 0  # a part is copied: only worth it for less than half
                if begin < size:
                    pieces.append((block, slice(begin, size)))
                    places.append(torch.arange(start + begin, start + size, device=self.padding_B.device))
                start += size
            shared = self.prefix_tokens if window is None else min(self.prefix_tokens, max(0, window - (self.end - self.most_padding)))
            self.views[window] = View(shared, pieces, self._hidden(shared, torch.cat(places), window))
        return self.views[window]

    def _hidden(self, shared: int, places_S: Tensor, window: int | None) -> Tensor:
        padding_B1 = self.padding_B[:, None]
        before = torch.arange(-shared, 0, device=places_S.device)  # the prefix ends where a row begins
        from_start = torch.cat([before.expand(len(padding_B1), -1), places_S - padding_B1], dim=1)
        newest = self.end - 1 - padding_B1
        hidden = from_start > newest
        hidden[:, shared:] |= from_start[:, shared:] < 0
        if window is not None:
            hidden |= newest - from_start >= window
        return hidden[:, None]

    def keep_rows(self, rows: list[int]) -> None:
        """Go on with some of the rows only."""
        before, index = len(self.padding_B), torch.tensor(rows, device=self.padding_B.device)
        self.padding_B = self.padding_B[index]
        self.most_padding = int(self.padding_B.max())
        for layer, blocks in self.kept.items():
            self.kept[layer] = [(_of_rows(keys, before, index), _of_rows(values, before, index)) for keys, values in blocks]


def after(prompts: Packed, room: int, prefix: dict[int, KeysValues]) -> Decoding:
    """The state after prompts ran packed, with `record` on, and room for so many tokens more. Empties `prompts.recorded`.

    `prefix[layer]` are keys and values (P, K, D) of what the prompts followed.
    """
    lengths, longest = prompts.lengths, max(prompts.lengths)
    device = next(iter(prompts.recorded.values()))[0].device
    places = torch.cat([torch.arange(longest - length, longest, device=device) + row * longest for row, length in enumerate(lengths)])
    by_head = {layer: (keys.transpose(0, 1).contiguous(), values.transpose(0, 1).contiguous()) for layer, (keys, values) in prefix.items()}
    prefix_tokens = len(next(iter(prefix.values()))[0]) if prefix else 0
    state = Decoding(longest - torch.tensor(lengths, device=device), longest, room, prefix_tokens, by_head)
    for layer in list(prompts.recorded):
        keys, values = prompts.recorded.pop(layer)
        state.kept[layer] = [(_aligned(keys, places, len(lengths)), _aligned(values, places, len(lengths)))]
    return state


def _aligned(packed_TKD: Tensor, places_T: Tensor, rows: int) -> Tensor:
    """Packed keys as rows that end together, (K * B, longest, D); empty places are zero."""
    _, kv_heads, width = packed_TKD.shape
    longest = (int(places_T[-1]) + 1) // rows
    aligned = packed_TKD.new_zeros(kv_heads, rows * longest, width).index_copy_(1, places_T, packed_TKD.transpose(0, 1))
    return aligned.view(kv_heads * rows, longest, width)


def _of_rows(block: Tensor, before: int, rows: Tensor) -> Tensor:
    """Some of the rows of a block (K * before, places, D)."""
    return block.view(-1, before, *block.shape[1:]).index_select(1, rows).flatten(0, 1)
