"""Search settings: ordinary runs on the same rows, each with other values; the first is the settings file as it stands.

`ask` says what to try, `run_trial` runs it, `tell` keeps what came of it: whoever runs trials elsewhere needs these three only. What is kept
is in the search's folder: sweep.json, and a run folder a trial. A search that was killed goes on from there.
"""

import dataclasses
import datetime
import functools
import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier import files, run_lock
from luthier.config.launch_rules import one_process
from luthier.config.load import Config, load_config, settings_to_yaml
from luthier.config.metric_names import with_file
from luthier.config.search import Search, check_search, override
from luthier.data import prepare
from luthier.diagnose import sweep_page
from luthier.diagnose.report import write_report
from luthier.errors import CallError, ConfigError, DataError, LuthierError, MachineError, NotFiniteError, RunError
from luthier.plan import sampler
from luthier.plan.choose import value_of
from luthier.plan.in_words import duration
from luthier.plan.sampler import PARTS
from luthier.plan.search import at_the_edge, propose
from luthier.recipes import planning, training
from luthier.records import StepReport, Trial
from luthier.reporting import Reporter, Silent
from luthier.run_folder import RunFolder
from luthier.stopping import EndedAtOnce, Stop
from luthier.train import loop, session, watchers
from luthier.train.best import LESS_IS_BETTER

SCHEMA = 1
NAME, BEST = "sweep.json", "best.yaml"
# The number of the trial that runs the settings file as it stands.
FIRST = 1


@dataclass(frozen=True, slots=True)
class Sweep:
    """A search: its folder, the settings that it varies, and its trials so far."""

    path: Path
    file: Path
    file_sha256: str
    overrides: list[str]
    search: Search
    trials: list[Trial]

    @property
    def greater_is_better(self) -> bool:
        asked = self.search.greater_is_better
        return self.search.metric not in LESS_IS_BETTER if asked is None else asked

    @property
    def measured(self) -> str:
        """The metric as its runs call it: with the whole path of its file, if it has one."""
        return with_file(self.search.metric, lambda file: str((self.file.parent / Path(file).expanduser()).resolve()))

    @property
    def best(self) -> Trial | None:
        """The trial that came to its end with the best value; of equal ones the first."""
        sign = -1 if self.greater_is_better else 1
        return min((trial for trial in self.trials if trial.state == "done"), key=lambda trial: sign * (trial.value or 0.0), default=None)

    @property
    def ended(self) -> list[Trial]:
        return [trial for trial in self.trials if trial.state != "running"]

    def config(self, *more: str) -> Config:
        return load_config(self.file, [*self.overrides, *more])


class _GivenUp(Exception):
    """The held-out curve of a trial stays behind those of the trials before it."""


class Stopped(LuthierError):
    """A signal ended the search. The exit code is the shell's own for it."""

    def __init__(self, sweep: Sweep, exit_code: int) -> None:
        ended = f"stopped when {len(sweep.ended)} of {sweep.search.trials} trials had ended"
        super().__init__(ended, where=str(sweep.path), next_step=f"luthier sweep {sweep.path} goes on with it")
        self.exit_code = exit_code


def begin(
    config: Config,
    overrides: list[str],
    reporter: Reporter | None = None,
    *,
    search: Search | None = None,
    trials: int | None = None,
    metric: str | None = None,
    places: Mapping[str, str] | None = None,
) -> Sweep:
    """A new search of `config` (its file with `overrides`), which nobody works at yet: `search`, or the one that `luthier plan --sweep`
    proposes. Raises ConfigError where it cannot be searched so (`places`: where the search says what, for the message), before anything is
    run."""
    reporter = reporter or Silent()
    settings = config.settings
    sampler.require_optuna()
    if not one_process(settings):
        problem = "each trial is one process, and devices or nodes ask for several"
        raise ConfigError(problem, where="devices", next_step="devices: 1 for the search, and the best of it on all of them; or luthier sweep --ray")
    if any(source.path == "-" for source in settings.data.sources):
        raise ConfigError("standard input is read once, and a search reads the rows for each trial", where="data.train: -", next_step="name a file")
    if not prepare.load_rows(settings.data, config.file.parent, settings.seed, Silent()).held_out:
        raise ConfigError("no rows are held out, and a search chooses by them", where="data.eval", next_step="data.eval: 10%, or a file of rows")
    plan = planning.make_plan(config, reporter)
    plan.require_room()
    search = search or propose(plan)
    search = search.model_copy(update={name: value for name, value in (("trials", trials), ("metric", metric)) if value is not None})
    check_search(search, config, overrides, places or {})
    reporter.say(f"{search.trials} trials of about {duration(plan.seconds)} each on {plan.machine.name}, less what pruning saves")
    path = _new_folder(Path(config.beside(settings.output_dir)), Path(settings.model).name)
    sweep = Sweep(path, config.file.resolve(), files.sha256(config.file), overrides, search, [])
    _store(sweep)
    return sweep


