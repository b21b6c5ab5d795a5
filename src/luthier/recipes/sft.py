"""Teach a model to answer as the rows do. Read this first: it is the whole road, top to bottom."""

import dataclasses
import datetime
import functools
import importlib.metadata
import itertools
import platform
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from luthier import files, run_folder
from luthier.config.data import SourceSettings
from luthier.config.load import Config, load_config, settings_to_yaml
from luthier.config.settings import Settings
from luthier.data import prepare
from luthier.data.conversations import JUDGED, keep_good
from luthier.data.prepare import Prepared, Rows
from luthier.data.read.source import is_local
from luthier.data.tokenize import prompt_ids
from luthier.diagnose.report import write_report
from luthier.engine import Engine, fp8, frozen, opening, probe
from luthier.errors import ConfigError, DataError, LuthierError
from luthier.evaluate import metrics
from luthier.models import facts, find, templates
from luthier.models.facts import ModelFacts
from luthier.plan import choose, shape
from luthier.plan.choose import Plan
from luthier.plan.machine import process_seconds
from luthier.records import StepReport
from luthier.reporting import Bar, Reporter, Silent
from luthier.run_folder import RunFolder
from luthier.serve import contract
from luthier.stopping import stopping_on_signals
from luthier.train import checkpoint, loop, order, schedule, trial
from luthier.train.checkpoint import Place
from luthier.version import VERSION

# Rows whose loss tells what a frozen base in 8 bits costs.
GAP_ROWS = 32
LIBRARIES = ("torch", "transformers", "peft", "tokenizers", "safetensors", "numpy")


class Interrupted(LuthierError):
    """Ctrl-C or SIGTERM: the state is saved. The exit code is the shell's own for that signal."""

    def __init__(self, run: RunFolder, step: int, signal: int) -> None:
        super().__init__(f"stopped after step {step}; a checkpoint is written", where=str(run.path), next_step=f"luthier train --resume {run.path}")
        self.exit_code = 128 + signal


def fit(config: Config, reporter: Reporter | None = None, *, title: str = "", resume: RunFolder | None = None) -> RunFolder:
    """Train as `config` says; returns the run folder, with the adapter in PEFT's format (method: full: the model in Transformers') and the report.

    Broken data stops it before a model is fetched or loaded. `resume` goes on from that run's newest whole checkpoint.
    """
    reporter = reporter or Silent()
    config = _with_earlier_adapter(config)
    asked = config.settings
    probe.require_attention(asked.training.attn_implementation, opening.device_of(asked))
    fp8.require(asked.training.frozen_base, asked.method, asked.training.precision, opening.device_of(asked))
    rows = prepare.load_rows(asked.data, config.file.parent, asked.seed, reporter)
    _check_answers(rows)
    metrics.check(asked.evaluation.metrics, [row.answer for row in rows.held_out])

    folder = find.find(asked.model, reporter, config.file.parent)
    tokenizer = opening.tokenizer_of(config, folder, reporter)
    model_facts = facts.from_folder(folder)
    max_length = choose.max_length(asked, model_facts).value
    prepared = prepare.tokenize_rows(rows, tokenizer, int(str(max_length)), asked.data, reporter)
    for note in [*config.notes, *prepared.rows.notes]:
        reporter.say(note)

    plan = choose.resolve(
        asked,
        model_facts,
        probe.known_machine(opening.device_of(asked)),
        shape.of_tokens(prepared.lengths, prepared.trained_tokens, prepared.shared_prefix_tokens),
    )
    for line in plan.lines():
        reporter.say(line)
    torch.use_deterministic_algorithms(True, warn_only=True)

    run = resume or _begin(config, plan, prepared, folder, title)
    # From the run's own settings: they name files and runs wherever one stands, and go on to mean the same (init_from: last).
    engine = opening.start(load_config(run.config), plan.settings, folder, tokenizer)
    place = Place(0, prepared.sha256, plan.settings.seed, str(plan.settings.training.precision), plan.settings.training.optim)
    if resume:
        place = _restore(run, engine, place, reporter)
    contract.write(run, tokenizer, engine.stop_ids, prepared.rows.train)
    engine.check(prepared.train[int(prepared.lengths.argmin())], longest=int(prepared.lengths.max()))
    for note in engine.notes:
        reporter.say(note)
    if engine.plain_reason:
        reporter.say(f"the plain path is used, one row at a time: {engine.plain_reason}")
    if plan.settings.training.frozen_base == "fp8":
        _tell(run, reporter, engine.quantize_frozen(list(itertools.islice(prepared.held_out or prepared.train, GAP_ROWS))))
    if engine.recomputing.mode != "off":
        _tell(run, reporter, _price_of_checkpointing(engine, prepared, plan))
    _try_worst_update(run, engine, prepared, plan, model_facts, reporter)
    _train(run, engine, prepared, plan, reporter, place)

    engine.save_state(run.model if asked.method == "full" else run.adapter, base_name=asked.model)
    write_report(run)
    run.say("finished")
    return run


