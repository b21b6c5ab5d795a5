"""Ask questions of the base and of the tuned model, and of whatever else is to stand beside them, with the same decoding, and count what
is right."""

import contextlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from luthier import files, run_lock
from luthier import run_folder as folders
from luthier.config.data import DataSettings, SourceSettings
from luthier.config.load import load_config
from luthier.config.methods import METHODS
from luthier.config.settings import EvaluationSettings, Settings
from luthier.data import ledger, prepare
from luthier.diagnose.report import write_report
from luthier.engine import Engine, opening
from luthier.engine.sampling import Sampling
from luthier.errors import CallError, DataError, RunError
from luthier.evaluate import asking, endpoints, metrics, questions, sandbox, scoring, suites, targets
from luthier.evaluate.asking import Column, Decoding
from luthier.evaluate.endpoints import Against
from luthier.evaluate.kept import Kept
from luthier.evaluate.scoring import Counts, Price
from luthier.evaluate.targets import Target
from luthier.models import quantized
from luthier.records import Conversation, Sample, Scorecard
from luthier.reporting import Reporter, Silent
from luthier.run_folder import RunFolder

SAMPLES = 20
# The longest answer of a model that comes without a run, which would know.
MAX_NEW_TOKENS = 256
# The folder in evals/ of a run's own evaluation.
OWN = "held-out"


@dataclass(frozen=True, slots=True)
class Call:
    """What is asked for beyond what a run's own settings say. None: as they say."""

    data: str | None = None
    suites: tuple[str, ...] = ()
    suite_dir: str | None = None
    metrics: tuple[str, ...] = ()
    max_rows: int | None = None
    max_new_tokens: int | None = None
    sampling: Sampling = field(default_factory=Sampling)
    samples: int = 1
    against: Against | None = None
    run_code: bool = False
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Prices:
    """What is paid, in any currency: an hour of this machine, a million tokens that the endpoint reads and writes."""

    per_hour: float | None = None
    per_million_input: float | None = None
    per_million_output: float | None = None


@dataclass(frozen=True, slots=True)
class Evaluated:
    """A scorecard, the folder that holds it with the samples and all answers, and the run's report."""

    scorecard: Scorecard
    folder: Path
    report: Path | None


@dataclass(slots=True)
class Bench:
    """One evaluation: what is asked, of whom, and what came of it."""

    settings: Settings | None  # of the run, where there is one
    asked: EvaluationSettings
    how: Decoding
    rows: Sequence[Conversation]
    kept: Kept
    reporter: Reporter
    call: Call
    columns: list[Column] = field(default_factory=list)
    of_suites: Counts = field(default_factory=dict)
    endpoint: str | None = None  # its column

    @property
    def base_rows(self) -> Sequence[Conversation]:
        return self.rows[: self.asked.base_rows]

    @property
    def asks(self) -> bool:
        """Whether the rows are questions. Plain texts are read instead: how likely are they?"""
        return _are_questions(self.rows)


def evaluate(run: RunFolder, reporter: Reporter | None = None, *, data: str | None = None, engine: Engine | None = None) -> Scorecard:
    """The scorecard of a run: base (asked plainly, and with examples where `evaluation.shots` says so) beside tuned.

    Of the run's held-out rows, written to its scorecard.json, samples.jsonl and report.html; or of the rows in the file `data`, written to
    a folder in the run's evals/.
    """
    return compare([str(run.path)], Call(data=data), reporter, engine=engine).scorecard


