"""Train a tokenizer on one's own text, and measure how well vocabularies fit a text.

SentencePiece's two models, BPE (Sennrich 2016, arXiv:1508.07909) and unigram (Kudo 2018, arXiv:1804.10959), with byte fallback. Spaces stay
spaces inside the pieces, so that every text comes back as it was, also one that holds SentencePiece's own mark for a space.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from luthier.errors import DataError

Kind = Literal["bpe", "unigram"]
BYTE_PIECES = [f"<0x{byte:02X}>" for byte in range(256)]
# A piece never crosses these seams: a word with the space before it, a run of other signs, white space, and single digits (so that a text
# that spells <0x41> cannot become the piece for byte 0x41).
SEAMS = (
    r"\p{N}",
    r" ?[\p{L}\p{M}]+| ?[^\s\p{L}\p{M}\p{N}]+|\s+(?!\S)|\s+",
)
# Letters that are rarer than the first so many are spelled in bytes, as SentencePiece's character_coverage does.
MOST_LETTERS_SHARE = 0.3
# The unigram trainer finds its first pieces in the list of distinct words, where each stands once: a common word would be no piece. It is
# given pairs of words, asked for more pieces than wanted, and what crosses a seam is taken out (tokens a word, 900 rows: 4.3 before, 3.2).
PAIRS = r"(?:\p{N}| ?[\p{L}\p{M}]+| ?[^\s\p{L}\p{M}\p{N}]+|\s+){1,2}"
ASKED_TIMES = 3
# One text of so many is not learned from, so that the vocabulary is measured on text that it has not seen.
HELD_OUT_OF = 20
# Differences of the last bits between two trainings of a unigram model are rounded away.
SCORE_DIGITS = 4


@dataclass(frozen=True, slots=True)
class Control:
    """The control tokens of a vocabulary: all in order, the ones with an office, and what stands around every text."""

    tokens: Sequence[str]
    unknown: str
    before: str | None = None  # the begin-of-text token, where the tokenizer writes one by itself
    after: str | None = None


def is_held_out(text: str) -> bool:
    """Whether a text is kept for measuring: by its hash, so that copies stay on one side."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[0] % HELD_OUT_OF == 0


def train(texts: Callable[[], Iterable[str]], kind: Kind, vocabulary_size: int, control: Control) -> Tokenizer:
    """A tokenizer of at most `vocabulary_size` pieces, learned from `texts()`, which is read twice. The same texts give the same pieces.

    Fewer pieces where the text holds no more. Raises DataError where the size leaves no room for text, or there is no text.
    """
    room = vocabulary_size - len(control.tokens) - len(BYTE_PIECES)
    if room < 64:
        least = len(control.tokens) + len(BYTE_PIECES) + 64
        raise DataError(
            f"{vocabulary_size} pieces leave no room beside {len(control.tokens)} control tokens and 256 bytes",
            where="--vocab-size",
            next_step=f"at least {least}; 8000 to 32000 are usual",
        )
    letters = Counter(letter for text in texts() for letter in _sound(text))
    if not letters:
        raise DataError("there is no text to learn from", where="FILES", next_step="name files that hold text")
    kept = {letter for letter, _ in sorted(letters.items(), key=lambda pair: (-pair[1], pair[0]))[: int(MOST_LETTERS_SHARE * room)]}
    learned = Tokenizer(models.BPE() if kind == "bpe" else models.Unigram())
    learned.pre_tokenizer = _seams() if kind == "bpe" else pre_tokenizers.Split(Regex(PAIRS), "isolated")
    learned.train_from_iterator(_without_rare(texts(), letters.keys() - kept), _trainer(kind, room))
    stored = json.loads(learned.to_str())["model"]
    return _assembled(_bpe(stored, control) if kind == "bpe" else _unigram(stored, control, room), control)


