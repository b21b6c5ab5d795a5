"""What the curves of a run say: did it learn, too fast, too slowly, or by heart."""

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.config.settings import Settings
from luthier.diagnose.cures import longer, milder, rate, rate_of
from luthier.diagnose.evidence import LEAST_UPDATES, Evidence
from luthier.diagnose.finding import Cure, Finding

# Held-out losses rise by chance too: so much (a share, and in nats) above the lowest is a rise.
RISE_SHARE, RISE_NATS = 0.05, 0.02
# Standard errors by which two stretches of a curve must differ, so that it is no chance.
SURE = 4.0
# Of a rise of the mean loss the lower quartile shows at least this part; where it does not, a few hard rows stand together by chance.
LOW_SHARE = 0.25
SPIKE_BEFORE = 20  # updates that say what is usual
SPIKES_NAMED = 5
# Batches that the noise scale must hold, so that one is called too small: at the end of a run it is well above the batch in any case.
NOISY_BATCHES, SMALL_BATCH = 16, 4
TOO_FEW = f"fewer than {LEAST_UPDATES} updates make no curve"


@dataclass(frozen=True, slots=True)
class Curve:
    """A training loss in stretches: its first, its lowest and its last, each the mean of `width` updates; `error` is a mean's standard error."""

    first: float
    lowest: float
    lowest_step: int
    highest: float
    last: float
    rose: bool  # from the first stretch to the highest one nearly all updates rose, and not a few with hard rows alone
    ended_up: bool  # and so from the lowest to the last
    error: float
    last_quarter: float  # how much of the whole fall came in the last quarter (0.25: a straight line)

    @property
    def fall(self) -> float:
        """How much of the first loss is gone: 0.9 is from 2.0 to 0.2."""
        return (self.first - self.last) / self.first if self.first > 0 else 0.0