def compare(
    names: Sequence[str],
    call: Call,
    reporter: Reporter | None = None,
    *,
    prices: Prices | None = None,
    output_dir: Path = targets.RUNS,
    engine: Engine | None = None,
) -> Evaluated:
    """Runs, checkpoints and models side by side, on the same questions; of the first, where it is one of a run, its base comes before it.

    A call without anything of its own is the run's own evaluation; every other one has a folder of its own in the run's evals/ (in ./evals
    where there is no run). The same call again asks only for what is missing there. `engine` is the first one's, where it is open already.
    """
    reporter = reporter or Silent()
    found = [targets.target_of(name, output_dir) for name in names]
    run = found[0].run
    own = len(names) == 1 and found[0].whole_run and replace(call, run_code=False) == Call()
    folder = _folder(found, call, own)
    found = targets.told_apart(found)
    with _held(run, reporter):
        files.make_folder(folder)
        files.sweep(folder)
        files.write_json(folder / "call.json", _spelled(found, call))
        bench = _bench(found[0], call, folder, reporter)
        with _open(found[0], names[0], reporter, engine) as first:
            _ask_first(bench, found[0], first)
        del first, engine
        for target, name in zip(found[1:], names[1:], strict=True):
            with _open(target, name, reporter, None) as other:
                _ask(bench, target.name, targets.identity(target, other), other)
        if call.against and bench.rows:
            _ask_endpoint(bench, call.against)
        scorecard = _scorecard(bench, prices or Prices())
        samples = [_sample(row, place, bench.columns) for place, row in enumerate(bench.base_rows[:SAMPLES])] if bench.asks else []
        folders.write_scorecard(folder / "scorecard.json", scorecard)
        files.write_lines(folder / "samples.jsonl", [asdict(sample) for sample in samples])
        if run and own:
            run.write_scorecard(scorecard)
            run.write_samples(samples)
        report = write_report(run) if run else None
    return Evaluated(scorecard, folder, report)


@contextmanager
def _held(run: RunFolder | None, reporter: Reporter) -> Iterator[None]:
    with run_lock.held(run.path, "eval", reporter.say) if run else contextlib.nullcontext():
        yield


@contextmanager
def _open(target: Target, name: str, reporter: Reporter, engine: Engine | None) -> Iterator[Engine]:
    """The target's model, given up again afterwards: two large ones need not fit at once."""
    opened = engine or targets.open_target(target, name, reporter)
    yield opened
    del opened


# --- before the first question ---------------------------------------------------------------------------------------------------------


def _folder(found: Sequence[Target], call: Call, own: bool) -> Path:
    """Where an evaluation is kept: one of the same call is gone on with, one of another call is never written over."""
    run = found[0].run
    parent = run.evals if run else Path("evals")
    if own:
        return parent / OWN
    words = [Path(call.data).stem if call.data else "", *call.suites]
    title = call.name or "-".join(filter(None, [*words, *(one.name.replace("/", "-") for one in (found[1:] if run else found))])) or OWN
    if call.name and Path(call.name).name != call.name:
        raise CallError("is no name of a folder", where=f"--name {call.name}", next_step="a name without / in it")
    wanted = _spelled(found, call)
    for number in range(1, 1000):
        folder = parent / (title if number == 1 else f"{title}-{number}")
        if title == OWN and number == 1 and run:
            continue  # the run's own
        if not (folder / "call.json").exists() or files.read_json(folder / "call.json") == wanted:
            return folder
        if call.name:
            where = f"--name {call.name}"
            raise CallError(f"{folder} holds another evaluation, which is kept", where=where, next_step="another --name, or leave it out")
    raise RunError("a thousand evaluations of this name are there", where=str(parent / title), next_step="--name NAME")


def _spelled(found: Sequence[Target], call: Call) -> dict[str, object]:
    """A call as JSON, with the contents of its file and what the run's settings add: where one of these is another, so is the evaluation."""
    data = {"data_sha256": files.sha256(Path(call.data))} if call.data and Path(call.data).is_file() else {}
    asked = _asked(found[0], call).model_dump(include={"metrics", "max_rows", "base_rows", "shots", "max_new_tokens"})
    # The first run's evaluations lie in its own folder, and move with it.
    names = [one.whole_name if place or not one.run else one.name for place, one in enumerate(found)]
    spelled: dict[str, object] = json.loads(json.dumps({"targets": names, **asdict(call), **data, **asked, "name": None}))
    del spelled["run_code"]  # allows what the metrics ask for, and changes nothing of it
    return spelled


