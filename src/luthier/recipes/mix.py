"""`luthier data mix`: several sources in one file, by weight, or with a share of general rows added (the cure for forgetting)."""

import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from luthier import files
from luthier.data import portions
from luthier.data.conversations import AS_FOUND, conversations, files_of, rejected_row
from luthier.data.formats.build import Built
from luthier.data.formats.write import write_as
from luthier.data.read.source import SourceFile
from luthier.errors import CallError, DataError
from luthier.records import Rejected, Source
from luthier.reporting import Reporter, Silent

COMMON_FORMAT = "messages"
ORIGIN = "mixed_from"


@dataclass(frozen=True, slots=True)
class Portion:
    """One source and its weight; None takes all of its rows. Of a source that is added, `weight` is its share of all others together."""

    path: str
    weight: Fraction | None


@dataclass(frozen=True, slots=True)
class Taken:
    """What was taken of one source: `rows` of its `available` ones, each used up to `times` times."""

    path: str
    format: str
    available: int
    rows: int
    rejected: int

    @property
    def times(self) -> float:
        return self.rows / self.available if self.available else 0.0


@dataclass(frozen=True, slots=True)
class Mixed:
    """What was written. `converted` is the format that rows were turned into, "" where they stand verbatim."""

    file: str
    rows: int
    converted: str
    taken: list[Taken]
    rejected: dict[str, int]
    rejected_file: str


@dataclass(frozen=True, slots=True)
class _Ready:
    """A source that was looked through: its files, their format, how many rows can be used, and those that cannot."""

    portion: Portion
    found: list[SourceFile]
    formats: set[str]
    available: int
    rejected: list[Rejected]


def mix(
    sources: Sequence[Portion],
    added: Sequence[Portion],
    to: Path,
    *,
    rows: int | None = None,
    seed: int = 0,
    origins: bool = False,
    reporter: Reporter | None = None,
) -> Mixed:
    """Write the mix to the new file `to`: the same call gives the same file. Rows stand verbatim where all sources have one format.

    Without `rows` no row of the weighted sources is used twice; with it, small sources may be. Rows come from the sources in turn, in each
    source's own order. `origins` adds a column with the file and line of each. Raises CallError where `to` exists or weights are missing.
    """
    reporter = reporter or Silent()
    rejected_file = to.with_name(f"{to.name.removesuffix('.jsonl')}.rejected.jsonl")
    files.refuse_existing(to)
    files.refuse_existing(rejected_file)
    portions_of = [*sources, *added]
    _check_weights(sources)
    with tempfile.TemporaryDirectory() as spool:
        # Each source is found by itself, but one file in two of them would be counted twice: that is what finding all at once refuses.
        files_of([portion.path for portion in portions_of], Path(spool), lambda note: None)
        found = [files_of([portion.path], Path(spool), reporter.say) for portion in portions_of]
        formats = {conversations(file, AS_FOUND, lambda note: None).name for of_portion in found for file in of_portion}
        common = COMMON_FORMAT if len(formats) > 1 else ""
        ready = [_look_through(portion, one, common) for portion, one in zip(portions_of, found, strict=True)]
        counts = _counts(ready, len(sources), rows)
        files.make_folder(to.parent)
        files.write_pieces(to, _lines(ready, counts, seed, common, origins))
    rejected = [row for one in ready for row in one.rejected]
    if rejected:
        files.write_lines(rejected_file, (rejected_row(row) for row in rejected))
    taken = [
        Taken(one.portion.path, ", ".join(sorted(one.formats)), one.available, count, sum(row.rows for row in one.rejected))
        for one, count in zip(ready, counts, strict=True)
    ]
    reasons = Counter(row.reason for row in rejected)
    return Mixed(str(to), sum(counts), common, taken, dict(reasons), str(rejected_file) if rejected else "")


def _check_weights(sources: Sequence[Portion]) -> None:
    without = [portion.path for portion in sources if portion.weight is None]
    if without and len(without) < len(sources):
        raise CallError("has no weight, and others have one", where=without[0], next_step=f"{without[0]}:0.5 gives it one; or leave all weights out")


def _look_through(portion: Portion, found: list[SourceFile], common: str) -> _Ready:
    formats: set[str] = set()
    rejected = []
    available = 0
    for file in found:
        formats.add(conversations(file, AS_FOUND, lambda note: None).name)
        for row in _rows_of(file, common):
            if isinstance(row, Rejected):
                rejected.append(row)
            else:
                available += 1
    if not available:
        raise DataError("no row of it can be used", where=portion.path, next_step="luthier data check says what is wrong with its rows")
    return _Ready(portion, found, formats, available, rejected)


def _rows_of(file: SourceFile, common: str) -> Iterator[tuple[str, Source] | Rejected]:
    """Each conversation as it will be written, with its place."""
    for built in conversations(file, AS_FOUND, lambda note: None).built:
        yield built if isinstance(built, Rejected) else _written(built, common)


def _written(built: Built, common: str) -> tuple[str, Source] | Rejected:
    if not common:
        return built.raw, built.conversation.source
    try:
        return json.dumps(write_as(common, built.conversation), ensure_ascii=False), built.conversation.source
    except DataError as error:
        return Rejected("not_expressible", error.problem, built.conversation.source, built.raw, built.rows)


def _counts(ready: Sequence[_Ready], own: int, rows: int | None) -> list[int]:
    """How many rows of each source: `own` of them are mixed, the others are added to the mix."""
    available = [one.available for one in ready]
    weights = [Fraction(one.available) if one.portion.weight is None else one.portion.weight for one in ready[:own]]
    shares = [one.portion.weight or Fraction(0) for one in ready[own:]]
    if rows is not None:
        whole = sum(weights)
        return portions.apportion(rows, [*(weight / whole for weight in weights), *shares])
    total = portions.largest_total(available[:own], weights)
    return [*portions.apportion(total, weights), *(round(total * share) for share in shares)]


def _lines(ready: Sequence[_Ready], counts: Sequence[int], seed: int, common: str, origins: bool) -> Iterator[bytes]:
    streams = [_stream(one, count, seed, place, common) for place, (one, count) in enumerate(zip(ready, counts, strict=True))]
    for place in portions.interleaved(counts):
        text, source = next(streams[place])
        if origins:
            text = "\n".join(json.dumps({**json.loads(line), ORIGIN: str(source)}, ensure_ascii=False) for line in text.split("\n"))
        yield (text + "\n").encode("utf-8", "backslashreplace")


def _stream(one: _Ready, count: int, seed: int, place: int, common: str) -> Iterator[tuple[str, Source]]:
    for chosen in portions.drawn(one.available, count, seed, place):
        good = (row for file in one.found for row in _rows_of(file, common) if not isinstance(row, Rejected))
        for row, taken in zip(good, chosen, strict=True):
            if taken:
                yield row
