"""`luthier predict`: answers to every row of a file, each beside its own columns; a prediction that was stopped goes on where it was."""

import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from luthier import files, run_lock
from luthier.config.load import load_config
from luthier.data.conversations import AS_FOUND, Reading, files_of, rejected_row
from luthier.data.questions import Question, questions
from luthier.engine import Engine
from luthier.engine.sampling import Sampling
from luthier.errors import CallError, DataError
from luthier.evaluate import asking, targets
from luthier.evaluate.kept import Kept, key_of
from luthier.records import Rejected, Turn
from luthier.reporting import Bar, Reporter, Silent
from luthier.serve import contract

# Rows that are asked together. A chunk is kept whole or asked again whole: what stands beside a row may decide a tie in bf16.
CHUNK = 128
MAX_NEW_TOKENS = 256
CALL, ANSWERS = "call.json", "answers.jsonl"


@dataclass(frozen=True, slots=True)
class Call:
    """What is asked for. `column` takes the answer; `system` None: the system message that a run was trained with."""

    model: str
    data: Sequence[str]
    to: Path
    column: str = "prediction"
    system: str | None = None
    max_new_tokens: int | None = None
    sampling: Sampling = field(default_factory=Sampling)
    reading: Reading = AS_FOUND
    output_dir: Path = targets.RUNS

    @property
    def part(self) -> Path:
        """What is kept until the file is written."""
        return self.to.with_name(f"{self.to.name}.part")

    @property
    def rejected(self) -> Path:
        return self.to.with_name(f"{self.to.name.removesuffix('.jsonl')}.rejected.jsonl")


@dataclass(frozen=True, slots=True)
class Predicted:
    """What was written: `read` rows are the answered ones and the rejected ones, by reason. `cut` answers ended at the longest length."""

    file: str
    read: int
    answered: int
    cut: int
    rejected: dict[str, int]
    rejected_file: str


@dataclass(slots=True)
class Entry:
    """A row with the key of its answer, or why it has none."""

    row: Question | Rejected
    prompt: list[int] = field(default_factory=list)
    key: str = ""


def predict(call: Call, reporter: Reporter | None = None) -> Predicted:
    """Write an answer to every row; the same call again goes on where it was stopped, and gives what it would have given without the stop.

    Raises CallError where a file would be overwritten or another call has begun it, DataError where no row can be asked.
    """
    reporter = reporter or Silent()
    _check_names(call)
    with tempfile.TemporaryDirectory() as spool:
        found = files_of(call.data, Path(spool), reporter.say)
        rows = [row for file in found for row in questions(file, call.reading, reporter.say)]
        _check_rows(rows, call)
        sums = {file.name: files.sha256(file.place) for file in found}
    with _part(call, reporter):
        target = targets.target_of(call.model, call.output_dir)
        engine = targets.open_target(target, call.model, reporter)
        system = _system(call, target, engine, reporter)
        identity = targets.identity(target, engine)
        length = call.max_new_tokens or _longest(target)
        _check_same(call, identity, sums, system, length)
        entries = [_entry(row, engine, identity, system, length, call.sampling) for row in rows]
        kept = Kept(call.part / ANSWERS)
        _ask(engine, call, [entry for entry in entries if entry.key], length, kept, reporter)
        predicted = _write(call, entries, kept)
    files.remove_folder(call.part)
    return predicted


@contextmanager
def _part(call: Call, reporter: Reporter) -> Iterator[None]:
    """The folder of what is kept, for this process alone; where nothing came to be kept, none is left."""
    files.make_folder(call.part)
    files.sweep(call.part)
    try:
        with run_lock.held(call.part, "predict", reporter.say):
            yield
    except BaseException:
        with suppress(OSError):  # it holds something
            call.part.rmdir()
        raise


# --- before anything is asked ----------------------------------------------------------------------------------------------------------


def _check_names(call: Call) -> None:
    if call.to.suffix != ".jsonl":
        raise CallError("predictions are written as JSON lines", where=f"--to {call.to}", next_step=f"--to {call.to.with_suffix('.jsonl')}")
    if not call.part.is_dir():  # else the check of the call says whether they are its own
        files.refuse_existing(call.to)
        files.refuse_existing(call.rejected)


def _finish(column: str) -> str:
    """The column that says how an answer ended: stop, or length where it was cut."""
    return f"{column}_finish"


def _check_rows(rows: Sequence[Question | Rejected], call: Call) -> None:
    asked = [row for row in rows if isinstance(row, Question)]
    if not asked:
        first = next(row for row in rows if isinstance(row, Rejected))
        problem = f"no row can be asked ({first.reason}: {first.detail})"
        raise DataError(problem, where=str(first.source), next_step='rows such as {"question": ...}, {"messages": [...]} or {"prompt": ...}')
    for row in asked:
        if taken := {call.column, _finish(call.column)} & row.value.keys():
            where = str(row.conversation.source)
            raise CallError(f"the row has a column {min(taken)} of its own, which is kept", where=where, next_step="--column NAME")