def _asked(first: Target, call: Call) -> EvaluationSettings:
    """The run's settings of an evaluation, with what the call says instead."""
    asked = load_config(first.run.config).settings.evaluation if first.run else EvaluationSettings(max_new_tokens=MAX_NEW_TOKENS)
    changes = {"metrics": list(call.metrics), "max_rows": call.max_rows, "max_new_tokens": call.max_new_tokens}
    return asked.model_copy(update={name: value for name, value in changes.items() if value})


def _bench(first: Target, call: Call, folder: Path, reporter: Reporter) -> Bench:
    """What is to be asked, read and checked before any model is loaded."""
    settings = load_config(first.run.config).settings if first.run else None
    asked = _asked(first, call)
    if call.metrics and call.suites and not call.data:
        raise CallError("--metric counts answers to rows, and a suite has metrics of its own", where="luthier eval", next_step="give --data FILE")
    suites.check(call.suites, call.suite_dir)
    rows: Sequence[Conversation] = []
    if call.data or not call.suites:
        rows = _rows(first, settings, call.data, reporter)[: asked.max_rows]
        asked = asked if _are_questions(rows) else _asked_of_texts(asked, call, reporter)
        _check(asked, rows, call, reporter)
    if settings and METHODS[settings.method].quantized_base:
        reporter.say(f"base: {quantized.base_of(settings)}, which the adapter was trained beside")
    if call.run_code:
        for line in sandbox.in_words():
            reporter.say(line)
    how = Decoding(int(asked.max_new_tokens), call.sampling, call.samples)
    return Bench(settings, asked, how, rows, Kept(folder / "answers.jsonl"), reporter, call)


def _rows(first: Target, settings: Settings | None, data: str | None, reporter: Reporter) -> Sequence[Conversation]:
    if data:
        return _rows_of(data, settings.data if settings else DataSettings(train=data), reporter)
    if first.run is None:
        raise CallError("a model by itself holds no rows", where="luthier eval", next_step="luthier eval MODEL --data FILE, or --suite NAME")
    return _held_out(first.run, reporter)


def _are_questions(rows: Sequence[Conversation]) -> bool:
    return bool(rows and rows[0].prompt)


def _alike(rows: Sequence[Conversation], reporter: Reporter) -> list[Conversation]:
    """The questions; where there is none, the texts."""
    found = [row for row in rows if row.prompt]
    if found and len(found) < len(rows):
        reporter.say(f"not asked: {len(rows) - len(found)} of {len(rows)} rows, which are plain text")
    return found or list(rows)


def _asked_of_texts(asked: EvaluationSettings, call: Call, reporter: Reporter) -> EvaluationSettings:
    """What can be counted where nothing is asked. Raises CallError for what only answers have."""
    given = {f"--metric {name}": True for name in call.metrics if name not in asking.OF_TEXTS}
    given |= {"--against": bool(call.against), "--samples": call.samples > 1, "--temperature": bool(call.sampling.temperature)}
    given |= {"--max-new-tokens": bool(call.max_new_tokens)}
    if unread := [option for option, is_given in given.items() if is_given]:
        problem = "is about answers, and plain texts ask nothing: how likely they are is measured"
        raise CallError(problem, where=unread[0], next_step="leave it out, or give rows with a prompt and an answer")
    names = [name for name in asked.metrics if name in asking.OF_TEXTS] or list(asking.OF_TEXTS)
    reporter.say(f"plain texts ask nothing: {' and '.join(names)} of their tokens")
    return asked.model_copy(update={"metrics": names, "shots": 0})


