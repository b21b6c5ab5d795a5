"""Answers as text: stop strings, and pieces that can be shown while an answer is made."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from luthier.errors import CallError

# Control tokens have no text: so many of them may stand inside a stop string and it is still found.
SPARE_TOKENS = 8
# A character whose bytes are not all there yet.
UNFINISHED = "\ufffd"


@dataclass(frozen=True, slots=True)
class Text:
    """How the tokens of an answer become its text, which ends before the first of `stop`."""

    tokenizer: Any
    stop: tuple[str, ...] = ()

    def of(self, ids: list[int]) -> str:
        """The text of a whole answer."""
        return self._until_stop(self.decode(ids))

    def ended(self, ids: list[int]) -> bool:
        """Whether the newest of these tokens completes a stop string."""
        if not self.stop:
            return False
        # Every token but a control token has at least one byte, so the newest ones hold all of it; the rest need not be decoded each time.
        newest = ids[-(max(len(string.encode()) for string in self.stop) + SPARE_TOKENS) :]
        return self._holds_stop(self.decode(newest)) and self._holds_stop(self.decode(ids))

    def pieces(self, new_ids: Iterator[int]) -> Iterator[str]:
        """Text as it grows. What may still become a stop string waits, and so does a character that is not whole yet."""
        growing = Growing(self)
        for token in new_ids:
            if piece := growing.add(token):
                yield piece
        if rest := growing.rest():
            yield rest

    def decode(self, ids: list[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text

    def _holds_stop(self, text: str) -> bool:
        return any(string in text for string in self.stop)

    def _until_stop(self, text: str) -> str:
        return text[: min((text.index(string) for string in self.stop if string in text), default=len(text))]

    def certain(self, text: str) -> str:
        """The text without a stop string, and without an end that a stop string begins with."""
        until = self._until_stop(text)
        if len(until) < len(text):
            return until
        begun = [length for string in self.stop for length in range(1, len(string)) if text.endswith(string[:length])]
        return text[: len(text) - max(begun, default=0)]


@dataclass(slots=True)
class Growing:
    """An answer that comes token by token, as text that can be shown.

    Only the newest tokens are decoded, beside those that gave the text before them: a tokenizer may spell a token by what precedes it.
    """

    text: Text
    ids: list[int] = field(default_factory=list)
    said: str = ""
    _whole: str = ""
    _first: int = 0  # of the tokens that are decoded again
    _read: int = 0  # tokens whose text is in `_whole`

    def add(self, token: int) -> str:
        """What can be shown once `token` is there; "" where that is nothing yet."""
        self.ids.append(token)
        before, now = self.text.decode(self.ids[self._first : self._read]), self.text.decode(self.ids[self._first :])
        if now.endswith(UNFINISHED) or len(now) <= len(before):
            return ""
        self._whole += now[len(before) :]
        self._first, self._read = self._read, len(self.ids)
        return self._new(self.text.certain(self._whole))

    def rest(self) -> str:
        """What was held back until the end."""
        return self._new(self.text.of(self.ids))

    def _new(self, ready: str) -> str:
        piece = ready[len(self.said) :]
        self.said += piece
        return piece


def text_of(tokenizer: Any, stop: str | Sequence[str]) -> Text:
    """The texts that `tokenizer` gives, up to one or more stop strings. Raises CallError for an empty one."""
    strings = (stop,) if isinstance(stop, str) else tuple(stop)
    if not all(strings):
        raise CallError("a stop string is empty", where="stop", next_step="leave it out, or give the text that ends an answer")
    return Text(tokenizer, strings)
