"""One training run from its settings to its last update: what all recipes that train have in common.

A recipe says what is learned of the rows (a `Task`); everything here is the same for each.
"""

import dataclasses
import datetime
import functools
import importlib.metadata
import itertools
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from luthier import files, run_folder, run_lock
from luthier.config.data import SourceSettings
from luthier.config.load import Config, load_config, settings_to_yaml
from luthier.config.methods import METHODS
from luthier.config.metric_names import with_file
from luthier.config.section import bytes_of
from luthier.config.settings import Settings
from luthier.data import prepare
from luthier.data.conversations import check_objective
from luthier.data.prepare import Prepared, Rows
from luthier.data.read.source import is_local
from luthier.data.store import Places
from luthier.engine import Engine, determinism, fp8, frozen, opening, probe, ranks
from luthier.errors import ConfigError, LuthierError, RunError
from luthier.models import audit, facts, find, methods, templates, weights
from luthier.models.facts import ModelFacts
from luthier.plan import choose, cost, counts, memory
from luthier.plan.choose import Plan
from luthier.plan.cost import DataShape
from luthier.records import Judged, TokenizedExample
from luthier.reporting import Reporter, Silent
from luthier.run_folder import RunFolder
from luthier.stopping import Stop, stopping_on_signals
from luthier.train import (
    best,
    checkpoint,
    following,
    loop,
    measuring,
    order,
    placing,
    reading,
    resuming,
    schedule,
    shortage,
    trackers,
    trial,
    watchers,
)
from luthier.train.checkpoint import Place
from luthier.train.measuring import Gauge, HeldOut, Measurement, Score
from luthier.train.saving import Saver
from luthier.train.trackers import Trackers
from luthier.train.watchers import tell
from luthier.version import VERSION

# Makes a watcher of the updates of a run, which may look whether a signal ends it (a search gives trials up by one).
Watch = Callable[[RunFolder, Stop], loop.Watcher]
# Rows on which the fast path is compared with the plain one.
CHECKED_ROWS = 8
# Rows whose loss tells what a frozen base in 8 bits costs.
GAP_ROWS = 32
# A fresh adapter that changes the loss of a row by less than this (relative) changes nothing but the rounding.
UNCHANGED = 1e-4


@dataclass(frozen=True, slots=True)
class Ready:
    """What a run has before it begins: the model's folder, its tokenizer, what is known of it, and the rows as tokens."""

    folder: Path
    tokenizer: Any
    facts: ModelFacts
    prepared: Prepared


@dataclass(frozen=True, slots=True)
class Task:
    """What is learned: rows, each with how many tokens it has, and how an update and the held-out rows are measured.

    `score` counts answers to held-out rows, where that is asked for. `forward_backward` makes loss and gradients of an update; None is the
    engine's own, the mean loss over the trained tokens.
    """

    rows: Sequence[TokenizedExample] | Sequence[Judged]
    lengths: Places
    measure: Callable[[], HeldOut]
    score: Score | None = None
    forward_backward: loop.ForwardBackward | None = None


class Interrupted(LuthierError):
    """Ctrl-C or SIGTERM: the state is saved. The exit code is the shell's own for that signal."""

    def __init__(self, run: RunFolder, step: int, signal: int, saved: int) -> None:
        kept = "a checkpoint is written" if saved == step else f"its checkpoint could not be written, the newest is of step {max(saved, 0)}"
        super().__init__(f"stopped after step {step}; {kept}", where=str(run.path), next_step=f"luthier train --resume {run.path}")
        self.exit_code = 128 + signal


def require_objective(config: Config, known: set[str]) -> None:
    """Raises ConfigError where the recipe that was called learns none of what the settings ask for."""
    asked = config.settings.objective
    if asked not in known:
        raise ConfigError(
            f"objective: {asked} was given to the recipe of {', '.join(sorted(known))}",
            where=config.given.get("objective", str(config.file)),
            next_step="luthier.fit, or recipes.training.fit, which take any objective",
        )


