"""What answers are worth: a metric is a function and a row in one of these tables.

METRICS      (expected, answer) -> a number of one row, 0 to 1 but for those in PLAIN
MADE         the same, made of what stands after "=" in the metric's name (a file, a pattern)
SUMMED       (all expected, all answers) -> numbers of each row that add up (sums.py)
OF_ANSWERS   of the answer alone, with how it was made
OF_MODEL     of the model and the rows: no answers are needed (scoring.py)
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

from luthier.config.metric_names import OWN, PASS, PLAIN, is_share
from luthier.config.metric_names import kind_of as named
from luthier.errors import DataError
from luthier.evaluate import code, sql, sums, words
from luthier.evaluate.json_answers import exact_match, field_f1, follows_schema, valid_json
from luthier.evaluate.own import own
from luthier.evaluate.sums import Counted
from luthier.records import Answer, Metric

Pair = Callable[[str, str], float]

METRICS: dict[str, Pair] = {
    # name          what an answer scores
    "exact_match": exact_match,
    "valid_json":  valid_json,
    "field_f1":    field_f1,
    "regex":       words.matches_expected,
    "squad_em":    words.squad_em,
    "squad_f1":    words.squad_f1,
    "accuracy":    words.accuracy,
    "rouge1":      words.rouge("rouge1"),
    "rouge2":      words.rouge("rouge2"),
    "rougeL":      words.rouge("rougeL"),
    "repetition":  words.repetition,
    "refusals":    words.refusal,
}  # fmt: skip
MADE: dict[str, Callable[[str, Path], Pair]] = {
    # name          of what
    "json_schema": follows_schema,
    "regex":       words.matches,
    "sql_match":   sql.gives_the_same,
}  # fmt: skip
SUMMED: dict[str, Callable[[Sequence[str], Sequence[str]], Counted]] = {
    "macro_f1": sums.macro_f1,
    "bleu":     sums.bleu,
    "chrf":     sums.chrf,
}  # fmt: skip
OF_ANSWERS: dict[str, Callable[[Answer], float]] = {
    "length": lambda answer: float(answer.tokens),
    "stop_rate": lambda answer: float(answer.stopped),
}
OF_MODEL = ("perplexity", "token_accuracy", "choice")
# Metrics that are 0 or 1 a row, so that their mean is a share.
SHARES = {"exact_match", "valid_json", "json_schema", "regex", "squad_em", "accuracy", "sql_match", "refusals", "stop_rate", "choice"}
# Metrics that an expected answer may be no good for.
READS_EXPECTED = {"field_f1", "regex", "sql_match"}


def check(metrics: Sequence[str], expecteds: Sequence[str], beside: Path = Path()) -> None:
    """Raises DataError or ConfigError where a metric cannot be counted on these expected answers. Free, so that it can be asked before training."""
    for metric in metrics:
        if needs_model(metric) or metric in OF_ANSWERS or PASS.fullmatch(metric):
            continue
        if metric in SUMMED:
            SUMMED[metric](expecteds[:1], expecteds[:1])
            continue
        pair = pair_of(metric, beside)
        if OWN.fullmatch(metric):
            continue  # what it says of a right answer is not ours to know
        for expected in expecteds if metric.partition("=")[0] in READS_EXPECTED else expecteds[:1]:
            pair(expected, expected)


def needs_model(metric: str) -> bool:
    """Whether a metric is counted of the model itself, and not of its answers."""
    return metric in OF_MODEL


def of_texts(metric: str) -> bool:
    """Whether a metric is counted of expected and given answers alone, without running them."""
    return not (needs_model(metric) or metric in OF_ANSWERS or runs_code(metric))


def runs_code(metric: str) -> bool:
    """Whether a metric runs what a model wrote."""
    return bool(PASS.fullmatch(metric))


def pair_of(metric: str, beside: Path = Path()) -> Pair:
    """The function of a metric that compares an answer with the expected one. A file that its name holds starts at `beside`."""
    name, _, argument = metric.partition("=")
    if name in MADE and argument:
        return _made(name, argument, beside)
    if PASS.fullmatch(metric):
        return code.passes
    return METRICS[metric] if metric in METRICS else own(metric, beside)


@functools.cache
def _made(name: str, argument: str, beside: Path) -> Pair:
    return MADE[name](argument, beside)


def row_scores(metric: str, expecteds: Sequence[str], answers: Sequence[str], beside: Path = Path()) -> list[float]:
    """The score of each row, in order."""
    pair = pair_of(metric, beside)
    return [pair(expected, answer) for expected, answer in zip(expecteds, answers, strict=True)]


def score(metric: str, expecteds: Sequence[str], answers: Sequence[str], beside: Path = Path()) -> Metric:
    """What a metric of texts gives, with its 95 % interval: Wilson for shares, a seeded bootstrap for the rest.

    Raises DataError without rows, and for a metric that needs more than texts (the model, or how an answer ended).
    """
    if not expecteds:
        raise DataError("there is no held-out row to measure on", where="data.eval", next_step="set data.eval to a share (5%) or a file")
    if needs_model(metric) or metric in OF_ANSWERS:
        raise DataError(f"{metric} is not counted of texts alone", where="evaluation.metrics", next_step="luthier eval counts it")
    if metric in SUMMED:
        if len(expecteds) != len(answers):
            raise ValueError(f"{len(expecteds)} rows and {len(answers)} answers")
        return SUMMED[metric](expecteds, answers).metric()
    return sums.of_scores(row_scores(metric, expecteds, answers, beside), kind_of(metric)).metric()


def kind_of(metric: str, samples: int = 1) -> sums.Kind:
    """What one row's value is: 0 or 1, between them, or any number. The mean of several samples is between them."""
    name = metric.partition("=")[0]
    if name in PLAIN or OWN.fullmatch(metric):
        return "number"
    return "share" if samples == 1 and (name in SHARES or runs_code(metric)) else "mean"


def in_words(name: str, metric: Metric) -> str:
    """A value with its interval: 97.3% (95-99), or 12.4 (11.9-13.0) where it is no share."""
    if not is_share(name, metric.low, metric.high):
        return f"{metric.value:.3g} ({metric.low:.3g} to {metric.high:.3g})"
    return f"{metric.value:.1%} ({100 * metric.low:.0f}-{100 * metric.high:.0f})"


def difference_in_words(name: str, metric: Metric) -> str:
    """A difference with its interval: +12.3 (9 to 15) points of percent, or in the metric's own unit where it is no share."""
    if named(name) in PLAIN or OWN.fullmatch(name) or metric.low < -1 or metric.high > 1:
        return f"{metric.value:+.3g} ({metric.low:.3g} to {metric.high:.3g})"
    return f"{100 * metric.value:+.1f} ({100 * metric.low:.0f} to {100 * metric.high:.0f})"
