"""The attention door: documents packed in one row, each seeing itself and the shared prefix; and decoding with kept keys.

Entered through Transformers' attention interface; what to do travels in the model's keyword arguments (`luthier_layout`).
Without it the call goes to SDPA, so a model that the engine opened still works everywhere else.

Letters: B documents, T packed tokens, L tokens of the longest document, P prefix tokens, H heads, K key/value heads, G = H / K,
D head width, S keys seen.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

NAME = "luthier"
# Above this many tokens SDPA beats plain batched products (2 cores, bf16; docs/experiments.md).
LONGEST_BATCHED_TOKENS = 256
# Documents of one batched product may differ in length by this factor; more would be padding by another name.
LENGTH_SPREAD = 0.7

KeysValues = tuple[Tensor, Tensor]


@dataclass(slots=True)
class Packed:
    """Training: documents one after the other in a single row, sorted by length.

    `prefix[layer]` are keys and values that every document also sees; `recorded[layer]` are filled when `record` is on.
    """

    lengths: list[int]
    prefix: dict[int, KeysValues] = field(default_factory=dict)
    record: bool = False
    recorded: dict[int, KeysValues] = field(default_factory=dict)

    def attend(self, layer: int, q_HTD: Tensor, k_KTD: Tensor, v_KTD: Tensor, scale: float) -> Tensor:
        """Attention of all documents: (T, H, D)."""
        if self.record:
            self.recorded[layer] = (k_KTD, v_KTD)
        prefix = self.prefix.get(layer)
        parts, start = [], 0
        for group in length_groups(self.lengths):
            tokens = sum(group)
            piece = slice(start, start + tokens)
            q, k, v = q_HTD[:, piece], k_KTD[:, piece], v_KTD[:, piece]
            parts.append(attend_group(q, k, v, group, prefix, scale))
            start += tokens
        return torch.cat(parts) if len(parts) > 1 else parts[0]


@dataclass(slots=True)
class Decoding:
    """Generation: B rows, padded on the left so that all write at the same place; the prefix is kept once for all rows.

    `visible_BS` is True where a kept key may be seen; `cursor` is where the next keys go.
    """

    visible_BS: Tensor
    prefix: dict[int, KeysValues]
    kept: dict[int, KeysValues] = field(default_factory=dict)
    cursor: int = 0

    def attend(self, layer: int, q_BHLD: Tensor, k_BKLD: Tensor, v_BKLD: Tensor, scale: float) -> Tensor:
        """Attention of the newest L tokens of each row over everything before them: (B, L, H, D)."""
        rows, heads, length, width = q_BHLD.shape
        kv_heads = k_BKLD.shape[1]
        if layer not in self.kept:
            shape = (rows, kv_heads, self.visible_BS.shape[1], width)
            self.kept[layer] = (k_BKLD.new_zeros(shape), v_BKLD.new_zeros(shape))
        keys, values = self.kept[layer]
        end = self.cursor + length
        keys[:, :, self.cursor : end] = k_BKLD
        values[:, :, self.cursor : end] = v_BKLD
        q = q_BHLD.reshape(rows, kv_heads, heads // kv_heads, length, width)
        scores = torch.einsum("bkgld,bksd->bkgls", q, keys[:, :, :end]).float() * scale
        order = torch.arange(end, device=q.device)
        seen = self.visible_BS[:, None, :end] & (order <= order[self.cursor :, None])
        scores = scores.masked_fill(~seen[:, None, None], torch.finfo(torch.float32).min)
        prefix = self.prefix.get(layer)
        if prefix:
            scores = torch.cat([torch.einsum("bkgld,ksd->bkgls", q, prefix[0]).float() * scale, scores], dim=-1)
        weights = torch.softmax(scores, dim=-1).to(values.dtype)
        prefix_tokens = prefix[0].shape[1] if prefix else 0
        mixed = torch.einsum("bkgls,bksd->bkgld", weights[..., prefix_tokens:], values[:, :, :end])
        if prefix:
            mixed = mixed + torch.einsum("bkgls,ksd->bkgld", weights[..., :prefix_tokens], prefix[1])
        return mixed.reshape(rows, heads, length, width).transpose(1, 2)

    def keep_rows(self, rows: Tensor) -> None:
        """Go on with some of the rows only."""
        self.visible_BS = self.visible_BS[rows]
        self.kept = {layer: (keys[rows], values[rows]) for layer, (keys, values) in self.kept.items()}


def length_groups(lengths: list[int]) -> list[list[int]]:
    """Cut sorted lengths into runs that go through one batched product; a long document stands alone."""
    groups: list[list[int]] = []
    for length in lengths:
        fits = groups and length <= LONGEST_BATCHED_TOKENS and groups[-1][0] >= LENGTH_SPREAD * length
        if fits:
            groups[-1].append(length)
        else:
            groups.append([length])
    return groups


def causal_mask(queries: int, keys: int, device: torch.device) -> Tensor:
    """(queries, keys), True where a query may look: all keys up to its own place, counted from the end."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


