"""The demo's rows: US addresses to JSON. See README.md beside this file for where they come from."""

from importlib import resources
from pathlib import Path


def demo_rows() -> tuple[Path, Path]:
    """The paths of the demo's training rows and of its test rows, which share no address."""
    folder = Path(str(resources.files(__name__)))
    return folder / "train.jsonl", folder / "test.jsonl"
