"""`luthier judge RUN --with URL`: a model behind an endpoint compares a run's answers with others, or grades them."""

import csv
import dataclasses
import hashlib
import io
import json
import os
import re
import uuid
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier import files, run_lock
from luthier.data import journal as journals
from luthier.data.endpoint import LOOPBACK, Callers, Endpoint
from luthier.diagnose.report import write_report
from luthier.errors import CallError, DataError, LuthierError
from luthier.evaluate import judge_questions, judged_files, judging
from luthier.evaluate.judge_prompts import How, read_prompts
from luthier.evaluate.judging import Answered, Asked, GradeResult, PairResult, Task
from luthier.evaluate.length_control import Difficulties, read_difficulties
from luthier.evaluate.rivals import Rivals, rivals
from luthier.reporting import Reporter, Silent
from luthier.run_folder import SCHEMA, RunFolder
from luthier.stopping import stopping_on_signals

# A judging above this price, or without prices above so many tokens at another machine, is asked about first.
DEAR, DEAR_TOKENS = 1.0, 500_000
# What an explanation with a verdict takes, as a rule; for the estimate only.
USUAL_REPLY_TOKENS = 300
CHARACTERS_PER_TOKEN = 4


@dataclass(frozen=True, slots=True)
class Call:
    """What is to be judged, and by whom. `against`: base, reference, a run, or a file of answers. Prices are per million tokens."""

    endpoint: str
    model: str
    against: str = "base"
    how: How = "pairwise"
    questions: Path | None = None
    references: Path | None = None
    prompts: Path | None = None
    difficulties: Path | None = None
    rows: int | None = None
    max_new_tokens: int | None = None
    key_env: str | None = None
    max_tokens: int = 1024
    requests_per_minute: float | None = None
    concurrency: int = 4
    timeout_s: float = 120.0
    price_per_million_input: float | None = None
    price_per_million_output: float | None = None


@dataclass(frozen=True, slots=True)
class Judged:
    """What came of it, and where it stands. `cost` is in the currency of the prices, None without prices."""

    folder: str
    names: tuple[str, str]
    judge: str
    how: How
    questions: int
    requests: int
    refused: int
    prompt_tokens: int
    completion_tokens: int
    unmetered: int
    cost: float | None
    pairs: PairResult | None = None
    grades: GradeResult | None = None


class Interrupted(LuthierError):
    """Ctrl-C or SIGTERM: all that was answered is kept. The exit code is the shell's own for that signal."""

    def __init__(self, asked: Asked, number: int, folder: Path) -> None:
        super().__init__(f"stopped with {len(asked.said):,} replies of the judge kept", where=str(folder), next_step="the same command goes on")
        self.exit_code = 128 + number


def judge(run: RunFolder, call: Call, reporter: Reporter | None = None, *, agree: Callable[[str], bool] = lambda question: True) -> Judged:
    """Judge a run's answers and write RUN/judgments/NAME; goes on where an earlier call like this one stopped.

    `agree` is asked before a dear judging; the answer no raises CallError. Raises LuthierError for what the endpoint refuses.
    """
    reporter = reporter or Silent()
    prompts = read_prompts(call.prompts)
    difficulties = _difficulties(call)
    endpoint = Endpoint(call.endpoint, _key(call.key_env), timeout_s=call.timeout_s, requests_per_minute=call.requests_per_minute)
    if endpoint.shows_key:
        reporter.say(f"{endpoint.host}: the key is sent in clear text (http); https hides it")
    with run_lock.held(run.path, "judge", reporter.say):
        found = rivals(run, call.against, call.questions, call.references, call.rows, call.max_new_tokens, reporter)
        tasks = judging.tasks(call.how, found.rows, prompts)
        folder = run.path / "judgments" / _name(call, found, tasks)
        _estimate(call, tasks, folder, endpoint, reporter, agree)
        asked = _ask(call, tasks, folder, endpoint, reporter)
        judged = _judged(call, found, folder, asked, difficulties)
        _write(call, found, folder, asked, judged)
        write_report(run)
    return judged


def _ask(call: Call, tasks: Sequence[Task], folder: Path, endpoint: Endpoint, reporter: Reporter) -> Asked:
    first = {"endpoint": endpoint.url, "model": call.model, "how": call.how, "against": call.against, "id": uuid.uuid4().hex}
    path = folder / "journal.jsonl"
    journal = journals.resume(path, first, "") if path.exists() else journals.begin(path, first)
    settings = {"model": call.model, "max_tokens": call.max_tokens, "temperature": 0}
    callers = Callers(endpoint, call.concurrency)
    with closing(journal), callers, reporter.bar(f"asking {call.model}", len(tasks)) as bar, stopping_on_signals() as stop:
        asked = judging.ask(tasks, settings, journal, callers, stop, bar.advance)
        if stop.signal and len(asked.said) + len(asked.refused) < len(tasks):
            raise Interrupted(asked, stop.signal, folder)
    if tasks and not asked.said:
        raise DataError("the judge answered nothing", where=str(path), next_step="see what it says there, and try another model")
    return asked


def _difficulties(call: Call) -> Difficulties | None:
    """AlpacaEval's difficulties, once it is sure that there is one for each question."""
    if call.difficulties is None:
        return None
    if call.how != "pairwise" or call.questions is None:
        raise CallError("goes with pairs of AlpacaEval's questions", where="--difficulties", next_step="--how pairwise --questions alpaca_eval.json")
    known = read_difficulties(call.difficulties)
    for place, question in enumerate(judge_questions.read_questions(call.questions)[: call.rows]):
        if len(question.turns) > 1:
            where = f"{call.questions}: {question.id}"
            raise DataError("has several turns, and AlpacaEval's have one", where=where, next_step="leave --difficulties out")
        if place not in known.by_question:
            problem = f"knows no difficulty of question {question.id} of {call.questions}, which is at place {place} there"
            raise DataError(problem, where=str(call.difficulties), next_step="it is for AlpacaEval's 805 instructions in their order")
    return known


