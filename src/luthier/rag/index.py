"""The folder of an index, read: what it was made of, its passages, their words and their vectors."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier import files
from luthier.errors import CallError, RunError
from luthier.rag.embedding import Embedder
from luthier.rag.passage import Passage
from luthier.rag.splitting import Split
from luthier.rag.vectors import STORES, Vectors
from luthier.rag.words import Words, open_words

SCHEMA = 1
FACTS, PASSAGES, WORDS, REJECTED = "index.json", "passages.arrow", "words", "rejected.jsonl"
COLUMNS = ("document", "unit", "first", "last", "title", "text")


@dataclass(frozen=True, slots=True)
class Document:
    """A document of an index: the hash of its bytes, and its passages, which stand together."""

    name: str
    sha256: str
    first_row: int
    passages: int


@dataclass(frozen=True, slots=True)
class Facts:
    """What an index was made of: by which embedder, how split, from which sources (a name, a place)."""

    embedder: str
    identity: str
    dimensions: int
    split: Split
    sources: list[tuple[str, str]]
    documents: list[Document]
    duplicates: dict[str, str]  # a document that is the same as another, to the byte
    store: str
    passages: int


@dataclass(frozen=True, slots=True)
class Index:
    """An opened index. Rows are passages, counted from 0."""

    folder: Path
    facts: Facts
    table: Any
    words: Words
    vectors: Vectors

    def passages(self, rows: Sequence[int]) -> list[Passage]:
        """Some passages, in the order asked for."""
        found = self.table.select(COLUMNS).take(list(map(int, rows))).to_pylist() if len(rows) else []
        return [Passage(**one) for one in found]

    def rows_of(self, document: str) -> range:
        """The rows of a document; none where the index has no such document."""
        for one in self.facts.documents:
            if one.name == document:
                return range(one.first_row, one.first_row + one.passages)
        return range(0)

    def check_embedder(self, embedder: Embedder) -> None:
        """Raises CallError where the index was made with another embedder: their vectors cannot be compared."""
        check_embedder(self.folder, self.facts, embedder)


def check_embedder(folder: Path, facts: Facts, embedder: Embedder) -> None:
    """Raises CallError where an index was made with another embedder."""
    if embedder.identity == facts.identity:
        return
    same = "another version of it" if embedder.name == facts.embedder else embedder.name
    problem = f"was made with the embedder {facts.embedder}, and this is {same}: their vectors cannot be compared"
    raise CallError(problem, where=str(folder), next_step="leave --embedder out, or make another index: luthier rag index DOCS --to OTHER")


def is_index(folder: Path) -> bool:
    """Whether there is an index in the folder."""
    return (folder / FACTS).is_file()


def read_facts(folder: Path) -> Facts:
    """What an index was made of. Raises CallError where there is none, RunError where it is damaged or from a later Luthier."""
    if not is_index(folder):
        there = "is no index" if folder.exists() else "is not there"
        raise CallError(there, where=str(folder), next_step=f"luthier rag index DOCS --to {folder}")
    stored = files.read_json(folder / FACTS)
    if stored.get("schema") != SCHEMA:
        raise RunError(f"is of schema {stored.get('schema')}, and {SCHEMA} is read here", where=str(folder), next_step="make the index anew")
    try:
        told = {name: value for name, value in stored.items() if name != "schema"}
        told["split"] = Split(**stored["split"])
        told["sources"] = [(str(name), str(place)) for name, place in stored["sources"]]
        told["documents"] = [Document(**one) for one in stored["documents"]]
        return Facts(**told)
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"is damaged ({error})", where=str(folder / FACTS), next_step="make the index anew") from error


def open_index(folder: Path) -> Index:
    """Open an index to look something up. Raises CallError where there is none, RunError where a part of it is missing or cut."""
    facts = read_facts(folder)
    try:
        table = open_passages(folder)
        words = open_words(folder / WORDS)
        vectors = STORES[facts.store][1](folder)
    except (OSError, ValueError, KeyError, EOFError) as error:
        problem = f"cannot be read ({type(error).__name__}: {error})"
        raise RunError(problem, where=str(folder), next_step="move it away and make the index anew: luthier rag index") from error
    if len(table) != facts.passages:
        raise RunError(f"has {len(table):,} passages, and {FACTS} tells of {facts.passages:,}", where=str(folder), next_step="make the index anew")
    return Index(folder, facts, table, words, vectors)


def open_passages(folder: Path) -> Any:
    """The passages as an Arrow table that is mapped into memory."""
    import pyarrow as pa

    return pa.ipc.open_file(pa.memory_map(str(folder / PASSAGES))).read_all()
