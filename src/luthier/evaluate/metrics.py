"""What an answer is worth: one function a metric, (expected, answer) -> a number from 0 to 1.

JSON means the answer alone: text around it, or a ```json fence, makes it invalid, because the program that reads it would fail too.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

from luthier.errors import DataError
from luthier.evaluate.intervals import mean_interval, wilson
from luthier.records import Metric

NOT_JSON = object()


def exact_match(expected: str, answer: str) -> float:
    """1 where the answer is the expected one but for space around it.

    Where the expected one is a JSON object or list, the parsed values are compared: spacing and the order of keys do not count, the
    spelling of a number does (1 is not 1.0, and neither is true).
    """
    if expected.strip() == answer.strip():
        return 1.0
    wanted = parse(expected)
    return float(isinstance(wanted, dict | list) and _same(wanted, parse(answer)))


def valid_json(expected: str, answer: str) -> float:
    """1 where the answer parses as a JSON object. A ```json fence, words around it, NaN and Infinity are not JSON."""
    return float(isinstance(parse(answer), dict))


def field_f1(expected: str, answer: str) -> float:
    """F1 of the row's (key, value) pairs: 2 * equal pairs / (pairs expected + pairs answered). 0 where the answer is no JSON object.

    Raises DataError where the expected answer is no JSON object.
    """
    wanted, given = parse(expected), parse(answer)
    if not isinstance(wanted, dict):
        raise DataError(
            f"field_f1 compares the fields of JSON objects, and an expected answer is {expected[:60]!r}",
            where="evaluation.metrics",
            next_step="take field_f1 out, or let every answer of the rows be a JSON object",
        )
    if not isinstance(given, dict):
        return 0.0
    equal = sum(key in given and _same(value, given[key]) for key, value in wanted.items())
    return 2 * equal / (len(wanted) + len(given)) if wanted or given else 1.0


METRICS: dict[str, Callable[[str, str], float]] = {
    # name          what an answer scores
    "exact_match": exact_match,
    "valid_json": valid_json,
    "field_f1": field_f1,
}
# Metrics that are 0 or 1 a row, so that their mean is a share.
SHARES = {"exact_match", "valid_json"}


def check(metrics: Sequence[str], expecteds: Sequence[str]) -> None:
    """Raises DataError where a metric cannot be counted on these expected answers. Free, so that it can be asked before training."""
    for metric in metrics:
        for expected in expecteds:
            METRICS[metric](expected, expected)


def row_scores(metric: str, expecteds: Sequence[str], answers: Sequence[str]) -> list[float]:
    """The score of each row, in order."""
    return [METRICS[metric](expected, answer) for expected, answer in zip(expecteds, answers, strict=True)]


def score(metric: str, expecteds: Sequence[str], answers: Sequence[str]) -> Metric:
    """The mean over rows with its 95 % interval: Wilson for shares, a seeded bootstrap for the rest. Raises DataError without rows."""
    scores = row_scores(metric, expecteds, answers)
    if not scores:
        raise DataError("there is no held-out row to measure on", where="data.eval", next_step="set data.eval to a share (5%) or a file")
    low, high = wilson(sum(scores), len(scores)) if metric in SHARES else mean_interval(scores)
    return Metric(sum(scores) / len(scores), low, high, len(scores))


def parse(text: str) -> Any:
    """The JSON value of a text, or NOT_JSON."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return NOT_JSON


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def _same(one: Any, other: Any) -> bool:
    """Equal as JSON. Python's own equality takes 1, 1.0 and true for the same."""
    if other is NOT_JSON:
        return False
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
