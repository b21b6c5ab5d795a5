"""A way to read one file of the test's folder: its rows, and what the reader said."""

from collections.abc import Callable
from pathlib import Path

import pytest

from luthier.config.data import SourceSettings
from luthier.data.read.rows import rows_of
from luthier.data.read.source import find_sources
from luthier.records import Rejected, Row

Read = Callable[..., tuple[list[Row | Rejected], list[str]]]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """read(name, split=..., encoding=...) -> rows, notes."""

    def read_file(name: str, split: str | None = None, encoding: str = "utf-8") -> tuple[list[Row | Rejected], list[str]]:
        notes: list[str] = []
        [file] = find_sources([SourceSettings(path=name, split=split)], tmp_path, tmp_path / "spool", notes.append)
        return list(rows_of(file, encoding, notes.append)), notes

    return read_file
