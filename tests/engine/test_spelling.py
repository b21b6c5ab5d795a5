"""The bytes of all tokens, in turn, are those of the text."""

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from luthier.engine.spelling import Spelling
from luthier.models.load import load_tokenizer

TEXT = "Itasca, IL: 5 \u20ac, \u00fc\u00df, \U0001f3b8 and a  blank"


def sentencepiece() -> Any:
    """A tokenizer that spells as Llama's does: blanks as U+2581, and unknown characters as their bytes."""
    bytes_ = {f"<0x{byte:02X}>": byte + 1 for byte in range(256)}
    letters = {letter: 257 + place for place, letter in enumerate(sorted(set(TEXT.replace(" ", "\u2581")) - set("\u20ac\u00fc\u00df\U0001f3b8")))}
    backend = Tokenizer(models.BPE({"<unk>": 0} | bytes_ | letters, [], byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Replace(" ", "\u2581")
    backend.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=backend)


@pytest.mark.parametrize("kind", ["byte level", "sentencepiece"])
def test_the_bytes_of_tokens_are_those_of_the_text(kind: str, tiny_model: Path) -> None:
    tokenizer = load_tokenizer(tiny_model) if kind == "byte level" else sentencepiece()
    spelling, ids = Spelling.of(tokenizer), tokenizer(TEXT, add_special_tokens=False).input_ids
    assert len(ids) > 20
    assert b"".join(spelling.bytes_of(token) for token in ids) == TEXT.encode()
    parts = [spelling.text_of(token) for token in ids]
    assert "bytes:\\xe2" in parts  # of the euro sign, which no token holds whole
    assert not any("\ufffd" in part for part in parts)


def test_control_tokens_and_ids_without_a_token(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    spelling = Spelling.of(tokenizer)
    assert spelling.bytes_of(tokenizer.convert_tokens_to_ids("<|im_end|>")) == b"<|im_end|>"
    assert spelling.bytes_of(len(tokenizer) + 5) == b""
