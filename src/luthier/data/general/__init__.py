"""General questions and answers: rows that forgetting is measured on, and others to be replayed against it. See README.md beside this file."""

from importlib import resources
from pathlib import Path


def measured_rows() -> Path:
    """The file of rows that `evaluation.general: auto` measures on. None of them is replayed."""
    return _folder() / "measured.jsonl"


def replayed_rows() -> Path:
    """The file of rows that `data.replay` mixes in."""
    return _folder() / "replayed.jsonl"


def _folder() -> Path:
    return Path(str(resources.files(__name__)))
