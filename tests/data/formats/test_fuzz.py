"""20,000 mutated rows: none of them ends in a traceback, and every one is accounted for."""

import copy
import random
from typing import Any, get_args

import pytest
from format_rows import ASK, CALLED, GOOD, SAY, WEATHER, read

from luthier.config.data import FormatName
from luthier.data.formats.build import Built
from luthier.data.formats.write import TARGETS, write_as
from luthier.errors import DataError

ROWS_EACH = 250
ROUNDS = 80
JUNK: list[Any] = [
    None,
    True,
    0,
    -1,
    2,
    1.5,
    float("nan"),
    float("inf"),
    10**400,
    "",
    " ",
    "\0",
    "\ud800",
    "{",
    "[]",
    '{"name": 1}',
    [],
    {},
    [[]],
    [None],
]
SEEDS: list[dict[str, Any]] = [
    *(row for rows, _ in GOOD.values() for row in rows),
    {"messages": CALLED, "tools": [WEATHER]},
    {"conversations": [ASK, {"from": "function_call", "value": '{"name": "f", "arguments": {}}'}, {"from": "observation", "value": ""}, SAY]},
    {"messages": [{**ASK, "content": [{"type": "text", "text": "u"}]}, {**SAY, "weight": 1, "train": True}], "label": True},
    {"chosen": "\n\nHuman: u\n\nAssistant: a", "rejected": "\n\nHuman: u\n\nAssistant: b"},
    {"prompt": "u", "chosen": [ASK, SAY], "rejected": {"role": "assistant", "content": "b"}},
]
TEXTS = ["user", "assistant", "tool", "system", "function_call", "call_1", "text", "image", "Human: x", "2026-11-22", "true"]
KEYS = sorted(
    {key for seed in SEEDS for key in seed} | {"role", "content", "from", "value", "weight", "train", "tool_calls", "tool_call_id", "name", "type"}
)


def spots(value: Any) -> list[tuple[Any, Any]]:
    """Every place in a value: its container and its key."""
    here = list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    return [(value, key) for key, _ in here] + [spot for _, part in here for spot in spots(part)]


def mutated(draw: random.Random) -> dict[str, Any]:
    row = copy.deepcopy(draw.choice(SEEDS))
    for _ in range(draw.choice((0, 1, 1, 1, 2, 3))):
        container, key = draw.choice(spots(row) or [(row, "id")])
        what = draw.randrange(6)
        if what == 0:
            container.pop(key) if isinstance(container, list) else container.pop(key, None)
        elif what == 1 and isinstance(container, list):
            container.insert(key, copy.deepcopy(draw.choice(container)))
        elif what == 2 and isinstance(container, dict):
            container[draw.choice(KEYS)] = copy.deepcopy(container.get(key))
        elif what == 3:
            container[key] = copy.deepcopy(draw.choice(JUNK))
        elif what == 4:
            container[key] = draw.choice(TEXTS)
        else:
            container[key] = {draw.choice(KEYS): copy.deepcopy(container[key])} if isinstance(container, list) else [container.get(key)]
    return row


@pytest.mark.parametrize("part", range(4))
def test_no_row_ends_in_a_traceback_and_none_is_lost(part: int) -> None:
    draw = random.Random(part)
    formats = ["auto", *get_args(FormatName)]
    counted = {"built": 0, "rejected": 0}
    for _ in range(ROUNDS // 4):
        rows = [mutated(draw) for _ in range(ROWS_EACH)]
        formatted = read(rows, format=draw.choice(formats[1:]), strict=draw.random() < 0.5, tree_paths=draw.choice(("best", "all")))
        seen = 0
        for entry in formatted.built:
            seen += entry.rows
            counted["built" if isinstance(entry, Built) else "rejected"] += entry.rows
            assert entry.raw
            if isinstance(entry, Built):
                for target in TARGETS:
                    try:
                        write_as(target, entry.conversation)
                    except DataError:
                        continue
            else:
                assert entry.detail
        assert seen == len(rows)
        assert all(isinstance(note, str) for note in formatted.notes())
    assert counted["built"] + counted["rejected"] == ROUNDS // 4 * ROWS_EACH
    assert min(counted["built"], counted["rejected"]) > 100


def test_a_file_of_any_row_is_read_by_its_columns_or_refused_in_words() -> None:
    draw = random.Random(7)
    refused: list[str] = []
    for _ in range(2_000):
        row = mutated(draw)
        try:
            assert sum(entry.rows for entry in read([row]).built) == 1
        except DataError as error:
            refused.append(error.problem)
    assert refused
    assert all("of no known format" in problem for problem in refused)
