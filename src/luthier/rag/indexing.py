"""Writing an index: only what is new is read and embedded; what is not there any more leaves it; what was begun is gone on with."""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import numpy as safetensors

from luthier import files
from luthier.data.conversations import rejected_row
from luthier.errors import CallError, DataError
from luthier.rag import documents, vectors, words
from luthier.rag.documents import File, Unreadable
from luthier.rag.embedding import Embedder
from luthier.rag.index import (
    COLUMNS,
    FACTS,
    PASSAGES,
    REJECTED,
    SCHEMA,
    WORDS,
    Document,
    Facts,
    Index,
    check_embedder,
    is_index,
    open_index,
    read_facts,
)
from luthier.rag.passage import Passage
from luthier.rag.splitting import Split, passages_of
from luthier.records import Rejected, Source
from luthier.reporting import Reporter, Silent

# Texts that are embedded before their vectors are kept: what a kill can cost.
KEPT_AT_ONCE = 512
ROWS_AT_ONCE = 65_536


@dataclass(frozen=True, slots=True)
class Indexed:
    """What became of the documents. `embedded` passages were new; all others had their vectors already."""

    folder: str
    documents: int
    new: int
    changed: int
    removed: int
    passages: int
    embedded: int
    duplicates: dict[str, str]
    rejected: dict[str, int]


@dataclass(slots=True)
class _Gathered:
    """The passages of all documents in order, and where each document's begin."""

    passages: list[Passage] = field(default_factory=list)
    documents: list[Document] = field(default_factory=list)
    duplicates: dict[str, str] = field(default_factory=dict)
    rejected: list[Rejected] = field(default_factory=list)


def build(
    sources: Sequence[tuple[str, Path]], to: Path, embedder: Embedder, split: Split, store: str = "auto", reporter: Reporter | None = None
) -> Indexed:
    """Make or renew the index in the folder `to`, of what the sources (a name, a place) and those it was made of before hold now.

    The old index stays whole until the new one is. A call that was stopped goes on where it was. Raises CallError where `to` holds something
    else or was made with another embedder, DataError where no document gives text.
    """
    reporter = reporter or Silent()
    split.check()
    _check_place(to)
    files.make_folder(to.parent)
    old = open_index(to) if is_index(to) else None
    if old:
        check_embedder(to, old.facts, embedder)
        if old.facts.split != split:
            reporter.say(f"{to}: passages are cut anew, {split.size} characters each with {split.overlap} of overlap")
    all_sources = _merged(old.facts.sources if old else [], sources)
    gathered = _gather(all_sources, old, split, reporter)
    if not gathered.passages:
        raise DataError("none of the documents gives text", where=", ".join(name for name, _ in all_sources), next_step=_first_problem(gathered))
    known = _Known(to, old, embedder)
    embedded = _embed(gathered.passages, known, embedder, reporter)
    kept = old.facts.store if old else ""
    kind = "lancedb" if (store, kept) == ("auto", "lancedb") else _store_of(store, len(gathered.passages), reporter)
    told = [(name, str(place)) for name, place in all_sources]
    facts = Facts(
        embedder.name, embedder.identity, embedder.dimensions, split, told, gathered.documents, gathered.duplicates, kind, len(gathered.passages)
    )
    files.build_folder(to, lambda staging: _write(staging, facts, gathered, known))
    files.discard(known.parts)
    return _told(to, old, gathered, embedded)


def _check_place(to: Path) -> None:
    if to.exists() and not is_index(to):
        files.refuse_existing(to)


def _merged(stored: Sequence[tuple[str, str]], given: Sequence[tuple[str, Path]]) -> list[tuple[str, Path]]:
    """The sources of before and those named now, each once, under the name it had first."""
    by_place = {place: name for name, place in stored}
    for name, place in given:
        by_place.setdefault(str(place.resolve()), name)
    return [(name, Path(place)) for place, name in by_place.items()]


