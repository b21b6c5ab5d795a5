"""`luthier data convert`: rows of any known format in another one, and a list of those that it cannot hold."""

import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from luthier import files
from luthier.data.conversations import Reading, conversations, files_of, rejected_row
from luthier.data.formats.build import Built
from luthier.data.formats.write import write_as
from luthier.data.read.source import SourceFile
from luthier.errors import DataError
from luthier.records import Rejected
from luthier.reporting import Reporter, Silent


@dataclass(frozen=True, slots=True)
class Converted:
    """What was written: `read` rows are `used` rows (in `written` conversations) and the rejected ones, by reason."""

    file: str
    read: int
    used: int
    written: int
    rejected: dict[str, int]
    rejected_file: str


def convert(paths: Sequence[str], target: str, to: Path, reading: Reading, reporter: Reporter | None = None, *, only_good: bool = False) -> Converted:
    """Write the rows of `paths` to the new file `to` in the format `target`; what it cannot hold is listed in `to`.rejected.jsonl.

    `only_good` makes rows to learn from of judged ones: of a pair the better answer stays, of labeled rows those that are good.
    Raises CallError where a file to be written exists, and DataError where nothing at all can be written.
    """
    reporter = reporter or Silent()
    rejected_file = to.with_name(f"{to.name.removesuffix('.jsonl')}.rejected.jsonl")
    files.refuse_existing(to)
    files.refuse_existing(rejected_file)
    counts: Counter[str] = Counter()
    rejected: list[Rejected] = []

    def lines(found: Sequence[SourceFile]) -> Iterator[dict[str, Any]]:
        for file in found:
            formatted = conversations(file, reading, reporter.say)
            for built in formatted.built:
                value = built if isinstance(built, Rejected) else _written(built, target, only_good)
                if isinstance(value, Rejected):
                    rejected.append(value)
                    continue
                counts["used"] += built.rows
                counts["written"] += 1
                yield value
            for note in [formatted.evidence, *formatted.notes()]:
                reporter.say(f"{file.name}: {note}")
        if not counts["written"] and rejected:
            first = rejected[0]
            raise DataError(
                f"no row can be written as {target} ({first.reason}: {first.detail})",
                where=str(first.source),
                next_step="--to messages holds the most; --only-good keeps the good answers of judged rows",
            )

    with tempfile.TemporaryDirectory() as spool:
        found = files_of(paths, Path(spool), reporter.say)
        files.make_folder(to.parent)
        files.write_pieces(to, ((json.dumps(value, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace") for value in lines(found)))
    if rejected:
        files.write_lines(rejected_file, (rejected_row(row) for row in rejected))
    reasons: Counter[str] = Counter()
    for row in rejected:
        reasons[row.reason] += row.rows
    read = counts["used"] + sum(reasons.values())
    return Converted(str(to), read, counts["used"], counts["written"], dict(reasons), str(rejected_file) if rejected else "")


def _written(built: Built, target: str, only_good: bool) -> dict[str, Any] | Rejected:
    conversation = built.conversation
    if only_good and conversation.label is False:
        return Rejected("bad_answer", "its label says that the answer is bad", conversation.source, built.raw, built.rows)
    if only_good:
        conversation = replace(conversation, rejected=(), label=None)
    try:
        return write_as(target, conversation)
    except DataError as error:
        return Rejected("not_expressible", error.problem, conversation.source, built.raw, built.rows)
