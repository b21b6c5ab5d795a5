"""Models of the catalog by what they must be. No torch here."""

import re
from dataclasses import dataclass

from luthier.errors import CallError
from luthier.models.catalog import Kind, ModelCard

# A size without a range means models that are called so: 7B has 6.7 to 8.2 billion parameters.
CALLED_SO = 0.18


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a list of models is narrowed to; "", 0 and None ask for nothing. `size` is 7B, 1B-8B, -3B or 30B-; `context` the least."""

    size: str = ""
    license: str = ""
    language: str = ""
    context: int = 0
    family: str = ""
    kind: Kind | None = None


def select(cards: list[ModelCard], wanted: Wanted) -> list[ModelCard]:
    """The cards that are wanted, in their order. Raises CallError for a size that is none."""
    least, most = _bounds(wanted.size)
    return [
        card
        for card in cards
        if least <= card.facts.parameters <= most
        and wanted.license.lower() in card.license.lower()
        and wanted.family.lower() in card.family.lower().replace(" ", "-")
        and (not wanted.language or wanted.language.lower() in card.languages or bool(card.many_languages))
        and card.extended >= wanted.context
        and wanted.kind in (None, card.kind)
    ]


def _bounds(size: str) -> tuple[float, float]:
    if not size:
        return 0.0, float("inf")
    found = re.fullmatch(r"(?:([\d.]+)([bm]?))?(-?)(?:([\d.]+)([bm]?))?", size.strip().lower())
    if not found or not (found[1] or found[4]) or (found[1] and found[4] and not found[3]):
        raise CallError(f"{size!r} is no size", where="--size", next_step="--size 7B, --size 1B-8B, --size -3B or --size 30B-")
    if not found[3]:
        middle = _count(found[1] or found[4], found[2] or found[5])
        return middle * (1 - CALLED_SO), middle * (1 + CALLED_SO)
    return (_count(found[1], found[2]) if found[1] else 0.0), (_count(found[4], found[5]) if found[4] else float("inf"))


def _count(number: str, unit: str) -> float:
    try:
        return float(number) * (1e6 if unit == "m" else 1e9)
    except ValueError as error:
        raise CallError(f"{number!r} is no number", where="--size", next_step="--size 7B") from error
