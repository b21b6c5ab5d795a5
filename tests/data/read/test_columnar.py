"""Parquet and Arrow: every kind of file, nested values, nulls, and what is refused."""

import datetime
import gzip
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from luthier.errors import DataError
from luthier.records import Rejected

ROWS = [
    {"id": 1, "messages": [{"role": "user", "content": "héllo"}, {"role": "assistant", "content": None}], "score": 0.5},
    {"id": 2, "messages": [], "score": None},
] * 600


def written(folder: Path, kind: str, table: Any) -> str:
    """The table as a file of the kind; its name."""
    place = folder / f"rows.{kind}"
    if kind == "parquet":
        pq.write_table(table, place, row_group_size=500)
    elif kind == "feather":
        feather.write_feather(table, str(place))
    else:
        make = pa.ipc.new_stream if kind == "stream.arrow" else pa.ipc.new_file
        with make(str(place), table.schema) as writer:
            writer.write_table(table, max_chunksize=700)
    return place.name


@pytest.mark.parametrize("kind", ["parquet", "arrow", "stream.arrow", "feather"])
def test_rows_come_as_they_were_written_with_their_number(kind: str, tmp_path: Path, read) -> None:  # type: ignore[no-untyped-def]
    rows, notes = read(written(tmp_path, kind, pa.Table.from_pylist(ROWS)))
    assert [row.value for row in rows] == ROWS
    assert [row.source.line for row in rows] == list(range(1, 1201))
    assert rows[1].raw == '{"id": 2, "messages": [], "score": null}'
    assert notes == []


@pytest.mark.parametrize("kind", ["parquet", "stream.arrow"])
def test_packed_once_more_they_are_read_too(kind: str, tmp_path: Path, read) -> None:  # type: ignore[no-untyped-def]
    name = written(tmp_path, kind, pa.Table.from_pylist(ROWS))
    (tmp_path / (name + ".gz")).write_bytes(gzip.compress((tmp_path / name).read_bytes()))
    rows, _ = read(name + ".gz")
    assert len(rows) == 1200


def test_dates_and_decimals_become_text(tmp_path: Path, read) -> None:  # type: ignore[no-untyped-def]
    table = pa.table({"day": [datetime.date(2026, 1, 31)], "price": [Decimal("1.50")], "name": pa.array(["a"]).dictionary_encode()})
    rows, _ = read(written(tmp_path, "parquet", table))
    assert rows[0].value == {"day": "2026-01-31", "price": "1.50", "name": "a"}


def test_a_number_that_is_none_is_named_with_its_column(tmp_path: Path, read) -> None:  # type: ignore[no-untyped-def]
    table = pa.table({"m": [[{"score": 1.0}], [{"score": float("nan")}]]})
    (_, broken), _ = read(written(tmp_path, "parquet", table))
    assert isinstance(broken, Rejected)
    assert (broken.reason, broken.detail, broken.source.line) == ("not_a_number", "nan is not a JSON value (m[0].score)", 2)


@pytest.mark.parametrize(
    ("column", "words"),
    [
        (pa.array([b"\x80\x04pickle"]), 'the column "c" holds bytes (binary): pictures, sound or pickled objects are not read'),
        (pa.array([{"bytes": b"png", "path": "a.png"}]), 'the column "c" holds bytes (struct<bytes: binary, path: string>)'),
        (pa.array([[b"x"]], pa.list_(pa.large_binary())), 'the column "c" holds bytes'),
    ],
)
def test_columns_of_bytes_are_refused(column: Any, words: str, tmp_path: Path, read) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(DataError) as error:
        read(written(tmp_path, "parquet", pa.table({"a": ["x"], "c": column})))
    assert words in str(error.value)


@pytest.mark.parametrize("kind", ["parquet", "arrow", "stream.arrow"])
def test_damaged_files_are_named(kind: str, tmp_path: Path, read) -> None:  # type: ignore[no-untyped-def]
    name = written(tmp_path, kind, pa.Table.from_pylist(ROWS))
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=rf"{name}: the (parquet|arrow) data are damaged after row [\d,]+ "):
        read(name)


def test_what_is_only_named_so_is_named(write, read) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(DataError, match=r"rows.parquet: is named like parquet, but its content is not"):
        read(write("rows.parquet", '{"x": 1}'))


def test_two_columns_of_one_name_are_named(tmp_path: Path, read) -> None:  # type: ignore[no-untyped-def]
    table = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"])
    with pytest.raises(DataError, match='two columns are named "a"'):
        read(written(tmp_path, "arrow", table))


def test_an_empty_table_is_named(tmp_path: Path, read) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(DataError, match="is empty"):
        read(written(tmp_path, "parquet", pa.table({"a": pa.array([], pa.string())})))
