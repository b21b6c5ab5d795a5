"""The bytes behind a token: one may be a part of a character, which no text shows."""

import json
import re
from dataclasses import dataclass
from typing import Any

from luthier.engine.answers import UNFINISHED

# A token of sentencepiece that is one byte.
BYTE = re.compile(r"<0x([0-9A-F]{2})>")
BLANK = "\u2581"  # sentencepiece's
# The bytes that GPT-2's alphabet writes as they are; the others are the letters from 256 on, in their order.
_AS_IT_IS = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = [byte for byte in range(256) if byte not in _AS_IT_IS]
BYTE_OF_LETTER = {chr(byte): byte for byte in _AS_IT_IS} | {chr(256 + place): byte for place, byte in enumerate(_OTHERS)}


@dataclass(frozen=True, slots=True)
class Spelling:
    """How a tokenizer spells: in GPT-2's alphabet of bytes (`by_bytes`), or with sentencepiece's blanks and single bytes."""

    tokenizer: Any
    by_bytes: bool
    added: frozenset[int]  # control tokens and the like, which are spelled as they are

    @classmethod
    def of(cls, tokenizer: Any) -> "Spelling":
        """By what the tokenizer's decoder does."""
        backend = getattr(tokenizer, "backend_tokenizer", None)
        decoder = backend.decoder if backend is not None else None
        kinds = _kinds(json.loads(decoder.__getstate__())) if decoder is not None else set[str]()
        return cls(tokenizer, "ByteLevel" in kinds, frozenset(tokenizer.added_tokens_decoder))

    def bytes_of(self, token: int) -> bytes:
        """The bytes of one token; those of all tokens of a text, in turn, are the text's."""
        spelled = self.tokenizer.convert_ids_to_tokens(token)
        if spelled is None:  # an id without a token: models have more rows than tokenizers have words
            return b""
        if token in self.added:
            return str(spelled).encode()
        if self.by_bytes:
            return bytes(BYTE_OF_LETTER[letter] for letter in spelled if letter in BYTE_OF_LETTER)
        if found := BYTE.fullmatch(spelled):
            return bytes([int(found[1], 16)])
        return str(spelled).replace(BLANK, " ").encode()

    def text_of(self, token: int) -> str:
        """The text of one token, or its bytes in OpenAI's form (bytes:\\xe2\\x82) where they are no whole characters."""
        text: str = self.tokenizer.decode([token])
        if UNFINISHED not in text:
            return text
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in self.bytes_of(token))


def _kinds(decoder: Any) -> set[str]:
    """The types of a decoder and of those that it is made of."""
    return {decoder["type"]}.union(*(_kinds(one) for one in decoder.get("decoders", [])))