def _sound(text: str) -> str:
    """The text less lone surrogates, which no tokenizer can read."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _without_rare(texts: Iterable[str], rare: set[str]) -> Iterator[str]:
    """The texts cut at letters that get no piece of their own."""
    cut = re.compile("[" + "".join(map(re.escape, sorted(rare))) + "]+") if rare else None
    for text in texts:
        yield from filter(None, cut.split(_sound(text))) if cut else [_sound(text)]


def _seams() -> Any:
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(seam), "isolated") for seam in SEAMS])


def _trainer(kind: Kind, room: int) -> Any:
    if kind == "bpe":
        return trainers.BpeTrainer(vocab_size=room, show_progress=False)
    return trainers.UnigramTrainer(vocab_size=ASKED_TIMES * room, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False)


def _bpe(stored: dict[str, Any], control: Control) -> models.BPE:
    pieces = [*control.tokens, *BYTE_PIECES]
    known = set(pieces)
    pieces += [piece for piece in sorted(stored["vocab"], key=stored["vocab"].__getitem__) if piece not in known]
    merges = [tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ", 1)) for merge in stored["merges"]]
    vocabulary = {piece: token for token, piece in enumerate(pieces)}
    return models.BPE(vocabulary, merges, unk_token=control.unknown, byte_fallback=True, fuse_unk=False)


def _unigram(stored: dict[str, Any], control: Control, room: int) -> models.Unigram:
    given = {*control.tokens, *BYTE_PIECES, "<unk>"}
    seams = _seams()
    whole = [(piece, score) for piece, score in stored["vocab"] if piece not in given and len(seams.pre_tokenize_str(piece)) == 1]
    # Letters that no piece needed were put in from the lowest score on, 0.0001 apart and in any order: all of them get the lowest.
    floor = min(score for _, score in whole)
    reach = floor + 0.0001 * sum(len(piece) == 1 for piece, _ in whole)
    learned = [(piece, round(floor if len(piece) == 1 and score <= reach else score, SCORE_DIGITS)) for piece, score in whole]
    # Every letter stays; of the longer pieces the likeliest.
    learned = sorted(learned, key=lambda pair: (len(pair[0]) > 1, -pair[1], pair[0]))[:room]
    pieces = [(piece, 0.0) for piece in [*control.tokens, *BYTE_PIECES]] + learned
    return models.Unigram(pieces, unk_id=[piece for piece, _ in pieces].index(control.unknown), byte_fallback=True)


def _assembled(model: Any, control: Control) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = _seams()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control.tokens])
    around = [token for token in (control.before, control.after) if token]
    if around:
        template = " ".join(part for part in (control.before, "$A", control.after) if part)
        pair = " ".join(part for part in (control.before, "$A", "$B", control.after) if part)
        tokenizer.post_processor = processors.TemplateProcessing(
            single=template, pair=pair, special_tokens=[(token, tokenizer.token_to_id(token)) for token in dict.fromkeys(around)]
        )
    return tokenizer


@dataclass(frozen=True, slots=True)
class Fit:
    """How a vocabulary fits a text: sums over all texts, and the tokens of each."""

    words: int
    letters: int
    tokens: int
    unknown: int  # tokens that stand for something the vocabulary cannot spell
    bytes: int  # tokens that are single bytes or parts of a character
    lengths: Sequence[int]  # tokens of each text

    @property
    def tokens_per_word(self) -> float:
        return self.tokens / max(1, self.words)

    @property
    def tokens_per_letter(self) -> float:
        return self.tokens / max(1, self.letters)

    def fitting(self, max_length: int) -> int:
        """Texts of at most `max_length` tokens."""
        return sum(length <= max_length for length in self.lengths)

    def as_json(self, max_length: int) -> dict[str, Any]:
        share = {name: round(count / max(1, self.tokens), 6) for name, count in (("unknown_share", self.unknown), ("byte_share", self.bytes))}
        rates = {"tokens_per_word": round(self.tokens_per_word, 4), "tokens_per_character": round(self.tokens_per_letter, 4)}
        counts = {"texts": len(self.lengths), "words": self.words, "characters": self.letters, "tokens": self.tokens}
        return counts | rates | share | {"fitting": self.fitting(max_length)}


def measure(texts: Iterable[str], encode: Callable[[str], Sequence[int]], unknown: int | None, byte_tokens: set[int]) -> Fit:
    """Cut every text into tokens and count. `encode` gives ids without control tokens."""
    words = letters = tokens = unknowns = in_bytes = 0
    lengths = []
    for text in texts:
        ids = encode(text)
        words += len(re.findall(r"\S+", text))
        letters += len(text)
        tokens += len(ids)
        unknowns += sum(token == unknown for token in ids)
        in_bytes += sum(token in byte_tokens for token in ids)
        lengths.append(len(ids))
    return Fit(words, letters, tokens, unknowns, in_bytes, lengths)