def _system(call: Call, target: targets.Target, engine: Engine, reporter: Reporter) -> str | None:
    """The system message of rows that have none."""
    promised: str | None = contract.of(target.run, target.folder, engine.tokenizer, engine.stop_ids).get("system")
    if call.system is None and promised:
        reporter.say(f"system message where a row has none (the one it was trained with): {promised}")
    return promised if call.system is None else call.system


def _longest(target: targets.Target) -> int:
    return int(load_config(target.run.config).settings.evaluation.max_new_tokens) if target.run else MAX_NEW_TOKENS


def _check_same(call: Call, identity: str, sums: dict[str, str], system: str | None, length: int) -> None:
    """Raises CallError where the answers that are kept are those of another call."""
    path = call.part / CALL
    spelled: dict[str, Any] = {
        "model": identity,
        "data": sums,
        "column": call.column,
        "system": system,
        "max_new_tokens": length,
        "sampling": asdict(call.sampling),
        "reading": {**asdict(call.reading), "columns": dict(call.reading.columns)},
    }
    if not path.is_file():
        files.refuse_existing(call.to)
        files.refuse_existing(call.rejected)
        files.write_json(path, spelled)
        return
    kept = files.read_json(path)
    if other := next((name for name, value in spelled.items() if kept.get(name) != value), ""):
        problem = f"was begun with another {other.replace('_', ' ')}"
        raise CallError(problem, where=str(call.part), next_step="the same call as before goes on with it; another one needs another --to")


def _entry(row: Question | Rejected, engine: Engine, identity: str, system: str | None, length: int, sampling: Sampling) -> Entry:
    if isinstance(row, Rejected):
        return Entry(row)
    conversation = row.conversation
    if system and conversation.templated and conversation.turns[0].role != "system":
        conversation = replace(conversation, turns=(Turn("system", system), *conversation.turns))
    raw = json.dumps(row.value, ensure_ascii=False, default=str)
    try:
        prompt = asking.prompt(conversation, [], engine)
    except DataError as error:
        return Entry(Rejected("not_askable", error.problem, conversation.source, raw))
    if not engine.has_room(prompt):
        detail = f"the question has {len(prompt):,} tokens and the model's context {engine.context:,}: there is no room for an answer"
        return Entry(Rejected("too_long", detail, conversation.source, raw))
    # With its place: two rows that ask the same have an answer each.
    key = key_of(f"{identity} {conversation.source}", prompt, {"max_new_tokens": length, **asdict(sampling)})
    return Entry(row, prompt, key)


# --- asking, and writing ---------------------------------------------------------------------------------------------------------------


def _ask(engine: Engine, call: Call, entries: list[Entry], length: int, kept: Kept, reporter: Reporter) -> None:
    chunks = [entries[first : first + CHUNK] for first in range(0, len(entries), CHUNK)]
    done = sum(len(chunk) for chunk in chunks if _whole(chunk, kept))
    if done:
        reporter.say(f"{done:,} of {len(entries):,} answers are kept from before")
    with reporter.bar("predicting", len(entries)) as bar:
        bar.advance(done)
        for chunk in chunks:
            if not _whole(chunk, kept):
                _ask_chunk(engine, call, chunk, length, kept, bar, done)
                done += len(chunk)


def _whole(chunk: Sequence[Entry], kept: Kept) -> bool:
    return all(kept.answer(entry.key) is not None for entry in chunk)


def _ask_chunk(engine: Engine, call: Call, chunk: list[Entry], length: int, kept: Kept, bar: Bar, done: int) -> None:
    kept.begin()
    prompts = [entry.prompt for entry in chunk]
    answers = engine.answers(prompts, max_new_tokens=length, sampling=call.sampling, on_answers=lambda count: bar.advance(done + count))
    for entry, answer in zip(chunk, answers, strict=True):
        assert isinstance(entry.row, Question)
        kept.add(entry.key, answer, model=call.model, row=str(entry.row.conversation.source), prompt_tokens=len(entry.prompt))


def _write(call: Call, entries: Sequence[Entry], kept: Kept) -> Predicted:
    """Both files; the one that was asked for comes last, so that what is not there yet is not finished either."""
    rejected = [entry.row for entry in entries if isinstance(entry.row, Rejected)]
    if rejected:
        files.write_lines(call.rejected, (rejected_row(row) for row in rejected))
    cut = 0

    def lines() -> Iterator[dict[str, Any]]:
        nonlocal cut
        for entry in entries:
            if isinstance(entry.row, Question):
                answer = kept.answer(entry.key)
                assert answer is not None
                cut += not answer.stopped
                ended = "stop" if answer.stopped else "length"
                # What JSON cannot spell (dates of a Parquet file) is written as text.
                columns = json.loads(json.dumps(entry.row.value, default=str))
                yield {**columns, call.column: answer.text, _finish(call.column): ended}

    files.write_lines(call.to, lines())
    reasons: Counter[str] = Counter()
    for row in rejected:
        reasons[row.reason] += row.rows
    answered = len(entries) - len(rejected)
    return Predicted(str(call.to), answered + sum(reasons.values()), answered, cut, dict(reasons), str(call.rejected) if rejected else "")
