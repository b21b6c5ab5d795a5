"""The guides' tables beside ours: every row of guides.toml stands in docs/planning.md with the value that is computed today, and why they differ.

python tests/plan/test_guides.py prints both tables as the page has them.
"""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from luthier.config.settings import Settings
from luthier.models import catalog
from luthier.models.facts import ModelFacts
from luthier.plan import cost, elsewhere, wishes
from luthier.plan.cost import DataShape

GUIDES: dict[str, Any] = tomllib.loads((Path(__file__).parent / "guides.toml").read_text(encoding="utf-8"))
PAGE = Path(__file__).parents[2] / "docs" / "planning.md"
CARDS = ("a100-80gb", "rtx-4090", "a6000")
METHODS = {"full": "full", "lora": "LoRA", "qlora": "QLoRA"}


def facts_of(size: str) -> ModelFacts:
    name = GUIDES["models"][size]
    return next(card.facts for card in catalog.cards() if card.size == name)


def settings_of(method: str, micro_batch_tokens: int, batch_size: int = 1, quantization: str = "nf4") -> Settings:
    training = {"precision": "bf16", "gradient_checkpointing": "full", "micro_batch_tokens": micro_batch_tokens, "batch_size": batch_size}
    adapter: dict[str, Any] = {} if method == "full" else {"lora": {"r": GUIDES["ours"]["rank"]}}
    adapter |= {"qlora": {"quantization": quantization}} if method == "qlora" else {}
    return Settings.model_validate(
        {"model": "m", "data": {"train": "t.jsonl", "max_length": 2048}, "method": method, **adapter, "training": training}
        | {"evaluation": {"sample_answers": 0, "max_new_tokens": 64}}
    )


def our_gigabytes(size: str, method: str, quantization: str = "nf4") -> float:
    """One row at a time, activations computed again, AdamW, on a GPU."""
    tokens = GUIDES["ours"]["rows_tokens"]
    rows = DataShape(10_000, 10_000 * tokens, 5_000 * tokens, tokens, 0, 64)
    machine = elsewhere.machine_of(wishes.devices()["a100-80gb"])
    return sum(cost.memory_parts(settings_of(method, tokens, quantization=quantization), facts_of(size), machine, rows).values()) / 1e9


def our_hours(size: str, method: str, device: str) -> float:
    asked = GUIDES["hours"]
    count, tokens = asked["rows"], asked["row_tokens"]
    rows = DataShape(count, count * tokens, count * tokens // 2, tokens, 0, 64)
    settings = cost.changed(settings_of(method, 2048, batch_size=16), {"training.num_train_epochs": asked["passes"]})
    machine = elsewhere.machine_of(wishes.devices()[device])
    return cost.training_seconds(settings, facts_of(size), machine, rows, asked["passes"] * count // 16) / 3600


def memory_lines() -> list[str]:
    lines = ["| guide | method | model | guide says | ours | why |", "|---|---|---|--:|--:|---|"]
    for row in GUIDES["memory"]:
        for size, value in row["values"].items():
            says = f"{value[0]} to {value[1]} GB" if isinstance(value, list) else f"{'over ' if row.get('over') else ''}{value} GB"
            ours = our_gigabytes(size, row["method"], row.get("quantization", "nf4"))
            lines.append(f"| {row['guide']} | {row.get('what', METHODS[row['method']])} | {size} | {says} | {ours:,.0f} GB | {row['reason']} |")
    return lines


def hours_lines() -> list[str]:
    lines = ["| source | method | model | device | it says | ours | why |", "|---|---|---|---|--:|--:|---|"]
    for row in GUIDES["hours"]["rows_of"]:
        ours = our_hours(row["size"], row["method"], row["device"])
        lines.append(
            f"| {row['guide']} | {METHODS[row['method']]} | {row['size']} | {row['device']} | {row['hours']} h | {ours:.0f} h | {row['reason']} |"
        )
    return lines


def grid_lines() -> list[str]:
    """Ours alone: every size and method on the three cards that guides name; a run that does not fit one card has no hours there."""
    lines = [f"| model | method | {' | '.join(CARDS)} |", "|---|---|" + "--:|" * len(CARDS)]
    for size in GUIDES["models"]:
        for method, name in METHODS.items():
            needed = our_gigabytes(size, method)
            fit = [wishes.devices()[card].memory_bytes * cost.USABLE_SHARE >= needed * 1e9 for card in CARDS]
            hours = [f"{our_hours(size, method, card):.0f} h" if fits else "-" for card, fits in zip(CARDS, fit, strict=True)]
            lines.append(f"| {size} | {name} | {' | '.join(hours)} |")
    return lines


@pytest.mark.parametrize("line", [*memory_lines(), *hours_lines(), *grid_lines()])
def test_the_page_has_every_row_with_what_is_computed_today(line: str) -> None:
    assert line in PAGE.read_text(encoding="utf-8").splitlines()


def test_the_page_says_whose_tables_these_are_and_what_the_reasons_mean() -> None:
    page = " ".join(PAGE.read_text(encoding="utf-8").split())
    told = [*GUIDES["guides"].values(), *GUIDES["hours"]["guides"].values(), *GUIDES["reasons"].values()]
    assert [one for one in told if " ".join(one.split()) not in page] == []


@pytest.mark.parametrize(
    ("size", "method", "low", "high"),
    [
        ("7B", "lora", 14, 18),
        ("7B", "qlora", 5, 10),
        ("7B", "full", 100, 140),
        ("70B", "qlora", 40, 48),
        ("70B", "lora", 140, 165),
        ("70B", "full", 1150, 1300),
    ],
)
def test_the_well_known_figures(size: str, method: str, low: float, high: float) -> None:
    assert low < our_gigabytes(size, method) < high


@pytest.mark.parametrize("row", GUIDES["hours"]["rows_of"], ids=lambda row: f"{row['size']}-{row['device']}")
def test_hours_are_those_that_people_had_within_a_factor_of_three(row: dict[str, Any]) -> None:
    assert row["hours"] / 3 < our_hours(row["size"], row["method"], row["device"]) < 3 * row["hours"]


if __name__ == "__main__":
    print("\n".join([*memory_lines(), "", *hours_lines(), "", *grid_lines()]))
