"""A project that trains in seconds."""

import json
from pathlib import Path

import pytest

SETTINGS = """model: {model}
data: {{train: rows.jsonl, eval: null}}
lora: {{r: 4, lora_dropout: 0.0}}
training: {{batch_size: 8, max_steps: 6, precision: fp32, learning_rate: 1e-3, compile: 'off'}}
evaluation: {{sample_answers: 0}}
"""


@pytest.fixture
def tiny_project(tmp_path: Path, tiny_model: Path) -> Path:
    """A folder with luthier.yaml and 64 rows of uneven length."""
    folder = tmp_path / "project"
    folder.mkdir()
    rows = [{"instruction": f"Say the number {number}", "output": f"the number is {number} " * (1 + number % 5)} for number in range(64)]
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (folder / "luthier.yaml").write_text(SETTINGS.format(model=tiny_model))
    return folder
