"""What is known of a model, from the catalog or from its folder. No torch, nothing is fetched."""

import dataclasses
from pathlib import Path
from typing import Any

from luthier.models import catalog, facts, fetch, find
from luthier.reporting import Silent


def describe(name: str) -> dict[str, Any]:
    """Facts, license and place of a model. `path` is None where a model of the catalog is not fetched yet."""
    card = catalog.card(name)
    if card is None:
        folder = find.find(name, Silent(), Path())
        return {"name": name, "path": str(folder), **dataclasses.asdict(facts.from_folder(folder))}
    here = fetch.present(card)
    known = {key: value for key, value in dataclasses.asdict(card).items() if key not in ("facts", "package")}
    return {**known, "path": str(here) if here else None, **dataclasses.asdict(card.facts)}