def _new_folder(output_dir: Path, title: str) -> Path:
    stamp = f"{datetime.datetime.now():%Y-%m-%d-%H%M}"
    names = (f"sweep-{title}-{stamp}" + (f"-{number}" if number > 1 else "") for number in range(1, 1000))
    path = next(output_dir / name for name in names if not (output_dir / name).exists())
    return files.make_folder(path / "trials").parent


def reopen(folder: Path, trials: int | None = None) -> Sweep:
    """The search in `folder`, to go on with; `trials`: another number of them in all. Raises CallError where its settings file has changed."""
    sweep = _read(folder)
    if not sweep.file.is_file() or files.sha256(sweep.file) != sweep.file_sha256:
        raise CallError(
            f"{sweep.file} is not as it was when the search began, and trials of other settings cannot be compared",
            where=str(folder),
            next_step="put the file back, or begin a new search: luthier sweep CONFIG",
        )
    if trials is not None:
        sweep = dataclasses.replace(sweep, search=sweep.search.model_copy(update={"trials": trials}))
    return sweep


def run(sweep: Sweep, reporter: Reporter | None = None) -> Sweep:
    """Run every trial that is missing. Raises Stopped where a signal ended it; the same call on the folder goes on with it then."""
    reporter = reporter or Silent()
    sampler.require_optuna()
    with run_lock.held(sweep.path, "sweep", reporter.say):
        # Another process may have worked at it since it was opened.
        sweep = dataclasses.replace(sweep, trials=_read(sweep.path).trials)
        while trial := ask(sweep):
            sweep = tell(sweep, trial)
            trial = run_trial(sweep, trial, reporter)
            sweep = tell(sweep, trial)
            reporter.say(_line(sweep, trial))
        if len(sweep.ended) < sweep.search.trials:
            reporter.say(f"every combination was tried: {len(sweep.ended)} trials")
        _write_results(sweep, reporter)
    return sweep


def ask(sweep: Sweep) -> Trial | None:
    """The next trial: one that was killed in its midst, or a new one; None where the search is over."""
    if running := [trial for trial in sweep.trials if trial.state == "running"]:
        return running[0]
    if len(sweep.trials) >= sweep.search.trials:
        return None
    if not sweep.trials:
        plan = planning.make_plan(sweep.config())
        return Trial(1, {name: value_of(plan.settings, name) for name in sweep.search.settings})
    values = sampler.next_values(sweep.search, sweep.greater_is_better, sweep.trials)
    return None if values is None else Trial(len(sweep.trials) + 1, values)


def tell(sweep: Sweep, trial: Trial) -> Sweep:
    """The search with what is known of a trial now, which is kept."""
    sweep = dataclasses.replace(sweep, trials=[*sweep.trials[: trial.number - 1], trial, *sweep.trials[trial.number :]])
    _store(sweep)
    return sweep


def run_trial(sweep: Sweep, trial: Trial, reporter: Reporter, tell_part: Callable[[int, float], None] | None = None) -> Trial:
    """Run a trial to its end, or until it is given up; one that was stopped before goes on from its newest whole checkpoint, or, where it
    has none, from its first update. `tell_part` hears what was measured in each part of the run, once it is over."""
    gc.collect()  # the model of the trial before
    title = f"{trial.number:02d}"
    state, why, stop = "done", "", Stop()
    with reporter.bar(f"trial {trial.number} of {sweep.search.trials}", PARTS) as bar:
        begun = _begun(sweep, trial)
        try:
            if begun and not begun.trained.is_dir() and _is_behind(sweep, trial, _curve(begun, sweep)):
                raise _GivenUp  # it was ended before that was kept
            if begun is None or not (begun.trained.is_dir() and begun.report.is_file()):
                config = load_config(begun.config) if begun else _config_of(sweep, trial)
                watch = functools.partial(_watcher, sweep, trial, bar.advance, tell_part, stop)
                training.fit(config, Silent(), title=title, resume=begun, watch=watch)
        except _GivenUp:
            state = "pruned"
        except NotFiniteError as error:
            state, why = "diverged", error.problem
        except (ConfigError, MachineError) as error:
            if trial.number == FIRST:
                raise  # the settings file as it stands
            state, why = "failed", f"{error.where}: {error.problem}"
        except session.Interrupted as error:
            raise Stopped(sweep, error.exit_code) from error
        except EndedAtOnce as error:  # not while it trained: nothing of it is saved
            raise Stopped(sweep, 128 + error.signal) from error
    if stop.signal:  # it came too late for this trial, whose end is found again
        raise Stopped(sweep, 128 + stop.signal)
    return _ended(sweep, trial, state, why)


