"""`luthier init --env`: an environment with the tested versions, for conda, Docker or uv, or a notebook. No torch here."""

import importlib.resources
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

from luthier import files
from luthier.errors import CallError
from luthier.plan import tested
from luthier.reporting import Reporter
from luthier.version import VERSION

Environment = Literal["conda", "docker", "uv", "colab"]
ENVIRONMENTS: tuple[Environment, ...] = get_args(Environment)
TEMPLATES = importlib.resources.files("luthier.recipes") / "templates"
LUTHIER = f"luthier[train]=={VERSION}"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
FENCE = re.compile(r"^```python( \w+)?\n(.*?)^```\n", re.MULTILINE | re.DOTALL)


def write_environment(folder: Path, kind: Environment, reporter: Reporter) -> list[Path]:
    """Write the files of an environment into `folder` (made if need be) and give their paths back.

    Raises CallError where one of them is there already: nothing is overwritten, and nothing is written then.
    """
    texts = WRITTEN[kind](_name_of(folder))
    for name in texts:
        if (folder / name).exists():
            raise CallError(
                f"is there already, and nothing is overwritten: luthier init --env {kind}", where=str(folder / name), next_step=_way_out(name)
            )
    files.make_folder(folder)
    written = []
    for name, text in texts.items():
        files.write_text(folder / name, text)
        written.append(folder / name)
    reporter.say(f"{', '.join(map(str, written))}: Python {tested.python_versions()[2]} and the versions that Luthier {VERSION} is tested with")
    return written


def _way_out(name: str) -> str:
    if name == "pyproject.toml":
        return f"uv add {' '.join(map(repr, [LUTHIER, *_without_torch()]))} in your project, or name another folder"
    return "move it away, or name another folder: luthier init FOLDER --env ..."


def _name_of(folder: Path) -> str:
    """The folder's name as conda, Docker and uv take names: small letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", folder.resolve().name.lower()).strip("-") or "finetune"


def _torch() -> str:
    return next(pin for pin in tested.pins("train") if pin.startswith("torch=="))


def _without_torch() -> list[str]:
    return [pin for pin in tested.pins("train") if pin != _torch()]


def _filled(name: str, **texts: str) -> str:
    text = (TEMPLATES / name).read_text(encoding="utf-8")
    for key, value in texts.items():
        text = text.replace(f"@{key}@", value)
    return text


def _conda(name: str) -> dict[str, str]:
    variants = {
        # file                  what it is for, what pip is told first
        "environment.yml": ("with an NVIDIA GPU on Linux (PyPI's torch brings CUDA along; the machine needs the driver only)", []),
        "environment-cpu.yml": ("without an NVIDIA GPU", [f"--extra-index-url {CPU_INDEX}"]),
    }
    written = {}
    for file, (variant, told) in variants.items():
        lines = [*told, _torch(), LUTHIER, *_without_torch()]
        pins = "\n".join(f'      - "{line}"' if "[" in line else f"      - {line}" for line in lines)
        written[file] = _filled("environment.yml", FILE=file, NAME=name, VARIANT=variant, PYTHON=tested.python_versions()[2], PINS=pins)
    return written


def _docker(name: str) -> dict[str, str]:
    pins = " \\\n".join(f'      "{pin}"' for pin in [LUTHIER, *_without_torch()])
    text = _filled("Dockerfile", NAME=name, PYTHON=tested.python_versions()[2], TORCH=_torch(), PINS=pins)
    return {"Dockerfile": text, ".dockerignore": _filled("dockerignore")}


def _uv(name: str) -> dict[str, str]:
    oldest, _, used = tested.python_versions()
    pins = "\n".join(f'    "{pin}",' for pin in [LUTHIER, *_without_torch()])
    return {"pyproject.toml": _filled("uv.toml", NAME=name, OLDEST=oldest, TORCH=_torch(), PINS=pins), ".python-version": f"{used}\n"}


def _colab(name: str) -> dict[str, str]:
    # numpy is left as it is too: a running kernel that has loaded it would have to be started again.
    pins = [pin for pin in _without_torch() if not pin.startswith("numpy==")]
    text = _filled("notebook.md", PINS=" ".join(f'"{pin}"' for pin in [LUTHIER, *pins]))
    return {f"{name}.ipynb": json.dumps(_notebook(text), indent=1, ensure_ascii=False) + "\n"}


def _notebook(text: str) -> dict[str, Any]:
    """A notebook (nbformat 4.5) of a text with blocks of Python: a cell each, in order; a word behind ```python is the cell's tag."""
    cells, end = [], 0
    for block in FENCE.finditer(text):
        cells += [_cell("markdown", text[end : block.start()]), _cell("code", block[2], (block[1] or "").strip())]
        end = block.end()
    cells.append(_cell("markdown", text[end:]))
    whole = [{"id": f"cell-{place}", **cell} for place, cell in enumerate(cell for cell in cells if cell["source"])]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    # accelerator: the runtime that Colab begins with.
    about = {"kernelspec": kernel, "language_info": {"name": "python"}, "accelerator": "GPU", "colab": {"provenance": []}}
    return {"nbformat": 4, "nbformat_minor": 5, "metadata": about, "cells": whole}


def _cell(kind: str, source: str, tag: str = "") -> dict[str, Any]:
    cell: dict[str, Any] = {"cell_type": kind, "metadata": {"tags": [tag]} if tag else {}, "source": source.strip("\n").splitlines(keepends=True)}
    return cell | ({"execution_count": None, "outputs": []} if kind == "code" else {})


WRITTEN: dict[Environment, Callable[[str], dict[str, str]]] = {
    # kind     name of the project -> file: text
    "conda":   _conda,
    "docker":  _docker,
    "uv":      _uv,
    "colab":   _colab,
}  # fmt: skip