def read(config: Config, reporter: Reporter, resume: RunFolder | None = None) -> tuple[Config, Rows]:
    """The settings, with those that an earlier run decides (`resume`: all but the harmless ones), and the rows; what cannot work is refused
    before a model is fetched or loaded."""
    config = _with_files_of_metrics(config)
    if resume:
        config = resuming.goes_on(resume, config, reporter)
    config = with_earlier_adapter(config)
    asked = config.settings
    determinism.enter(asked.training.deterministic, opening.device_of(asked))
    probe.require_attention(asked.training.attn_implementation, opening.device_of(asked))
    methods.require(asked)
    trackers.require(asked.report_to)
    placing.require_own_folder(config)
    fp8.require(asked.training.frozen_base, asked.method, asked.training.precision, opening.device_of(asked))
    rows = prepare.load_rows(asked.data, config.file.parent, asked.seed, reporter)
    check_objective(rows.sources, asked.objective)
    measuring.check_general(asked.evaluation, config.file.parent, asked.seed)
    return config, rows


def _with_files_of_metrics(config: Config) -> Config:
    """Files that metrics name, as whole paths from the beginning: `luthier eval` counts by the same names, from wherever it is called."""

    def whole(name: str) -> str:
        return with_file(name, lambda file: str(Path(config.beside(file)).resolve()))

    evaluation, training = config.settings.evaluation, config.settings.training
    names = [whole(name) for name in evaluation.metrics]
    if names == evaluation.metrics:
        return config
    changes = {
        "evaluation": evaluation.model_copy(update={"metrics": names}),
        "training": training.model_copy(update={"metric_for_best_model": whole(training.metric_for_best_model)}),
    }
    return dataclasses.replace(config, settings=config.settings.model_copy(update=changes))


def tokenize(config: Config, rows: Rows, reporter: Reporter) -> Ready:
    """The model is found (fetched, where it is not here) and the rows are cut into its tokens."""
    asked = config.settings
    folder = find.find(asked.model, reporter, config.file.parent)
    tokenizer = opening.tokenizer_of(config, folder, reporter)
    model_facts = facts.from_folder(folder)
    max_length = choose.max_length(asked, model_facts).value
    prepared = prepare.tokenize_rows(rows, tokenizer, int(str(max_length)), asked.data, reporter)
    for note in [*config.notes, *prepared.rows.notes]:
        reporter.say(note)
    return Ready(folder, tokenizer, model_facts, prepared)


def resolve(asked: Settings, ready: Ready, rows: DataShape, reporter: Reporter) -> Plan:
    """Every `auto` is filled and the cost is told."""
    counts.keep(counts.counts_file(files.home(), asked, ready.prepared.rows.sources), rows)
    plan = choose.resolve(asked, ready.facts, probe.known_machine(opening.device_of(asked)), rows)
    for line in plan.lines():
        reporter.say(line)
    plan.require_room()
    return plan


def start(run: RunFolder, plan: Plan, ready: Ready, reporter: Reporter, *, resume: bool) -> Engine:
    """The model of a run as it begins, ready to be trained, its fast path compared with the plain one. What is found is said.

    A new run of which the model shows that its settings cannot be leaves no folder.
    """
    prepared = ready.prepared
    if resume:
        opening.require_same_base(run, ready.folder)
    try:
        following.lead(run, plan.settings)
        # From the run's own settings: they name files and runs wherever one stands, and go on to mean the same (init_from: last).
        engine = opening.start(load_config(run.config), plan.settings, ready.folder, ready.tokenizer, prepared.train, run.start)
    except LuthierError:
        if not resume:
            files.remove_folder(run.path)
        raise
    tell(run, reporter, engine.trained_line)
    if run.start.is_dir():
        how = plan.settings.lora.init_lora_weights
        tell(run, reporter, f"init_lora_weights: {how} begins as the base does, and is saved as plain LoRA of twice the rank")
    shortest = [prepared.train[int(place)] for place in prepared.lengths.argsort(kind="stable")[:CHECKED_ROWS]]
    budget = engine.micro_batch_tokens
    engine.check(*shortest, longest=int(prepared.lengths.max()))
    if engine.micro_batch_tokens != budget:
        shortage.tell_smaller(run, reporter, plan, 0, budget, engine.micro_batch_tokens)
    for note in engine.notes:
        reporter.say(note)
    if engine.plain_reason:
        tell(run, reporter, f"the plain path is used, one row at a time: {engine.plain_reason}")
    if plan.settings.training.frozen_base == "fp8":
        ranks.say({"do": "fp8"})
        tell(run, reporter, engine.quantize_frozen(list(itertools.islice(prepared.held_out or prepared.train, GAP_ROWS))))
    following.level(engine)
    if engine.crew:
        size = plan.settings.sequence_parallel
        sharing = f"{plan.settings.wrapping}, {size} share each micro-batch" if size > 1 else plan.settings.wrapping
        tell(run, reporter, f"{ranks.world()} ranks train together ({sharing}); rank 0 is pid {os.getpid()} on {platform.node()}")
    return engine


