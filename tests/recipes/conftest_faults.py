"""Tiny runs with a fault in them, and their healthy twin: a model that learns which things are warm and which are cold."""

import json
import random
from pathlib import Path
from typing import Any

from conftest_runs import make_config, write_rows

from luthier.recipes import diagnosing, sft
from luthier.run_folder import RunFolder

WARMTH = {"red": "warm", "orange": "warm", "blue": "cold", "green": "cold"}
COLORS = list(WARMTH)
EVERY = ["evaluation.sample_answers=0", "evaluation.general=null"]
USUAL = ["training.batch_size=8", "training.num_train_epochs=3", "evaluation.every_steps=10", "lora.r=8", "lora.lora_alpha=16", *EVERY]


def said(prompt: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]}


def thing(number: int, answer: str = "") -> dict[str, Any]:
    """A thing and whether it is warm: right, but for what `answer` says."""
    color = COLORS[number % len(COLORS)]
    return said(f"thing {number} is {color}", answer or WARMTH[color])


def things(first: int, count: int) -> list[dict[str, Any]]:
    return [thing(number) for number in range(first, first + count)]


def wrong(number: int) -> dict[str, Any]:
    return thing(number, "cold" if WARMTH[COLORS[number % len(COLORS)]] == "warm" else "warm")


TRAINED, HELD_OUT = things(200, 160), things(400, 24)


def letters(draws: random.Random, count: int) -> str:
    return "".join(draws.choice("abcdefghijklmnop") for _ in range(count))


def train(folder: Path, model: Path, rows: list[Any], held_out: list[Any], *overrides: str, files: dict[str, list[Any]] | None = None) -> RunFolder:
    """A run on `rows`; further files of rows lie beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, others in (files or {}).items():
        write_rows(folder / name, others)
    if held_out:
        write_rows(folder / "eval.jsonl", held_out)
    return sft.fit(make_config(folder, model, rows, f"data.eval={'eval.jsonl' if held_out else 'null'}", *overrides))


def ids(run: RunFolder, *, model: bool = True) -> set[str]:
    """What is found wrong with a run."""
    found, _ = diagnosing.diagnose(run, model=model)
    return {one.id for one in found}


def stored(run: RunFolder) -> dict[str, dict[str, Any]]:
    """The findings of findings.json by their ids."""
    return {row["id"]: row for row in json.loads(run.findings.read_text(encoding="utf-8"))["findings"]}
