"""The tiny model with a fresh adapter, and a few rows of tokens."""

import random
from pathlib import Path

import pytest

from luthier.engine import Engine
from luthier.records import Source, TokenizedExample
from luthier.run_folder import RunFolder


@pytest.fixture
def engine(tiny_model: Path) -> Engine:
    return Engine.open(str(tiny_model), lora={"r": 4, "lora_alpha": 8})


@pytest.fixture
def examples() -> list[TokenizedExample]:
    """Ten rows of 4 to 20 tokens; the second half of each is trained."""
    draw = random.Random(0)
    rows = []
    for number in range(10):
        tokens = [draw.randrange(3, 500) for _ in range(draw.randint(4, 20))]
        rows.append(TokenizedExample(tokens, [place >= len(tokens) // 2 for place in range(len(tokens))], Source("rows.jsonl", number + 1)))
    return rows


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """An empty run folder."""
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    return RunFolder(tmp_path / "run")
