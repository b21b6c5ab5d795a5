"""What an exported model says of licenses: the text of NOTICE, and the section and front matter of its model card. No torch here.

All of it is made of what the run kept (`licenses` of environment.json, by audit.attribution): of the model, of the rows, and of the adapter
that it went on from. It is a summary, no legal advice.
"""

from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any

from luthier.models import licenses

# The hub's own names of licenses; any other is `other` with its name and address (huggingface.co/docs/hub/repositories-licenses).
OF_HUB = {"apache-2.0", "mit", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "gemma", "openrail"}
OF_HUB |= {"llama2", "llama3", "llama3.1", "llama3.2", "llama3.3"}
NOT_STATED = "not stated"
# Beside what is exported.
FILE = "NOTICE"
Kept = Mapping[str, Any]


def notice(kept: Kept, name: str) -> str:
    """The text of the NOTICE file of an export that is called `name`."""
    base = _shown(kept["model"]["name"])
    lines = [f"{name} was made from {base} by tuning it; its weights are changed.", "", f"The model: {base}", *_of_model(kept["model"], name)]
    for row in _rows(kept):
        lines += ["", f"Rows that it was trained on: {_shown(row['source'])}", *_of_rows(row)]
    if adapter := kept.get("adapter"):
        lines += ["", f"It goes on from the adapter {_shown(adapter['name'])}", f"License: {_title(adapter['license'])}"]
    return "\n".join([*lines, "", "This is a summary and no legal advice; the texts of the licenses count.", ""])


def license_section(kept: Kept, name: str) -> str:
    """What a model card says of licenses, as Markdown without its heading; `name` is what the model is called."""
    lines = [f"Tuned from {_code(kept['model'].get('name', 'its base'))}.", "", *_items(_of_model(kept["model"], name))]
    for row in _rows(kept):
        lines += ["", f"Trained on {_code(row['source'])}.", "", *_items(_of_rows(row))]
    if adapter := kept.get("adapter"):
        lines += ["", f"Goes on from the adapter {_code(adapter['name'])} ({_title(adapter['license'])})."]
    return "\n".join([*lines, "", "A summary, no legal advice; the texts of the licenses count."])


def front_matter(kept: Kept) -> dict[str, str]:
    """What the front matter of a model card says of the model's license, as the hub reads it; {} where none is stated."""
    name = kept["model"]["license"]
    if name.lower() in OF_HUB:
        return {"license": name.lower()}
    known = licenses.license_of(name)
    stated = {"license": "other", "license_name": known.id if known else name} if name != NOT_STATED else {}
    return stated | ({"license_link": known.url} if known else {})


def wrong_name(kept: Kept, name: str) -> str:
    """How the name of an export has to begin under its model's license, where `name` begins otherwise; "" where it is right."""
    known = licenses.license_of(kept["model"]["license"])
    begins = known.name_begins if known else ""
    return "" if name.lower().replace("-", " ").startswith(begins.lower()) else begins


def _of_model(model: Kept, name: str) -> list[str]:
    lines = [f"License: {_title(model['license'])}", *(f"Note: {text}" for text in model.get("notes", ())), *model.get("include", ())]
    lines += [f"It asks: {text}" for text in model.get("asks_for", ())]
    if begins := wrong_name({"model": model}, name):
        lines.append(f"To do: where it is made available, its name begins with {begins!r}, such as {begins.replace(' ', '-')}-{name}")
    return lines


def _of_rows(row: Kept) -> list[str]:
    known, authors = licenses.license_of(row["license"]), row.get("attribution")
    lines = [f"License: {_title(row['license'])}"]
    if known and known.id.startswith("CC-BY"):
        authors = authors or "To do: name the authors of these rows"
        lines.append(f"{authors}, licensed under {known.title} ({known.url}), changed for training")
    elif authors:
        lines.append(f"By: {authors}")
    return lines


def _shown(name: str) -> str:
    """A name or an address as it is, of a path the last part: where things lie is nobody's business."""
    return PurePath(name).name if PurePath(name).is_absolute() else name


def _code(name: str) -> str:
    return f"`{_shown(name).replace('`', chr(39))}`"


def _rows(kept: Kept) -> Iterable[Kept]:
    """The rows of the run, and of those that it goes on from; each source once."""
    every = [*kept["rows"], *((kept.get("adapter") or {}).get("rows", []))]
    return {str(sorted(row.items())): row for row in every}.values()


def _title(name: str) -> str:
    known = licenses.license_of(name)
    return f"{known.title} ({known.id}), {known.url}" if known else name


def _items(lines: Iterable[str]) -> list[str]:
    return [f"- {line}" for line in lines]
