"""`luthier init DIR`: a project in the layout of the guides, ready to train. No torch here."""

import importlib.resources
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from luthier import files
from luthier.config.adapters import LoraSettings
from luthier.config.data import DataSettings
from luthier.config.methods import BLOCKS, METHODS
from luthier.config.settings import EvaluationSettings, Settings, TrainingSettings
from luthier.errors import CallError
from luthier.files import make_folder, write_lines, write_text
from luthier.reporting import Reporter
from luthier.version import VERSION

RowFormat = Literal["instruction", "chat", "completion"]
TEMPLATES = importlib.resources.files("luthier.recipes") / "templates"
MODEL = "smollm2-135m-instruct"
INSTRUCTION = "Which team should read this message: billing, delivery, technical or account? Answer with one word."

# What luthier.yaml sets; every other setting stands there as a comment with its default.
SET: dict[type[BaseModel], dict[str, Any]] = {
    Settings: {"model": MODEL, "method": "lora", "seed": 0},
    DataSettings: {"train": "data/train.jsonl", "eval": "data/test.jsonl"},
    LoraSettings: {"r": "auto", "lora_alpha": "auto"},
    TrainingSettings: {"batch_size": "auto", "num_train_epochs": "auto", "learning_rate": "auto"},
    EvaluationSettings: {"metrics": ["exact_match"]},
}

# Sections and settings that do nothing beside the method and the objective above: docs/methods.md and docs/preference.md show them.
OF_OTHERS = (BLOCKS - set(METHODS["lora"].blocks)) | {"preference"}

ROWS: dict[str, Callable[[str, str], dict[str, Any]]] = {
    # name         (input, output) -> row
    "instruction": lambda question, answer: {"instruction": INSTRUCTION, "input": question, "output": answer},
    "chat": lambda question, answer: {
        "messages": [
            {"role": "system", "content": INSTRUCTION},
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
    },
    "completion": lambda question, answer: {"prompt": f"{question}\nTeam:", "completion": f" {answer}"},
}


def write_project(folder: Path, *, format: RowFormat = "chat", reporter: Reporter) -> Path:
    """Write a new project and give its folder back. `format` is how its rows are built.

    Raises CallError where `folder` holds anything already (nothing is overwritten) and RunError where it cannot be written.
    """
    refuse_full_folder(folder)
    for name in ("data", "scripts", "models", "logs"):
        make_folder(folder / name)
    write_text(folder / "luthier.yaml", settings_file())
    for split in ("train", "test"):
        write_lines(folder / "data" / f"{split}.jsonl", example_rows(split, format))
    for name, place in {"train.py": "scripts", "inference.py": "scripts", "README.md": ""}.items():
        write_text(folder / place / name, template(name))
    write_text(folder / ".gitignore", template("gitignore"))
    for name in ("models", "logs"):
        write_text(folder / name / ".gitkeep", "")
    write_text(folder / "requirements.txt", f"luthier[train]>={VERSION}\n")
    reporter.say(f"{folder}: a project with rows in the {format} format. Put your own into {folder / 'data'}, then:")
    reporter.say(f"  luthier train {folder / 'luthier.yaml'}")
    return folder


def refuse_full_folder(folder: Path) -> None:
    """Raises CallError where `folder` is a file or holds anything."""
    with files.readable_errors(folder):
        if folder.exists() and not folder.is_dir():
            raise CallError("is a file", where=str(folder), next_step="name a folder that does not exist yet")
        found = sorted(entry.name for entry in folder.iterdir()) if folder.exists() else []
    if found:
        names = ", ".join(found[:5]) + (f" and {len(found) - 5} more" if len(found) > 5 else "")
        raise CallError(
            f"is not empty: it holds {names}; nothing was written", where=str(folder), next_step=f"name a new folder, such as {folder / 'finetune'}"
        )


def template(name: str) -> str:
    """The text of one of the files in templates/."""
    return (TEMPLATES / name).read_text(encoding="utf-8")


def example_rows(split: str, format: RowFormat) -> list[dict[str, Any]]:
    """The example rows of "train" or "test", to be replaced by the user's own."""
    rows = [json.loads(line) for line in template("rows.jsonl").splitlines()]
    return [ROWS[format](row["input"], row["output"]) for row in rows if row["split"] == split]


def settings_file() -> str:
    """luthier.yaml: every setting with its meaning and default, made from the settings themselves."""
    head = [
        "# The settings of one fine-tuning run: luthier train luthier.yaml",
        "# A line that is commented out shows the default. Any setting can also be given by the call: training.learning_rate=1e-4",
    ]
    return "\n".join([*head, *_section_lines(Settings, "")]) + "\n"


def _section_lines(section: type[BaseModel], indent: str) -> Iterator[str]:
    for name, field in section.model_fields.items():
        if not indent and name in OF_OTHERS:
            continue
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield ""
            yield from (f"{indent}# {line.strip()}" for line in (inner.__doc__ or "").splitlines() if line.strip())
            yield f"{indent}{name}:"
            yield from _section_lines(inner, f"{indent}  ")
            continue
        if not indent:
            yield ""
        yield f"{indent}# {field.description}{_choices(field)}"
        chosen = SET.get(section, {})
        yield f"{indent}{name}: {_yaml(chosen[name])}" if name in chosen else f"{indent}# {name}: {_yaml(field.default)}"


def _choices(field: FieldInfo) -> str:
    """The values to choose from, where the setting has a list of more than one."""
    allowed = list(dict.fromkeys(_literals(field.annotation)))
    return f" ({' | '.join(allowed)})" if len(allowed) > 1 else ""


def _literals(annotation: Any) -> Iterator[str]:
    for part in get_args(annotation):
        if isinstance(part, str):
            yield part
        else:
            yield from _literals(part)


def _yaml(value: Any) -> str:
    if value is None:
        return "null"
    return value if isinstance(value, str) else json.dumps(value).replace('"', "")
