"""Ask held-out questions of the base and of the tuned model, with the same decoding, and count what is right."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from luthier import run_lock
from luthier.config.data import DataSettings, SourceSettings
from luthier.config.load import load_config
from luthier.config.methods import METHODS
from luthier.config.settings import EvaluationSettings, Settings
from luthier.data import ledger, prepare
from luthier.data.tokenize import prompt_ids
from luthier.diagnose.report import write_report
from luthier.engine import Engine, opening
from luthier.errors import DataError, RunError
from luthier.evaluate import metrics, questions
from luthier.models import quantized
from luthier.records import Conversation, Metric, Sample, Scorecard
from luthier.reporting import Reporter, Silent
from luthier.run_folder import RunFolder

SAMPLES = 5


@dataclass(frozen=True, slots=True)
class Column:
    """One model's answers: to the first `len(answers)` questions."""

    name: str
    answers: list[str]


def evaluate(run: RunFolder, reporter: Reporter | None = None, *, data: str | None = None, engine: Engine | None = None) -> Scorecard:
    """The scorecard of a run: base (asked plainly, and with examples where `evaluation.shots` says so) beside tuned.

    Questions are the run's held-out rows, or those of the file `data`. Writes scorecard.json, samples.jsonl and report.html.
    """
    reporter = reporter or Silent()
    with run_lock.held(run.path, "eval", reporter.say):
        return _evaluate(run, reporter, data, engine)


def _evaluate(run: RunFolder, reporter: Reporter, data: str | None, engine: Engine | None) -> Scorecard:
    settings = load_config(run.config).settings
    asked = settings.evaluation
    rows = _rows_of(data, settings.data, reporter) if data else _held_out(run)
    rows = rows[: asked.max_rows]
    metrics.check(asked.metrics, [row.answer for row in rows])
    if METHODS[settings.method].quantized_base:
        reporter.say(f"base: {quantized.base_of(settings)}, which the adapter was trained beside")
    engine = engine or opening.open_trained(run, reporter)
    rows = _that_fit(rows, engine, reporter)

    base_rows = rows[: asked.base_rows]
    examples = _examples(run, asked, base_rows, engine, reporter) if asked.shots else []
    with opening.as_base(engine, run) as base:
        columns = [Column("base", _ask(base, base_rows, [], asked, "base", reporter))]
        if examples:
            name = f"base_{len(examples)}shot"
            columns.append(Column(name, _ask(base, base_rows, examples, asked, f"base with {len(examples)} examples", reporter)))
    columns.append(Column("tuned", _ask(engine, rows, [], asked, "tuned", reporter)))

    scorecard = Scorecard(
        models={column.name: _scores(column, rows, asked.metrics) for column in columns},
        decoding={"strategy": "greedy", "max_new_tokens": asked.max_new_tokens, "precision": settings.training.precision, **_quantization(settings)},
        data={"source": data or "held-out rows of the run", "rows": len(rows), "base_rows": len(base_rows)},
    )
    run.write_scorecard(scorecard)
    run.write_samples([_sample(row, place, columns) for place, row in enumerate(base_rows[:SAMPLES])])
    write_report(run)
    return scorecard


def _quantization(settings: Settings) -> dict[str, object]:
    """What base and tuned model are kept in, where that is not the run's number format."""
    return {"base": quantized.base_of(settings)} if METHODS[settings.method].quantized_base else {}


def _held_out(run: RunFolder) -> list[Conversation]:
    rows = [row for row in ledger.read_held_out(run) if row.prompt and row.label is not False]
    if not rows:
        raise RunError(
            "the run holds no questions out", where=str(run.path), next_step="luthier eval RUN --data FILE, or set data.eval before training"
        )
    return rows


