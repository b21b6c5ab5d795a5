"""Files of rows to row files in the cache: each source is read, judged and written once, and found again by its content.

The key is the content's hash, how it is read, and this room's own code, so that neither a changed row nor a changed reader meets an old cache.
"""

import contextlib
import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from luthier import files
from luthier.config.data import DataSettings
from luthier.data import dedup, store
from luthier.data.formats.build import Built, How, build
from luthier.data.quality import flaws
from luthier.data.read.fingerprint import fingerprint
from luthier.data.read.rows import rows_of
from luthier.data.read.source import SourceFile
from luthier.errors import RunError
from luthier.records import Rejected, Source
from luthier.reporting import Bar, Reporter

SCHEMA = 1
ROWS, REJECTED, META = "rows.arrow", "rejected.jsonl", "meta.json"
ADVANCE_EVERY_ROWS = 1000


@dataclass(frozen=True, slots=True)
class Ingested:
    """One source in the cache: its rows, what was set aside while they were read, and what the reader said."""

    key: str
    rows: store.RowFile
    rejected: Path
    meta: dict[str, Any]  # read, used, rejected {reason: n}, first {reason: row}, format, notes, sha256, bytes

    def rejections(self) -> Iterator[Rejected]:
        """The rows that were set aside, verbatim, in order."""
        with open(self.rejected, encoding="utf-8", errors="surrogatepass", newline="\n") as lines:
            for line in lines:
                reason, detail, number, raw, rows = json.loads(line)
                yield Rejected(reason, detail, Source(self.rows.name, number), raw, rows)

    def first_rejections(self) -> Iterator[Rejected]:
        """The first row of each reason, without its text."""
        for reason, detail, number in self.meta["first"].values():
            yield Rejected(reason, detail, Source(self.rows.name, number), "")


def sweep() -> None:
    """Delete what runs that were killed left half-written in the cache. What changed within a day may still be written."""
    for left in folder().glob(".*") if folder().is_dir() else ():
        with contextlib.suppress(OSError):  # another process may have been faster
            if left.is_dir() and time.time() - max(path.stat().st_mtime for path in [left, *left.iterdir()]) > files.ABANDONED_AFTER_S:
                files.remove_folder(left)


def folder() -> Path:
    """Where the cache of rows and tokens lies."""
    return files.home() / "data"


def cached_bytes() -> int:
    """What the cache of rows and tokens takes on the disk."""
    return files.folder_bytes(folder()) if folder().is_dir() else 0


def clear() -> int:
    """Delete the cache of rows and tokens; bytes freed. It is made again from the files when they are next read.

    What came by standard input is gone: a run on it can be used, but not resumed.
    """
    freed = cached_bytes()
    if folder().is_dir():
        files.remove_folder(folder())
    return freed


def ingest(file: SourceFile, settings: DataSettings, reporter: Reporter) -> Ingested:
    """The source's rows, from the cache where it has them whole. Raises DataError where the file cannot be read."""
    sha256 = fingerprint(file)
    how = How(
        format=file.settings.format or settings.format,
        columns={**settings.columns, **file.settings.columns},
        strict=settings.strict,
        tree_paths=settings.tree_paths,
    )
    parts = [sha256, file.kind, file.compression, file.settings.split or "", settings.encoding, repr(how), code_version()]
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    place = folder() / f"rows-{key[:32]}"

    def fill(staging: Path) -> None:
        with reporter.bar(f"reading {file.name}", max(1, file.size_bytes)) as bar:
            _write(staging, file, settings, how, bar)

    meta = {**kept(place, fill), "sha256": sha256, "bytes": file.size_bytes}
    return Ingested(key, store.RowFile(place / ROWS, file.name), place / REJECTED, _renamed(meta, file.name))


def kept(place: Path, fill: Callable[[Path], None]) -> dict[str, Any]:
    """What meta.json says of a folder of the cache; where the folder is not there whole, `fill` writes it (and its meta.json) anew."""
    if (meta := whole(place)) is None:
        files.build_folder(place, fill)
        meta = files.read_json(place / META)["meta"]
    return meta


