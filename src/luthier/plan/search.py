"""A small search to propose: which settings are worth trying around what `auto` chose, and what that would cost."""

import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from luthier.config.methods import METHODS
from luthier.config.search import Range, Search, Values
from luthier.plan.choose import Plan, value_of
from luthier.plan.in_words import duration

TRIALS_PER_SETTING = 4
# The rate is tried from a third to three times of what auto takes: the tables' own ranges are about as wide.
RATE_FACTOR = 3.0
# The second setting beside the rate and the batch size, by the method's own block.
WIDTHS = {
    # block        the setting that makes the adapter wider or narrower
    "lora":        "lora.r",
    "prefix":      "prefix.num_virtual_tokens",
    "prompt":      "prompt.num_virtual_tokens",
    "p_tuning":    "p_tuning.num_virtual_tokens",
    "bottleneck":  "bottleneck.reduction_factor",
}  # fmt: skip


def propose(plan: Plan) -> Search:
    """A search around the values of a plan: the rate, the batch size, and the width of the adapter where the method has one."""
    settings = plan.settings
    rate = float(settings.training.learning_rate)
    size = int(settings.training.batch_size)
    tried: dict[str, Values] = {
        "training.learning_rate": Range(low=_two_digits(rate / RATE_FACTOR), high=min(1.0, _two_digits(rate * RATE_FACTOR)), log=True),
        "training.batch_size": _beside(size, plan.rows.train_rows),
    }
    # An adapter that goes on (init_from) has its width already.
    for block in () if settings.init_from else METHODS[settings.method].blocks:
        if name := WIDTHS.get(block):
            width = value_of(settings, name)
            tried[name] = _beside(width, plan.facts.hidden)
    tried = {name: values for name, values in tried.items() if isinstance(values, Range) or len(values) > 1}
    return Search(trials=TRIALS_PER_SETTING * len(tried), settings=tried)


def cost_lines(search: Search, plan: Plan, config: Path, overrides: Sequence[str] = ()) -> list[str]:
    """What stands above a proposed search: how it is run (with the overrides of its plan), what `auto` chose, and the most that it costs."""
    chosen = ", ".join(f"{name}: {value_of(plan.settings, name)}" for name in search.settings)
    return [
        " ".join(["luthier", "sweep", str(config), "--space", "THIS_FILE", *map(shlex.quote, overrides)]),
        f"The first trial is the settings file as it stands ({chosen}).",
        f"{search.trials} trials of about {duration(plan.seconds)} each on {plan.machine.name}: at most about "
        f"{duration(search.trials * plan.seconds)} of training (an estimate); trials that stay behind are given up early.",
    ]


def _two_digits(number: float) -> float:
    return float(f"{number:.1e}")


def _beside(value: Any, most: int) -> list[Any]:
    """Half, the value itself, and twice it, within 1 and `most`."""
    halved = value // 2 if isinstance(value, int) else value / 2
    return [tried for tried in (halved, value, 2 * value) if tried == value or 1 <= tried <= most]


def at_the_edge(search: Search, values: dict[str, Any]) -> list[str]:
    """The settings whose value is the first or the last of a list of numbers, or within a tenth of a range's end."""
    return [name for name, tried in search.settings.items() if _is_at_the_edge(tried, values[name])]


def _is_at_the_edge(tried: Values, value: Any) -> bool:
    if isinstance(tried, Range):
        # The first trial is the settings file as it stands: null, or a number that the range does not hold.
        if isinstance(value, bool) or not isinstance(value, int | float) or not tried.low <= value <= tried.high:
            return False
        low, high, place = (math.log(number) if tried.log else number for number in (tried.low, tried.high, value))
        return not 0.1 <= (place - low) / (high - low) <= 0.9
    numbers = [one for one in tried if isinstance(one, int | float) and not isinstance(one, bool)]
    return len(numbers) == len(tried) > 2 and value in (min(numbers), max(numbers))
