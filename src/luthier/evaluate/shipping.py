"""Which of several ways to ship, in one sentence: the least that is not measurably worse than the best."""

from collections.abc import Mapping, Sequence

from luthier.config.metric_names import lower_is_better
from luthier.evaluate import sums
from luthier.evaluate.metrics import in_words
from luthier.evaluate.sums import Counted

# What each takes to run, least first: a tuned model is one file more, an index has to be kept up.
BY_EFFORT = {
    # column      in words
    "base":       "the base model alone",
    "tuned":      "the tuned model alone",
    "base_rag":   "the base model with retrieval",
    "tuned_rag":  "the tuned model with retrieval",
}  # fmt: skip


def which(counts: Mapping[str, Counted], metric: str, costs: Mapping[str, Mapping[str, float | None]]) -> tuple[str, str]:
    """The column to ship and the sentence that says why. `counts` are what `metric` counted of each column, over the same questions."""
    sign = -1 if lower_is_better(metric) else 1
    best = max(counts, key=lambda name: (sign * counts[name].value, -list(BY_EFFORT).index(name)))
    near = [name for name in BY_EFFORT if name in counts and (name == best or _not_worse(counts[name], counts[best], sign))]
    chosen = near[0]
    value = in_words(metric, counts[chosen].metric())
    n = len(counts[chosen].rows)
    why, cost = _why(chosen, near[1:], counts, sign), _cost(costs.get(chosen, {}))
    return chosen, f"Ship {BY_EFFORT[chosen]}: {metric} {value} on {n:,} questions, {why}; {cost}."


def _not_worse(one: Counted, best: Counted, sign: int) -> bool:
    """Whether the questions leave open that both are alike."""
    difference = sums.difference(one, best)
    return difference.low <= 0 if sign > 0 else difference.high >= 0


def _why(chosen: str, alike: Sequence[str], counts: Mapping[str, Counted], sign: int) -> str:
    said = []
    if alike:
        names = " and ".join(BY_EFFORT[name] for name in alike)
        said.append(f"not measurably worse than {names}")
    worse = [name for name in counts if name != chosen and name not in alike]
    if worse:
        rival = max(worse, key=lambda name: sign * counts[name].value)
        difference = sums.difference(counts[rival], counts[chosen])
        by, low, high = (100 * sign * number for number in (difference.value, difference.low, difference.high))
        low, high = min(low, high), max(low, high)
        said.append(f"{by:.1f} points ({low:.1f} to {high:.1f}) {'better than' if by > 0 else 'from'} {BY_EFFORT[rival]}")
    return " and ".join(said) if said else "the only one that was measured"


def _cost(cost: Mapping[str, float | None]) -> str:
    seconds, prompt, answer = (cost.get(name) or 0.0 for name in ("seconds_per_answer", "prompt_tokens_per_question", "tokens_per_answer"))
    return f"an answer takes {seconds:.2f} s, {prompt:,.0f} tokens to read and {answer:,.0f} to write"
