"""Scorecards in words and as HTML: values with their intervals, and what was achieved in one sentence."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from luthier.config.metric_names import PLAIN, kind_of, lower_is_better, shown
from luthier.config.metric_names import is_share as between_0_and_1
from luthier.diagnose.page import raw_table, table, text
from luthier.records import Metric, Scorecard

METRIC_NAMES = {"exact_match": "Exact match", "valid_json": "Valid JSON", "field_f1": "Field F1"}


def metric_name(name: str) -> str:
    """A metric in words, without the folders of a file that its name holds."""
    return METRIC_NAMES.get(name, shown(name).replace("_", " "))


def model_name(name: str) -> str:
    """A model of the scorecard in words: base_5shot is the base with five examples in its prompt, tuned_rag the tuned one with documents."""
    if name.endswith("_rag"):
        return f"{name.removesuffix('_rag')} + RAG"
    shots = re.fullmatch(r"base_(\d+)shot", name)
    return f"base with {shots[1]} examples in its prompt" if shots else name


def said_lower(scorecard: Scorecard) -> list[str]:
    """The metrics of which their suite itself says that less is better."""
    said = scorecard.data.get("lower_is_better", [])
    return list(said) if isinstance(said, list) else []


def is_share(name: str, metric: Metric) -> bool:
    """Whether a metric is shown in percent: one from 0 to 1 that is not one of PLAIN."""
    return between_0_and_1(name, metric.low, metric.high)


def in_words(name: str, metric: Metric) -> str:
    """A value: 68.2 % or 12.43."""
    return f"{100 * metric.value:.1f} %" if is_share(name, metric) else f"{metric.value:,.4g}"


def interval(name: str, metric: Metric) -> str:
    return f"{100 * metric.low:.1f} to {100 * metric.high:.1f} %" if is_share(name, metric) else f"{metric.low:,.4g} to {metric.high:,.4g}"


def difference_in_words(name: str, difference: Metric) -> str:
    """A paired difference with its interval: +52.1 points (46.0 to 58.2), or +1.2 (0.4 to 2.0)."""
    points = kind_of(name) not in PLAIN and abs(difference.value) <= 1
    scale, unit = (100, " points") if points else (1, "")
    return f"{scale * difference.value:+.3g}{unit} ({scale * difference.low:+.3g} to {scale * difference.high:+.3g})"


def compare(scorecard: Scorecard) -> tuple[str, str]:
    """The first metric of the tuned model against the best of the others. A gain is called one only where the intervals do not touch."""
    name, tuned = next(iter(scorecard.models["tuned"].items()))
    others = {model: metrics[name] for model, metrics in scorecard.models.items() if model != "tuned" and name in metrics}
    label = metric_name(name)
    rows = f"{tuned.n:,} held-out rows (95 % interval {interval(name, tuned)})."
    if not others:
        return f"{label}: {in_words(name, tuned)}", f"Measured on {rows} No other model was measured beside it."
    lower = lower_is_better(name, said_lower(scorecard))
    first = next(iter(others.values()))
    rival, best = (min if lower else max)(others.items(), key=lambda item: item[1].value)
    beside = "; ".join(f"{model_name(model)} {in_words(name, metric)}" for model, metric in others.items())
    lead = f"Measured on {rows} Beside it: {beside}."
    better, worse = (tuned.high < best.low, tuned.low > best.high) if lower else (tuned.low > best.high, tuned.high < best.low)
    value, of_best = in_words(name, tuned), in_words(name, best)
    if better:
        return (
            f"{label} {'fell' if lower else 'rose'} from {in_words(name, first)} to {value}",
            f"{lead} The intervals do not touch: this is no accident of the rows.",
        )
    if worse:
        return f"{label}: {value}, {'above' if lower else 'below'} {model_name(rival)} with {of_best}", lead
    return f"{label}: {value}, no clear gain over {model_name(rival)} ({of_best})", f"{lead} The intervals overlap."


def scorecard_html(scorecard: Scorecard) -> str:
    """Every model with every metric, the paired differences, what answers cost, and how it was measured."""
    metrics = list(dict.fromkeys(name for row in scorecard.models.values() for name in row))
    rows = [[text(model_name(model)), *(_score(name, row.get(name)) for name in metrics)] for model, row in scorecard.models.items()]
    classes = ["tuned" if model == "tuned" else "" for model in scorecard.models]
    how = words({**scorecard.data, **scorecard.decoding})
    shown = raw_table(["Model", *map(metric_name, metrics)], rows, classes)
    shown += _differences(scorecard, metrics) + _costs(scorecard.costs)
    return shown + (f'<p class="quiet"><small>How it was measured: {text(how)}</small></p>' if how else "")


def _differences(scorecard: Scorecard, metrics: list[str]) -> str:
    found = {model: row for model, row in scorecard.differences.items() if row}
    if not found:
        return ""
    rows = [[model_name(model), *(difference_in_words(name, row[name]) if name in row else "" for name in metrics)] for model, row in found.items()]
    first = model_name(next(iter(scorecard.models)))
    return table([f"Difference to {first}, row by row (95 %)", *map(metric_name, metrics)], rows)


def _costs(costs: Mapping[str, Mapping[str, float | None]]) -> str:
    names = list(dict.fromkeys(name for row in costs.values() for name, value in row.items() if value is not None))
    if not names:
        return ""
    cells = [[model_name(model), *("" if row.get(name) is None else f"{row[name]:,.4g}" for name in names)] for model, row in costs.items()]
    return table(["What an answer took", *(name.replace("_", " ") for name in names)], cells)


def _score(name: str, metric: Metric | None) -> str:
    if metric is None:
        return '<span class="quiet">not measured</span>'
    bar = ""
    if is_share(name, metric):
        low, high = 100 * metric.low, 100 * metric.high
        range_of = f'<b style="left:{low:.1f}%;width:{high - low:.1f}%"></b>'
        bar = f'<div class="bar" aria-hidden="true"><i style="width:{100 * metric.value:.1f}%"></i>{range_of}</div>'
    told = f"95 %: {interval(name, metric)}, n = {metric.n:,}"
    return f'<div class="score"><strong>{in_words(name, metric)}</strong>{bar}<small>{told}</small></div>'


def words(facts: Mapping[str, Any]) -> str:
    """Nested facts in one line."""
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in flat(facts))


def flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Nested values as (dotted name, text) pairs."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from flat(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        for index, inner in enumerate(value):
            yield from flat(inner, f"{name}.{index}")
    else:
        yield name, ", ".join(map(str, value)) if isinstance(value, list) else str(value)
