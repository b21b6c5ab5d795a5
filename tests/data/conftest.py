"""A real small tokenizer with ChatML's template, and a way to write rows."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer


@pytest.fixture(scope="session")
def tokenizer(tiny_model: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Write rows (or text, or bytes) to a file of the test's folder and give back its name."""

    def write_file(name: str, content: object) -> str:
        if isinstance(content, list):
            content = "".join(json.dumps(row) + "\n" for row in content)
        data = content if isinstance(content, bytes) else str(content).encode()
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
        return name

    return write_file