def _config_of(sweep: Sweep, trial: Trial) -> Config:
    """The settings of a trial: the file's own with its values, in the search's folder, measured often enough to be compared."""
    values = [override(name, value) for name, value in trial.values.items()] if trial.number != FIRST else []
    own = [override("output_dir", str((sweep.path / "trials").resolve())), "evaluation.sample_answers=0", "resume=never"]
    config = sweep.config(*values, *own)
    asked = config.settings.evaluation
    if asked.every_steps is None:
        own.append(f"evaluation.every_steps={max(1, planning.make_plan(config).updates // PARTS)}")
        if asked.general_rows is None:
            own.append("evaluation.general=null")  # auto would measure forgetting because of every_steps
    return sweep.config(*values, *own)


def _begun(sweep: Sweep, trial: Trial) -> RunFolder | None:
    """The run of a trial that was begun; None where nothing is there to go on with."""
    found = [path for path in sorted((sweep.path / "trials").glob(f"{trial.number:02d}-*")) if (path / "config.yaml").is_file()]
    whole = [RunFolder(path) for path in found if (path / "environment.json").is_file()]
    return whole[-1] if whole else None


def _watcher(
    sweep: Sweep,
    trial: Trial,
    advance: Callable[[int, str], None],
    tell_part: Callable[[int, float], None] | None,
    seen: Stop,
    run: RunFolder,
    stop: Stop,
) -> loop.Watcher:
    """Told of each update of a trial; raises _GivenUp once its held-out curve stays behind. `seen` learns of a signal, whenever it comes."""
    _require_same_rows(sweep, trial, run)
    due = watchers.evaluates_at(load_config(run.config).settings, _updates(run))

    def watch(report: StepReport) -> None:
        seen.signal = stop.signal
        curve = _curve(run, sweep) if due(report.step) else {}
        if not curve:
            return
        part = max(curve)
        advance(part, f"{sweep.search.metric} {curve[part]:.4f}")
        if tell_part:
            tell_part(part, curve[part])
        if _is_behind(sweep, trial, curve):
            raise _GivenUp

    return watch


def _is_behind(sweep: Sweep, trial: Trial, curve: dict[int, float]) -> bool:
    if not sweep.search.prune or not curve or max(curve) == PARTS:
        return False
    before = [one for one in sweep.trials if one.number < trial.number]
    return sampler.falls_behind(sweep.search, sweep.greater_is_better, before, curve)


def _updates(run: RunFolder) -> int:
    return int(files.read_json(run.plan)["updates"])


def _curve(run: RunFolder, sweep: Sweep) -> dict[int, float]:
    """The first held-out measurement in each part of a run, so that runs of other numbers of updates can be compared."""
    updates, curve = _updates(run), dict[int, float]()
    for row in run.read_metrics("eval"):
        part, value = PARTS * row["step"] // updates, _measured(row, sweep.measured)
        if part and value is not None:
            curve.setdefault(part, value)
    return curve


def _measured(row: dict[str, Any], metric: str) -> float | None:
    """A number of a line of metrics.jsonl; None where it was not finite. Raises ConfigError where the run does not measure it."""
    known = {"loss": row["loss"], **row["metrics"], **{f"drift/{name}": value for name, value in row["drift"].items()}}
    if metric not in known:
        raise ConfigError(f"{metric} is not measured while these runs train", where="metric", next_step=f"one of: {', '.join(known)}")
    return None if known[metric] is None else float(known[metric])


def _ended(sweep: Sweep, trial: Trial, state: str, why: str) -> Trial:
    """The trial with what its run folder holds."""
    run = _begun(sweep, trial)
    if run is None:
        return dataclasses.replace(trial, state=state, why=why)
    steps, curve = run.read_metrics("train"), _curve(run, sweep)
    value = _value_left(run, sweep) if state == "done" else None
    if state == "done" and value is None:
        state, why = "diverged", f"the held-out {sweep.search.metric} is not a number"
    if state == "pruned":
        why = f"behind the median of the trials before it after {max(curve)}/{PARTS} of the run"
        run.say(f"given up: {why}")
        write_report(run)
    settings = load_config(run.config).settings
    return dataclasses.replace(
        trial,
        state=state,
        why=why,
        values={name: value_of(settings, name) for name in trial.values},
        run=str(run.path.relative_to(sweep.path)),
        value=value,
        curve=curve,
        updates=max((row["step"] for row in steps), default=0),
        seconds=round(sum(row["seconds"] for row in steps), 1),
    )


