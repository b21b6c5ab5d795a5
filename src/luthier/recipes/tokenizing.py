"""Look at tokens, train a tokenizer on one's own rows, and compare two of them on the rows that will be trained."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier import files
from luthier.config.data import DataSettings
from luthier.data import prepare, vocabulary
from luthier.data.vocabulary import Control, Fit, Kind
from luthier.errors import CallError, DataError
from luthier.models import facts, find, load
from luthier.models.vocabulary import byte_pieces, spellings
from luthier.reporting import Reporter, Silent

PLAIN_TEXT = (".txt", ".md")
# Texts that a vocabulary is measured on; more change no digit that is shown.
MOST_MEASURED = 5_000
# Texts are cut here for the trainer: one line of a gigabyte would be held whole.
LONGEST_TEXT = 100_000


@dataclass(frozen=True, slots=True)
class Piece:
    """One token of a text: what it writes (bytes where it is a part of a character), its id, and whether it is a control token."""

    text: str
    id: int
    special: bool


@dataclass(frozen=True, slots=True)
class Pieces:
    """A text in tokens, and the model's context in tokens (None where its folder does not say)."""

    pieces: Sequence[Piece]
    context: int | None

    @property
    def count(self) -> int:
        return len(self.pieces)


@dataclass(frozen=True, slots=True)
class Trained:
    """A tokenizer that was trained: where it lies, its pieces, and how it and the base's fit text that it has not seen."""

    folder: Path
    pieces: int
    asked: int
    held_out: bool  # False where there was too little text to hold some out
    fit: Fit
    base_fit: Fit


@dataclass(frozen=True, slots=True)
class Compared:
    """Two vocabularies on the same texts. `shared` pieces are spelled alike."""

    names: tuple[str, str]
    fits: tuple[Fit, Fit]
    sizes: tuple[int, int]
    shared: int
    max_length: int


def tokens(text: str, model: str, reporter: Reporter | None = None) -> Pieces:
    """The text as the model's tokenizer cuts it. Control tokens that the text spells are read as such, and marked."""
    tokenizer, folder = _open(model, reporter or Silent())
    ids = _encode(tokenizer)(text)
    special = {token for token, entry in tokenizer.added_tokens_decoder.items() if entry.special} | set(tokenizer.all_special_ids)
    spelled = spellings(tokenizer)
    context = facts.context_length(folder) if (folder / "config.json").is_file() else None
    return Pieces([Piece(spelled[token].decode("utf-8", "backslashreplace"), token, token in special) for token in ids], context)


def train(
    paths: Sequence[str], kind: Kind, size: int, folder: Path, base: str, reporter: Reporter | None = None, *, with_template: bool = True
) -> Trained:
    """Train a tokenizer on the text of files, with the control tokens and (unless told otherwise) the chat template of `base`.

    Nothing that exists is overwritten. Raises DataError where there is no text, or the size is too small.
    """
    reporter = reporter or Silent()
    if folder.exists():
        raise CallError("is there already, and nothing is overwritten", where=str(folder), next_step="choose a folder that does not exist")
    own, _ = _open(base, reporter)
    learn, measured = _split(paths)
    reporter.say(f"learning {size:,} pieces ({kind})")
    learned = vocabulary.train(learn, kind, size, _control_of(own))
    files.build_folder(folder, lambda staging: _write(staging, learned, own, with_template))
    tokenizer = load.load_tokenizer(folder)
    texts = measured or list(_first(learn()))
    return Trained(folder, len(tokenizer), size, bool(measured), _fit(tokenizer, texts), _fit(own, texts))


def compare(one: str, other: str, data: Sequence[str], max_length: int, reporter: Reporter | None = None) -> Compared:
    """Two tokenizers (models, or folders that hold a tokenizer) on the text of files."""
    reporter = reporter or Silent()
    texts = list(_first(_distinct(data)))
    if not texts:
        raise DataError("there is no text", where=", ".join(data), next_step="name files that hold text")
    opened = [_open(name, reporter)[0] for name in (one, other)]
    spelled = [set(spellings(tokenizer).values()) for tokenizer in opened]
    fits = (_fit(opened[0], texts), _fit(opened[1], texts))
    return Compared((one, other), fits, (len(opened[0]), len(opened[1])), len(spelled[0] & spelled[1]), max_length)


