"""Metrics of many rows: each row gives a few numbers, which add up, and the metric is made of their sums.

So an interval needs the rows' numbers only: rows are drawn again and again, and their sums are made anew (bootstrap; Efron 1979).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from luthier.errors import ConfigError
from luthier.evaluate.intervals import RESAMPLES, mean_interval, paired_difference, wilson
from luthier.evaluate.words import label
from luthier.records import Likelihood, Metric

Numbers = np.ndarray
Kind = Literal["share", "mean", "number", "sum"]
# Resamples that are drawn at once: bounds the memory.
DRAWN_AT_ONCE = 100


@dataclass(frozen=True, slots=True)
class Counted:
    """What a metric counted: numbers of each row, (rows, k), and what sums of them, (k,), stand for.

    `kind` says what a row's value is: 0 or 1 (share), from 0 to 1 (mean), any number, or nothing by itself (sum). `less_is_better` is what
    a suite says of its own metric.
    """

    rows: Numbers
    value_of: Callable[[Numbers], float]
    kind: Kind = "sum"
    less_is_better: bool = False

    @property
    def value(self) -> float:
        return self.value_of(self.rows.sum(axis=0))

    def first(self, count: int) -> "Counted":
        """The same of the first rows alone."""
        return Counted(self.rows[:count], self.value_of, self.kind)

    def metric(self) -> Metric:
        """The value with its 95 % interval: Wilson for shares, a seeded bootstrap over rows for the rest."""
        if self.kind in ("sum", "number"):
            low, high = np.quantile(resampled([self])[0], [0.025, 0.975])
            return Metric(self.value, float(low), float(high), len(self.rows))
        scores = self.rows[:, 0].tolist()
        low, high = wilson(sum(scores), len(scores)) if self.kind == "share" else mean_interval(scores)
        return Metric(sum(scores) / len(scores), low, high, len(scores))


def difference(before: Counted, after: Counted) -> Metric:
    """after - before over the rows that both have, with the 95 % interval of the paired bootstrap: the same rows are drawn for both."""
    count = min(len(before.rows), len(after.rows))
    before, after = before.first(count), after.first(count)
    if after.kind in ("share", "mean"):
        return paired_difference(before.rows[:, 0].tolist(), after.rows[:, 0].tolist())
    values = resampled([before, after])
    low, high = np.quantile(values[1] - values[0], [0.025, 0.975])
    return Metric(after.value - before.value, float(low), float(high), count)


def resampled(counted: Sequence[Counted], seed: int = 0) -> list[Numbers]:
    """The value of each on RESAMPLES draws of rows, with replacement; all are given the same draws."""
    random, n = np.random.default_rng(seed), len(counted[0].rows)
    found: list[list[float]] = [[] for _ in counted]
    for _ in range(RESAMPLES // DRAWN_AT_ONCE):
        times = random.multinomial(n, np.full(n, 1 / n), size=DRAWN_AT_ONCE)
        for one, values in zip(counted, found, strict=True):
            values += [one.value_of(sums) for sums in times @ one.rows]
    return [np.asarray(values) for values in found]


def of_scores(scores: Sequence[float], kind: Kind) -> Counted:
    """One score a row, and their mean."""
    values = np.asarray(scores, dtype=np.float64)
    return Counted(np.stack([values, np.ones_like(values)], axis=1), _ratio, kind)


def _ratio(sums: Numbers) -> float:
    return float(sums[0] / sums[1])


def perplexity(rows: Sequence[Likelihood]) -> Counted:
    """exp of the mean of -log p over all tokens of the answers."""
    numbers = np.asarray([[-row.log_probability, row.tokens] for row in rows], dtype=np.float64)
    return Counted(numbers, lambda sums: math.exp(min(700.0, sums[0] / sums[1])))


def token_accuracy(rows: Sequence[Likelihood]) -> Counted:
    """The share of the answers' tokens that the model finds the likeliest, each after the right ones before it."""
    return Counted(np.asarray([[row.right, row.tokens] for row in rows], dtype=np.float64), _ratio)


def macro_f1(expecteds: Sequence[str], answers: Sequence[str]) -> Counted:
    """The mean over the labels (those that are expected somewhere) of 2 * right / (expected + answered)."""
    labels = {name: place for place, name in enumerate(sorted({label(one) for one in expecteds}))}
    rows = np.zeros((len(answers), 3, len(labels)))
    for row, (expected, answer) in enumerate(zip(expecteds, answers, strict=True)):
        wanted, given = labels[label(expected)], labels.get(label(answer))
        rows[row, 1, wanted] = 1
        if given is not None:
            rows[row, 2, given] = 1
            rows[row, 0, wanted] = float(given == wanted)

    def value_of(sums: Numbers) -> float:
        right, expected, answered = sums.reshape(3, len(labels))
        there = expected > 0  # a draw of rows may leave a label out
        return float((2 * right[there] / (expected + answered)[there]).mean())

    return Counted(rows.reshape(len(answers), -1), value_of)


def bleu(expecteds: Sequence[str], answers: Sequence[str]) -> Counted:
    """BLEU of the whole set as sacrebleu counts it (13a tokens, 0 to 100)."""
    return _sacrebleu("BLEU", expecteds, answers)


def chrf(expecteds: Sequence[str], answers: Sequence[str]) -> Counted:
    """chrF2 of the whole set as sacrebleu counts it (0 to 100)."""
    return _sacrebleu("CHRF", expecteds, answers)


def _sacrebleu(name: str, expecteds: Sequence[str], answers: Sequence[str]) -> Counted:
    try:
        import sacrebleu.metrics
    except ImportError as error:
        raise ConfigError("sacrebleu is not installed", where=name.lower(), next_step='pip install "luthier[eval]"') from error
    metric: Any = getattr(sacrebleu.metrics, name)()
    # Its own doors give a whole set's score only; these are the numbers that it adds up there.
    rows = np.asarray(metric._extract_corpus_statistics(list(answers), [list(expecteds)]), dtype=np.int64)

    def value_of(sums: Numbers) -> float:
        return float(metric._compute_score_from_stats([int(number) for number in sums]).score)

    return Counted(rows, value_of)
