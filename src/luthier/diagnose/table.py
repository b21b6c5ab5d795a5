"""Every check of a run, a row each: evidence in, findings out, or a sentence why it could not be looked at."""

from collections.abc import Callable

from luthier.diagnose import adapter, answers, course, forgetting, resources, rows
from luthier.diagnose.evidence import Evidence, read
from luthier.diagnose.finding import Finding, by_severity, keep, tell
from luthier.reporting import Reporter
from luthier.run_folder import RunFolder

Check = Callable[[Evidence], list[Finding] | str]

CHECKS: dict[str, Check] = {
    # finding                   who looks for it
    "divergence":               course.divergence,
    "not_finite":               course.not_finite,
    "learning_rate_too_high":   course.rate_too_high,
    "learning_rate_too_low":    course.rate_too_low,
    "overfitting":              course.overfitting,
    "underfitting":             course.underfitting,
    "loss_spikes":              course.spikes,
    "batch_too_small":          course.batch_too_small,
    "forgetting":               forgetting.forgetting,
    "not_better_than_base":     forgetting.not_better,
    "end_of_turn_not_learned":  answers.end_of_turn,
    "no_stop":                  answers.no_stop,
    "repetition":               answers.repetition,
    "empty_answers":            answers.empty,
    "off_format":               answers.off_format,
    "prompt_echoed":            answers.echo,
    "wrong_language":           answers.wrong_language,
    "adapter_without_effect":   adapter.without_effect,
    "rank_too_low":             adapter.rank_too_low,
    "rank_too_high":            adapter.rank_too_high,
    "leakage":                  rows.leaked,
    "duplicates":               rows.duplicated,
    "noisy_labels":             rows.noisy_labels,
    "conflicting_answers":      rows.conflicts,
    "truncation":               rows.truncation,
    "source_imbalance":         rows.imbalance,
    "template_mismatch":        resources.template_mismatch,
    "memory_pressure":          resources.memory_pressure,
    "slow_data":                resources.slow_data,
}  # fmt: skip


def look(evidence: Evidence) -> tuple[list[Finding], dict[str, str]]:
    """All findings, gravest first, and by its id each check that could not be made, with why."""
    found: list[Finding] = []
    not_looked: dict[str, str] = {}
    for name, check in CHECKS.items():
        result = check(evidence)
        if isinstance(result, str):
            not_looked[name] = result
        else:
            found += result
    return by_severity(found), not_looked


def first_look(run: RunFolder, reporter: Reporter) -> None:
    """At the end of a training: what its folder shows already is kept, and the gravest of it said.

    Without the adapter's tensors: numpy's BLAS ends the process where it gets no memory for them, and the training's may be all there is.
    """
    found, not_looked = look(read(run, adapter=False))
    keep(run, found, not_looked)
    tell(run, found, reporter)