def _rows_of(file: str, trained: DataSettings, reporter: Reporter) -> Sequence[Conversation]:
    """A file of questions, read as the training rows were; nothing is trained, so nothing is split off. What is set aside is said."""
    only = trained.sources[0] if len(trained.sources) == 1 else SourceSettings(path=file)
    changes = {"train": file, "eval": None, "columns": {**trained.columns, **only.columns}, "format": only.format or trained.format}
    asked = trained.model_copy(update=changes)
    loaded = prepare.load_rows(asked, Path(), seed=0, reporter=reporter)
    for note in loaded.notes:
        reporter.say(note)
    rows = [row for row in loaded.train if row.label is not False]
    if not rows:
        raise DataError("holds bad answers only: none can be compared with", where=file, next_step="give rows with good answers")
    if not rows[0].prompt:
        raise DataError("rows of plain text ask nothing", where=file, next_step="give rows with a prompt and an answer")
    return rows


def _that_fit(rows: Sequence[Conversation], engine: Engine, reporter: Reporter) -> Sequence[Conversation]:
    """The questions that leave room for an answer. Long chats that were split or truncated for the training may leave none."""
    fitting = [row for row in rows if engine.has_room(_prompt(row, [], engine))]
    if not fitting:
        problem = f"none of {len(rows)} questions leaves room for an answer in the model's context of {engine.context} tokens"
        raise DataError(problem, where=str(rows[0].source), next_step="luthier eval RUN --data FILE with shorter questions")
    if left_out := len(rows) - len(fitting):
        reporter.say(f"not asked: {left_out} of {len(rows)} questions, which leave no room for an answer in {engine.context} tokens")
    return fitting


def _examples(
    run: RunFolder, asked: EvaluationSettings, questions_asked: Sequence[Conversation], engine: Engine, reporter: Reporter
) -> Sequence[Conversation]:
    """Rows that were trained, as examples for the prompt: as many as all questions have room for."""
    shots = asked.shots
    config = load_config(run.config)
    rows = prepare.trained_rows(run, config.settings.data, config.file.parent, config.settings.seed, engine.tokenizer)
    if len(rows) < shots:
        reporter.say(f"evaluation.shots is {shots} and there are {len(rows)} training rows: the base is shown {len(rows)}")
    examples = questions.spread([row for row in rows if row.label is not False], shots)
    fewer = examples
    while fewer and not all(engine.has_room(_prompt(row, fewer, engine), int(asked.max_new_tokens)) for row in questions_asked):
        fewer = fewer[:-1]
    if len(fewer) < len(examples):
        reporter.say(f"evaluation.shots is {shots}: {len(fewer)} examples fit beside every question in {engine.context} tokens")
    return fewer


def _ask(
    engine: Engine, rows: Sequence[Conversation], examples: Sequence[Conversation], settings: EvaluationSettings, who: str, reporter: Reporter
) -> list[str]:
    prompts = [_prompt(row, examples, engine) for row in rows]
    with reporter.bar(f"asking {who}", len(prompts)) as bar:
        return engine.answer(prompts, max_new_tokens=int(settings.max_new_tokens), on_answers=bar.advance)


def _prompt(row: Conversation, examples: Sequence[Conversation], engine: Engine) -> list[int]:
    # Where training rows are asked, none is shown its own answer.
    others = [example for example in examples if example.turns != row.turns]
    turns = questions.with_examples(row.prompt, others) if others else row.prompt
    try:
        return prompt_ids(turns, engine.tokenizer, row.tools)
    except DataError as error:
        raise DataError(error.problem, where=str(row.source), next_step="ask in the form that the model was trained with") from error


def _scores(column: Column, rows: Sequence[Conversation], names: Sequence[str]) -> dict[str, Metric]:
    expected = [row.answer for row in rows[: len(column.answers)]]
    return {name: metrics.score(name, expected, column.answers) for name in names}


def _sample(row: Conversation, place: int, columns: Sequence[Column]) -> Sample:
    return Sample(row.prompt[-1].content, row.answer, {column.name: column.answers[place] for column in columns}, row.source)