def _check_answers(rows: Rows) -> None:
    """Raises DataError where a source holds more than answers to learn: the worse answer of a pair must not be trained."""
    for source in rows.sources:
        if what := JUDGED.get(source["format"]):
            raise DataError(
                f"holds {what}; training on answers takes rows with one good answer each",
                where=source["file"],
                next_step=f"{keep_good(source['path'])} keeps the good answers",
            )


def _with_earlier_adapter(config: Config) -> Config:
    """With `init_from` the earlier run's adapter, where there is one, decides every `lora` setting; what was given and differs is refused."""
    if not config.settings.init_from:
        return config
    earlier = opening.earlier_run(config)
    if config.settings.method == "full":
        return config
    kept = load_config(earlier.config).settings.lora
    for name, value in kept:
        asked = getattr(config.settings.lora, name)
        if f"lora.{name}" in config.given and asked != value:
            raise ConfigError(
                f"lora.{name} is {asked} and the adapter of {earlier.name} was made with {value}",
                where=config.given[f"lora.{name}"],
                next_step="take it out (the adapter goes on as it is), or take init_from out",
            )
    return dataclasses.replace(config, settings=config.settings.model_copy(update={"lora": kept}))


def _begin(config: Config, plan: Plan, prepared: Prepared, folder: Path, title: str) -> RunFolder:
    """A new run folder with everything that is known before the first update."""
    name = title or Path(plan.settings.model).name
    run = run_folder.create(Path(config.beside(plan.settings.output_dir)), name)
    files.write_text(run.config, settings_to_yaml(_with_absolute_paths(config, plan.settings, prepared.rows)))
    files.write_json(run.plan, plan.as_json())
    files.write_json(run.environment, _environment(folder))
    prepare.write_ledger(run, prepared)
    run.say(f"began: {len(prepared.train)} rows, {plan.updates} updates")
    return run


def _with_absolute_paths(config: Config, settings: Settings, rows: Rows) -> Settings:
    """The settings of a run can be used from anywhere: paths that were relative to the file are made absolute."""

    def absolute(path: str) -> str:
        return str(Path(config.beside(path)).resolve())

    def rows_at(path: str) -> str:
        if path == "-":
            return next(str(source["path"]) for source in rows.sources if source["file"] == "-")
        return absolute(path) if is_local(path, config.file.parent) else path

    data = settings.data
    sources = [source.model_copy(update={"path": rows_at(source.path)}) for source in data.sources]
    train = sources[0].path if isinstance(data.train, str) else sources
    source = data.eval_source
    held_out = data.eval if source is None else source.model_copy(update={"path": rows_at(source.path)})
    if isinstance(data.eval, str) and isinstance(held_out, SourceSettings):
        held_out = held_out.path  # as it was written: a path
    model_path = Path(config.beside(settings.model))
    changes: dict[str, Any] = {"data": data.model_copy(update={"train": train, "eval": held_out}), "output_dir": absolute(settings.output_dir)}
    if templates.is_file(settings.template):
        changes["template"] = absolute(settings.template)
    if settings.tokenizer.path:
        changes["tokenizer"] = settings.tokenizer.model_copy(update={"path": absolute(settings.tokenizer.path)})
    if find.is_folder(settings.model, config.file.parent):
        changes["model"] = str(model_path.resolve())
    if settings.init_from:
        changes["init_from"] = str(opening.earlier_run(config).path.resolve())
    return settings.model_copy(update=changes)


