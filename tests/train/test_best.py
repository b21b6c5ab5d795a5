"""Which measurement is the better one, and when a run has waited long enough."""

import math
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import settings as rules
from hypothesis import strategies as st

from luthier.config.settings import Settings
from luthier.run_folder import RunFolder
from luthier.train import best
from luthier.train.best import Aim, Patience

NONE: dict[str, float | None] = {}


def settings(metric: str = "loss", **evaluation: object) -> Settings:
    given = {"every_steps": 1, **evaluation}
    return Settings.model_validate({"model": "m", "data": {"train": "t"}, "training": {"metric_for_best_model": metric}, "evaluation": given})


@pytest.mark.parametrize(
    ("metric", "less"),
    [("loss", True), ("perplexity", True), ("refusals", True), ("drift/kl", True), ("exact_match", False), ("rewards/margins", False)],
)
def test_it_is_known_of_each_metric_whether_less_is_better(metric: str, less: bool) -> None:
    aim = best.aim_of(settings(metric))
    assert (aim.rank(1.0) < aim.rank(2.0)) is less


def test_what_was_not_measured_is_no_number() -> None:
    assert math.isnan(Aim("exact_match", True).value(1.0, NONE, NONE))
    assert math.isnan(Aim("loss", False).value(None, NONE, NONE))
    assert math.isnan(Aim("loss", False, drift_weight=1.0).value(1.0, NONE, NONE))
    assert Aim("drift/kl", False).value(1.0, NONE, {"kl": 0.25}) == 0.25


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=8), st.sampled_from([0.25, 0.5, 2.0]))
@rules(max_examples=50, deadline=None)
def test_with_a_weight_on_drift_the_best_is_on_the_pareto_front(points: list[tuple[int, int]], weight: float) -> None:
    aim = Aim("exact_match", True, weight)
    chosen = min(points, key=lambda point: aim.rank(aim.value(0.0, {"exact_match": float(point[0])}, {"kl": float(point[1])})))
    both_better = [point for point in points if point[0] >= chosen[0] and point[1] <= chosen[1] and point != chosen]
    assert both_better == []


def test_more_weight_chooses_less_drift() -> None:
    points = [(0.5, 0.0), (0.8, 0.2), (0.9, 1.0)]
    chosen = []
    for weight in (0.0, 0.5, 5.0):
        aim = best.aim_of(settings("exact_match", drift_weight=weight))
        chosen.append(min(points, key=lambda point: aim.rank(aim.value(0.0, {"exact_match": point[0]}, {"kl": point[1]}))))
    assert chosen == [(0.9, 1.0), (0.8, 0.2), (0.5, 0.0)]


@given(st.lists(st.integers(0, 6).map(float), min_size=1, max_size=12), st.integers(1, 4), st.sampled_from([0.0, 0.5, 1.0, 2.0]), st.booleans())
@rules(max_examples=100, deadline=None)
def test_it_ends_where_transformers_would(values: list[float], patience: int, threshold: float, greater: bool) -> None:
    from transformers import EarlyStoppingCallback, TrainerControl

    theirs = EarlyStoppingCallback(patience, threshold)
    args = SimpleNamespace(metric_for_best_model="m", greater_is_better=greater)
    state = SimpleNamespace(best_metric=None)
    ours = Patience(Aim("m", greater), patience, threshold)
    for step, value in enumerate(values):
        control = TrainerControl()
        theirs.on_evaluate(args, state, control, metrics={"eval_m": value})  # type: ignore[arg-type]
        if state.best_metric is None or (value > state.best_metric if greater else value < state.best_metric):
            state.best_metric = value  # what their Trainer does next
        ours.add(step, 0.0, {"m": value}, NONE)
        assert ours.over == bool(control.should_training_stop)
        if ours.over:
            return


def test_a_number_that_is_not_finite_gains_nothing() -> None:
    patience = Patience(Aim("loss", False), 2, 0.0)
    for step, loss in enumerate([math.nan, 2.0, math.nan, None]):
        patience.add(step, loss, NONE, NONE)
    assert (patience.over, patience.best, patience.best_step) == (True, 2.0, 1)


def test_the_count_is_that_of_the_lines_of_a_run(run: RunFolder) -> None:
    asked = settings("exact_match", early_stopping_patience=3, drift_weight=0.5)
    straight = best.patience_of(asked, run)
    for step, (right, kl) in enumerate([(0.5, 0.1), (0.6, 0.5), (0.4, 0.1)], start=1):
        run.add_evaluation(step, 1.0, {"exact_match": right}, drift={"kl": kl})
        straight.add(step, 1.0, {"exact_match": right}, {"kl": kl})
    again = best.patience_of(asked, run)
    assert again == straight
    assert (again.best_step, again.waited, again.over) == (1, 2, False)
    assert str(again) == "exact_match - 0.5 drift/kl got no better in 2 evaluations in a row (the best is 0.4500 at step 1)"