def attend_group(
    q_HTD: Float[Tensor, "H T D"],
    k_KTD: Float[Tensor, "K T D"],
    v_KTD: Float[Tensor, "K T D"],
    lengths: list[int],
    prefix: KeysValues | None,
    scale: float,
) -> Float[Tensor, "T H D"]:
    """Attention of documents of similar length, one batched product for all of them."""
    longest = max(lengths)
    q, k, v = (_unpack(tensor, lengths, longest) for tensor in (q_HTD, k_KTD, v_KTD))
    if prefix:
        k, v = (torch.cat([shared.to(own.dtype).expand(len(lengths), -1, -1, -1), own], dim=2) for shared, own in zip(prefix, (k, v), strict=True))
    # Documents are padded on the right, and a query looks only to the left: no real query ever sees the padding.
    mixed = (_batched if longest <= LONGEST_BATCHED_TOKENS else _sdpa)(q, k, v, scale)
    return _pack(mixed.transpose(1, 2), lengths)


def _batched(q_BHLD: Tensor, k_BKSD: Tensor, v_BKSD: Tensor, scale: float) -> Tensor:
    rows, heads, length, width = q_BHLD.shape
    kv_heads, keys = k_BKSD.shape[1:3]
    group = heads // kv_heads
    q = q_BHLD.reshape(rows * kv_heads, group * length, width)
    k = k_BKSD.reshape(rows * kv_heads, keys, width)
    hidden = torch.zeros(length, keys, dtype=q.dtype, device=q.device).masked_fill_(~causal_mask(length, keys, q.device), float("-inf"))
    scores = torch.baddbmm(hidden.repeat(group, 1), q, k.transpose(1, 2), alpha=scale)
    weights = torch.softmax(scores, dim=-1)
    return torch.bmm(weights, v_BKSD.reshape(rows * kv_heads, keys, width)).view(rows, heads, length, width)


def _sdpa(q_BHLD: Tensor, k_BKSD: Tensor, v_BKSD: Tensor, scale: float) -> Tensor:
    group = q_BHLD.shape[1] // k_BKSD.shape[1]
    k, v = (tensor.repeat_interleave(group, dim=1) for tensor in (k_BKSD, v_BKSD))
    length, keys = q_BHLD.shape[2], k.shape[2]
    mask = None if length == keys else causal_mask(length, keys, q_BHLD.device)
    return torch.nn.functional.scaled_dot_product_attention(q_BHLD, k, v, attn_mask=mask, is_causal=mask is None, scale=scale)


def _places(lengths: list[int], longest: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Where each padded place reads from (0 for padding), and which places are real; both (B * longest,)."""
    starts = torch.tensor([0, *lengths[:-1]], device=device).cumsum(0)
    offsets = torch.arange(longest, device=device)
    real = offsets < torch.tensor(lengths, device=device)[:, None]
    return torch.where(real, starts[:, None] + offsets, 0).flatten(), real.flatten()


def _unpack(x_HTD: Tensor, lengths: list[int], longest: int) -> Tensor:
    """Packed tokens as rows: (B, H, longest, D)."""
    if all(length == longest for length in lengths):
        return x_HTD.reshape(x_HTD.shape[0], len(lengths), longest, -1).transpose(0, 1)
    places, _ = _places(lengths, longest, x_HTD.device)
    return x_HTD.index_select(1, places).reshape(x_HTD.shape[0], len(lengths), longest, -1).transpose(0, 1)


def _pack(x_BLHD: Tensor, lengths: list[int]) -> Tensor:
    """Rows as packed tokens again: (T, H, D)."""
    flat = x_BLHD.flatten(0, 1)
    if len(flat) == sum(lengths):
        return flat
    _, real = _places(lengths, x_BLHD.shape[1], flat.device)
    return flat.index_select(0, real.nonzero().squeeze(1))


def _attention(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any) -> tuple[Tensor, None]:
    layout = kwargs.pop("luthier_layout", None)
    if layout is None:
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        return output, None
    scale = kwargs.get("scaling") or query.shape[-1] ** -0.5
    if isinstance(layout, Decoding):
        return layout.attend(module.layer_idx, query, key, value, scale), None
    return layout.attend(module.layer_idx, query[0], key[0], value[0], scale)[None], None


def _mask(*args: Any, **kwargs: Any) -> Tensor | None:
    mask: Tensor | None = sdpa_mask(*args, **kwargs)
    return mask


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, _mask)
