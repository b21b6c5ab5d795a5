"""`luthier data split`: rows to train on, to evaluate on and to test on, where rows that ask the same stay on one side."""

import json
import tempfile
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

from luthier import files
from luthier.config.checks import CheckSettings
from luthier.data import dedup, portions
from luthier.data.conversations import Reading, conversations, files_of, rejected_row
from luthier.data.formats.build import Built
from luthier.data.quality.near import near_duplicate_groups
from luthier.data.quality.words import question
from luthier.data.read.source import SourceFile
from luthier.errors import CallError, DataError
from luthier.records import Rejected
from luthier.reporting import Reporter, Silent


@dataclass(frozen=True, slots=True)
class Divided:
    """What was written: rows as read in each part, those set aside by reason, and the share of each category in each part."""

    folder: str
    read: int
    rows: dict[str, int]
    rejected: dict[str, int]
    categories: dict[str, dict[str, int]]


@dataclass(slots=True)
class _Surveyed:
    """What the draw needs to know of each row: what it must stay together with, and its category."""

    keys: list[list[Hashable]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    categories: list[str] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    rejected: Counter[str] = field(default_factory=Counter)


def split(
    paths: Sequence[str], to: Path, shares: dict[str, Fraction], reading: Reading, *, seed: int, by: str, near: bool, reporter: Reporter | None = None
) -> Divided:
    """Write train.jsonl and a file for each of `shares` (name -> 0..1) to the new folder `to`, rows verbatim.

    Rows that ask the same stay together, and so do rows with the same value in the column `by`, and with `near` near duplicates. Where rows
    have a category, each part gets its share of each. Raises CallError where `to` has something in it, DataError where a part would be empty.
    """
    reporter = reporter or Silent()
    files.refuse_existing(to)
    if sum(shares.values()) >= 1:
        raise CallError("nothing would be left to train on", where=" ".join(f"--{name}" for name in shares), next_step="smaller shares, such as 5%")
    with tempfile.TemporaryDirectory() as spool:
        found = files_of(paths, Path(spool), reporter.say)
        surveyed = _survey(found, reading, by, reporter)
        if near:
            groups = near_duplicate_groups(surveyed.asked, CheckSettings().near_duplicate_threshold)
            for number, group in enumerate(groups):
                for row in group:
                    surveyed.keys[row].append(("near", number))
        parts = portions.divide(portions.groups_of(surveyed.keys), surveyed.asked, surveyed.categories, shares, seed)
        _check_parts(parts, shares, paths)
        files.build_folder(to, lambda staging: _write(staging, found, reading, parts, shares, bool(surveyed.rejected)))
    rows: Counter[str] = Counter()
    categories: dict[str, Counter[str]] = {}
    for part, size, category in zip(parts, surveyed.sizes, surveyed.categories, strict=True):
        rows[part] += size
        if category:
            categories.setdefault(category, Counter())[part] += size
    read = sum(rows.values()) + sum(surveyed.rejected.values())
    in_order = {name: rows[name] for name in (portions.REST, *shares)}
    return Divided(str(to), read, in_order, dict(surveyed.rejected), {name: dict(count) for name, count in sorted(categories.items())})


def _survey(found: Sequence[SourceFile], reading: Reading, by: str, reporter: Reporter) -> _Surveyed:
    surveyed = _Surveyed()
    for file in found:
        formatted = conversations(file, reading, reporter.say)
        for built in formatted.built:
            if isinstance(built, Rejected):
                surveyed.rejected[built.reason] += built.rows
                continue
            together: list[Hashable] = [("asks", dedup.group(built.conversation))]
            if by:
                together.append(("by", _value_of(built, by)))
            surveyed.keys.append(together)
            surveyed.asked.append(question(built.conversation))
            surveyed.categories.append(built.conversation.category)
            surveyed.sizes.append(built.rows)
        reporter.say(f"{file.name}: {formatted.evidence}")
    return surveyed


def _value_of(built: Built, column: str) -> str:
    row = json.loads(built.raw.split("\n", 1)[0])
    if column not in row:
        raise DataError(
            f"has no column {column} (it has {', '.join(row)})", where=str(built.conversation.source), next_step="name a column that every row has"
        )
    return json.dumps(row[column], sort_keys=True)


def _check_parts(parts: Sequence[str], shares: dict[str, Fraction], paths: Sequence[str]) -> None:
    for name in (portions.REST, *shares):
        if name not in parts:
            raise DataError(
                f"{len(parts):,} rows leave none for {name}.jsonl (rows that belong together are not divided)",
                where=", ".join(paths),
                next_step="larger shares, or more rows",
            )


def _write(staging: Path, found: Sequence[SourceFile], reading: Reading, parts: Sequence[str], shares: dict[str, Fraction], rejected: bool) -> None:
    for name in (portions.REST, *shares):
        files.write_pieces(staging / f"{name}.jsonl", _rows_of_part(name, found, reading, parts))
    if rejected:
        files.write_lines(staging / "rejected.jsonl", (rejected_row(row) for row in _all(found, reading) if isinstance(row, Rejected)))


def _rows_of_part(name: str, found: Sequence[SourceFile], reading: Reading, parts: Sequence[str]) -> Iterator[bytes]:
    good = (built for built in _all(found, reading) if isinstance(built, Built))
    for built, part in zip(good, parts, strict=True):
        if part == name:
            yield (built.raw + "\n").encode("utf-8", "backslashreplace")


def _all(found: Sequence[SourceFile], reading: Reading) -> Iterator[Built | Rejected]:
    for file in found:
        yield from conversations(file, reading, lambda note: None).built