def curve(steps: Sequence[Mapping[str, Any]]) -> Curve | None:
    """The curve of a run's losses; None where there are too few updates."""
    losses = [float(row["loss"]) for row in steps]
    if len(losses) < LEAST_UPDATES:
        return None
    width = max(5, len(losses) // 10)
    means = [statistics.fmean(losses[start : start + width]) for start in range(len(losses) - width + 1)]
    lowest = min(range(len(means)), key=means.__getitem__)
    highest = max(range(len(means)), key=means.__getitem__)
    # Neighbors share the trend. No median of the differences: it would not see a few hard rows, which move a mean by chance all the same.
    chance = statistics.stdev(second - first for first, second in itertools.pairwise(losses)) / math.sqrt(2)

    def low_too(start: int, end: int) -> bool:
        """Whether the lower quartile rose by a part of what the mean did."""
        before, after = (statistics.quantiles(losses[place : place + width], n=4)[0] for place in (start, end))
        return after - before > LOW_SHARE * (means[end] - means[start])

    third = means[round(0.75 * (len(means) - 1))]
    fall = means[0] - means[-1]
    return Curve(
        first=means[0],
        lowest=means[lowest],
        lowest_step=int(steps[min(lowest + width // 2, len(steps) - 1)]["step"]),
        highest=means[highest],
        last=means[-1],
        rose=low_too(0, highest),
        ended_up=low_too(lowest, len(means) - 1),
        error=chance / math.sqrt(width),
        last_quarter=(third - means[-1]) / fall if fall > 0 else 0.0,
    )


def overfitting(evidence: Evidence) -> list[Finding] | str:
    """The training loss falls on while the held-out loss has risen from its lowest."""
    found, held_out = curve(evidence.steps), evidence.held_out_losses
    if found is None:
        return TOO_FEW
    if not held_out:
        return "no held-out loss was measured (data.eval)"
    lowest_step, lowest = min(held_out, key=lambda one: one[1])
    last_step, last = held_out[-1]
    then = [row["loss"] for row in evidence.steps if lowest_step - LEAST_UPDATES < row["step"] <= lowest_step]
    by_heart = lowest_step < last_step and found.last < 0.95 * statistics.fmean(then)
    rose = by_heart and last > lowest * (1 + RISE_SHARE) and last > lowest + RISE_NATS
    # Measured once: worse than the rows were before anything was learned, although those that are trained are known now.
    worse_than_begun = len(held_out) < 3 and found.fall > 0.3 and last > found.first * (1 + RISE_SHARE)
    if not worse_than_begun and (len(held_out) < 3 or not rose):
        return [] if len(held_out) > 2 else "the held-out loss was measured fewer than three times (evaluation.every_steps)"
    epochs = next((row["epoch"] for row in evidence.steps if row["step"] >= lowest_step), None)
    was = f"the lowest was {lowest:.3f} at step {lowest_step}" if rose else f"the training began at {found.first:.3f}"
    return [
        Finding(
            "overfitting",
            "severe" if last > 1.25 * lowest or worse_than_begun else "warning",
            "overfitting",
            f"the held-out loss ended at {last:.3f} and {was}, while the training loss fell to {found.last:.3f}",
            "the model learns its rows by heart and answers new questions worse than it could",
            [
                _stop_sooner(evidence.settings, lowest_step, epochs if rose else None, last_step),
                *milder(evidence.settings),
                Cure("more rows, and more different ones: luthier data check shows what is repeated, luthier data synth makes more"),
            ],
            {"held_out": [list(one) for one in held_out], "lowest_step": lowest_step, "training_loss": found.last},
        )
    ]


def _stop_sooner(settings: Settings, lowest_step: int, epochs: float | None, last_step: int) -> Cure:
    every = settings.evaluation.every_steps or max(1, last_step // 10)
    changes: dict[str, Any] = {"evaluation.every_steps": every, "training.load_best_model_at_end": True}
    if settings.training.max_steps:
        changes["training.max_steps"] = lowest_step
        return Cure(f"stop at the best: training.max_steps={lowest_step}, training.load_best_model_at_end=true", changes)
    if epochs and epochs < float(settings.training.num_train_epochs):
        changes["training.num_train_epochs"] = float(max(1, math.ceil(epochs)))
    fewer = f"training.num_train_epochs={changes['training.num_train_epochs']:g}" if "training.num_train_epochs" in changes else "fewer epochs"
    return Cure(
        f"{fewer}, training.load_best_model_at_end=true (the run leaves its best), evaluation.early_stopping_patience=3 (it stops by itself)", changes
    )


def underfitting(evidence: Evidence) -> list[Finding] | str:
    """The run ended while its loss still fell as fast as before."""
    found, held_out = curve(evidence.steps), evidence.held_out_losses
    if found is None:
        return TOO_FEW
    rising = bool(held_out) and held_out[-1][1] > min(loss for _, loss in held_out) * (1 + RISE_SHARE)
    sure = found.first - found.last > SURE * found.error
    if rising or not sure or found.fall < 0.05 or found.last < 0.1 * found.first or found.last_quarter < 0.2:
        return []
    return [
        Finding(
            "underfitting",
            "warning",
            "underfitting",
            f"the training loss went from {found.first:.3f} to {found.last:.3f}, and {found.last_quarter:.0%} of that in the last quarter of the run",
            "the run ended while the model was still learning as fast as before: more of the same makes it better",
            [longer(evidence.settings), rate(3 * rate_of(evidence.settings), "a higher rate: ")],
            {"first": found.first, "last": found.last, "last_quarter_of_fall": round(found.last_quarter, 3)},
        )
    ]


def rate_too_high(evidence: Evidence) -> list[Finding] | str:
    """The loss rose above where it began, or went up for good, or updates had to be skipped."""
    found, highest = curve(evidence.steps), _rate(evidence)
    if found is None and not evidence.skipped:
        return TOO_FEW
    signs = []
    if len(evidence.skipped) > 1:
        signs.append(f"{len(evidence.skipped)} updates gave no finite numbers")
    if found and found.rose and found.highest > 1.1 * found.first + SURE * found.error:
        signs.append(f"the loss rose to {found.highest:.3f} from {found.first:.3f} at the start")
    elif found and _diverged(found):
        signs.append(f"the loss rose from {found.lowest:.3f} to {found.last:.3f}")
    usual = evidence.usual_rate
    if found and usual and highest >= 10 * usual and found.last > 0.3 * found.first and _stalled(evidence):
        signs.append(f"the loss stands still at {found.last:.3f}")
    if not signs:
        return []
    compared = f" (usual here is {usual:g})" if usual else ""
    # Ten times lower is the safe side of a rate of which only is known that it is too high.
    lower = usual if usual and usual < highest / 3 else highest / 10
    return [
        Finding(
            "learning_rate_too_high",
            "severe",
            "learning rate too high",
            f"at a rate of {highest:g}{compared} {' and '.join(signs)}",
            "steps that are too long throw the model out of what it knows, and it does not come back",
            [
                rate(lower),
                Cure("a longer warm-up: training.warmup_ratio=0.1", {"training.warmup_ratio": 0.1}),
                Cure("training.max_grad_norm=0.3", {"training.max_grad_norm": 0.3}),
            ],
            {"learning_rate": highest, "usual": usual, "signs": signs},
        )
    ]


def rate_too_low(evidence: Evidence) -> list[Finding] | str:
    """The loss hardly moved, at a rate far below what is usual."""
    found, highest, usual = curve(evidence.steps), _rate(evidence), evidence.usual_rate
    if found is None:
        return TOO_FEW
    if usual is None:
        return "the usual rate is not known (the model's folder is not here)"
    moved = abs(found.fall) >= 0.05 and abs(found.first - found.last) > SURE * found.error
    if moved or found.first < 0.05 or highest > usual / 5 or found.highest > 1.1 * found.first:
        return []
    return [
        Finding(
            "learning_rate_too_low",
            "severe" if abs(found.fall) < 0.02 else "warning",
            "learning rate too low",
            f"the training loss went from {found.first:.3f} to {found.last:.3f} at a rate of {highest:g}, and {usual:g} is usual here",
            "the steps are so short that the run ends where it began",
            [
                rate(usual, "the usual rate, which training.learning_rate=auto finds: "),
                longer(evidence.settings),
            ],
            {"learning_rate": highest, "usual": usual, "first": found.first, "last": found.last},
        )
    ]


def divergence(evidence: Evidence) -> list[Finding] | str:
    """The loss rose from its lowest, and stayed up."""
    found = curve(evidence.steps)
    if found is None:
        return TOO_FEW
    if not _diverged(found):
        return []
    rows = evidence.rows_of(found.lowest_step + 1)
    return [
        Finding(
            "divergence",
            "severe",
            "the loss diverged",
            f"the training loss was {found.lowest:.3f} about step {found.lowest_step} and ended at {found.last:.3f}",
            "what was learned until then is lost again; a later checkpoint is worse than an earlier one",
            [
                rate(_rate(evidence) / 3),
                Cure("training.max_grad_norm=0.3", {"training.max_grad_norm": 0.3}),
                Cure("training.precision=fp32, where the run was in fp16", {"training.precision": "fp32"}),
                Cure("look at the rows of the updates after the lowest: luthier data check"),
            ],
            {"lowest": found.lowest, "lowest_step": found.lowest_step, "last": found.last, "rows": rows},
        )
    ]


def _diverged(found: Curve) -> bool:
    rise = found.last - found.lowest
    return found.ended_up and rise > max(0.5, 0.5 * found.lowest) and rise > SURE * found.error


def _stalled(evidence: Evidence) -> bool:
    """Whether the loss did not fall in the second half of the run."""
    half = curve(evidence.steps[len(evidence.steps) // 2 :])
    return half is not None and half.first - half.last < max(SURE * half.error, 0.02 * half.first)


def spikes(evidence: Evidence) -> list[Finding] | str:
    """Updates whose loss stands far above those around them, and is back afterwards."""
    losses = evidence.losses
    if len(losses) < LEAST_UPDATES:
        return TOO_FEW
    steps = [row["step"] for row in evidence.steps]
    found = [(steps[place], losses[place], usual) for place in range(5, len(losses)) if (usual := _usual_of_spike(losses, place)) is not None]
    if not found:
        return []
    worst = sorted(found, key=lambda one: -one[1])[:SPIKES_NAMED]
    named = [{"step": step, "loss": loss, "usual": usual, "rows": evidence.rows_of(step)} for step, loss, usual in worst]
    step, loss, usual = worst[0]
    rows = f" (rows {', '.join(named[0]['rows'][:8])})" if named[0]["rows"] else ""
    more = f"; {len(found) - 1} more like it" if len(found) > 1 else ""
    return [
        Finding(
            "loss_spikes",
            "warning",
            "spikes of the loss",
            f"the loss was {loss:.2f} at step {step}, where {usual:.2f} was usual{rows}{more}",
            "a row that is broken, or unlike all others, pulls the whole update its way",
            [
                Cure("read the rows that are named; mend them or take them out (luthier data check, luthier data clean)"),
                Cure("training.max_grad_norm=0.3", {"training.max_grad_norm": 0.3}),
                Cure("a larger batch: training.batch_size", {"training.batch_size": 2 * int(evidence.settings.training.batch_size)}),
            ],
            {"spikes": named, "count": len(found)},
        )
    ]


def _usual_of_spike(losses: Sequence[float], place: int) -> float | None:
    """The median of the updates before `place`, where its loss is a spike."""
    before, after = losses[max(0, place - SPIKE_BEFORE) : place], losses[place + 1 : place + 6]
    usual = statistics.median(before)
    spread = 1.4826 * statistics.median(abs(loss - usual) for loss in before)
    high = losses[place] > 2 * usual and losses[place] > usual + max(1.0, 8 * spread)
    comes_back = bool(after) and statistics.median(after) < usual + 0.5 * (losses[place] - usual)
    return usual if high and comes_back else None


def not_finite(evidence: Evidence) -> list[Finding] | str:
    """Updates that were skipped because their loss or gradient was no number."""
    if not evidence.skipped:
        return []
    first = evidence.skipped[0]
    return [
        Finding(
            "not_finite",
            "severe" if len(evidence.skipped) > 2 else "warning",
            "updates without finite numbers",
            f"{len(evidence.skipped)} updates were skipped, the first at step {first['step']} (rows {', '.join(first['rows'][:8])})",
            "the rows of these updates taught nothing; three such updates in a row end a run",
            [
                Cure("look at the rows that are named"),
                rate(_rate(evidence) / 3),
                Cure("training.precision=fp32", {"training.precision": "fp32"}),
            ],
            {"skipped": [{"step": row["step"], "rows": row["rows"]} for row in evidence.skipped]},
        )
    ]


def batch_too_small(evidence: Evidence) -> list[Finding] | str:
    """The gradient of a batch is nearly all noise, and the loss no longer falls (McCandlish 2018, arXiv:1812.06162)."""
    noise, found, batch = evidence.probed.noise, curve(evidence.steps), int(evidence.settings.training.batch_size)
    if noise is None:
        return "the gradient's noise was not measured (it needs the model, an adapter and 32 rows)"
    if found is None:
        return TOO_FEW
    # What a run that has converged shows too, whatever its batch: so only a really small one is called too small.
    noisy = batch <= SMALL_BATCH and noise.scale >= NOISY_BATCHES * batch and _stalled(evidence)
    if not noisy or found.last < max(0.1, 0.05 * found.first) or rate_too_high(evidence):
        return []
    wanted = 8 * batch
    scale = f"about {noise.scale:,.0f} rows" if math.isfinite(noise.scale) else "more rows than were measured"
    return [
        Finding(
            "batch_too_small",
            "note",
            "batch perhaps too small",
            f"the gradient noise scale is {scale} and a batch has {batch}; in the second half of the run the loss did not fall ({found.last:.3f})",
            "each update follows the chance of its few rows, so that the loss wanders instead of falling",
            [
                Cure(f"training.batch_size={wanted}", {"training.batch_size": wanted}),
                Cure("a lower rate, which averages over more updates: training.learning_rate"),
            ],
            {"noise_scale": noise.scale if math.isfinite(noise.scale) else None, "batch_size": batch, "last": found.last},
        )
    ]


def _rate(evidence: Evidence) -> float:
    """The highest rate of the run: what is set, where nothing was trained yet."""
    return max((float(row["learning_rate"]) for row in evidence.steps), default=rate_of(evidence.settings))