def texts_of(path: str) -> Iterator[str]:
    """The text of a file, piece by piece: lines of .txt and .md, messages of files with rows."""
    if Path(path).suffix.lower() not in PLAIN_TEXT:
        for row in prepare.load_rows(DataSettings(train=path, eval=None), Path(), 0).train:
            yield from (turn.content for turn in row.turns)
        return
    if not Path(path).is_file():
        raise DataError("there is no such file", where=path, next_step="check the path")
    number = 0
    with open(path, encoding="utf-8", newline="\n") as file:
        try:
            while text := file.readline(LONGEST_TEXT):
                number += 1
                yield text
        except UnicodeDecodeError as error:
            raise DataError(f"is not UTF-8 ({error.reason})", where=f"{path}:{number + 1}", next_step="save the file as UTF-8") from error


def _distinct(paths: Sequence[str]) -> Iterator[str]:
    """Every text once, but blank ones: a system message that a thousand rows begin with is one text."""
    seen: set[int] = set()
    for path in paths:
        for text in texts_of(path):
            digest = int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest())
            if digest not in seen and text.strip():
                seen.add(digest)
                yield text


def _open(name: str, reporter: Reporter) -> tuple[Any, Path]:
    """A tokenizer by itself (a folder without a model) or that of a model, and its folder."""
    folder = Path(name).expanduser()
    if not ((folder / "tokenizer.json").is_file() and not (folder / "config.json").is_file()):
        folder = find.find(name, reporter)
    tokenizer = load.load_tokenizer(folder)
    tokenizer.model_max_length = int(1e30)  # a long file is counted, not warned of
    return tokenizer, folder


def _encode(tokenizer: Any) -> Callable[[str], list[int]]:
    return lambda text: list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _fit(tokenizer: Any, texts: Sequence[str]) -> Fit:
    return vocabulary.measure(texts, _encode(tokenizer), tokenizer.unk_token_id, byte_pieces(tokenizer))


def _first(texts: Iterator[str]) -> Iterator[str]:
    for _, text in zip(range(MOST_MEASURED), texts, strict=False):
        yield text


def _split(paths: Sequence[str]) -> tuple[Callable[[], Iterator[str]], list[str]]:
    """Texts to learn from (as often as asked), and those that are measured on."""

    held_out = list(_first(text for text in _distinct(paths) if vocabulary.is_held_out(text)))
    if not held_out or all(vocabulary.is_held_out(text) for text in _distinct(paths)):
        return lambda: _distinct(paths), []
    return lambda: (text for text in _distinct(paths) if not vocabulary.is_held_out(text)), held_out


def _control_of(tokenizer: Any) -> Control:
    """The base's control tokens, in the order of their ids, with one for what is unknown."""
    special = {token: entry.content for token, entry in tokenizer.added_tokens_decoder.items() if entry.special}
    kept = [spelling for _, spelling in sorted(special.items())]
    kept += [spelling for spelling in tokenizer.all_special_tokens if spelling not in kept]
    unknown = tokenizer.unk_token or "<unk>"
    plain, marked = _encode(tokenizer)("a"), list(tokenizer("a")["input_ids"])
    before = tokenizer.bos_token if marked[:1] == [tokenizer.bos_token_id] and plain[:1] != marked[:1] else None
    after = tokenizer.eos_token if marked[-1:] == [tokenizer.eos_token_id] and plain[-1:] != marked[-1:] else None
    return Control(kept if unknown in kept else [unknown, *kept], unknown, before, after)


def _write(staging: Path, learned: Any, own: Any, with_template: bool) -> None:
    """The files that Transformers 4 and 5 read."""
    files.write_text(staging / "tokenizer.json", learned.to_str())
    names = {name: getattr(own, name) for name in ("bos_token", "eos_token", "pad_token") if getattr(own, name)}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, "unk_token": own.unk_token or "<unk>"}
    files.write_json(staging / "tokenizer_config.json", config | names)
    if with_template and own.chat_template:
        files.write_text(staging / "chat_template.jinja", str(own.chat_template))