def _environment(folder: Path) -> dict[str, Any]:
    return {
        "luthier": VERSION,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES},
        "threads": torch.get_num_threads(),
        "model_folder": str(folder),
        "began": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%dT%H:%M:%SZ}",
    }


def _price_of_checkpointing(engine: Engine, prepared: Prepared, plan: Plan) -> str:
    """What computing activations again costs, timed on a row of usual length, and what it is expected to save."""
    row = prepared.train[int(prepared.lengths.argsort()[len(prepared.lengths) // 2])]
    price, saved = engine.price_of_checkpointing([row]), plan.saved_bytes / 1e9
    mode, tokens = engine.recomputing.mode, len(row.token_ids)
    return f"gradient_checkpointing: {mode} takes {price:+.0%} time (on {tokens} tokens) and saves about {saved:.2g} GB"


def _try_worst_update(run: RunFolder, engine: Engine, prepared: Prepared, plan: Plan, model_facts: ModelFacts, reporter: Reporter) -> None:
    """Before the first update: does the largest one fit, and what does it take?"""
    training = plan.settings.training
    worst = [prepared.train[place] for place in trial.worst_rows(prepared.lengths, int(training.batch_size))]
    chosen = plan.settings.model_dump(include={"method", "lora", "training"})
    matters = {"settings": chosen, "facts": model_facts, "machine": plan.machine}
    smaller = plan.next_step or f"training.micro_batch_tokens: {max(1, training.micro_batch_tokens // 2)}"
    measured = trial.measure(engine, worst, trial.trial_file(files.home(), matters, worst), smaller)
    _tell(run, reporter, measured.line(sum(plan.memory_bytes.values())))


def _train(run: RunFolder, engine: Engine, prepared: Prepared, plan: Plan, reporter: Reporter, place: Place) -> None:
    """Every update after `place`."""
    settings = plan.settings
    training = settings.training
    course = loop.Course(
        updates=plan.updates,
        examples_seen=order.examples_of_run(len(prepared.train), int(training.batch_size), training.num_train_epochs, training.max_steps),
        batch_size=int(training.batch_size),
        learning_rate=float(training.learning_rate),
        lr_scheduler_type=training.lr_scheduler_type,
        warmup_steps=schedule.warmup_updates(plan.updates, training.warmup_steps, training.warmup_ratio),
        seed=settings.seed,
    )

    def save(step: int) -> None:
        checkpoint.save(run, engine, dataclasses.replace(place, step=step), keep=training.save_total_limit)

    def skip(skipped: loop.Skipped) -> None:
        run.add_skipped(skipped.step, skipped.rows)
        _tell(run, reporter, str(skipped))

    def spare() -> AbstractContextManager[object]:
        told = functools.partial(_tell, run, reporter)
        return frozen.cached(engine, prepared.train, run.path, told) if training.cache_frozen_layers else nullcontext()

    with spare(), reporter.bar("training", course.updates) as bar, stopping_on_signals() as stop:
        watchers = [
            _first_update_teller(run, engine, reporter),
            run.add_step,
            _teller(bar, reporter, course.updates, training.logging_steps),
            _saver(save, settings, len(prepared.train), course.updates),
            _evaluator(run, engine, prepared, settings, course.updates, reporter),
        ]
        on_rows = run.add_rows if training.rows_file else None
        seen_at = _weights_seen_at(settings, len(prepared.train), course.updates)
        done = loop.fit(engine, prepared.train, course, watchers, stop, done=place.step, on_skip=skip, on_rows=on_rows, looks_at_weights=seen_at)
    if done < course.updates:
        save(done)
        run.say(f"stopped by signal {stop.signal} after step {done}")
        raise Interrupted(run, done, stop.signal)


def _restore(run: RunFolder, engine: Engine, expected: Place, reporter: Reporter) -> Place:
    path, damaged = checkpoint.newest_whole(run)
    for line in damaged:
        reporter.say(f"not used: {line}")
    place = checkpoint.load(path, engine)
    checkpoint.check_same_run(place, expected, path)
    run.forget_after(place.step)
    reporter.say(f"resumed from {path}")
    return place


def _tell(run: RunFolder, reporter: Reporter, line: str) -> None:
    """Say a line, and keep it in the run's log."""
    run.say(line)
    reporter.say(line)


def _first_update_teller(run: RunFolder, engine: Engine, reporter: Reporter) -> loop.Watcher:
    """Says what the rows of the first update shared, and logs how long the process took until it began."""
    told = False

    def tell(report: StepReport) -> None:
        nonlocal told
        if not told:
            _tell(run, reporter, f"shared beginnings in the first update: {engine.sharing}")
            run.say(f"the first update began {process_seconds() - report.seconds:.1f} s after the start of the program")
        told = True

    return tell


def _teller(bar: Bar, reporter: Reporter, updates: int, every: int) -> loop.Watcher:
    """Moves the bar at every update and prints a line now and then."""
    seen = {"updates": 0, "tokens": 0, "seconds": 0.0}

    def tell(report: StepReport) -> None:
        seen["updates"] += 1
        seen["tokens"] += report.logical_tokens
        seen["seconds"] += report.seconds
        rate = seen["tokens"] / seen["seconds"]
        bar.advance(report.step, f"loss {report.loss:.3f}  {rate:,.0f} tokens/s")
        if report.step % every == 0 or report.step == updates:
            left = (updates - report.step) * seen["seconds"] / seen["updates"]
            place = f"step {report.step}/{updates}"
            reporter.say(f"{place}  loss {report.loss:.4f}  rate {report.learning_rate:.2e}  {rate:,.0f} tokens/s  about {left:.0f} s left")

    return tell


def _saves_at(settings: Settings, rows: int, updates: int) -> Callable[[int], bool]:
    training = settings.training
    batch_size = int(training.batch_size)

    def due(step: int) -> bool:
        if training.save_strategy == "epoch":
            return step == updates or step * batch_size // rows > (step - 1) * batch_size // rows
        return training.save_strategy == "steps" and (step == updates or step % training.save_steps == 0)

    return due


def _evaluates_at(settings: Settings, updates: int) -> Callable[[int], bool]:
    every = settings.evaluation.every_steps
    return lambda step: step == updates or bool(every and step % every == 0)


def _weights_seen_at(settings: Settings, rows: int, updates: int) -> Callable[[int], bool]:
    """The updates after which a watcher wants the weights as they are then."""
    saves, evaluates = _saves_at(settings, rows, updates), _evaluates_at(settings, updates)
    return lambda step: saves(step) or evaluates(step)


def _saver(save: Any, settings: Settings, rows: int, updates: int) -> loop.Watcher:
    due = _saves_at(settings, rows, updates)

    def watch(report: StepReport) -> None:
        if due(report.step):
            save(report.step)

    return watch


def _evaluator(run: RunFolder, engine: Engine, prepared: Prepared, settings: Settings, updates: int, reporter: Reporter) -> loop.Watcher:
    """Measures the held-out loss every so often and at the end, and shows a few answers where that is asked for."""
    due = _evaluates_at(settings, updates)
    # A plain text asks nothing, and of a chat that was split the whole may be too long to be asked.
    asking = ((row, prompt_ids(row.prompt, engine.tokenizer, row.tools)) for row in prepared.rows.held_out if row.prompt)
    shown = list(itertools.islice(((row, ids) for row, ids in asking if engine.has_room(ids)), settings.evaluation.sample_answers))

    def watch(report: StepReport) -> None:
        if not prepared.held_out or not due(report.step):
            return
        loss = engine.held_out_loss(prepared.held_out)
        run.add_evaluation(report.step, loss, {})
        reporter.say(f"step {report.step}/{updates}  held-out loss {loss:.4f}")
        if shown:
            answers = engine.answer([ids for _, ids in shown], max_new_tokens=int(settings.evaluation.max_new_tokens))
            for (row, _), answer in zip(shown, answers, strict=True):
                reporter.say(f"  {_on_a_line(row.prompt[-1].content)}  ->  {_on_a_line(answer)}")

    return watch


def _on_a_line(text: str) -> str:
    """Text of a row or a model as part of a line: short, and without characters that move a terminal's cursor."""
    shown = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
    return shown if len(shown) <= 100 else f"{shown[:97]}..."
