"""The tokenizer of a run where it is not simply the model's own, and the embeddings that belong to it.

Two ways: tokens are added (the embedding grows), or another vocabulary takes the place of the model's (its rows are made anew).
Letters: V tokens, D width.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AddedToken

from luthier.errors import ConfigError

BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")


@dataclass(frozen=True, slots=True)
class Change:
    """How a run's tokens differ from those of its base: `new` ids have no row yet; `replaced` is a vocabulary of its own."""

    tokenizer: Any
    new: list[int]
    replaced: bool = False


def between(own: Any, tokenizer: Any) -> Change:
    """What changes where `tokenizer` takes the place of the model's `own`."""
    before, after = vocabulary_of(own), vocabulary_of(tokenizer)
    if before.items() <= after.items():
        return Change(tokenizer, sorted(after[piece] for piece in after.keys() - before.keys()))
    return Change(tokenizer, [], replaced=True)


def add_tokens(tokenizer: Any, spellings: Sequence[str]) -> None:
    """Add words that rows may hold. One that the vocabulary has already keeps its id. Raises ConfigError for one that is blank or named twice."""
    for place, spelling in enumerate(spellings):
        if not spelling.strip() or spelling in spellings[:place]:
            raise ConfigError(
                f"{spelling!r} is {'named twice' if spelling.strip() else 'blank'}",
                where="tokenizer.add_special_tokens",
                next_step="name each token once, such as <|call|>",
            )
    if spellings:
        known = vocabulary_of(tokenizer)
        tokenizer.add_tokens([AddedToken(spelling, special=False, normalized=False) for spelling in spellings if spelling not in known])


def vocabulary_of(tokenizer: Any) -> dict[str, int]:
    """Every piece with its id."""
    found: dict[str, int] = tokenizer.get_vocab()
    return found


def fit_embeddings(model: Any, own: Any, tokenizer: Any) -> Change:
    """Give every token of `tokenizer` a row in the model's embedding and head; nothing is done where it is the model's `own`.

    Added tokens: the tables only grow, old rows stay as they are to the bit, and a new row starts at the mean of the old ones.
    Another vocabulary: a piece that the old one has too keeps its row; any other starts at the mean of the old rows that spell it
    (Gee 2022, arXiv:2402.09977), or of all of them where nothing does.
    """
    change = between(own, tokenizer)
    if change.replaced:
        _replace_rows(model, own, tokenizer)
    elif change.new:
        _grow(model, max(change.new) + 1)
        _start_at_mean(model, change.new, sorted(vocabulary_of(own).values()))
    return change


def trained_ids(tokenizer: Any, spellings: list[str], change: Change) -> list[int]:
    """Ids of tokens whose rows are to be trained: those named in the settings (new or not), and all that are new."""
    return sorted({*(int(token) for token in tokenizer.convert_tokens_to_ids(spellings)), *change.new})


def _tables(model: Any) -> list[Tensor]:
    """The embedding's rows, and the head's where it is not the same table: (V, D)."""
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    return [embedding] if head is embedding else [embedding, head]


def _grow(model: Any, rows: int) -> None:
    if rows > len(_tables(model)[0]):  # rows above the last token are padding of the model's author, and stay
        model.resize_token_embeddings(rows, mean_resizing=False)


@torch.no_grad()
def _start_at_mean(model: Any, new: list[int], old: list[int]) -> None:
    for table in _tables(model):
        table[new] = table[[token for token in old if token < len(table)]].float().mean(dim=0).to(table.dtype)


@torch.no_grad()
def _replace_rows(model: Any, own: Any, other: Any) -> None:
    sources = row_sources(own, other)
    before = [table.detach().clone() for table in _tables(model)]
    model.resize_token_embeddings(len(sources), mean_resizing=False)
    for table, old in zip(_tables(model), before, strict=True):
        overall = old[sorted(set(vocabulary_of(own).values()))].float().mean(dim=0)
        for token, rows in enumerate(sources):
            table[token] = old[rows[0]] if len(rows) == 1 else (old[rows].float().mean(dim=0) if rows else overall).to(table.dtype)


