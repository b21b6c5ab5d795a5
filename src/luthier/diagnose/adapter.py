"""What the adapter itself says: whether it does anything, and whether its rank fits what was learned."""

import statistics

from luthier.config.methods import METHODS
from luthier.diagnose.course import curve
from luthier.diagnose.cures import longer, ranked, rate, rate_of
from luthier.diagnose.evidence import Evidence
from luthier.diagnose.finding import Cure, Finding

# Below this (relative), the loss of the questions' answers is the base's.
SAME_LOSS = 0.002
NOT_LORA = "the adapter is no LoRA adapter, or the run has not ended"
# Rank that is used fully, and rank that is not used at all.
FULL, UNUSED = 0.9, 1 / 8
SMALL_RANK, LARGE_RANK = 8, 16


def without_effect(evidence: Evidence) -> list[Finding] | str:
    """The tuned model is the base: every B·A is zero, or the same answers have the same loss."""
    probed, updates = evidence.probed, evidence.updates
    if not updates and probed.base_loss is None:
        return f"{NOT_LORA}, and the model was not asked"
    zero = bool(updates) and max(update.norm for update in updates) == 0
    same = (
        probed.base_loss is not None
        and probed.tuned_loss is not None
        and abs(probed.tuned_loss - probed.base_loss) <= SAME_LOSS * max(probed.base_loss, 0.05)
    )
    if not zero and not same:
        return []
    seen = (
        "every B of the adapter is zero"
        if zero
        else f"the loss of the same answers is {probed.tuned_loss:.4f} with it and {probed.base_loss:.4f} without"
    )
    now, usual = rate_of(evidence.settings), evidence.usual_rate
    faster = usual if usual and usual > now else 10 * now
    return [
        Finding(
            "adapter_without_effect",
            "severe",
            "adapter without effect",
            seen,
            "the tuned model answers as its base does: the training changed nothing",
            [
                rate(faster),
                Cure("adapt more layers: lora.target_modules=all-linear, and no lora.layers_to_transform"),
                longer(evidence.settings),
            ],
            {"largest_norm": max((update.norm for update in updates), default=None), "base_loss": probed.base_loss, "tuned_loss": probed.tuned_loss},
        )
    ]


def rank_too_low(evidence: Evidence) -> list[Finding] | str:
    """A small rank is used to the full, and the loss stands still far above zero: there may be more to learn than fits."""
    found = _of_lora(evidence)
    if isinstance(found, str):
        return found
    rank, used = found
    course = curve(evidence.steps)
    if course is None:
        return "too few updates to tell whether the loss stands still"
    held_out = evidence.held_out_losses
    gap = bool(held_out) and held_out[-1][1] > 1.1 * course.last
    # That it fell says that the rate is right; that it stands still high, that something else holds it.
    stuck = course.fall >= 0.05 and course.last > max(0.3 * course.first, 0.2) and course.last_quarter < 0.1
    if rank > SMALL_RANK or used < FULL * rank or not stuck or gap:
        return []
    return [
        Finding(
            "rank_too_low",
            "note",
            "rank perhaps too low",
            f"the updates use {used:.1f} of rank {rank}, and the training loss stands still at {course.last:.3f} (it began at {course.first:.3f})",
            "an adapter of a small rank that is used to the full may have no room for more of what the rows teach",
            [ranked(evidence.settings, 4 * rank)],
            {"rank": rank, "effective_rank": round(used, 2), "last": course.last},
        )
    ]


def rank_too_high(evidence: Evidence) -> list[Finding] | str:
    """Most of a large rank is not used."""
    found = _of_lora(evidence)
    if isinstance(found, str):
        return found
    rank, used = found
    if rank < LARGE_RANK or used > UNUSED * rank or used == 0:
        return []
    lower = max(4, 2 ** (round(2 * used) - 1).bit_length())
    return [
        Finding(
            "rank_too_high",
            "note",
            "rank higher than needed",
            f"the updates use {used:.1f} of rank {rank}",
            "the rest is memory and time for nothing, and room to learn rows by heart",
            [ranked(evidence.settings, lower)],
            {"rank": rank, "effective_rank": round(used, 2), "layers": len(evidence.updates)},
        )
    ]


def _of_lora(evidence: Evidence) -> tuple[int, float] | str:
    """The rank that most layers have, and the median of the effective ranks of its updates."""
    if not evidence.updates:
        return NOT_LORA
    lora = evidence.settings.lora
    if "lora" in METHODS[evidence.settings.method].blocks and lora.init_lora_weights not in ("default", "eva"):
        return f"the adapter began at a part of the weights (init_lora_weights: {lora.init_lora_weights}), which its file holds too"
    rank = statistics.mode(update.rank for update in evidence.updates)
    return rank, statistics.median(update.effective_rank for update in evidence.updates if update.rank == rank)
