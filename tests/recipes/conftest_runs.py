"""Rows, settings beside them, and a reporter that listens: what the recipes' tests import."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from luthier.config.load import Config, load_config
from luthier.records import Machine
from luthier.reporting import Bar, Silent

SYSTEM = "Answer with the town's JSON."
TOWNS = ["Itasca", "Elgin", "Boston", "Joliet", "Aurora", "Peoria", "Quincy", "Moline"]
# Stored, so that no test times products.
MACHINE = Machine("cpu", "a small machine", 2, 8_000_000_000, 10.0, 40.0)

Write = Callable[..., Config]


class Listener(Silent):
    """A reporter that keeps its lines and, at lines that hold a word, does something."""

    def __init__(self, **at: Callable[[], None]) -> None:
        self.lines: list[str] = []
        self._at = {word.replace("_", " "): act for word, act in at.items()}

    def say(self, line: str) -> None:
        self.lines.append(line)
        for word, act in self._at.items():
            if word in line:
                act()

    @contextmanager
    def bar(self, title: str, total: int) -> Iterator[Bar]:
        self.lines.append(title)
        with super().bar(title, total) as bar:
            yield bar


def chat_row(place: int, system: str = SYSTEM) -> dict[str, Any]:
    """One question with a JSON answer; different for every `place`."""
    town, number = TOWNS[place % len(TOWNS)], 100 + place
    turns = [("user", f"{number} Pierce Rd, {town}"), ("assistant", json.dumps({"city": town, "street": f"{number} Pierce Rd"}))]
    return {"messages": [{"role": role, "content": text} for role, text in [("system", system)] * bool(system) + turns]}


def write_rows(path: Path, rows: list[Any]) -> Path:
    """Rows as JSON lines; a text stands as it is (a broken row)."""
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8")
    return path


def make_config(folder: Path, model: Path, rows: list[Any], *overrides: str) -> Config:
    """A settings file in `folder` beside its rows. `overrides` are section.name=value."""
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / "train.jsonl", rows)
    text = f"model: {model}\ndata: {{train: train.jsonl, eval: null}}\nlora: {{r: 4, lora_alpha: 8, lora_dropout: 0.0}}\ndevice: cpu\n"
    (folder / "luthier.yaml").write_text(text, encoding="utf-8")
    numbers = ["training.precision=fp32", "training.learning_rate=1e-2", "training.batch_size=4", "training.num_train_epochs=1"]
    return load_config(folder / "luthier.yaml", [*numbers, *overrides])
