"""What a search tries: a small YAML file beside luthier.yaml, which `luthier plan CONFIG --sweep` proposes and `luthier sweep` reads."""

import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import Discriminator, Field, Tag, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq

from luthier.config.load import Config, closest, load_config, read_tree, setting_field
from luthier.config.methods import BLOCKS
from luthier.config.preference import MEASURED
from luthier.config.section import Section, Text
from luthier.errors import ConfigError

# Sections whose settings change how the same rows are learned. Another model, other rows or another template change what a loss means.
SEARCHED = ("training", "preference", *sorted(BLOCKS - {"peft"}))
# What may change though an earlier adapter goes on: how its base is kept, how fast its B is trained, and what full training freezes.
NOT_THE_ADAPTERS = {"qlora", "freeze", "lora.loraplus_lr_ratio"}
Number = int | float


class Range(Section):
    """Numbers from `low` to `high`, both included."""

    low: Number = Field(description="the least")
    high: Number = Field(description="the greatest")
    log: bool = Field(False, description="draw the logarithm evenly: for rates, where twice as much is one step")

    @model_validator(mode="after")
    def _goes_up(self) -> "Range":
        if not self.low < self.high:
            raise ValueError(f"low ({self.low}) must be below high ({self.high})")
        if self.log and self.low <= 0:
            raise ValueError(f"low ({self.low}) must be above 0 with log: true")
        return self


def _kind(values: Any) -> str:
    return RANGE if isinstance(values, dict | Range) else LIST


# What a setting may become: numbers of a range, or one of a list.
RANGE, LIST = "range", "list"
Values = Annotated[
    Annotated[Range, Tag(RANGE)] | Annotated[list[Any], Field(min_length=2), Tag(LIST)],
    Discriminator(_kind),
]


class Search(Section):
    """Which settings are tried, how often, and what counts."""

    trials: int = Field(12, ge=1, le=10_000, description="runs, the first of which is the settings file as it stands")
    metric: Text = Field("loss", description="the held-out number that counts: loss, or one of the run's other measurements")
    greater_is_better: bool | None = Field(None, description="whether a greater metric is better; null: true but for loss and kl")
    prune: bool = Field(True, description="give a trial up whose held-out curve stays behind the median of those before it")
    seed: int = Field(0, ge=0, lt=2**32, description="what is tried comes from this number")
    settings: dict[str, Values] = Field(min_length=1, description="{section.name: [values]} or {section.name: {low, high, log}}")


def load_search(path: Path) -> tuple[Search, dict[str, str]]:
    """Read the file of a search: what it says, and file:line of every key. Raises ConfigError with file, line and the nearest key."""
    tree, places = read_tree(path)
    try:
        return Search.model_validate(tree), places
    except ValidationError as error:
        raise _first_mistake(error, places, path) from error


def _first_mistake(error: ValidationError, places: dict[str, str], path: Path) -> ConfigError:
    mistake = sorted(error.errors(), key=lambda one: one["type"] != "extra_forbidden")[0]
    parts = [str(part) for part in mistake["loc"] if part not in (RANGE, LIST)]
    name, key = ".".join(parts), parts[-1]
    where = places.get(name, places.get(".".join(parts[:-1]), str(path)))
    if mistake["type"] == "extra_forbidden":
        known = list(Range.model_fields if parts[0] == "settings" else Search.model_fields)
        return ConfigError(f"unknown key {key!r} of a search", where=where, next_step=closest(key, known))
    if mistake["type"] == "missing":
        return ConfigError(f"the key {key!r} is missing", where=where, next_step="luthier plan CONFIG --sweep proposes a whole search")
    problem = mistake["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return ConfigError(f"{name}: {problem}", where=where, next_step="[one value, another], or {low: ..., high: ..., log: true}; see docs/sweep.md")


def check_search(search: Search, config: Config, overrides: list[str], places: Mapping[str, str]) -> None:
    """Raises ConfigError where a setting cannot be searched, or cannot have a value that the search gives it."""
    for name, values in search.settings.items():
        where = places.get(f"settings.{name}", f"settings.{name}")
        section = name.partition(".")[0]
        field = setting_field(name)
        if field is None or (name not in ("method",) and section not in SEARCHED):
            problem = "is no setting" if field is None else "changes what is learned or measured, so that trials could not be compared"
            raise ConfigError(f"{name} {problem}", where=where, next_step=f"settings of: method, {', '.join(SEARCHED)}")
        if isinstance(values, Range) and not (float in (kinds := kinds_of(field.annotation)) or int in kinds):
            raise ConfigError(f"{name} is not a number, and has no range", where=where, next_step=f"{name}: [one value, another]")
        _check_compared(name, values, search.metric, config, where)
        for value in (values.low, values.high) if isinstance(values, Range) else values:
            try:
                load_config(config.file, [*overrides, override(name, value)])
            except ConfigError as error:
                raise ConfigError(error.problem, where=where, next_step=error.next_step) from error


def _check_compared(name: str, values: Values, metric: str, config: Config, where: str) -> None:
    """Raises ConfigError where trials of these values would not be other runs, or not be measured alike."""
    section = name.partition(".")[0]
    if not isinstance(values, Range) and "auto" in values:
        # A trial is known by what auto became, which may be another of the values.
        raise ConfigError(f"{name}: auto is not a value of its own", where=where, next_step="write the value that luthier plan shows for it")
    measured = MEASURED[config.settings.objective]
    if section == "preference" and metric == "loss":
        way_out = "metric: rewards/accuracies" if "rewards/accuracies" in measured else f"take {name} out of the search"
        raise ConfigError(f"{name} changes what the loss is, so that trials could not be compared by it", where=where, next_step=way_out)
    if config.settings.init_from and section in BLOCKS - NOT_THE_ADAPTERS and name not in NOT_THE_ADAPTERS:
        problem = f"{name} is decided by the adapter that init_from names, which goes on as it is"
        raise ConfigError(problem, where=where, next_step="search settings of training, or take init_from out")


def kinds_of(annotation: Any) -> set[Any]:
    """The plain kinds that a setting's annotation allows: {float, Literal["auto"] ...}."""
    inside = get_args(annotation)
    return set().union(*map(kinds_of, inside)) if inside else {annotation}


def is_whole(name: str) -> bool:
    """Whether a setting takes whole numbers only."""
    field = setting_field(name)
    return field is not None and float not in kinds_of(field.annotation)


def override(name: str, value: Any) -> str:
    """section.name=value, as load_config reads it."""
    return f"{name}={json.dumps(value)}"


def combinations(search: Search) -> float:
    """How many different trials there can be; infinity where a range of fractions is among the settings."""
    counts = [
        (math.inf if not is_whole(name) else values.high - values.low + 1) if isinstance(values, Range) else len(values)
        for name, values in search.settings.items()
    ]
    return math.prod(counts)


def search_to_yaml(search: Search, comments: list[str]) -> str:
    """The search as `load_search` reads it, with every key that is usually changed; `comments` stand above it."""
    tree = CommentedMap({"trials": search.trials, "metric": search.metric})
    settings = CommentedMap()
    for name, values in search.settings.items():
        if isinstance(values, Range):
            given: Any = CommentedMap({"low": values.low, "high": values.high, **({"log": True} if values.log else {})})
        else:
            given = CommentedSeq(values)
        given.fa.set_flow_style()
        settings[name] = given
    tree["settings"] = settings
    buffer = io.StringIO()
    YAML().dump(tree, buffer)
    return "".join(f"# {line}\n" for line in comments) + buffer.getvalue()