def row_sources(own: Any, other: Any) -> list[list[int]]:
    """For every token of `other`, by id, the tokens of `own` whose rows it starts from: one that is spelled alike, or those that spell it."""
    own_bytes = {spelling: token for token, spelling in sorted(spellings(own).items(), reverse=True)}
    same_role = _by_role(own, other)
    other_bytes = spellings(other)
    return [_sources(token, other_bytes.get(token), own, own_bytes, same_role) for token in range(max(other_bytes) + 1)]


def _sources(token: int, spelling: bytes | None, own: Any, own_bytes: dict[bytes, int], same_role: dict[int, int]) -> list[int]:
    if spelling is None:
        return []
    if token in same_role:
        return [same_role[token]]
    if spelling in own_bytes:
        return [own_bytes[spelling]]
    try:
        return list(own(spelling.decode("utf-8"), add_special_tokens=False)["input_ids"])
    except UnicodeDecodeError:  # a part of a character
        return [own_bytes[bytes([byte])] for byte in spelling if bytes([byte]) in own_bytes]


def _by_role(own: Any, other: Any) -> dict[int, int]:
    """Control tokens of the same office (begin, end, padding, unknown), whatever they are called: id of `other` -> id of `own`."""
    known = vocabulary_of(own)
    roles = ("unk_token", "bos_token", "eos_token", "pad_token")
    pairs = [(getattr(other, f"{role}_id"), getattr(other, role), getattr(own, f"{role}_id")) for role in reversed(roles)]
    return {token: own_token for token, spelling, own_token in pairs if None not in (token, own_token) and spelling not in known}


def spellings(tokenizer: Any) -> dict[int, bytes]:
    """What every token writes, as bytes, whether the vocabulary spells a space as ▁ or Ġ, and bytes as letters or as <0x0A>."""
    spell = _speller(tokenizer)
    added = {token: str(entry.content).encode() for token, entry in tokenizer.added_tokens_decoder.items()}
    return {token: spell(piece) for piece, token in vocabulary_of(tokenizer).items()} | added


def byte_pieces(tokenizer: Any) -> set[int]:
    """Tokens that are no whole character: single bytes that stand in for one, or parts of one."""
    bytes_of = {token for piece, token in vocabulary_of(tokenizer).items() if BYTE_PIECE.fullmatch(piece)}
    return bytes_of | {token for token, spelling in spellings(tokenizer).items() if not _is_text(spelling)}


def _is_text(spelling: bytes) -> bool:
    try:
        return bool(spelling.decode("utf-8")) or not spelling
    except UnicodeDecodeError:
        return False


def _speller(tokenizer: Any) -> Callable[[str], bytes]:
    decoder = repr(getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None))
    if "ByteLevel" in decoder:
        letters = _byte_letters()
        return lambda piece: bytes(letters[letter] for letter in piece) if all(letter in letters for letter in piece) else piece.encode()
    marks_spaces, falls_back = "▁" in decoder, "ByteFallback" in decoder

    def spell(piece: str) -> bytes:
        byte = BYTE_PIECE.fullmatch(piece) if falls_back else None
        return bytes([int(byte[1], 16)]) if byte else (piece.replace("▁", " ") if marks_spaces else piece).encode()

    return spell


def _byte_letters() -> dict[str, int]:
    """GPT-2's letters for bytes: those that print stand for themselves, the others for letters from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


def trained_layers(model: Any, tokens: Iterable[int]) -> dict[str, list[int]]:
    """PEFT's `trainable_token_indices` for these tokens: the embedding's and the head's rows, by the layers' short names."""
    return {name: list(tokens) for name in table_names(model)}


def table_names(model: Any) -> list[str]:
    """The short names of the embedding and the head (embed_tokens, lm_head)."""
    tables = (model.get_input_embeddings(), model.get_output_embeddings())
    return [name.rpartition(".")[2] for table in tables for name, module in model.named_modules() if module is table]


def tied(model: Any) -> bool:
    """Whether the head is the embedding, kept once."""
    return len(_tables(model)) == 1
