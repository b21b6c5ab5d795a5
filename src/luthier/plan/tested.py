"""The versions that are tested together (tested.toml), beside those that are installed. No torch here."""

import functools
import importlib.metadata
import itertools
import re
import tomllib
from dataclasses import dataclass
from importlib import resources
from typing import Any


@dataclass(frozen=True, slots=True)
class Library:
    """A library of the tested matrix: the version that is tested, the least that works, the extra that brings it ("": the core), its use."""

    name: str
    tested: str
    least: str
    extra: str
    need: str

    @property
    def required(self) -> bool:
        """Whether nothing can be trained without it."""
        return self.extra in ("", "train")


@functools.cache
def _table() -> dict[str, Any]:
    return tomllib.loads(resources.files("luthier.plan").joinpath("tested.toml").read_text(encoding="utf-8"))


def libraries() -> list[Library]:
    """Every library of the matrix, in the order of the table."""
    return [Library(name, **row) for name, row in _table()["libraries"].items()]


def pins(*extras: str) -> list[str]:
    """The tested versions as pip reads them ("torch==2.13.0"), of the core and of these extras."""
    return [f"{one.name}=={one.tested}" for one in libraries() if one.extra in ("", *extras)]


def python_versions() -> tuple[str, str, str]:
    """The oldest and the newest Python that Luthier is for, and the one that it is tested with."""
    row = _table()["python"]
    return row["least"], row["newest"], row["tested"]


def installed(name: str) -> str:
    """The version that is installed; "" where the package is not."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def is_older(version: str, other: str) -> bool:
    """Whether a version comes before another, by its numbers: 2.9 before 2.10, 2.13 not before 2.13.0. What stands behind them is not looked at."""
    pairs = itertools.zip_longest(_numbers(version), _numbers(other), fillvalue=0)
    return next((one < two for one, two in pairs if one != two), False)


def _numbers(version: str) -> list[int]:
    found = re.match(r"\d+(\.\d+)*", version)
    return [int(part) for part in found.group().split(".")] if found else []
