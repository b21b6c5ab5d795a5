"""Which of two measurements is the better one: for the best checkpoint, and for the end of a run that gains nothing more."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from luthier.config.metric_names import LOWER_IS_BETTER
from luthier.config.settings import Settings
from luthier.run_folder import RunFolder

LESS_IS_BETTER = LOWER_IS_BETTER | {"loss", "kl", "drift/kl", "drift/general_loss"}


@dataclass(frozen=True, slots=True)
class Aim:
    """What a run should become good at: a metric, less `drift_weight` times its drift from the base in nats (or more, where less is better).

    Of all checkpoints the best by such a sum is on the Pareto front: none has both a better metric and less drift.
    """

    metric: str
    greater_is_better: bool
    drift_weight: float = 0.0

    @property
    def name(self) -> str:
        if not self.drift_weight:
            return self.metric
        return f"{self.metric} {'-' if self.greater_is_better else '+'} {self.drift_weight:g} drift/kl"

    def value(self, loss: float | None, metrics: Mapping[str, float | None], drift: Mapping[str, float | None]) -> float:
        """The number of a measurement; NaN where a part of it was not measured or is not finite."""
        known = {**{f"drift/{name}": value for name, value in drift.items()}, **metrics, "loss": loss}
        wanted = [known.get(self.metric), known.get("drift/kl") if self.drift_weight else 0.0]
        number, moved = (math.nan if part is None else part for part in wanted)
        price = self.drift_weight * moved
        return number - price if self.greater_is_better else number + price

    def rank(self, value: float) -> float:
        """Less is better."""
        return -value if self.greater_is_better else value


def aim_of(settings: Settings) -> Aim:
    training = settings.training
    metric, asked = training.metric_for_best_model, training.greater_is_better
    return Aim(metric, metric not in LESS_IS_BETTER if asked is None else asked, settings.evaluation.drift_weight)


@dataclass(slots=True)
class Patience:
    """How many evaluations in a row gained nothing. As in Transformers' EarlyStoppingCallback an evaluation gains where it is better than
    the best so far by more than the threshold; the best so far is the best of all, whether it gained enough or not.

    It is counted from what metrics.jsonl holds, so that a run that goes on has the count of one that was never stopped.
    """

    aim: Aim
    patience: int | None
    threshold: float
    best: float = math.nan
    best_step: int = 0
    waited: int = 0

    def add(self, step: int, loss: float | None, metrics: Mapping[str, float | None], drift: Mapping[str, float | None]) -> None:
        value = self.aim.value(loss, metrics, drift)
        gain = self.aim.rank(self.best) - self.aim.rank(value)
        better = math.isfinite(value) and (math.isnan(self.best) or gain > 0)
        gained = better and (math.isnan(self.best) or gain > self.threshold)
        self.waited = 0 if gained else self.waited + 1
        if better:
            self.best, self.best_step = value, step

    @property
    def over(self) -> bool:
        return self.patience is not None and self.waited >= self.patience

    def __str__(self) -> str:
        best = f"the best is {self.best:.4f} at step {self.best_step}" if math.isfinite(self.best) else "it was never measured"
        return f"{self.aim.name} got no better in {self.waited} evaluations in a row ({best})"


def patience_of(settings: Settings, run: RunFolder) -> Patience:
    """With what the run has measured so far."""
    asked = settings.evaluation
    patience = Patience(aim_of(settings), asked.early_stopping_patience, asked.early_stopping_threshold)
    for row in run.read_metrics("eval"):
        patience.add(row["step"], row["loss"], row["metrics"], row["drift"])
    return patience