def _check(asked: EvaluationSettings, rows: Sequence[Conversation], call: Call, reporter: Reporter) -> None:
    """Raises what a metric would raise later, and asks for the word that lets a model's code run."""
    expecteds = [row.answer for row in rows]
    metrics.check(asked.metrics, expecteds)
    scoring.check_samples(asked.metrics, call.samples)
    if call.samples > 1 and not call.sampling.temperature:
        raise CallError("at temperature 0 all answers to a question are the same", where="--samples", next_step="--temperature 0.8, or leave it out")
    if "choice" in asked.metrics:
        asking.labels_of(rows)
    if any(metrics.runs_code(name) for name in asked.metrics) and not call.run_code:
        problem = "pass@K runs what the models write, in a process without rights"
        raise CallError(problem, where="evaluation.metrics", next_step="--run-code allows it, and says which protections this machine has")


# --- asking ----------------------------------------------------------------------------------------------------------------------------


def _ask_first(bench: Bench, target: Target, engine: Engine) -> None:
    """The first target: of a run the base, the base with examples, then what was trained; of a model itself."""
    if bench.asks:
        bench.rows = _that_fit(bench.rows, engine, bench.reporter)
    if target.run is None:
        _ask(bench, target.name, targets.identity(target, engine), engine)
        return
    asked, base_rows = bench.asked, bench.base_rows
    examples = _examples(target.run, asked, base_rows, engine, bench.reporter) if asked.shots and base_rows else []
    with opening.as_base(engine, target.run) as base:
        identity = targets.base_identity(target.run)
        _ask(bench, "base", identity, base, base_rows)
        if examples:
            column = asking.ask(base, f"base_{len(examples)}shot", identity, base_rows, examples, bench.how, bench.kept, bench.reporter)
            bench.columns.append(column)
    tuned = f"tuned@{target.checkpoint.name}" if target.checkpoint else "tuned"
    _ask(bench, tuned, targets.identity(target, engine), engine)


def _ask(bench: Bench, name: str, identity: str, engine: Engine, rows: Sequence[Conversation] | None = None) -> None:
    """One model: its answers to the rows, what else the metrics ask of it, and the suites."""
    rows = bench.rows if rows is None else rows
    if rows:
        column = asking.ask(engine, name, identity, rows, [], bench.how, bench.kept, bench.reporter) if bench.asks else Column(name, [])
        likely = asking.likelihoods(engine, name, rows, bench.reporter, _longest(bench)) if set(asking.OF_TEXTS) & set(bench.asked.metrics) else []
        chosen = asking.choices(engine, name, rows, asking.labels_of(bench.rows), bench.reporter) if "choice" in bench.asked.metrics else []
        bench.columns.append(Column(name, column.answers, likely, chosen, column.seconds, column.prompt_tokens))
    if bench.call.suites:
        call = bench.call
        bench.of_suites[name] = suites.run(
            engine, name, identity, call.suites, call.suite_dir, call.max_rows, bench.kept, call.run_code, bench.reporter
        )


def _longest(bench: Bench) -> int | None:
    """The longest text in tokens, as the run measured its own held-out texts; None: as the model's context says."""
    longest = bench.settings.data.max_length if bench.settings else None
    return int(longest) if longest and longest != "auto" else None


def _ask_endpoint(bench: Bench, against: Against) -> None:
    column = endpoints.ask(against, bench.rows, bench.how, bench.kept, bench.reporter)
    bench.endpoint = f"{column.name} (endpoint)" if column.name in {one.name for one in bench.columns} else column.name
    bench.columns.append(replace(column, name=bench.endpoint))


def _scorecard(bench: Bench, prices: Prices) -> Scorecard:
    expecteds = [row.answer for row in bench.rows]
    counts: Counts = {column.name: scoring.count(bench.asked.metrics, expecteds, column) for column in bench.columns}
    for model, of_suites in bench.of_suites.items():
        counts[model] = counts.get(model, {}) | of_suites
    endpoint = bench.endpoint
    by_tokens = Price(None, prices.per_million_input, prices.per_million_output)
    by_hour = {column.name: Price(prices.per_hour) for column in bench.columns if column.name != endpoint}
    return Scorecard(
        models=scoring.values(counts),
        decoding=_decoding(bench),
        data=_about_rows(bench),
        differences=scoring.differences(counts),
        costs=scoring.costs(bench.columns, by_hour | ({endpoint: by_tokens} if endpoint else {})),
    )


