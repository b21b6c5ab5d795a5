"""What is known of a model, from the catalog or from its folder. No torch, and no weights are fetched."""

import dataclasses
from typing import Any

from luthier.models import audit, facts, fetch, find, licenses


def describe(name: str) -> dict[str, Any]:
    """Facts, license and place of a model: of the catalog (`path` is None where Luthier's own cache does not have it), of a folder, or of
    what the hub says of it. Raises ModelError where there is no such model, or its config.json does not say a size."""
    card = find.of_catalog(name)
    if card is None:
        return _of_folder(name)
    here, license_ = fetch.present(card), licenses.license_of(card.license)
    known = {key: value for key, value in dataclasses.asdict(card).items() if key not in ("facts", "package")}
    return {
        **known,
        "license_title": license_.title if license_ else card.license,
        "license_url": license_.url if license_ else "",
        "allows": license_.allows if license_ else (),
        "path": str(here) if here else None,
        **_sizes(card.facts),
    }


def _of_folder(name: str) -> dict[str, Any]:
    folder = find.small_files(name)
    if (folder / "adapter_config.json").exists():
        find.check_folder(folder)
    stated, notes = audit.stated_license(folder)
    return {"name": name, "path": str(folder), "license": stated or None, "license_notes": notes, **_sizes(facts.from_folder(folder))}


def _sizes(known: facts.ModelFacts) -> dict[str, Any]:
    return {**dataclasses.asdict(known), "active_parameters": known.active_parameters}