def _key(name: str | None) -> str:
    if name is None:
        return ""
    if not (key := os.environ.get(name, "").strip()):
        raise CallError("this environment variable is not set, or empty", where=f"--key-env {name}", next_step=f"export {name}=... before the call")
    return key


def _name(call: Call, found: Rivals, tasks: Sequence[Task]) -> str:
    """The folder of this judging: the same questions, answers, prompts and judge have the same one."""
    content = json.dumps([call.endpoint, call.model, call.max_tokens, *([task.key, task.messages] for task in tasks)])
    digest = hashlib.sha256(content.encode("utf-8", "backslashreplace")).hexdigest()[:8]
    return f"{_slug(found.names[1])}-{call.how}-by-{_slug(call.model)}-{digest}"


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._]+", "-", name).strip("-.")[:40] or "model"


def _estimate(call: Call, tasks: Sequence[Task], folder: Path, endpoint: Endpoint, reporter: Reporter, agree: Callable[[str], bool]) -> None:
    """Say what the judging will take, and ask where that is much."""
    kept = journal_of(folder)
    left = [task for task in tasks if task.key not in kept]
    sent = sum(len(message["content"]) for task in left for message in task.messages) // CHARACTERS_PER_TOKEN
    made = len(left) * min(call.max_tokens, USUAL_REPLY_TOKENS)
    price = _price(call, sent, made)
    told = "" if price is None else f", about {price:,.2f} by the prices given"
    again = f" ({len(tasks) - len(left):,} are answered already)" if len(left) < len(tasks) else ""
    line = f"{len(left):,} requests to {endpoint.host}{again}: about {sent:,} tokens sent and {made:,} made{told}"
    reporter.say(line)
    remote = endpoint.host.rpartition(":")[0].strip("[]") not in LOOPBACK and endpoint.host not in LOOPBACK
    dear = price > DEAR if price is not None else remote and sent + made > DEAR_TOKENS
    if dear and not agree(f"{line}. Go on?"):
        raise CallError("was not begun", where="luthier judge", next_step="--rows for fewer questions, or --yes")


def _price(call: Call, sent: int, made: int) -> float | None:
    prices = (call.price_per_million_input, call.price_per_million_output)
    if prices == (None, None):
        return None
    return ((prices[0] or 0) * sent + (prices[1] or 0) * made) / 1e6


def journal_of(folder: Path) -> dict[str, dict[str, Any]]:
    """The judge's replies that a folder keeps, by their task."""
    path = folder / "journal.jsonl"
    entries: dict[str, dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else []:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and entry.get("kind") == "answered":
            entries[entry["task"]] = entry
    return entries


def _judged(call: Call, found: Rivals, folder: Path, asked: Asked, difficulties: Difficulties | None) -> Judged:
    pairs = judging.pair_result(found.rows, judging.pairings(found.rows, asked), difficulties) if call.how == "pairwise" else None
    return Judged(
        folder=str(folder),
        names=found.names,
        judge=call.model,
        how=call.how,
        questions=len(found.rows),
        requests=len(asked.said),
        refused=len(asked.refused),
        prompt_tokens=asked.prompt_tokens,
        completion_tokens=asked.completion_tokens,
        unmetered=asked.unmetered,
        cost=_price(call, asked.prompt_tokens, asked.completion_tokens),
        pairs=pairs,
        grades=judging.grade_result(found.rows, asked) if call.how == "single" else None,
    )


def _write(call: Call, found: Rivals, folder: Path, asked: Asked, judged: Judged) -> None:
    """The result, and the same in MT-Bench's and AlpacaEval's files."""
    replies = journal_of(folder)
    files.write_json(
        folder / "result.json",
        {"schema": SCHEMA, "against": call.against, "difficulties": str(call.difficulties or ""), **dataclasses.asdict(judged)},
    )
    if judged.pairs is None:
        lines = [line for row in found.rows for line in judged_files.single_judgments(row, found.names, call.model, asked, replies)]
        files.write_lines(folder / "model_judgment.jsonl", lines)
        return
    pairings = judging.pairings(found.rows, asked)
    rows = {row.question.id: row for row in found.rows}
    lines = [judged_files.pair_judgment(rows[one.question], one, found.names, call.model, replies) for one in pairings]
    files.write_lines(folder / "model_judgment.jsonl", lines)
    if all(len(row.question.turns) == 1 for row in found.rows):
        _write_alpaca(call, found, folder, pairings, judged.pairs, rows, replies)


def _write_alpaca(
    call: Call,
    found: Rivals,
    folder: Path,
    pairings: Sequence[judging.Pairing],
    result: PairResult,
    rows: dict[str, Answered],
    replies: dict[str, dict[str, Any]],
) -> None:
    annotations = [judged_files.annotation(rows[one.question], one, found.names, call.model, replies) for one in pairings]
    files.write_json(folder / "annotations.json", annotations)
    outputs = [
        {"dataset": row.question.category, "instruction": row.question.turns[0], "output": row.model[0], "generator": found.names[0]}
        for row in found.rows
    ]
    files.write_json(folder / "model_outputs.json", outputs)
    row = judged_files.leaderboard_row(found.names[0], found.rows, pairings, result)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(row))
    writer.writeheader()
    writer.writerow(row)
    files.write_text(folder / "leaderboard.csv", text.getvalue())
