"""One real file of each format, out of llamafactory's source distribution: fetched once, counts asserted."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from assets import asset

from luthier.data.formats.build import Built, How, build
from luthier.records import Rejected, Row, Source

pytestmark = pytest.mark.slow

COUNTS: dict[str, tuple[str, int, dict[str, int]]] = {
    # file                              format       used   rejected
    "alpaca_en_demo.json": ("alpaca", 999, {}),
    "alpaca_zh_demo.json": ("alpaca", 1000, {}),
    "identity.json": ("alpaca", 91, {}),
    "dpo_en_demo.json": ("preference", 300, {}),
    "dpo_zh_demo.json": ("preference", 300, {}),
    "v1_dpo_demo.jsonl": ("preference", 10, {}),
    "kto_en_demo.json": ("kto", 300, {}),
    # Calls that do not fit their own tool's parameters, and results without a call: the files' own flaws.
    "glaive_toolcall_en_demo.json": ("sharegpt", 299, {"arguments_do_not_fit": 1}),
    "glaive_toolcall_zh_demo.json": ("sharegpt", 296, {"arguments_do_not_fit": 2, "tool_result_without_call": 2}),
    "reason_tool_use_demo_50.jsonl": ("messages", 50, {}),
    "v1_sft_demo.jsonl": ("messages", 500, {}),
    "c4_demo.jsonl": ("text", 300, {}),
    "mllm_demo.json": ("messages", 0, {"not_only_text": 6}),
    "mllm_audio_demo.json": ("messages", 0, {"not_only_text": 3}),
    "mllm_video_demo.json": ("messages", 0, {"not_only_text": 3}),
}


@pytest.fixture(scope="module")
def folder() -> Path:
    return asset("llamafactory", "0.9.5", sdist=True) / "data"


def rows_of(file: Path) -> list[dict[str, Any]]:
    text = file.read_text(encoding="utf-8")
    return json.loads(text) if file.suffix == ".json" else [json.loads(line) for line in text.split("\n") if line.strip()]  # type: ignore[no-any-return]


def entries(file: Path) -> tuple[str, list[Built | Rejected]]:
    rows = [Row(value, json.dumps(value), Source(file.name, number)) for number, value in enumerate(rows_of(file), 1)]
    formatted = build(rows, How("auto", {}, True, "best"), file.name)
    return formatted.name, list(formatted.built)


@pytest.mark.parametrize("name", COUNTS)
def test_a_real_file_is_read_to_its_last_row(folder: Path, name: str) -> None:
    found, built = entries(folder / name)
    rejected = Counter(entry.reason for entry in built if isinstance(entry, Rejected))
    assert (found, sum(isinstance(entry, Built) for entry in built), dict(rejected)) == COUNTS[name]


def test_the_tool_calls_of_a_real_file_reach_the_template_as_they_are(folder: Path) -> None:
    file = folder / "glaive_toolcall_en_demo.json"
    rows = rows_of(file)
    _, built = entries(file)
    with_calls = 0
    for row, entry in zip(rows, built, strict=True):
        calls = [json.loads(turn["value"]) for turn in row["conversations"] if turn["from"] == "function_call"]
        with_calls += bool(calls)
        if isinstance(entry, Built):
            extras = [json.loads(turn.extra) for turn in entry.conversation.turns if turn.extra]
            assert [call["function"] for extra in extras for call in extra["tool_calls"]] == calls
            assert json.loads(entry.conversation.tools or "[]") == json.loads(row["tools"])
    assert (len(rows), with_calls) == (300, 153)


def test_every_preference_has_one_better_and_one_worse_answer(folder: Path) -> None:
    for row, entry in zip(rows_of(folder / "dpo_en_demo.json"), entries(folder / "dpo_en_demo.json")[1], strict=True):
        assert isinstance(entry, Built)
        assert (entry.conversation.answer, [turn.content for turn in entry.conversation.rejected]) == (
            row["chosen"]["value"],
            [row["rejected"]["value"]],
        )
        assert len(entry.conversation.prompt) == len(row["conversations"])


def test_the_picture_that_is_refused_is_named(folder: Path) -> None:
    first = entries(folder / "mllm_demo.json")[1][0]
    assert isinstance(first, Rejected)
    assert first.detail.startswith('images: holds 2 of them ("mllm_demo_data/1.jpg" ...); only text is trained here')