def place(run: RunFolder, plan: Plan, ready: Ready, engine: Engine, resume: bool, reporter: Reporter) -> Place:
    """Where the run stands: where its newest whole checkpoint is, which is put into the engine, or at its beginning, where it has none."""
    begun = Place(0, ready.prepared.sha256, plan.settings.seed, str(plan.settings.training.precision), plan.settings.training.optim)
    if resume:
        newest, damaged = checkpoint.newest_whole(run)
        for line in damaged:
            tell(run, reporter, f"not used: {line}")
        if newest:
            return _restore(run, newest, engine, begun, reporter)
        if run.trained.is_dir():
            raise RunError("there is no whole checkpoint to resume from", where=str(run.path), next_step=f"luthier train {run.config} starts anew")
        run.forget_after(0)
        found = "no checkpoint is whole" if damaged else "no checkpoint was written before the run was stopped"
        tell(run, reporter, f"{found}: it begins at its first update again")
    if not METHODS[plan.settings.method].begins_as_base and not plan.settings.init_from:
        _tell_of_start(run, engine, plan, ready, reporter)
    return begun


def _tell_of_start(run: RunFolder, engine: Engine, plan: Plan, ready: Ready, reporter: Reporter) -> None:
    """A fresh adapter that changes the base is named, with what that does to the loss of a row."""
    begun, base = engine.losses_with_and_without_adapter(ready.prepared.train[int(ready.prepared.lengths.argmin())])
    if abs(begun - base) > UNCHANGED * abs(base):
        name = f"{plan.settings.method} {plan.settings.peft.get('type', '')}".strip()
        tell(run, reporter, f"{name} does not begin as its base: the loss of a row is {begun:.3f} before the first update, {base:.3f} without it")


def check(run: RunFolder, engine: Engine, plan: Plan, ready: Ready, task: Task, reporter: Reporter) -> None:
    """Before the first update: what gradient checkpointing costs, and the largest update against the memory."""
    # The price is an update without it on this rank alone, which a team cannot make.
    if engine.recomputing.mode != "off" and not (engine.crew and engine.crew.together > 1):
        tell(run, reporter, _price_of_checkpointing(engine, ready.prepared, plan))
    _try_the_worst(run, engine, task, plan, ready, reporter)


def with_earlier_adapter(config: Config) -> Config:
    """With `init_from` the earlier adapter, where there is one, decides its method's settings; what was given and differs is refused.

    The earlier run's own settings are accepted too, and what has become of them is among the notes.
    """
    if not config.settings.init_from:
        return config
    source = opening.earlier_trained(config)
    if config.settings.method == "full":
        return config
    kept, own = opening.earlier_settings(config), opening.earlier_own_settings(config)
    for section, settings in kept.items():
        asked, stored = dict(getattr(config.settings, section)), dict(settings)
        for name in sorted(asked, key=lambda name: name != "type"):  # another type explains the rest
            where = _given_at(config, section, name)
            if (
                where is None
                or asked[name] == "auto"
                or _spelled(name, asked[name]) in (_spelled(name, stored.get(name)), _spelled(name, own.get(name, stored.get(name))))
            ):
                continue
            made = f"with {stored[name]}" if name in stored else f"without it ({', '.join(f'{key}: {value}' for key, value in stored.items())})"
            raise ConfigError(
                f"{section}.{name} is {asked[name]} and the adapter in {source} was made {made}",
                where=where,
                next_step="take it out (the adapter goes on as it is), or take init_from out",
            )
    notes = [*config.notes, *opening.earlier_notes(config, kept)]
    return dataclasses.replace(config, settings=config.settings.model_copy(update=kept), notes=notes, asked=config.settings)


