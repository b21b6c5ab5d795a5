"""Which settings were read while something was done: so that one that was given and never looked at is found."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from luthier.config.section import Section
from luthier.config.settings import Settings

# These check settings against each other and write them: what they look at has had no effect yet.
BY_THE_WAY = ("luthier.config.load", "luthier.config.training_rules", "luthier.config.lora_rules", "pydantic")
# Read for their caller: properties of the settings, and type checks around a call.
BETWEEN = ("luthier.config", "jaxtyping", "beartype", "None")
# Gives all values of a section at once.
WHOLE = "model_dump"


@contextmanager
def watched(onlookers: tuple[str, ...] = ()) -> Iterator[set[tuple[str, str]]]:
    """While it lasts, every read of a setting is put down as (section's class, field).

    Not so where all settings are written to a file, and what modules do that begin with one of `onlookers`.
    """
    idle = (*BY_THE_WAY, *onlookers)
    seen: set[tuple[str, str]] = set()
    plain = Section.__getattribute__

    def read(section: Any, name: str) -> Any:
        fields = type(section).model_fields
        if (name in fields or name == WHOLE) and not _by_the_way(idle):
            whole = name == WHOLE and not isinstance(section, Settings)
            seen.update((type(section).__name__, field) for field in (fields if whole else [name]))
        return plain(section, name)

    Section.__getattribute__ = read  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        Section.__getattribute__ = plain  # type: ignore[method-assign]


def _by_the_way(idle: tuple[str, ...]) -> bool:
    """Whether who reads is one of `idle`; a property of the settings reads for its caller."""
    frame = sys._getframe(1)
    while frame is not None:
        module = str(frame.f_globals.get("__name__"))
        if module.startswith(idle) or not module.startswith(BETWEEN):
            return module.startswith(idle)
        frame = frame.f_back  # type: ignore[assignment]
    return False


def unread(given: "dict[str, str] | list[str]", seen: set[tuple[str, str]]) -> list[str]:
    """Those of the `given` dotted names that were not read; a name below a map (peft.type) is the map's."""
    owners = dict(_owners(Settings))
    known = {name: next((owners[known] for known in _upwards(name) if known in owners), None) for name in given}
    return [name for name, owner in known.items() if owner is not None and owner not in seen]


def _upwards(name: str) -> Iterator[str]:
    while name:
        yield name
        name = name.rpartition(".")[0]


def _owners(model: type[Section], prefix: str = "") -> Iterator[tuple[str, tuple[str, str]]]:
    """Every dotted name with the section that has it."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            yield from _owners(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", (model.__name__, name)
