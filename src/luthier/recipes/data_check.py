"""Look at the rows before anything is trained: what is used, what is set aside and why, and what exactly is learned."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.config.load import Config
from luthier.data import prepare
from luthier.data.prepare import Prepared
from luthier.data.tokenize import spell
from luthier.models import facts, find, load
from luthier.plan import choose
from luthier.records import Source
from luthier.reporting import Reporter, Silent


@dataclass(frozen=True, slots=True)
class Spelled:
    """One row as the model sees it: pieces of (text, trained, special)."""

    source: Source
    pieces: list[tuple[str, bool, bool]]
    tokens: int
    trained_tokens: int


def check(config: Config, reporter: Reporter | None = None) -> Prepared:
    """Read, judge and count all rows of a config. Raises DataError as training would."""
    prepared, _ = _prepare(config, reporter or Silent())
    return prepared


def show(config: Config, first: int, rows: int, reporter: Reporter | None = None) -> list[Spelled]:
    """`rows` training rows from number `first` (1-based) on, as the model sees them."""
    prepared, tokenizer = _prepare(config, reporter or Silent())
    return [
        Spelled(example.source, spell(example, tokenizer), len(example.token_ids), example.trained_tokens)
        for example in prepared.train[first - 1 : first - 1 + rows]
    ]


def _prepare(config: Config, reporter: Reporter) -> tuple[Prepared, Any]:
    settings = config.settings
    rows = prepare.load_rows(settings.data, config.file.parent, settings.seed)
    folder = find.find(settings.model, reporter, Path(config.file.parent))
    tokenizer = load.load_tokenizer(folder)
    max_length = choose.max_length(settings, facts.from_folder(folder)).value
    return prepare.tokenize_rows(rows, tokenizer, int(str(max_length)), settings.data.too_long), tokenizer