def _given_at(config: Config, section: str, name: str) -> str | None:
    """Where a setting was given: by itself, by a part of it, or with all of its section; None where it was not."""
    whole = f"{section}.{name}"
    places = [place for other, place in config.given.items() if other in (whole, section) or other.startswith(f"{whole}.")]
    return next((place for place in places if place.startswith("command line")), places[0] if places else None)


def _spelled(name: str, value: object) -> object:
    """A value as it is compared: a type of PEFT has several spellings."""
    return value.upper().replace("-", "_") if name == "type" and isinstance(value, str) else value


@contextmanager
def opened(
    config: Config, plan: Plan, ready: Ready, rows: int, reporter: Reporter, *, title: str = "", resume: RunFolder | None = None
) -> Iterator[RunFolder]:
    """The run folder, locked while it is worked in: that of `resume`, whose rows and models must be as they were, or a new one with
    everything that is known before the first update; it trains on so many `rows`."""
    run = resume or run_folder.create(Path(config.beside(plan.settings.output_dir)), title or Path(plan.settings.model).name)
    with shortage.levers_named(plan), run_lock.held(run.path, "train", functools.partial(tell, run, reporter)):
        if resume:
            resuming.require_same_contents(run, config, ready.folder, ready.tokenizer, ready.prepared, reporter)
        else:
            prepare.write_ledger(run, ready.prepared)
        _write_settings(run, config, plan, ready)
        if not run.environment.is_file():
            known = resuming.beginning(config, run, ready.folder, ready.tokenizer, ready.prepared)
            earlier = opening.earlier_trained(config) if plan.settings.init_from else None
            known["licenses"] = audit.attribution(plan.settings.model, ready.folder, audit.sources(plan.settings.data), config.file.parent, earlier)
            files.write_json(run.environment, {**_environment(ready.folder), **known})
            run.say(f"began: {rows} rows, {plan.updates} updates")
        if resume:
            resuming.keep_asked(run, config)
        yield run


def begin(config: Config, plan: Plan, ready: Ready, rows: int, title: str) -> RunFolder:
    """A new run folder that nobody works in yet."""
    with opened(config, plan, ready, rows, Silent(), title=title) as run:
        return run


def _write_settings(run: RunFolder, config: Config, plan: Plan, ready: Ready) -> None:
    """The settings and the plan, where they are not there already as they are."""
    settings = plan.settings
    if settings.training.warmup_steps is not None:  # it counts instead of the ratio, and both together are refused when they are read
        settings = settings.model_copy(update={"training": settings.training.model_copy(update={"warmup_ratio": "auto"})})
    text = settings_to_yaml(_with_absolute_paths(config, settings, ready.prepared.rows))
    if not run.config.is_file() or run.config.read_text(encoding="utf-8") != text:
        files.write_json(run.plan, plan.as_json())
        files.write_text(run.config, text)


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
    replay_from = data.replay_from and rows_at(data.replay_from)
    model_path = Path(config.beside(settings.model))
    changes: dict[str, Any] = {
        "data": data.model_copy(update={"train": train, "eval": held_out, "replay_from": replay_from}),
        "output_dir": absolute(settings.output_dir),
    }
    if settings.evaluation.general_rows not in (None, "auto"):
        changes["evaluation"] = settings.evaluation.model_copy(update={"general": rows_at(str(settings.evaluation.general))})
    if templates.is_file(settings.template):
        changes["template"] = absolute(settings.template)
    if settings.tokenizer.path:
        changes["tokenizer"] = settings.tokenizer.model_copy(update={"path": absolute(settings.tokenizer.path)})
    if find.folder_of(settings.model, config.file.parent):
        changes["model"] = str(model_path.resolve())
    if settings.init_from:
        changes["init_from"] = str((opening.earlier_adapter(config) or opening.earlier_run(config).path).resolve())
    return settings.model_copy(update=changes)