def _gather(sources: Sequence[tuple[str, Path]], old: Index | None, split: Split, reporter: Reporter) -> _Gathered:
    """Read what is new or changed; take the passages of everything else from the old index."""
    gathered = _Gathered()
    there: list[tuple[str, Path]] = []
    gone: list[tuple[str, Path]] = []
    before_now = {place for _, place in old.facts.sources} if old else set()
    for name, place in sources:  # what was never there is no deletion, and `find` says so
        (gone if str(place) in before_now and not place.exists() else there).append((name, place))
    for name, _ in gone:
        reporter.say(f"{name}: is not there any more, and leaves the index")
    found = documents.find(there, gathered.rejected.append) if there else []
    before = {one.name: one for one in old.facts.documents} if old and old.facts.split == split else {}
    rejected_before = _rejected_before(old) if before else {}
    first_of: dict[str, str] = {}
    with reporter.bar("reading documents", len(found)) as bar:
        for number, file in enumerate(found, start=1):
            if twin := first_of.get(file.sha256):
                gathered.duplicates[file.name] = twin
                continue
            kept = before.get(file.name)
            unchanged = kept is not None and kept.sha256 == file.sha256
            passages = _kept(old, kept) if unchanged and old and kept else _read(file, split, gathered.rejected)
            gathered.rejected += rejected_before.get(file.name, []) if unchanged else []
            if passages:
                first_of[file.sha256] = file.name
                gathered.documents.append(Document(file.name, file.sha256, len(gathered.passages), len(passages)))
                gathered.passages += passages
            bar.advance(number, f"{len(gathered.passages):,} passages")
    return gathered


def _kept(old: Index, document: Document) -> list[Passage]:
    return old.passages(range(document.first_row, document.first_row + document.passages))


def _rejected_before(old: Index | None) -> dict[str, list[Rejected]]:
    """The rows and pages that were set aside, by their document: one that is not read again still lacks them."""
    path = old.folder / REJECTED if old else None
    found: dict[str, list[Rejected]] = {}
    for line in path.read_text(encoding="utf-8").split("\n") if path and path.exists() else []:
        if line:
            row = json.loads(line)
            one = Rejected(row["reason"], row["detail"], Source(row["file"], row["line"]), row["raw"], row["rows"])
            found.setdefault(row["file"], []).append(one)
    return found


def _read(file: File, split: Split, rejected: list[Rejected]) -> list[Passage]:
    try:
        parts = documents.read(file, rejected.append)
    except Unreadable as error:
        rejected.append(Rejected(error.reason, error.detail, Source(file.name, 1), ""))
        return []
    return [passage for part in parts for passage in passages_of(file.name, part, split)]


def _first_problem(gathered: _Gathered) -> str:
    first = next(iter(gathered.rejected), None)
    return f"{first.source.file}: {first.detail}" if first else "give documents with text"


class _Known:
    """Vectors that are there already, by the key of their passage: of the old index, and of a call that was stopped."""

    def __init__(self, to: Path, old: Index | None, embedder: Embedder) -> None:
        self.parts = to.with_name(f".{to.name}.vectors")
        self._prefix = embedder.identity.replace(" ", "-")[:24]
        self._old = old
        self._rows: dict[bytes, int] = {}
        self._new: dict[bytes, NDArray[np.float32]] = {}
        if old:
            self._rows = {key: row for row, key in enumerate(old.table["key"].to_pylist())}
        for path in sorted(self.parts.glob(f"{self._prefix}-*.safetensors")) if self.parts.is_dir() else []:
            part = safetensors.load(path.read_bytes())
            self._new |= {key.tobytes(): vector for key, vector in zip(part["keys"], part["vectors"], strict=True)}
        self.begun = len(self._new)

    def __contains__(self, key: bytes) -> bool:
        return key in self._new or key in self._rows

    def keep(self, keys: Sequence[bytes], found: NDArray[np.float32]) -> None:
        """Remember new vectors, on the disk too: a call that is stopped has not made them in vain."""
        files.make_folder(self.parts)
        stored = safetensors.save({"keys": np.frombuffer(b"".join(keys), np.uint8).reshape(len(keys), -1), "vectors": found})
        number = sum(1 for _ in self.parts.glob(f"{self._prefix}-*.safetensors"))
        files.write_bytes(self.parts / f"{self._prefix}-{number:06d}.safetensors", stored)
        self._new |= dict(zip(keys, found, strict=True))

    def pieces(self, passages: Sequence[Passage], dimensions: int) -> Iterator[NDArray[np.float32]]:
        """The vectors of passages, ROWS_AT_ONCE at a time."""
        for start in range(0, len(passages), ROWS_AT_ONCE):
            some = passages[start : start + ROWS_AT_ONCE]
            piece = np.zeros((len(some), dimensions), np.float32)
            from_old: dict[int, list[int]] = {}
            for place, passage in enumerate(some):
                key = passage.key
                if key in self._new:
                    piece[place] = self._new[key]
                else:
                    from_old.setdefault(self._rows[key], []).append(place)
            self._copy(piece, from_old)
            yield piece

    def _copy(self, piece: NDArray[np.float32], places: dict[int, list[int]]) -> None:
        """Vectors of the old index, run by run: neighbors stayed neighbors."""
        assert self._old is not None or not places
        rows = sorted(places)
        start = 0
        for end in range(1, len(rows) + 1):
            if end == len(rows) or rows[end] != rows[end - 1] + 1:
                assert self._old is not None
                found = self._old.vectors.rows(rows[start], rows[end - 1] + 1)
                for row, vector in zip(rows[start:end], found, strict=True):
                    piece[places[row]] = vector
                start = end


