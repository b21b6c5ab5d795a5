"""Rows and tokens come back from the disk as they were written."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from luthier.data import store
from luthier.data.store import AllRows, Picked, RowFile, TokenStore
from luthier.records import Conversation, Source, TokenizedExample, Turn

SOURCE = Source("rows.jsonl", 7)
KINDS = [
    Conversation((Turn("user", "a\u2028b\0"), Turn("assistant", "ä \ud800"[:2])), SOURCE),
    Conversation((Turn("system", ""), Turn("user", "x"), Turn("assistant", "", None, '{"tool_calls": []}')), SOURCE, tools='[{"a": null}]'),
    Conversation((Turn("user", "x"), Turn("assistant", "y", False)), SOURCE, label=False, category="billing"),
    Conversation((Turn("user", "x"), Turn("assistant", "good", True, '{"name": "z"}')), SOURCE, rejected=(Turn("assistant", "bad"),)),
    Conversation((Turn("prompt", "x"), Turn("completion", "y")), SOURCE, templated=False),
]


@pytest.mark.parametrize("conversation", KINDS)
def test_a_conversation_comes_back_whole(conversation: Conversation) -> None:
    assert store.from_json(store.to_json(conversation), SOURCE) == conversation


def rows_of(path: Path, count: int, name: str, start: int = 0) -> RowFile:
    writer = store.Writer(path, store.ROW_SCHEMA, compressed=True)
    for number in range(start, start + count):
        text = store.to_json(Conversation((Turn("user", f"q{number}"), Turn("assistant", f"a{number}")), SOURCE))
        writer.add(number + 1, 1, text, f"raw {number}", store.digest(text), store.digest(text), store.digest(f"{number // 2}"))
    writer.close()
    return RowFile(path, name)


@pytest.mark.parametrize("count", [0, 1, store.BATCH_ROWS, store.BATCH_ROWS + 1, 3 * store.BATCH_ROWS])
def test_rows_are_found_by_number(count: int, tmp_path: Path) -> None:
    rows = rows_of(tmp_path / "rows.arrow", count, "rows.jsonl")
    assert len(rows) == count
    assert [row.turns[0].content for row in rows] == [f"q{number}" for number in range(count)]
    for place in {0, count // 2, count - 1} if count else ():
        assert (rows[place].source, rows.raw(place)) == (Source("rows.jsonl", place + 1), f"raw {place}")
    with pytest.raises(IndexError):
        rows[count]


def test_large_rows_end_a_batch_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """512 rows of 16 MB would be 8 GB: what waits to be written, and what is read at once, is counted in characters."""
    monkeypatch.setattr(store, "BATCH_ITEMS", 400)
    rows = rows_of(tmp_path / "rows.arrow", 100, "rows.jsonl")
    assert 10 < pa.ipc.open_file(pa.OSFile(str(rows.path))).num_record_batches < 20
    assert [row.turns[0].content for row in rows] == [f"q{number}" for number in range(100)]
    assert (rows.raw(99), rows[-1].source.line, len(rows.column("exact"))) == ("raw 99", 100, 100)


def test_several_sources_are_one_sequence(tmp_path: Path) -> None:
    parts = [rows_of(tmp_path / f"{name}.arrow", count, name, start) for name, count, start in (("a", 3, 0), ("empty", 0, 0), ("b", 600, 3))]
    every = AllRows(parts)
    assert [row.turns[1].content for row in every] == [f"a{number}" for number in range(603)]
    assert [str(every.source(place)) for place in (2, 3, 602)] == ["a:3", "b:4", "b:603"]
    assert every.part_of(np.asarray([0, 2, 3, 602])).tolist() == [0, 0, 2, 2]
    assert every.column("group").shape == (603, 2)
    assert (every.column("group")[0] == every.column("group")[1]).all()
    picked = Picked(every, np.asarray([602, 1, 1]))
    assert [row.turns[0].content for row in picked] == ["q602", "q1", "q1"]
    assert [row.turns[0].content for row in picked[1:]] == ["q1", "q1"]
    assert picked[0].source == Source("b", 603)


def test_tokens_come_back_with_their_row_and_their_counts(tmp_path: Path) -> None:
    every = AllRows([rows_of(tmp_path / "a.arrow", 2, "a"), rows_of(tmp_path / "b.arrow", 2, "b")])
    for name, row in (("ta", 1), ("tb", 0)):
        writer = store.Writer(tmp_path / name, store.TOKEN_SCHEMA, compressed=False)
        for number in range(600):
            writer.add(row, [number, 5], [False, True], 1, 2, 0, 0)
        writer.close()
    tokens = TokenStore([(tmp_path / "ta", 0), (tmp_path / "tb", 2)], every)
    assert len(tokens) == 1200
    assert tokens[599] == TokenizedExample([599, 5], [False, True], Source("a", 2))
    assert tokens[1199] == TokenizedExample([599, 5], [False, True], Source("b", 1))
    assert (tokens.rows[599], tokens.rows[600], tokens.lengths.sum(), tokens.trained_tokens.sum(), tokens.read.sum()) == (1, 2, 2400, 1200, 2400)
