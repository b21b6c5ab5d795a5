"""A search whose trials run at once on a Ray cluster: Ray Tune starts them where there is room and gives poor ones up (ASHA, Li 2018,
arXiv:1810.05934). What is kept is what `luthier sweep` keeps, in the search's folder, which all machines of the cluster see; a search that was
killed goes on from there. Ray's token authentication stays on.
"""

import dataclasses
import os
from pathlib import Path
from typing import Any

from luthier import run_lock
from luthier.errors import CallError, LuthierError
from luthier.plan import sampler
from luthier.plan.sampler import PARTS, WARM_UP_PARTS
from luthier.recipes import sweep as recipe
from luthier.recipes.sweep import FIRST, Sweep
from luthier.records import Trial
from luthier.reporting import Reporter, Silent

# Since this release a cluster asks for a token unless it is told not to.
FIRST_RELEASE = (2, 60)
AUTHENTICATION, TOKEN = "RAY_AUTH_MODE", Path("~/.ray/auth_token")
# So many times the trials, and the sampler draws all of them evenly.
EVENLY = 3
# Of trials that are compared, one of so many goes on.
REDUCTION = 3


def require_ray() -> None:
    """Raises LuthierError where Ray is not installed or too old, CallError where its authentication was switched off."""
    way_out = 'pip install "luthier[ray]"'
    try:
        import ray
        from ray import tune  # noqa: F401
    except ImportError as error:
        raise LuthierError("trials on Ray need Ray Tune, which is not installed", where="luthier sweep --ray", next_step=way_out) from error
    release = tuple(int(part) for part in ray.__version__.split(".")[:2])
    if release < FIRST_RELEASE:
        raise LuthierError(f"Ray {ray.__version__} lets anybody run code on its ports", where="luthier sweep --ray", next_step=way_out)
    if os.environ.get(AUTHENTICATION, "token") != "token":
        problem = f"{AUTHENTICATION}={os.environ[AUTHENTICATION]} lets anybody who reaches its ports run code here"
        raise CallError(problem, where="luthier sweep --ray", next_step=f"unset {AUTHENTICATION}")


def run(sweep: Sweep, reporter: Reporter | None = None, *, cpus: int = 1) -> Sweep:
    """Run every trial that is missing, as many at once as the cluster has room for; each takes `cpus` processors, and a GPU where the settings
    want one. The same call on the search's folder goes on with it. Raises LuthierError for what require_ray refuses."""
    reporter = reporter or Silent()
    sampler.require_optuna()
    require_ray()
    with run_lock.held(sweep.path, "sweep", reporter.say):
        sweep = dataclasses.replace(sweep, trials=recipe._read(sweep.path).trials)
        if not [trial for trial in sweep.ended if trial.number == FIRST]:
            # The settings as they stand come first and alone: what is wrong with them ends the search, and trials are compared with its rows.
            first = recipe.ask(sweep)
            assert first is not None
            sweep = recipe.tell(sweep, recipe.run_trial(recipe.tell(sweep, first), first, reporter))
            reporter.say(recipe._line(sweep, sweep.trials[0]))
        sweep = _tuned(sweep, reporter, cpus)
        recipe._write_results(sweep, reporter)
    return sweep


def _tuned(sweep: Sweep, reporter: Reporter, cpus: int) -> Sweep:
    import ray
    from ray import tune

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    if TOKEN.expanduser().is_file():
        TOKEN.expanduser().chmod(0o600)  # Ray leaves it readable for everybody
    book = _Book(sweep, reporter)
    gpu = 1 if sweep.config().settings.device != "cpu" and ray.cluster_resources().get("GPU") else 0
    tuner = tune.Tuner(
        tune.with_resources(_trial, {"cpu": cpus, "gpu": gpu}),
        tune_config=tune.TuneConfig(
            num_samples=max(0, sweep.search.trials - len(sweep.ended)),
            search_alg=_searcher(book),
            scheduler=tune.schedulers.ASHAScheduler(
                time_attr="part", metric="value", mode="min", max_t=PARTS, grace_period=WARM_UP_PARTS, reduction_factor=REDUCTION
            )
            if sweep.search.prune
            else None,
        ),
        run_config=tune.RunConfig(storage_path=str((sweep.path / "ray").resolve()), name="tune", verbose=0),
    )
    tuner.fit()
    return book.sweep


def _trial(asked: dict[str, Any]) -> None:
    """One trial, in a process of Ray's: told of each part of its run, Ray ends it where it is given up."""
    from ray import tune

    sweep = recipe._read(Path(asked["sweep"]))
    alone = dataclasses.replace(sweep, search=sweep.search.model_copy(update={"prune": False}))
    sign = -1 if sweep.greater_is_better else 1

    def tell(part: int, value: float) -> None:
        tune.report({"part": part, "value": sign * value})

    recipe.run_trial(alone, Trial(asked["number"], asked["values"]), Silent(), tell)


class _Book:
    """What is tried and what came of it, kept as the trials end."""

    def __init__(self, sweep: Sweep, reporter: Reporter) -> None:
        self.sweep, self._reporter = sweep, reporter
        self._waiting = [trial for trial in sweep.trials if trial.state == "running"]
        self._started: dict[str, Trial] = {}

    def start(self, name: str) -> dict[str, Any] | None:
        """What the next trial tries: first those that were stopped in their midst; None where everything was tried."""
        trial = self._waiting.pop(0) if self._waiting else self._drawn()
        if trial is None:
            return None
        self.sweep = recipe.tell(self.sweep, trial)
        self._started[name] = trial
        return {"sweep": str(self.sweep.path.resolve()), "number": trial.number, "values": trial.values}

    def _drawn(self) -> Trial | None:
        if len(self.sweep.trials) >= self.sweep.search.trials:
            return None
        # All drawn evenly, as ASHA wants it: trials that run at once know nothing of each other. (A third of a search is drawn so.)
        evenly = self.sweep.search.model_copy(update={"trials": EVENLY * self.sweep.search.trials})
        values = sampler.next_values(evenly, self.sweep.greater_is_better, self.sweep.trials)
        return None if values is None else Trial(len(self.sweep.trials) + 1, values)

    def end(self, name: str, failed: bool) -> None:
        """A trial is over: how, is seen from its run folder."""
        trial = self._started.pop(name)
        begun = recipe._begun(self.sweep, trial)
        whole = begun is not None and begun.trained.is_dir()
        state, why = ("done", "") if whole else ("failed", "its process ended with an error (see the log of its run)") if failed else ("pruned", "")
        self.sweep = recipe.tell(self.sweep, recipe._ended(self.sweep, trial, state, why))
        self._reporter.say(recipe._line(self.sweep, self.sweep.trials[trial.number - 1]))


def _searcher(book: _Book) -> Any:
    from ray.tune.search import Searcher

    class FromBook(Searcher):  # type: ignore[misc]  # Ray's own door for whoever says what is tried
        def suggest(self, trial_id: str) -> Any:
            return self.book.start(trial_id) or self.FINISHED

        def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
            self.book.end(trial_id, error)

        def save(self, checkpoint_path: str) -> None:
            return  # sweep.json has it

        def restore(self, checkpoint_path: str) -> None:
            return

        def __reduce__(self) -> tuple[Any, ...]:
            return dict, ()  # Ray keeps a copy of this beside its own files, and nothing reads it

    found = FromBook(metric="value", mode="min")
    found.book = book
    return found