def _embed(passages: Sequence[Passage], known: _Known, embedder: Embedder, reporter: Reporter) -> int:
    """Make the vectors that are missing; gives how many."""
    if known.begun:
        reporter.say(f"going on: {known.begun:,} passages were embedded by a call that was stopped")
    missing = {key: passage for passage in passages if (key := passage.key) not in known}
    waiting = list(missing.items())
    with reporter.bar(f"embedding with {embedder.name}", len(waiting)) as bar:
        for start in range(0, len(waiting), KEPT_AT_ONCE):
            some = waiting[start : start + KEPT_AT_ONCE]
            known.keep([key for key, _ in some], embedder.documents([passage.whole for _, passage in some]))
            bar.advance(start + len(some))
    return len(waiting)


def _store_of(store: str, passages: int, reporter: Reporter) -> str:
    """Where vectors are kept: as asked, else in LanceDB above MOST_PLAIN where that is installed."""
    from importlib.util import find_spec

    if store != "auto":
        if store not in vectors.STORES:
            raise CallError("there is no such store", where=f"--store {store}", next_step="auto, plain or lancedb")
        return store
    if passages <= vectors.MOST_PLAIN:
        return "plain"
    if find_spec("lancedb") is None:
        reporter.say(f'{passages:,} passages are compared one by one; pip install "luthier[lancedb]" and the same call make that faster')
        return "plain"
    return "lancedb"


def _write(staging: Path, facts: Facts, gathered: _Gathered, known: _Known) -> None:
    _write_passages(staging / PASSAGES, gathered.passages)
    words.write_words((passage.whole for passage in gathered.passages), staging / WORDS)
    write = vectors.STORES[facts.store][0]
    write(staging, facts.passages, facts.dimensions, lambda: known.pieces(gathered.passages, facts.dimensions))
    if gathered.rejected:
        files.write_lines(staging / REJECTED, [rejected_row(row) for row in gathered.rejected])
    files.write_json(staging / FACTS, {"schema": SCHEMA, **dataclasses.asdict(facts)})


def _write_passages(path: Path, passages: Sequence[Passage]) -> None:
    import pyarrow as pa

    kinds: dict[str, Any] = {"first": pa.int64(), "last": pa.int64()}
    schema = pa.schema([*((name, kinds.get(name, pa.large_string())) for name in COLUMNS), ("key", pa.binary(16))])
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        for start in range(0, len(passages), ROWS_AT_ONCE):
            some = passages[start : start + ROWS_AT_ONCE]
            columns = [pa.array([getattr(one, name) for one in some], schema.field(name).type) for name in COLUMNS]
            writer.write_batch(pa.record_batch([*columns, pa.array([one.key for one in some], pa.binary(16))], schema=schema))


def _told(to: Path, old: Index | None, gathered: _Gathered, embedded: int) -> Indexed:
    before = {one.name: one.sha256 for one in old.facts.documents} if old else {}
    now = {one.name: one.sha256 for one in gathered.documents}
    return Indexed(
        folder=str(to),
        documents=len(now),
        new=len(now.keys() - before.keys()),
        changed=sum(before[name] != now[name] for name in before.keys() & now.keys()),
        removed=len(before.keys() - now.keys()),
        passages=len(gathered.passages),
        embedded=embedded,
        duplicates=gathered.duplicates,
        rejected=dict(Counter(row.reason for row in gathered.rejected)),
    )


def embedder_name(to: Path) -> str | None:
    """The embedder that the index in `to` was made with; None where there is none yet."""
    return read_facts(to).embedder if is_index(to) else None
