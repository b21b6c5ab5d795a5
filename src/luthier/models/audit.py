"""The license of a model: of the catalog, or as a folder says it (README's front matter, LICENSE, what it was made from). No torch here."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from luthier.config.data import DataSettings, SourceSettings
from luthier.errors import ModelError
from luthier.models import catalog, find, licenses, weights
from luthier.models.licenses import Audit, Use
from luthier.models.notice import NOT_STATED

FRONT = "---"
LICENSE_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "USE_POLICY.md", "COPYING")
# What data.replay mixes in where no file is named (data/general/README.md).
OF_LUTHIER = SourceSettings(path="the general rows of Luthier (data.replay)", license="CC0-1.0")
# What the hub calls a license that is none of its list: license_name says which.
OTHER = "other"


def audit(model: str, use: Use) -> Audit:
    """Whether `model` (a name of the catalog, a folder, or a hub id) may be used for this. Raises ModelError where there is no such model."""
    if card := find.of_catalog(model):
        return licenses.audit(card.name, card.license, use)
    folder = find.small_files(model)
    name, notes = stated_license(folder)
    return licenses.audit(model, name, use, notes)


def attribution(model: str, folder: Path, rows: Sequence[Mapping[str, str]], base: Path, adapter: Path | None = None) -> dict[str, Any]:
    """What a run keeps of licenses: that of its model, which lies in `folder` and was named beside `base`, of each of its sources of rows
    ({"source", "license", "attribution"}, the last two "" where they are not stated), and of the `adapter` that it goes on from.

    Never an error: what is not stated is said to be so.
    """
    card = find.of_catalog(model, base)
    return {
        "model": {"name": model, **(_kept(card.license) if card else _kept_of(folder))},
        "rows": [{**row, "license": licenses.known_id(row["license"]) or NOT_STATED} for row in rows],
        "adapter": _of_adapter(adapter) if adapter else None,
        "tuned": "what is tuned stands under the license of its model, and under what the rows ask for",
    }


def sources(data: DataSettings) -> list[dict[str, str]]:
    """The sources of rows with the license and the attribution that the settings state for each ("" for none)."""
    replayed = [SourceSettings(path=data.replay_from) if data.replay_from else OF_LUTHIER] if data.replay else []
    asked = [*data.sources, *replayed]
    return [{"source": source.path, "license": source.license or "", "attribution": source.attribution or ""} for source in asked]


def _kept(name: str, notes: Sequence[str] = ()) -> dict[str, Any]:
    known = licenses.license_of(name)
    return {
        "license": name or NOT_STATED,
        "url": known.url if known else "",
        "asks_for": sorted({text for use in known.allows for text in known.obligations[use]}) if known else [],
        "include": sorted({text for use in known.allows for text in known.include[use]}) if known else [],
        "notes": list(notes),
    }


def _kept_of(folder: Path) -> dict[str, Any]:
    try:
        return _kept(*stated_license(folder))
    except ModelError as error:
        return _kept("", [error.problem])


def _of_adapter(adapter: Path) -> dict[str, Any]:
    """What is known of an earlier adapter: of a run's, the rows that it was trained on; of any other, what its folder states."""
    environment = adapter.parent / "environment.json"
    kept = weights.read_object(environment, "name a run that is whole").get("licenses") if environment.is_file() else None
    if not isinstance(kept, dict):
        return {"name": str(adapter), **_kept_of(adapter), "rows": []}
    earlier = kept.get("adapter") or {"rows": []}
    return {"name": str(adapter.parent), **_kept(kept["model"]["license"]), "rows": [*earlier["rows"], *kept["rows"]]}


def stated_license(folder: Path) -> tuple[str, tuple[str, ...]]:
    """The license that a model folder states ("" where it states none), and what is to be known beside it: where it was found, or what is
    missing, or that two places differ (then the name is that of both, which no table has)."""
    front = _front_matter(folder)
    found = {place: name for place, name in (_of_readme(front), _of_file(folder), _of_manifest(folder), _of_base(folder, front)) if name}
    if not found:
        return "", (f"{folder} holds no license: no front matter in README.md, no LICENSE, and nothing that says what it was made from",)
    notes = tuple(f"{place} says {name}" for place, name in found.items())
    names = {name.lower(): name for name in found.values()}
    return " and ".join(names.values()), notes if len(names) == 1 else (*notes, "they differ: ask whoever made it")


def texts(folder: Path) -> dict[str, str]:
    """The texts of a model's license, to be passed on with what is made of it, by the names that they have there (its own NOTICE as NOTICE.base)."""
    found = {name: folder / name for name in LICENSE_FILES} | {"NOTICE.base": folder / "NOTICE"}
    return {name: path.read_text(encoding="utf-8", errors="replace") for name, path in found.items() if path.is_file()}


def _front_matter(folder: Path) -> dict[str, Any]:
    readme = folder / "README.md"
    text = readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else ""
    if not text.startswith(FRONT):
        return {}
    try:
        read = YAML(typ="safe").load(text[len(FRONT) :].partition(f"\n{FRONT}")[0])
    except YAMLError as error:
        problem = str(error).splitlines()[0]
        raise ModelError(f"its front matter is no YAML ({problem})", where=str(readme), next_step="mend the part between the lines ---") from error
    return read if isinstance(read, dict) else {}


def _of_readme(front: dict[str, Any]) -> tuple[str, str]:
    stated = str(front.get("license") or "")
    return "README.md", licenses.known_id(str(front.get("license_name") or stated) if stated.lower() == OTHER else stated)


def _of_file(folder: Path) -> tuple[str, str]:
    for name in LICENSE_FILES:
        if (folder / name).is_file():
            known = licenses.of_text((folder / name).read_text(encoding="utf-8", errors="replace"))
            return name, known.id if known else "a text that Luthier does not know"
    return "", ""


def _of_manifest(folder: Path) -> tuple[str, str]:
    path = folder / "manifest.json"
    stated = weights.read_object(path, "fetch the model again").get("license") if path.is_file() else None
    return path.name, licenses.known_id(stated) if isinstance(stated, str) else ""


def _of_base(folder: Path, front: dict[str, Any]) -> tuple[str, str]:
    """The license of the model that this one was made from, where that is one of the catalog."""
    adapter = folder / "adapter_config.json"
    made_from = front.get("base_model") or (weights.read_object(adapter, "save it again").get("base_model_name_or_path") if adapter.is_file() else "")
    hub = str(made_from[0] if isinstance(made_from, list) and made_from else made_from or "")
    card = catalog.card(hub) or catalog.of_hub(hub)
    return f"its base {hub}", card.license if card else ""
