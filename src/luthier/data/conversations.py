"""Files that are named on the command line, as conversations with the lines that they came from: what split, mix, convert and synth read."""

import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.config.data import SourceSettings
from luthier.config.preference import ROWS
from luthier.data.formats.build import Formatted, How, build
from luthier.data.read.rows import rows_of
from luthier.data.read.source import SourceFile, find_sources
from luthier.errors import DataError
from luthier.records import Rejected, Row


@dataclass(frozen=True, slots=True)
class Reading:
    """How files are read: the names that the settings have below `data`."""

    format: str
    columns: Mapping[str, str]
    encoding: str


# Formats whose rows hold more than answers to learn, and what they hold.
JUDGED = {"preference": "pairs of a better and a worse answer", "kto": "answers that are labeled good or bad"}
# What learns from them, and how such a row is written.
LEARNERS = {"preference": "dpo", "kto": "kto"}
SPELLED = {
    "preference": 'a pair is {"prompt": ..., "chosen": ..., "rejected": ...}',
    "kto": 'a judged row is {"prompt": ..., "completion": ..., "label": true}',
}
AS_FOUND = Reading("auto", {}, "utf-8")


def files_of(paths: Sequence[str], spool: Path, said: Callable[[str], None]) -> list[SourceFile]:
    """The files of rows that the user named; standard input is kept in `spool`. Raises DataError where one is missing or no file of rows."""
    return find_sources([SourceSettings(path=path) for path in paths], Path(), spool, said)


def conversations(file: SourceFile, reading: Reading, said: Callable[[str], None]) -> Formatted:
    """The conversations of a file. Their `raw` is one JSON line a row: as it stood in a .jsonl file, written anew from any other kind."""
    rows = rows_of(file, reading.encoding, said)
    how = How(format=reading.format, columns=reading.columns, strict=True, tree_paths="best")
    return build(rows if file.kind == "jsonl" else _as_lines(rows), how, file.name)


def keep_good(path: str) -> str:
    """The command that makes rows to learn from of a judged file, as it can be typed here."""
    place, here = Path(path), Path.cwd()
    typed = place.relative_to(here) if place.is_relative_to(here) else place
    return f"luthier data convert {shlex.quote(str(typed))} --to messages --only-good -o answers.jsonl"


def check_objective(sources: Sequence[Mapping[str, Any]], objective: str) -> None:
    """Raises DataError where a source (file, path, format) holds other rows than the objective learns from: the worse answer of a pair
    must not be trained, and answers without a judgment cannot be compared."""
    needed = ROWS.get(objective)
    for source in sources:
        held = source["format"]
        if held == needed or (needed is None and held not in JUDGED):
            continue
        other = f"objective: {LEARNERS.get(held, 'sft')} learns from these rows"
        if needed is None:
            problem = f"holds {JUDGED[held]}; training on answers takes rows with one good answer each"
            raise DataError(problem, where=source["file"], next_step=f"{other}; {keep_good(source['path'])} keeps the good answers")
        problem = f"holds {JUDGED.get(held, 'answers without a judgment')}; objective: {objective} learns from {JUDGED[needed]}"
        raise DataError(problem, where=source["file"], next_step=f"{other}; {SPELLED[needed]}")


def rejected_row(row: Rejected) -> dict[str, Any]:
    """A row that was set aside, as it stands in a .rejected.jsonl file."""
    return {"reason": row.reason, "detail": row.detail, "file": row.source.file, "line": row.source.line, "rows": row.rows, "raw": row.raw}


def _as_lines(rows: Iterator[Row | Rejected]) -> Iterator[Row | Rejected]:
    for row in rows:
        yield Row(row.value, json.dumps(row.value, ensure_ascii=False, default=str), row.source) if isinstance(row, Row) else row
