"""What a search tries next, and which trial it gives up: Optuna's rules over trials that are handed in. Nothing is kept between calls.

What is drawn comes from the search's seed, the trial's number and the trials before it, so that a search that was killed goes on as if it
had not been.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from luthier.config.search import Range, Search, combinations, is_whole
from luthier.errors import LuthierError
from luthier.records import Trial

if TYPE_CHECKING:
    import optuna

# Parts of a run at whose ends trials are compared.
PARTS = 8
# No trial is given up in the first quarter of its run, or while fewer trials than these have ended.
WARM_UP_PARTS, LEAST_ENDED = 2, 3
# Values that were tried already are drawn again so often.
TRIES = 100


def require_optuna() -> None:
    """Raises LuthierError where Optuna is not installed."""
    try:
        import optuna  # noqa: F401
    except ModuleNotFoundError as error:
        way_out = 'pip install "luthier[sweep]"'
        raise LuthierError("a search needs Optuna, which is not installed", where="luthier sweep", next_step=way_out) from error


def next_values(search: Search, greater_is_better: bool, trials: Sequence[Trial]) -> dict[str, Any] | None:
    """The values of the next trial: drawn evenly at first, then by TPE (Bergstra 2011); None where every combination was tried.

    The first trial of a search is not drawn: it is the settings file as it stands.
    """
    tried = [trial.values for trial in trials]
    # The first trial may lie outside of what is searched, and is then none of its combinations.
    inside = [values for values in tried if all(name in values and _lies_in(of, values[name]) for name, of in search.settings.items())]
    if len({str(sorted(values.items())) for values in inside}) >= combinations(search):
        return None
    drawn: dict[str, Any] = {}
    for attempt in range(TRIES):
        study = _study(search, greater_is_better, trials, attempt)
        drawn = {name: _plain(search.settings[name], value) for name, value in study.ask(_distributions(search)).params.items()}
        if drawn not in tried:
            return drawn
    return None


def falls_behind(search: Search, greater_is_better: bool, trials: Sequence[Trial], curve: dict[int, float]) -> bool:
    """Whether the best of a curve so far is worse than the median of the trials that have ended, at the same part of their runs."""
    study = _study(search, greater_is_better, trials, 0)
    running = study.ask()
    for part, value in curve.items():
        running.report(value, part)
    return bool(running.should_prune())


def _study(search: Search, greater_is_better: bool, trials: Sequence[Trial], attempt: int) -> "optuna.Study":
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    seed = int(np.random.SeedSequence([search.seed, len(trials), attempt]).generate_state(1)[0])
    study = optuna.create_study(
        direction="maximize" if greater_is_better else "minimize",
        # A third of the trials is drawn evenly.
        sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=max(LEAST_ENDED, search.trials // 3), multivariate=False),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=LEAST_ENDED, n_warmup_steps=WARM_UP_PARTS),
    )
    for trial in trials:
        study.add_trial(_frozen(search, trial))
    return study


def _frozen(search: Search, trial: Trial) -> "optuna.trial.FrozenTrial":
    import optuna

    known = _distributions(search)
    # What the settings file says may lie outside of what is searched.
    inside = {name: value for name, value in trial.values.items() if name in known and _lies_in(search.settings[name], value)}
    values = {name: _place(search.settings[name], value) for name, value in inside.items()}
    return optuna.trial.create_trial(
        # A trial that diverged or failed has no measurement: among those given up it counts as the worst.
        state=optuna.trial.TrialState.COMPLETE if trial.state == "done" else optuna.trial.TrialState.PRUNED,
        value=trial.value if trial.state == "done" else None,
        params=values,
        distributions={name: known[name] for name in values},
        intermediate_values=dict(trial.curve) if trial.state in ("done", "pruned") else {},
    )


def _distributions(search: Search) -> "dict[str, optuna.distributions.BaseDistribution]":
    import optuna

    def distribution(name: str, values: Any) -> optuna.distributions.BaseDistribution:
        if not isinstance(values, Range):
            return optuna.distributions.CategoricalDistribution(range(len(values)))
        if is_whole(name):
            return optuna.distributions.IntDistribution(int(values.low), int(values.high), log=values.log)
        return optuna.distributions.FloatDistribution(values.low, values.high, log=values.log)

    return {name: distribution(name, values) for name, values in search.settings.items()}


def _lies_in(values: Any, value: Any) -> bool:
    if not isinstance(values, Range):
        return value in values
    return isinstance(value, int | float) and values.low <= value <= values.high


def _place(values: Any, value: Any) -> Any:
    """A value as Optuna knows it: of a list its place, since a list may hold lists."""
    return value if isinstance(values, Range) else values.index(value)


def _plain(values: Any, drawn: Any) -> Any:
    """What was drawn as a setting is written: a place in a list as what stands there, a fraction with three digits."""
    if not isinstance(values, Range):
        return values[drawn]
    return min(max(float(f"{drawn:.3g}"), values.low), values.high) if isinstance(drawn, float) else drawn