def whole(place: Path) -> dict[str, Any] | None:
    """What meta.json says of a folder of the cache whose files are all as they were written; None where one is not."""
    try:
        written = files.read_json(place / META)
        meta: dict[str, Any] = written["meta"]
        same = written["sha256"] == _hash(meta) and all(files.sha256(place / name) == sha256 for name, sha256 in meta["files"].items())
        return meta if same else None
    except (RunError, OSError, KeyError, TypeError, AttributeError):
        return None


def write_meta(staging: Path, meta: dict[str, Any]) -> None:
    """End a folder of the cache: meta.json with the hash of every file beside it, and its own."""
    meta = {"schema": SCHEMA, **meta, "files": {file.name: files.sha256(file) for file in sorted(staging.iterdir())}}
    files.write_json(staging / META, {"meta": meta, "sha256": _hash(meta)})


def _hash(meta: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


@lru_cache(maxsize=1)
def code_version() -> str:
    """A hash of this room's code: what it made may be used again only by the code that made it."""
    room = Path(__file__).parent
    digest = hashlib.sha256()
    for file in sorted([*room.rglob("*.py"), room.parent / "records.py"]):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _write(staging: Path, file: SourceFile, settings: DataSettings, how: How, bar: Bar) -> None:
    notes: list[str] = []
    formatted = build(rows_of(file, settings.encoding, notes.append), how, file.name)
    counts: Counter[str] = Counter()
    first: dict[str, list[Any]] = {}
    writer = store.Writer(staging / ROWS, store.ROW_SCHEMA, compressed=True)
    rows_used = read_bytes = 0

    def set_aside() -> Iterator[list[Any]]:
        """Writes what is good on the way, and gives what is not."""
        nonlocal rows_used, read_bytes
        for number, built in enumerate(formatted.built):
            read_bytes += len(built.raw)
            if number % ADVANCE_EVERY_ROWS == 0:
                bar.advance(min(read_bytes, file.size_bytes), f"{number:,} rows")
            judged = built if isinstance(built, Rejected) else _judge(built)
            if isinstance(judged, Built):
                writer.add(judged.conversation.source.line, judged.rows, *_columns(judged))
                rows_used += judged.rows
            else:
                counts[judged.reason] += judged.rows
                entry = [judged.reason, judged.detail, judged.source.line, judged.raw, judged.rows]
                first.setdefault(judged.reason, entry[:3])
                yield entry

    files.write_lines(staging / REJECTED, set_aside())
    writer.close()
    read = rows_used + sum(counts.values())
    said = [f"{file.name}: {formatted.evidence}, {read:,} rows", *notes, *(f"{file.name}: {note}" for note in formatted.notes())]
    meta = {"read": read, "used": rows_used, "rejected": dict(counts), "first": first, "format": formatted.name, "notes": said, "name": file.name}
    write_meta(staging, meta)


def _judge(built: Built) -> Built | Rejected:
    found = flaws.flaw(built.conversation)
    return Rejected(*found, built.conversation.source, built.raw, built.rows) if found else built


def _columns(built: Built) -> tuple[str, str, bytes, bytes, bytes]:
    conversation = built.conversation
    text = store.to_json(conversation)
    trained = text if not conversation.category else store.to_json(replace(conversation, category=""))
    alike = dedup.normalized((*conversation.turns, *conversation.rejected))
    return text, built.raw, store.digest(trained), store.digest(alike), store.digest(dedup.group(conversation))


def _renamed(meta: dict[str, Any], name: str) -> dict[str, Any]:
    """The same content may have been read under another name: what is said names the file of this call."""
    written = meta["name"]
    return meta if written == name else {**meta, "name": name, "notes": [note.replace(f"{written}:", f"{name}:", 1) for note in meta["notes"]]}
