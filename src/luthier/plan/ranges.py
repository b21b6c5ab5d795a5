"""The usual ranges of a run's numbers, and a warning for each that lies outside. What `auto` takes always lies inside."""

import math
from dataclasses import dataclass

from luthier.config.methods import METHODS
from luthier.config.settings import Settings
from luthier.models.facts import ModelFacts
from luthier.plan import hyperparameters
from luthier.plan.cost import DataShape
from luthier.plan.machine import rules


@dataclass(frozen=True, slots=True)
class Range:
    """A number of the settings with what is usual for this model, method and these rows, why, and where that comes from."""

    name: str
    value: float
    low: float
    high: float
    why: str
    source: str
    less_holds: bool = False  # a value below `low` is no mistake in this run

    @property
    def holds(self) -> bool:
        """Whether the value is usual."""
        return (self.less_holds or self.low * (1 - 1e-9) <= self.value) and self.value <= self.high * (1 + 1e-9)

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}"


def ranges(settings: Settings, facts: ModelFacts, rows: DataShape, updates: int) -> list[Range]:
    """The ranges of settings that a plan has filled. One that has no say in this run is left out."""
    found = [_learning_rate(settings, facts), _batch_size(settings, rows), _epochs(settings, rows, updates), _warmup(settings)]
    if "lora" in METHODS[settings.method].blocks:
        found += [_rank(settings, facts, rows), _alpha(settings), _dropout(settings)]
    return [one for one in found if one] + [_default(settings, name) for name in rules()["defaults"]]


def warnings(settings: Settings, facts: ModelFacts, rows: DataShape, updates: int) -> list[str]:
    """A line for each number outside its range. A run begins all the same."""
    outside = [one for one in ranges(settings, facts, rows, updates) if not one.holds]
    return [f"warning: {one.name} is {one.value:g}; usual is {one} ({one.why}; {one.source})" for one in outside]


def _learning_rate(settings: Settings, facts: ModelFacts) -> Range | None:
    usual = hyperparameters.learning_rate(facts, settings.method, settings.training.optim, settings.objective)
    table = hyperparameters.rate_table(settings.method)
    if "range" not in table:
        return None
    low, high = (float(f"{factor * float(str(usual.value)):.1e}") for factor in table["range"])
    return Range(usual.name, float(settings.training.learning_rate), low, high, usual.why, usual.source)


def _batch_size(settings: Settings, rows: DataShape) -> Range:
    usual, table, kind = hyperparameters.batch_size(settings, rows), rules()["batch_size"], hyperparameters.batch_kind(settings)
    low, high = table["range"] if kind == "usual" else table[f"{kind}_range"]
    least = min(low, int(str(usual.value)))
    why = f"usual for {settings.plan.task}" if kind != "usual" else "usual"
    why += "" if least == low else f", less with {rows.train_rows:,} rows"
    return Range(usual.name, int(settings.training.batch_size), least, high, why, usual.source)


def _epochs(settings: Settings, rows: DataShape, updates: int) -> Range | None:
    if settings.training.max_steps:
        return None
    table, usual = rules()["num_train_epochs"], hyperparameters.epochs(settings, rows)
    _, _, low, high = hyperparameters.band(table["bands"], rows.train_rows)
    low = min(low, float(str(usual.value)))
    # Few passes are too few where they make few updates.
    enough = updates >= rules()["batch_size"]["wanted_updates"]
    return Range(usual.name, float(settings.training.num_train_epochs), low, high, usual.why, usual.source, less_holds=enough)


def _warmup(settings: Settings) -> Range | None:
    table = rules()["warmup_ratio"]
    if settings.training.warmup_steps is not None:
        return None
    low, high = table["range"]
    return Range("training.warmup_ratio", float(settings.training.warmup_ratio), low, high, "a longer rise wastes updates", table["cited"])


def _rank(settings: Settings, facts: ModelFacts, rows: DataShape) -> Range:
    usual, table = hyperparameters.rank(settings, facts, rows), rules()["lora_rank"]
    low, high = table["domains"][settings.plan.domain] if settings.plan.domain else table["range"]
    return Range(usual.name, settings.lora.numbers[0], min(low, facts.hidden), high, usual.why, usual.source)


def _alpha(settings: Settings) -> Range:
    (r, value, _), table = settings.lora.numbers, rules()["lora_alpha"]
    # With use_rslora the scale is lora_alpha / sqrt(r).
    low, high = (math.sqrt(r) if settings.lora.use_rslora else factor * r for factor in table["range"])
    return Range("lora.lora_alpha", value, low, max(high, 2 * r), f"r to twice r, and r is {r}", table["cited"])


def _dropout(settings: Settings) -> Range:
    table = rules()["lora_dropout"]
    low, high = table["range"]
    return Range("lora.lora_dropout", settings.lora.numbers[2], low, high, "more hides what is to be learned", table["cited"])


def _default(settings: Settings, name: str) -> Range:
    table = rules()["defaults"][name]
    low, high = table["range"]
    return Range(f"training.{name}", float(getattr(settings.training, name)), low, high, table["why"], table["cited"])
