"""The two sides that are judged: a run's answers, and those of its base, of another run, of a file, or the right ones."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from luthier import files
from luthier.config.load import load_config
from luthier.data import ledger
from luthier.engine import Engine, opening
from luthier.errors import CallError, DataError, RunError
from luthier.evaluate import judge_questions
from luthier.evaluate.judge_questions import JudgeQuestion
from luthier.evaluate.judged_answers import answers_of, kept
from luthier.evaluate.judging import Answered
from luthier.reporting import Reporter
from luthier.run_folder import RunFolder, is_run, open_run

BASE, REFERENCE = "base", "reference"
# Answers to general questions have no length that was learned; MT-Bench and AlpacaEval allow about this much.
LONGEST_ANSWER_TOKENS = 512


@dataclass(frozen=True, slots=True)
class Rivals:
    """Both sides' answers to each question, and their names: the run's first."""

    names: tuple[str, str]
    rows: list[Answered]


def rivals(
    run: RunFolder,
    against: str,
    questions: Path | None,
    references: Path | None,
    count: int | None,
    max_new_tokens: int | None,
    reporter: Reporter,
) -> Rivals:
    """The answers of a run and of what it is judged `against`: base, reference, a run (its folder or name) or a file of answers.

    Questions are those of a file, or the run's held-out rows; `count` of them, from the first. An answer has at most `max_new_tokens` (None:
    the run's own limit, or LONGEST_ANSWER_TOKENS for the questions of a file). Answers are kept in RUN/judgments/answers, and not made again.
    """
    if references and not questions:
        raise CallError("--references goes with --questions; held-out rows have their answers", where="--references", next_step="leave it out")
    asked = _questions(run, questions, references)[:count]
    if against == REFERENCE and not all(one.rival for one in asked):
        raise DataError("the questions have no answer of their own to beat", where="--against reference", next_step="--against base, a run or a file")
    other = _other_run(against)
    given = judge_questions.read_answers(Path(against)) if other is None and against not in (BASE, REFERENCE) else None
    if given:  # before anything is loaded
        for one in asked:
            given.to(one)
    longest = max_new_tokens or (LONGEST_ANSWER_TOKENS if questions else int(load_config(run.config).settings.evaluation.max_new_tokens))
    ours, base = _answers(run, asked, longest, reporter, base=against == BASE)
    if other:
        theirs, _ = _answers(other, asked, longest, reporter, base=False, kept_in=run)
    elif given:
        theirs = {one.id: given.to(one) for one in asked}
    else:
        theirs = {one.id: (one.rival,) for one in asked} if against == REFERENCE else base
    name = other.name if other else given.name if given else asked[0].rival_name if against == REFERENCE else BASE
    return Rivals((run.name, name), [Answered(one, ours[one.id], theirs[one.id]) for one in asked])


def _other_run(against: str) -> RunFolder | None:
    if against in (BASE, REFERENCE):
        return None
    if is_run(against) or against == "last" or is_run(str(Path("runs") / against)):
        return open_run(against)
    if not Path(against).is_file():
        raise CallError("is no run and no file", where=f"--against {against}", next_step="base, reference, a run, or a file of answers")
    return None


def _questions(run: RunFolder, questions: Path | None, references: Path | None) -> list[JudgeQuestion]:
    if questions:
        return judge_questions.read_questions(questions, references)
    rows = [row for row in ledger.read_held_out(run) if row.prompt and row.label is not False and not row.tools]
    if not rows:
        raise RunError("the run holds no questions out", where=str(run.path), next_step="--questions FILE, or set data.eval before training")
    return judge_questions.of_rows(rows)


def _answers(
    run: RunFolder, asked: Sequence[JudgeQuestion], longest: int, reporter: Reporter, *, base: bool, kept_in: RunFolder | None = None
) -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]]]:
    """The run's answers, and its base's where they are wanted. The model is loaded only where an answer is missing."""
    # Answers are those of these weights; another run's base is told by where that run lies.
    model = [files.sha256(path) for path in sorted(run.trained.glob("*.safetensors"))] + ([str(run.path.resolve())] if kept_in else [])
    content = json.dumps([[one.id, one.turns, [[turn.role, turn.content] for turn in one.before]] for one in asked] + [longest, model])
    folder = (kept_in or run).path / "judgments" / "answers" / hashlib.sha256(content.encode("utf-8", "backslashreplace")).hexdigest()[:8]
    made = Made(run, folder, asked, longest, reporter)
    ours = made.by(run.name)
    return ours, made.by(BASE) if base else {}


class Made:
    """Answers of one run and its base to the same questions; the engine is opened at the first that is missing."""

    def __init__(self, run: RunFolder, folder: Path, asked: Sequence[JudgeQuestion], longest: int, reporter: Reporter) -> None:
        self._run, self._folder, self._asked, self._longest, self._reporter = run, folder, asked, longest, reporter
        self._engine: Engine | None = None

    def by(self, name: str) -> dict[str, tuple[str, ...]]:
        path = self._folder / f"{name}.jsonl"
        known = kept(path)
        if all(one.id in known for one in self._asked):
            return known
        self._engine = self._engine or opening.open_trained(self._run, self._reporter)
        with self._reporter.bar(f"asking {name}", len(self._asked)) as bar:
            if name != BASE:
                return answers_of(self._engine, name, self._asked, path, self._longest, bar.advance)
            with opening.as_base(self._engine, self._run) as engine:
                return answers_of(engine, name, self._asked, path, self._longest, bar.advance)
