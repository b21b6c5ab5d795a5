"""From answers to a scorecard: every metric of every model, and how far each model is from the first."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from luthier.config.metric_names import PASS
from luthier.errors import CallError
from luthier.evaluate import metrics, sums
from luthier.evaluate.asking import Column
from luthier.evaluate.code import pass_at
from luthier.evaluate.sums import Counted
from luthier.records import Metric

# Of each model, by the metric's name.
Counts = dict[str, dict[str, Counted]]


def check_samples(names: Sequence[str], samples: int) -> None:
    """Raises CallError where pass@K is asked for with fewer than K answers to a question."""
    for name in names:
        if (found := PASS.fullmatch(name)) and int(found[1]) > samples:
            raise CallError(
                f"{name} needs {found[1]} answers to each question, and {samples} is asked for", where=name, next_step=f"--samples {found[1]}"
            )


def count(names: Sequence[str], expecteds: Sequence[str], column: Column, beside: Path = Path()) -> dict[str, Counted]:
    """What each metric counts in a model's answers to the first rows. What this model was not asked for (an endpoint's likelihoods) is left out."""
    found: dict[str, Counted] = {}
    runs: list[list[float]] | None = None  # code is run once for all K
    for name in names:
        if metrics.needs_model(name):
            if (one := _of_model(name, column)) is not None:
                found[name] = one
            continue
        wanted = expecteds[: len(column.answers)]
        if metrics.runs_code(name):
            runs = runs or _by_row("pass@1", wanted, column, beside)
            k = int(name.partition("@")[2])
            scores = [pass_at(k, len(of_row), round(sum(of_row))) for of_row in runs]
            found[name] = sums.of_scores(scores, metrics.kind_of(name, len(runs[0])))
        elif name in metrics.SUMMED:
            found[name] = metrics.SUMMED[name](wanted, column.texts)
        else:
            by_row = _by_row(name, wanted, column, beside)
            found[name] = sums.of_scores([sum(of_row) / len(of_row) for of_row in by_row], metrics.kind_of(name, len(by_row[0])))
    return found


def _of_model(name: str, column: Column) -> Counted | None:
    if name == "choice":
        return sums.of_scores(column.choices, "share") if column.choices else None
    return {"perplexity": sums.perplexity, "token_accuracy": sums.token_accuracy}[name](column.likelihoods) if column.likelihoods else None


def _by_row(name: str, expecteds: Sequence[str], column: Column, beside: Path) -> list[list[float]]:
    if name in metrics.OF_ANSWERS:
        return [[metrics.OF_ANSWERS[name](answer) for answer in samples] for samples in column.answers]
    pair = metrics.pair_of(name, beside)
    return [[pair(expected, answer.text) for answer in samples] for expected, samples in zip(expecteds, column.answers, strict=True)]


def values(counts: Counts) -> dict[str, dict[str, Metric]]:
    """Each metric of each model with its interval."""
    return {model: {name: counted.metric() for name, counted in of_model.items()} for model, of_model in counts.items()}


def differences(counts: Counts) -> dict[str, dict[str, Metric]]:
    """Each further model less the first, over the rows that both answered, with paired bootstrap intervals."""
    (_, first), *others = counts.items()
    return {model: {name: sums.difference(first[name], counted) for name, counted in of_model.items() if name in first} for model, of_model in others}


def costs(columns: Sequence[Column], prices: Mapping[str, "Price"]) -> dict[str, dict[str, float | None]]:
    """What an answer of each model took."""
    return {column.name: _cost(column, prices.get(column.name)) for column in columns if column.answers}


def _cost(column: Column, price: "Price | None") -> dict[str, float | None]:
    answers = sum(map(len, column.answers))
    seconds, tokens = column.seconds / answers, sum(answer.tokens for samples in column.answers for answer in samples) / answers
    prompt_tokens = None if column.prompt_tokens is None else column.prompt_tokens / answers
    paid = price.of(seconds, prompt_tokens, tokens) if price else None
    return {"seconds_per_answer": seconds, "tokens_per_answer": tokens, "prompt_tokens_per_question": prompt_tokens, "price_per_answer": paid}


class Price:
    """What a model costs: by the hour (a machine of one's own), or by the million tokens (an endpoint). Currencies are the caller's."""

    def __init__(self, per_hour: float | None = None, per_million_input: float | None = None, per_million_output: float | None = None) -> None:
        self._per_hour, self._per_input, self._per_output = per_hour, per_million_input, per_million_output

    def of(self, seconds: float, prompt_tokens: float | None, tokens: float) -> float | None:
        """The price of one answer, or None where nothing was said of it or the endpoint does not count its tokens."""
        if self._per_hour is not None:
            return self._per_hour * seconds / 3600
        if (self._per_input is None and self._per_output is None) or prompt_tokens is None:
            return None
        return ((self._per_input or 0) * prompt_tokens + (self._per_output or 0) * tokens) / 1e6