def _decoding(bench: Bench) -> dict[str, object]:
    """How the answers were made."""
    drawn = bench.how.sampling
    own = {} if bench.settings is None else {"precision": bench.settings.training.precision, **_quantization(bench.settings)}
    if bench.rows and not bench.asks:
        return own  # nothing was decoded
    strategy: dict[str, object] = {"strategy": "greedy"}
    if drawn.temperature:
        strategy = {"strategy": "sampling", "temperature": drawn.temperature, "top_p": drawn.top_p, "seed": drawn.seed, "samples": bench.how.samples}
    return {**strategy, "max_new_tokens": bench.how.max_new_tokens, **own}


def _about_rows(bench: Bench) -> dict[str, object]:
    suites_asked = {"suites": list(bench.call.suites)} if bench.call.suites else {}
    lower = {name: None for of_model in bench.of_suites.values() for name, counted in of_model.items() if counted.less_is_better}
    suites_asked |= {"lower_is_better": list(lower)} if lower else {}
    if not bench.rows:
        return {"source": ", ".join(bench.call.suites), **suites_asked}
    source = bench.call.data or "held-out rows of the run"
    return {"source": source, "rows": len(bench.rows), "base_rows": len(bench.base_rows), **suites_asked}


def _quantization(settings: Settings) -> dict[str, object]:
    """What base and tuned model are kept in, where that is not the run's number format."""
    return {"base": quantized.base_of(settings)} if METHODS[settings.method].quantized_base else {}


def _held_out(run: RunFolder, reporter: Reporter) -> list[Conversation]:
    rows = _alike([row for row in ledger.read_held_out(run) if row.label is not False], reporter)
    if not rows:
        raise RunError(
            "the run holds no questions out", where=str(run.path), next_step="luthier eval RUN --data FILE, or set data.eval before training"
        )
    return rows


def _rows_of(file: str, trained: DataSettings, reporter: Reporter) -> Sequence[Conversation]:
    """A file of questions, read as the training rows were; nothing is trained, so nothing is split off, mixed in or left out for that. What is
    set aside is said."""
    only = trained.sources[0] if len(trained.sources) == 1 else SourceSettings(path=file)
    changes = {"train": file, "eval": None, "columns": {**trained.columns, **only.columns}, "format": only.format or trained.format}
    changes |= {"replay": None, "replay_from": None, "max_rows": None}
    asked = trained.model_copy(update=changes)
    loaded = prepare.load_rows(asked, Path(), seed=0, reporter=reporter)
    for note in loaded.notes:
        reporter.say(note)
    rows = [row for row in loaded.train if row.label is not False]
    if not rows:
        raise DataError("holds bad answers only: none can be compared with", where=file, next_step="give rows with good answers")
    return _alike(rows, reporter)


def _that_fit(rows: Sequence[Conversation], engine: Engine, reporter: Reporter) -> Sequence[Conversation]:
    """The questions that leave room for an answer. Long chats that were split or truncated for the training may leave none."""
    fitting = [row for row in rows if engine.has_room(asking.prompt(row, [], engine))]
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
    while fewer and not all(engine.has_room(asking.prompt(row, fewer, engine), int(asked.max_new_tokens)) for row in questions_asked):
        fewer = fewer[:-1]
    if len(fewer) < len(examples):
        reporter.say(f"evaluation.shots is {shots}: {len(fewer)} examples fit beside every question in {engine.context} tokens")
    return fewer


def _sample(row: Conversation, place: int, columns: Sequence[Column]) -> Sample:
    answers = {column.name: column.texts[place] for column in columns if place < len(column.answers)}
    return Sample(row.prompt[-1].content, row.answer, answers, row.source)
