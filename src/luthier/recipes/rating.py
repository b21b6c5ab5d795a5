"""`luthier judge RUN` without a judge: people compare blind pairs, here or elsewhere, and their ratings are kept in the run."""

import dataclasses
import datetime
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from luthier import files, run_lock
from luthier.diagnose.report import write_report
from luthier.errors import CallError, RunError
from luthier.evaluate import people
from luthier.evaluate.people import Pair, PeopleResult, Rating
from luthier.evaluate.rivals import rivals
from luthier.reporting import Reporter, Silent
from luthier.run_folder import SCHEMA, RunFolder

RATER = re.compile(r"[\w .@-]{1,40}")


@dataclass(frozen=True, slots=True)
class Table:
    """The pairs of a run in RUN/judgments/NAME, and the ratings so far. `equal` pairs had the same answer twice and are shown to nobody."""

    run: RunFolder
    folder: Path
    names: tuple[str, str]
    pairs: list[Pair]
    equal: int

    def waiting(self, rater: str) -> list[Pair]:
        """The pairs that a rater has not rated, in order."""
        rated = {rating.pair for rating in self.ratings() if rating.rater == rater}
        return [pair for pair in self.pairs if pair.id not in rated]

    def ratings(self) -> list[Rating]:
        """Every rating that is kept, the earlier ones first within a rater; a line that a kill cut is left out."""
        found = []
        for path in sorted((self.folder / "ratings").glob("*.jsonl")):
            for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
                try:
                    row = json.loads(line)
                    found.append(Rating(row["pair"], row["rater"], row["marks"]))
                except (ValueError, KeyError, TypeError):
                    continue
        return found

    def keep(self, rater: str, pair: Pair, marks: dict[str, str]) -> None:
        """Keep one rater's marks (a, b or = for each question)."""
        self._add(Rating(pair.id, rater, {question: str(pair.side(mark)) for question, mark in marks.items()}))

    def _add(self, rating: Rating) -> None:
        path = self.folder / "ratings" / f"{_file_name(rating.rater)}.jsonl"
        files.make_folder(path.parent)
        if path.exists() and not path.read_bytes().endswith(b"\n"):
            files.append_line(path, "")  # ends a line that a kill cut
        now = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%dT%H:%M:%SZ}"
        files.append_line(path, json.dumps({**dataclasses.asdict(rating), "at": now}, ensure_ascii=False))

    def take(self, table: Path, rater: str) -> tuple[int, list[str]]:
        """Read a filled-in table as the ratings of `rater`: how many, and a line for each row that was left out."""
        try:
            text = table.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise CallError(f"cannot be read ({error})", where=str(table), next_step="save it as CSV in UTF-8") from error
        ratings, left_out = people.from_csv(text, str(table), self.pairs, check_rater(rater))
        for rating in ratings:
            self._add(rating)
        return len(ratings), left_out

    def export(self, path: Path) -> None:
        """Write the pairs as a table for raters elsewhere, never over a file that exists."""
        files.refuse_existing(path)
        files.make_folder(path.parent)
        files.write_text(path, people.to_csv(self.pairs))

    def result(self) -> PeopleResult:
        """The ratings as numbers, kept as result.json, and in the run's report."""
        found = people.result(self.pairs, self.ratings(), self.equal)
        files.write_json(self.folder / "result.json", {"schema": SCHEMA, "names": self.names, **dataclasses.asdict(found)})
        write_report(self.run)
        return found


def open_table(
    run: RunFolder,
    against: str = "base",
    *,
    questions: Path | None = None,
    rows: int | None = None,
    max_new_tokens: int | None = None,
    seed: int = 0,
    reporter: Reporter | None = None,
) -> Table:
    """The pairs of a run `against` its base, the right answers (reference), another run, or a file of answers; made once, and then the same.

    Which answer stands first is drawn by `seed`. Raises RunError where no pair is left to compare.
    """
    reporter = reporter or Silent()
    with run_lock.held(run.path, "judge", reporter.say):
        found = rivals(run, against, questions, None, rows, max_new_tokens, reporter)
        texts = [(row.question.id, "\n\n".join(row.question.shown), _joined(row.model), _joined(row.rival)) for row in found.rows]
        differing = [text for text in texts if text[2].strip() != text[3].strip()]
        digest = hashlib.sha256(json.dumps([texts, seed]).encode("utf-8", "backslashreplace")).hexdigest()[:8]
        folder = run.path / "judgments" / f"{re.sub(r'[^A-Za-z0-9._]+', '-', found.names[1])[:40]}-by-people-{digest}"
        if not differing:
            raise RunError("all answers are the same: there is nothing to compare", where=str(run.path), next_step="--questions FILE with others")
        pairs = people.blind(differing, seed)
        if not (folder / "pairs.jsonl").exists():
            files.make_folder(folder)
            files.write_lines(folder / "pairs.jsonl", [dataclasses.asdict(pair) for pair in pairs])
    return Table(run, folder, found.names, pairs, len(texts) - len(differing))


def check_rater(name: str) -> str:
    """The name of a rater as it is kept. Raises CallError for one that a file cannot be called by."""
    if not RATER.fullmatch(name.strip()):
        raise CallError("is no name of a rater", where=f"--rater {name}", next_step="letters, digits, space, . - _ or @, at most 40")
    return name.strip()


def _file_name(rater: str) -> str:
    """Names that differ only in what a file name leaves out stay apart."""
    return f"{re.sub(r'[^A-Za-z0-9]+', '-', rater)}-{hashlib.sha256(rater.encode()).hexdigest()[:6]}"


def _joined(turns: Sequence[str]) -> str:
    return turns[0] if len(turns) == 1 else "\n\n".join(f"[answer {number}] {text}" for number, text in enumerate(turns, start=1))
