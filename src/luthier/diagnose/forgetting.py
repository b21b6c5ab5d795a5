"""What the training cost: general ability that is lost, and scores that are no better than before."""

import math

from luthier.config.metric_names import kind_of, lower_is_better
from luthier.config.settings import Settings
from luthier.diagnose.cures import longer, rate, rate_of, shorter
from luthier.diagnose.evidence import Evidence
from luthier.diagnose.finding import Cure, Finding, Severity
from luthier.diagnose.scores import said_lower
from luthier.records import Metric, Scorecard

# Nats a token that general text has become less likely by: what is told, and what is severe (1.0 is 2.7 times less likely a token).
TOLD_NATS, SEVERE_NATS = 0.3, 1.0
# With fewer answers no score can be told from another.
LEAST_SCORED = 20
# Numbers that are neither better nor worse.
NEITHER = {"length", "stop_rate"}


def forgetting(evidence: Evidence) -> list[Finding] | str:
    """General text is less likely than it was to the base, or a general suite scores lower than the base does."""
    drifts = [(row["step"], row["drift"]) for row in evidence.evaluations if row.get("drift")]
    lost = _lost_scores(evidence)
    if not drifts and not lost:
        return "general text was not measured during the run, and no general suite after it"
    step, drift = drifts[-1] if drifts else (0, {})
    before = float(drift.get("base_general_loss") or 0)
    # A base that guesses (a loss of the logarithm of its vocabulary, or more) has nothing to forget.
    guesses = evidence.model is not None and before >= math.log(evidence.model.vocabulary)
    rise = 0.0 if guesses else float(drift.get("general_loss") or 0) - before
    if rise < TOLD_NATS and not lost:
        return []
    seen = []
    if rise >= TOLD_NATS:
        kl = f", KL from the base {drift['kl']:.2f}" if drift.get("kl") is not None else ""
        seen.append(f"the loss of general text is {drift['general_loss']:.2f} at step {step} and was {drift['base_general_loss']:.2f}{kl}")
    seen += [f"{name} is {tuned.value:.1%} and was {base.value:.1%}" for name, base, tuned in lost]
    severity: Severity = "severe" if rise >= SEVERE_NATS else "warning"
    return [
        Finding(
            "forgetting",
            severity,
            "catastrophic forgetting",
            "; ".join(seen),
            "the model has paid for the task with what it could before: other questions are answered worse",
            cures_of_forgetting(evidence.settings),
            {"drift": [{"step": at, **numbers} for at, numbers in drifts], "lost": {name: [base.value, tuned.value] for name, base, tuned in lost}},
        )
    ]


def cures_of_forgetting(settings: Settings) -> list[Cure]:
    """Replay, a lower rate, LoRA in place of full training, a shorter run."""
    cures = [Cure("mix general rows in: data.replay=10%", {"data.replay": "10%"}), rate(rate_of(settings) / 3, "a lower rate: ")]
    if settings.method == "full":
        cures.append(Cure("train an adapter: method=lora training.learning_rate=auto", {"method": "lora", "training.learning_rate": "auto"}))
    return [*cures, shorter(settings)]


def not_better(evidence: Evidence) -> list[Finding] | str:
    """No score of the task is surely better than the base's."""
    scores = _both(evidence.scorecard)
    own = {name: pair for name, pair in scores.items() if name in evidence.settings.evaluation.metrics}
    if not own:
        return "the answers were not scored (luthier eval RUN)"
    better = [name for name, (base, tuned) in own.items() if _is_worse(name, tuned, base, [])]
    at_the_top = all(base.value >= 0.99 and tuned.value >= 0.99 for base, tuned in own.values())
    if better or at_the_top or max(tuned.n for _, tuned in own.values()) < LEAST_SCORED:
        return []
    seen = ", ".join(f"{name} {tuned.value:.1%} ({tuned.low:.0%} to {tuned.high:.0%}), base {base.value:.1%}" for name, (base, tuned) in own.items())
    return [
        Finding(
            "not_better_than_base",
            "warning",
            "no better than the base",
            seen,
            "the training did not change what it was meant to change, or too few rows were asked to see it",
            [
                Cure("look at the other findings first: a rate too low, too few epochs, answers of another form"),
                Cure("more held-out rows make the interval narrower: data.eval, evaluation.max_rows=null"),
                longer(evidence.settings),
            ],
            {name: {"base": base.value, "tuned": tuned.value, "rows": tuned.n} for name, (base, tuned) in own.items()},
        )
    ]


def _both(scorecard: Scorecard | None) -> dict[str, tuple[Metric, Metric]]:
    """The metrics that base and tuned model both have."""
    models = scorecard.models if scorecard else {}
    base, tuned = models.get("base", {}), models.get("tuned", {})
    return {name: (base[name], tuned[name]) for name in base if name in tuned}


def _lost_scores(evidence: Evidence) -> list[tuple[str, Metric, Metric]]:
    """What is not the task's own and is surely worse than the base has it."""
    own = set(evidence.settings.evaluation.metrics)
    pairs = [(name, *pair) for name, pair in _both(evidence.scorecard).items() if name not in own]
    lower = said_lower(evidence.scorecard) if evidence.scorecard else []
    for evaluation, scorecard in evidence.other_scorecards.items():
        lower += [f"{evaluation} {name}" for name in said_lower(scorecard)]
        pairs += [(f"{evaluation} {name}", *pair) for name, pair in _both(scorecard).items() if name not in own]
    # An interval of no width was not measured: nothing is surely outside of it.
    return [(name, base, tuned) for name, base, tuned in pairs if base.low < base.high and _is_worse(name, base, tuned, lower)]


def _is_worse(name: str, base: Metric, tuned: Metric, lower: list[str]) -> bool:
    if kind_of(name) in NEITHER:
        return False
    return tuned.low > base.high if lower_is_better(name, lower) else tuned.high < base.low
