"""Write a new file without the rows that harm, and the list of what was taken out. The original is never touched."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier import files
from luthier.config.checks import CheckSettings
from luthier.config.load import Config
from luthier.data import ingest
from luthier.data.formats.table import FORMATS
from luthier.data.ingest import Ingested
from luthier.data.quality.check import Finding, Given
from luthier.data.quality.run import names_to_run, run_checks
from luthier.data.quality.table import CHECKS
from luthier.data.read.rows import rows_of
from luthier.data.read.source import SourceFile, find_sources
from luthier.data.store import AllRows
from luthier.errors import CallError, DataError
from luthier.records import Rejected, Row
from luthier.reporting import Reporter, Silent
from luthier.run_folder import SCHEMA

# What certainly harms and loses nothing: a row that is there already, and a row that the model is measured on.
BY_DEFAULT = ("duplicates", "overlap")
# A row of these is no JSON as it stands.
NO_JSON = ("csv", "tsv", "text")


@dataclass(frozen=True, slots=True)
class Cleaned:
    """What became of the rows, and where they lie now. `reasons` counts rows; one row may have several."""

    read: int
    kept: int
    removed: int
    reasons: dict[str, int]
    kept_file: Path
    removed_file: Path
    notes: list[str]


@dataclass(frozen=True, slots=True)
class _Part:
    """One source: its file, its rows in the cache, and the numbers of those that go, each with its reasons (name, detail)."""

    file: SourceFile
    source: Ingested
    gone: dict[int, list[tuple[str, str]]]


def clean(config: Config, to: Path, *, only: Sequence[str] = (), skip: Sequence[str] = (), reporter: Reporter | None = None) -> Cleaned:
    """Write the rows that stay to `to`, verbatim and in order, and the others to its `.removed.jsonl`.

    Raises CallError where a file of these names is there, DataError where rows cannot be read or none would be left.
    """
    reporter = reporter or Silent()
    removed_file = to.with_name(f"{to.stem}.removed.jsonl")
    _check_free(to, removed_file)
    parts, findings, notes = _looked_at(config, only, skip, reporter)
    read = sum(part.source.meta["read"] for part in parts)
    reasons: Counter[str] = Counter()
    for part in parts:
        sizes = part.source.rows.column("rows")
        reasons.update(part.source.meta["rejected"])
        for place, why in part.gone.items():
            reasons.update({name: int(sizes[place]) for name, _ in why})
    removed = sum(_removed_rows(part) for part in parts)
    if removed == read:
        next_step = "mend the rows (luthier data check says why), or take out less"
        raise DataError(f"of {read:,} rows none would be left", where=parts[0].file.name, next_step=next_step)
    files.make_folder(to.parent)
    files.write_lines(removed_file, (entry for part in parts for entry in _removed(part)))
    try:
        files.write_pieces(to, (f"{line}\n".encode("utf-8", "backslashreplace") for part in parts for line in _kept(part, config)))
    except BaseException:
        removed_file.unlink()  # one without the other says nothing
        raise
    counts = {name: reasons.get(name, 0) for name in [*(finding.check for finding in findings), *sorted(reasons)]}
    return Cleaned(read, read - removed, removed, counts, to, removed_file, notes)


def as_json(cleaned: Cleaned) -> dict[str, Any]:
    """The counts for machines."""
    counts = {"rows": {"read": cleaned.read, "kept": cleaned.kept, "removed": cleaned.removed}, "reasons": cleaned.reasons}
    return {"schema": SCHEMA, **counts, "kept_file": str(cleaned.kept_file), "removed_file": str(cleaned.removed_file), "notes": cleaned.notes}


def _check_free(to: Path, removed_file: Path) -> None:
    if to.suffix != ".jsonl":
        raise CallError("the rows are written as .jsonl", where=f"--to {to}", next_step=f"--to {to.with_suffix('.jsonl')}")
    for path in (to, removed_file):
        if path.exists() or path.is_symlink():
            raise CallError("is there already, and nothing is overwritten", where=str(path), next_step="choose another name for --to, or move it")


def _looked_at(config: Config, only: Sequence[str], skip: Sequence[str], reporter: Reporter) -> tuple[list[_Part], list[Finding], list[str]]:
    """Every source with the rows that go, and what the checks found."""
    settings, base = config.settings.data, config.file.parent
    spool = ingest.folder() / "spool"
    notes: list[str] = []
    found = find_sources(settings.sources, base, spool, notes.append)
    sources = [ingest.ingest(file, settings, reporter) for file in found]
    notes += [note for source in sources for note in source.meta["notes"]]
    _check_writable(found, sources)
    rows = AllRows([source.rows for source in sources])
    given = Given(settings=_chosen(config.settings.checks, only, skip), held_out=_held_out(config, spool, reporter))
    names_to_run(given)  # an unknown name is told before the work
    with reporter.bar("checking", max(1, len(rows))) as bar:
        findings = run_checks(rows, given, bar.advance)
    for finding in findings:
        if not finding.removable and finding.found:
            raise CallError(
                f"taking out what {finding.check} points at would mend nothing ({finding.said})",
                where=f"--only {finding.check}",
                next_step=finding.cure or "leave it out of --only",
            )
    why: defaultdict[int, list[tuple[str, str]]] = defaultdict(list)
    for finding in findings:
        details = {str(concern.source): concern.detail + (f" ({concern.other})" if concern.other else "") for concern in finding.worst}
        for place in finding.places:
            why[place].append((finding.check, details.get(str(rows.source(place)), CHECKS[finding.check].what)))
    starts = rows.starts.tolist()
    return [_Part(file, *pair) for file, pair in zip(found, _by_source(sources, why, starts), strict=True)], findings, notes


def _by_source(sources: Sequence[Ingested], why: dict[int, list[tuple[str, str]]], starts: list[int]) -> Iterator[tuple[Ingested, dict[int, Any]]]:
    for source, start in zip(sources, starts, strict=False):
        yield source, {place - start: why[place] for place in range(start, start + len(source.rows)) if place in why}


def _chosen(settings: CheckSettings, only: Sequence[str], skip: Sequence[str]) -> CheckSettings:
    wanted = list(only) or [name for name in BY_DEFAULT if name not in settings.off]
    off = [name for name in CHECKS if name not in wanted]
    return settings.model_copy(update={"off": [*off, *skip], "on": [*only]})


def _held_out(config: Config, spool: Path, reporter: Reporter) -> AllRows:
    """The rows of an evaluation file; a share of the training rows needs no look, since a split keeps it apart."""
    if (held_out := config.settings.data.eval_source) is None:
        return AllRows([])
    found = find_sources([held_out], config.file.parent, spool)
    return AllRows([ingest.ingest(file, config.settings.data, reporter).rows for file in found])


def _check_writable(found: Sequence[SourceFile], sources: Sequence[Ingested]) -> None:
    """One file has one format; and the rows of a table that belong together cannot be told from each other any more."""
    formats = {source.meta["format"]: file.name for file, source in zip(found, sources, strict=True)}
    if len(formats) > 1:
        several = ", ".join(f"{file} is {name}" for name, file in formats.items())
        raise DataError(f"one file holds one format, and {several}", where=found[-1].name, next_step="clean them one by one")
    for file, source in zip(found, sources, strict=True):
        if file.kind in NO_JSON and FORMATS[source.meta["format"]].gather:
            next_step = f"luthier data convert {file.name} --to messages -o messages.jsonl, and clean that"
            raise DataError(
                "holds conversations in several rows of a table, which cannot be taken out one by one", where=file.name, next_step=next_step
            )


def _removed_rows(part: _Part) -> int:
    sizes = part.source.rows.column("rows")
    unreadable: int = sum(part.source.meta["rejected"].values())
    return unreadable + sum(int(sizes[place]) for place in part.gone)


def _removed(part: _Part) -> Iterator[dict[str, Any]]:
    """What is taken out, verbatim, with its reasons."""
    for row in part.source.rejections():
        yield _entry(row, [row.reason], row.detail)
    rows = part.source.rows
    for place, why in part.gone.items():
        names, details = [name for name, _ in why], "; ".join(detail for _, detail in why)
        yield _entry(Rejected(names[0], details, rows.source(place), rows.raw(place)), names, details)


def _entry(row: Rejected, checks: list[str], detail: str) -> dict[str, Any]:
    return {"file": row.source.file, "line": row.source.line, "checks": checks, "detail": detail, "raw": row.raw}


def _kept(part: _Part, config: Config) -> Iterator[str]:
    """The rows that stay, as lines of JSON: as they were read, where they were that."""
    rows = part.source.rows
    if part.file.kind in NO_JSON:
        kept = {int(line) for place, line in enumerate(rows.lines) if place not in part.gone}
        for row in rows_of(part.file, config.settings.data.encoding, lambda note: None):
            if isinstance(row, Row) and row.source.line in kept:
                yield json.dumps(row.value, ensure_ascii=False)
        return
    sizes = rows.column("rows")
    for place in range(len(rows)):
        # Further paths of a tree (0 rows) stand in the text of the first.
        if place not in part.gone and sizes[place]:
            yield from _lines(rows.raw(place))


def _lines(raw: str) -> Iterator[str]:
    """A row's text as lines: it may stand over several, or be several rows that are one conversation."""
    if "\n" not in raw:
        yield raw
        return
    decoder, at = json.JSONDecoder(), 0
    while at < len(raw.rstrip()):
        value, end = decoder.raw_decode(raw, at)
        text = raw[at:end]
        yield json.dumps(value, ensure_ascii=False) if "\n" in text else text
        at = end + (len(raw[end:]) - len(raw[end:].lstrip()))