def _environment(folder: Path) -> dict[str, Any]:
    return {
        "luthier": VERSION,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "libraries": {name: importlib.metadata.version(name) for name in resuming.LIBRARIES},
        "threads": torch.get_num_threads(),
        "model_folder": str(folder),
        "base_sha256": weights.fingerprint(folder),
        "began": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%dT%H:%M:%SZ}",
    }


def _price_of_checkpointing(engine: Engine, prepared: Prepared, plan: Plan) -> str:
    """What computing activations again costs, and what it is expected to save.

    Timed on a row of usual length, or on a shorter one: without it the row must pass in the memory that the plan has for activations.
    """
    told = f"gradient_checkpointing: {engine.recomputing.mode}"
    saved = f"saves about {plan.saved_bytes / 1e9:.2g} GB"
    usual = np.unique(np.sort(prepared.lengths)[: len(prepared.lengths) // 2 + 1])
    room, precision = plan.memory_bytes.get("activations", 0), str(plan.settings.training.precision)
    fits = [tokens for tokens in map(int, usual) if memory.kept_bytes(plan.facts, precision, tokens) <= room]
    if not fits:
        return f"{told} {saved}; what time it takes was not measured, as no row passes without it"
    price = engine.price_of_checkpointing([prepared.train[int(np.flatnonzero(prepared.lengths == fits[-1])[0])]])
    return f"{told} takes {price:+.0%} time (on {fits[-1]} tokens) and {saved}"


def _try_the_worst(run: RunFolder, engine: Engine, task: Task, plan: Plan, ready: Ready, reporter: Reporter) -> None:
    """Before the first update: do the largest one and the largest evaluation fit, and what do they take? It is said, and kept in plan.json."""
    training, asked = plan.settings.training, plan.settings.evaluation
    worst = [task.rows[place] for place in trial.worst_rows(task.lengths, int(training.batch_size))]
    chosen = plan.settings.model_dump(include={"objective", "method", "training", *METHODS[plan.settings.method].blocks})
    matters = {
        "settings": chosen,
        "facts": plan.facts,
        "machine": plan.machine,
        "ranks": (ranks.world(), plan.settings.wrapping, plan.settings.sequence_parallel),
    }
    evaluation = trial.worst_evaluation(ready.prepared.held_out, max(asked.sample_answers, asked.in_loop_rows))
    smaller = plan.next_step or f"training.micro_batch_tokens: {max(1, int(training.micro_batch_tokens) // 2)}"
    budget = engine.micro_batch_tokens
    measured = trial.measure(engine, worst, trial.trial_file(files.home(), matters, worst, evaluation), task.forward_backward, evaluation)
    if engine.micro_batch_tokens != budget:
        shortage.tell_smaller(run, reporter, plan, 0, budget, engine.micro_batch_tokens)
    predicted = sum(plan.memory_bytes.values()), cost.update_seconds(plan.settings, plan.facts, plan.machine, _shape_of(worst, plan.rows))
    tell(run, reporter, measured.line(*predicted))
    if run.plan.is_file():
        files.write_json(run.plan, {**files.read_json(run.plan), "measured": measured.as_json(*predicted)})
    if plan.settings.max_memory and measured.evaluation_peak_bytes > bytes_of(plan.settings.max_memory):
        what = "one update" if measured.peak_bytes > bytes_of(plan.settings.max_memory) else "one evaluation"
        raise RunError(
            f"{what} took {measured.evaluation_peak_bytes / 1e9:.3g} GB, and max_memory is {plan.settings.max_memory}",
            where=str(run.path),
            next_step=f"{smaller}, or more max_memory",
        )


def _shape_of(update: Sequence[TokenizedExample | Judged], rows: DataShape) -> DataShape:
    """One update's rows in numbers, where all rows are `rows`."""
    tokens = [one.tokens for one in update]
    changes = {"train_rows": len(update), "train_tokens": sum(tokens), "longest": max(tokens), "held_out_rows": 0}
    return dataclasses.replace(rows, trained_tokens=sum(one.trained_tokens for one in update), **changes)


def train(
    run: RunFolder, engine: Engine, plan: Plan, prepared: Prepared, task: Task, place: Place, reporter: Reporter, watch: Watch | None = None
) -> None:
    """Every update after `place`. Raises Interrupted where a signal ended it; the state is saved then. `watch` makes one more watcher.

    Raises RunInUse where the run became another process' meanwhile: then nothing more may be written into it.
    """
    settings, training, say = plan.settings, plan.settings.training, functools.partial(tell, run, reporter)
    course, patience, shown = _course(plan, len(task.rows)), best.patience_of(settings, run), dict[str, str]()
    gauge = Gauge(run, engine, settings, prepared.rows.held_out, task.measure, task.score, place.step, reporter)

    def spare() -> AbstractContextManager[object]:
        return frozen.cached(engine, prepared.train, run.path, say) if training.cache_frozen_layers else nullcontext()

    with (
        run.patient(reporter.say),
        spare(),
        reporter.bar("training", course.updates) as bar,
        stopping_on_signals() as stop,
        Trackers(settings, run, place.step, say) as tracked,
        Saver(run, engine, place, settings, course, len(task.rows), stop, say) as saver,
    ):
        if engine.crew:
            engine.crew.stop = stop
        stop.enough = patience.over  # where it was stopped between its last measurement and its end

        def measured(step: int, found: Measurement) -> None:
            for told in (saver.measured, tracked.measured):
                told(step, found.loss, found.metrics, found.drift)
            watchers.end_where_none_is_better(step, found, patience, stop, say)
            shown.update(watchers.numbers_of(found, step))

        evaluates = watchers.evaluates_at(settings, course.updates)
        watching = [
            saver.look,
            watchers.first_update_teller(run, engine, reporter),
            run.add_step,
            watchers.teller(bar, reporter, course.updates, training.logging_steps, shown),
            watchers.changed_files_teller(run, prepared.rows.files, reporter),
            watchers.spike_teller(run, reporter, lambda step: [row.source for row in course.rows(task.rows, step - 1)]),
            # Before the saver: what is measured at a step stands in its checkpoint, and is not missing in a run that goes on from there.
            watchers.evaluator(run, engine, prepared, gauge, settings, course.updates, reporter, measured),
            tracked.watch,
            saver.watch,
            *([watch(run, stop)] if watch else []),  # last: it may end the run by an error
        ]
        fit = functools.partial(
            loop.fit,
            engine,
            timed := reading.Timed(task.rows),
            course,
            watching,
            stop,
            done=place.step,
            skipped_in_a_row=run.skipped_in_a_row(),
            on_skip=watchers.skip_teller(run, reporter),
            on_rows=run.add_rows if training.rows_file else None,
            on_smaller=functools.partial(shortage.tell_smaller, run, reporter, plan),
            looks_at_weights=lambda step: saver.wants(step) or evaluates(step),
            forward_backward=task.forward_backward,
        )
        done = place.step if stop.enough else timed.during(fit, run, course.updates)
        if done < course.updates and (stop.signal or training.save_strategy != "no"):
            saver.save(done, wait=True)
        if done < course.updates and stop.signal:
            run.say(f"stopped by signal {stop.signal} after step {done}")
            raise Interrupted(run, done, stop.signal, saver.last_step)
        saver.load_best()
    run_lock.require_not_taken(run.path)  # what was trained is saved next


def _course(plan: Plan, rows: int) -> loop.Course:
    """How a run of so many rows goes."""
    training = plan.settings.training
    return loop.Course(
        updates=plan.updates,
        examples_seen=order.examples_of_run(rows, int(training.batch_size), float(training.num_train_epochs), training.max_steps),
        batch_size=int(training.batch_size),
        learning_rate=float(training.learning_rate),
        lr_scheduler_type=training.lr_scheduler_type,
        warmup_steps=schedule.warmup_updates(plan.updates, training.warmup_steps, float(training.warmup_ratio)),
        seed=plan.settings.seed,
        num_cycles=training.num_cycles,
        decay_steps=schedule.decay_updates(plan.updates, training.decay_steps, training.decay_ratio),
        together=training.rows_together,
    )


def _restore(run: RunFolder, path: Path, engine: Engine, expected: Place, reporter: Reporter) -> Place:
    place = checkpoint.load(path, engine)
    checkpoint.check_same_run(place, expected, path)
    run.forget_after(place.step)
    reporter.say(f"resumed from {path}")
    return place
