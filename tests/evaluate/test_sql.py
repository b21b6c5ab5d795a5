"""Queries are compared by what they give, and can do no more than read."""

import sqlite3
from pathlib import Path

import pytest

from luthier.errors import ConfigError, DataError
from luthier.evaluate import sql
from luthier.evaluate.metrics import score


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    path = tmp_path / "shop.sqlite"
    with sqlite3.connect(path) as database:
        database.executescript("create table sold (city text, n int); insert into sold values ('Reno', 3), ('Elgin', 5), ('Reno', 1);")
    return path


@pytest.mark.parametrize(
    ("expected", "answer", "worth"),
    [
        ("select city from sold where n > 2", "SELECT city FROM sold WHERE n >= 3", 1),
        ("select city, n from sold", "select city, n from sold order by n desc", 1),
        ("select n from sold order by n", "select n from sold order by n desc", 0),
        ("select n from sold order by n", "```sql\nselect n from sold order by n asc\n```", 1),
        ("select count(*) from sold", "select 2", 0),
        ("select count(*) from sold", "select count(*) from nothing", 0),
        ("select count(*) from sold", "", 0),
        ("select n from sold where n > 99", "", 0),
        ("select n from sold where n > 99", "-- none of them", 0),
        ("select n from sold where n > 99", "select n from sold where n < 0", 1),
        ("select count(*) from sold", "delete from sold", 0),
        ("select count(*) from sold", "select 3; drop table sold", 0),
        ("select count(*) from sold", "attach 'other.sqlite' as other", 0),
        ("select 1", "select randomblob(2000000000)", 0),
    ],
)
def test_the_same_rows_are_the_same_answer(shop: Path, expected: str, answer: str, worth: float) -> None:
    before = shop.read_bytes()
    assert score("sql_match=shop.sqlite", [expected], [answer], shop.parent).value == worth
    assert shop.read_bytes() == before
    assert not (shop.parent / "other.sqlite").exists()


def test_a_query_without_an_end_is_wrong(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql, "MOST_SECONDS", 0.2)
    endless = "with recursive n(i) as (select 1 union all select i + 1 from n) select count(*) from n"
    assert score("sql_match=shop.sqlite", ["select 1"], [endless], shop.parent).value == 0


def test_what_cannot_be_asked_is_named(shop: Path) -> None:
    with pytest.raises(DataError, match="an expected query cannot be run"):
        score("sql_match=shop.sqlite", ["selec 1"], ["select 1"], shop.parent)
    (shop.parent / "text.txt").write_text("not a database at all")
    for file, said in (("none.sqlite", "cannot be read"), ("text.txt", "is no sqlite database")):
        with pytest.raises(ConfigError, match=said):
            score(f"sql_match={file}", ["select 1"], ["select 1"], shop.parent)