def _value_left(run: RunFolder, sweep: Sweep) -> float | None:
    """What was measured of the model that the run left: its last one, or its best where that was loaded at its end."""
    rows = run.read_metrics("eval")
    step = files.read_json(run.best)["step"] if run.best.is_file() else max(row["step"] for row in rows)
    return next(_measured(row, sweep.measured) for row in rows if row["step"] == step)


def _require_same_rows(sweep: Sweep, trial: Trial, run: RunFolder) -> None:
    """Raises DataError where a trial begins with other rows, or another model, than the first; it leaves no folder then."""
    first = _begun(sweep, sweep.trials[0])
    if first and files.read_json(first.environment)["contents"] != files.read_json(run.environment)["contents"]:
        files.remove_folder(run.path)
        raise DataError(
            f"trial {trial.number} would have other rows or another model than the first, and could not be compared with it",
            where=str(sweep.path),
            next_step=f"put them back, then luthier sweep {sweep.path}; or begin a new search: luthier sweep CONFIG",
        )


def _store(sweep: Sweep) -> None:
    best = sweep.best
    counts = {state: sum(trial.state == state for trial in sweep.trials) for state in ("done", "pruned", "diverged", "failed", "running")}
    stored = {
        "schema": SCHEMA,
        "config": str(sweep.file),
        "config_sha256": sweep.file_sha256,
        "overrides": sweep.overrides,
        "search": sweep.search.model_dump(),
        "greater_is_better": sweep.greater_is_better,
        "counts": counts,
        "best": best.number if best else None,
        "trials": [dataclasses.asdict(trial) for trial in sweep.trials],
    }
    files.write_json(sweep.path / NAME, stored)


def _read(folder: Path) -> Sweep:
    if not (folder / NAME).is_file():
        raise CallError(f"is not the folder of a search (it has no {NAME})", where=str(folder), next_step="luthier sweep CONFIG begins one")
    stored = files.read_json(folder / NAME)
    try:
        trials = [Trial(**{**trial, "curve": {int(part): value for part, value in trial["curve"].items()}}) for trial in stored["trials"]]
        search = Search.model_validate(stored["search"])
        return Sweep(folder, Path(stored["config"]), stored["config_sha256"], stored["overrides"], search, trials)
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"does not hold a search ({error})", where=str(folder / NAME), next_step="luthier sweep CONFIG begins a new one") from error


def _line(sweep: Sweep, trial: Trial) -> str:
    """How a trial ended."""
    best = " (the best so far)" if sweep.best and sweep.best.number == trial.number else ""
    found = f"{sweep.search.metric} {trial.value:.4f}{best}" if trial.value is not None else f"{trial.state}: {trial.why}"
    return f"trial {trial.number} of {sweep.search.trials}: {_in_words(trial)}: {found}"


def _in_words(trial: Trial) -> str:
    values = ", ".join(f"{name.rpartition('.')[2]} {value}" for name, value in trial.values.items())
    return values if trial.number != FIRST else f"as the settings stand ({values})"


def _write_results(sweep: Sweep, reporter: Reporter) -> None:
    """The table, the plots, and the settings of the best trial as a file that can be trained."""
    head, rows = sweep_page.table_of(sweep.search, sweep.trials, sweep.best)
    reporter.table(head, rows)
    shown = sweep_page.write(sweep.path, sweep.search, sweep.trials, sweep.best)
    if sweep.best is None:
        reporter.say(f"no trial came to its end; {shown[0]} says why")
        return
    first, best, metric = sweep.trials[0], sweep.best, sweep.search.metric
    _write_best(sweep, best)
    beside = f"; the settings as they stood: {first.value:.4f}" if first.value is not None and best.number != FIRST else ""
    reporter.say(f"best: trial {best.number}, held-out {metric} {best.value:.4f}{beside}")
    if edges := [f"{name}: {best.values[name]}" for name in at_the_edge(sweep.search, best.values)]:
        reporter.say(f"at the edge of what was tried, where a wider range may hold a better one: {', '.join(edges)}")
    reporter.say(f"{', '.join(map(str, shown))}\nNext: luthier eval {sweep.path / best.run}   luthier train {sweep.path / BEST}")


def _write_best(sweep: Sweep, best: Trial) -> None:
    asked = sweep.config()
    won = load_config(sweep.path / best.run / "config.yaml").settings
    evaluation = asked.settings.evaluation.model_copy(update={"max_new_tokens": won.evaluation.max_new_tokens})
    output_dir = str(Path(asked.beside(asked.settings.output_dir)).resolve())
    settings = won.model_copy(update={"output_dir": output_dir, "evaluation": evaluation, "resume": asked.settings.resume})
    comment = f"# Trial {best.number} of {sweep.path.name}: held-out {sweep.search.metric} {best.value:.4f}\n"
    files.write_text(sweep.path / BEST, comment + settings_to_yaml(settings))
