"""Cleaning: every row is kept or listed, to the letter, and nothing that was there is touched."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from conftest_runs import Listener, write_rows

from luthier.config.load import config_of_rows, load_config
from luthier.errors import CallError, ConfigError, DataError
from luthier.recipes import data_clean


def row(place, answer=None):
    return {"prompt": f"What stands at number {place}?", "completion": answer or f"A house with {place} windows stands there."}


ROWS = [row(place) for place in range(12)]


def cleaned(rows: Path, to: Path, *overrides, **chosen):
    return data_clean.clean(config_of_rows(rows, "none", [*overrides]), to, **chosen)


def lines(path: Path):
    return path.read_text(encoding="utf-8").split("\n")[:-1]


def listed(to: Path):
    return [json.loads(line) for line in lines(to.with_name(f"{to.stem}.removed.jsonl"))]


@pytest.fixture(autouse=True)
def out(tmp_path: Path) -> Path:
    return tmp_path / "clean.jsonl"


def test_the_first_of_each_row_stays_to_the_letter(tmp_path: Path, out: Path) -> None:
    # Spaces, escapes and U+2028 are the author's own.
    first = '{"prompt" : "caf\\u00e9?",   "completion": "Yes,\u2028of course, we have one here."}'
    rows = write_rows(tmp_path / "rows.jsonl", [first, *ROWS, first, ROWS[3], ROWS[3], '{"prompt": '])
    before = rows.read_bytes()
    result = cleaned(rows, out)
    assert rows.read_bytes() == before
    assert lines(out) == [first, *map(json.dumps, ROWS)]
    assert (result.read, result.kept, result.removed) == (17, 13, 4)
    assert result.reasons == {"duplicates": 3, "overlap": 0, "not_json": 1}
    assert [(one["line"], one["checks"]) for one in listed(out)] == [
        (17, ["not_json"]),
        (14, ["duplicates"]),
        (15, ["duplicates"]),
        (16, ["duplicates"]),
    ]
    assert listed(out)[1]["raw"] == first
    assert listed(out)[1]["detail"].endswith("rows.jsonl:1)")


def test_all_rows_together_are_the_rows_that_were_read(tmp_path: Path, out: Path) -> None:
    texts = [json.dumps(row(place % 9)) for place in range(40)] + ["", "{", "[]", '"text"', json.dumps(row(3, " "))]
    cleaned(write_rows(tmp_path / "rows.jsonl", texts), out)
    assert sorted(lines(out) + [one["raw"] for one in listed(out)]) == sorted(text for text in texts if text)


def test_nothing_is_overwritten(tmp_path: Path, out: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", ROWS)
    for taken in (out, tmp_path / "clean.removed.jsonl"):
        taken.write_text("mine")
        with pytest.raises(CallError, match="is there already, and nothing is overwritten"):
            cleaned(rows, out)
        assert taken.read_text() == "mine"
        taken.unlink()
    with pytest.raises(CallError, match=r"rows\.jsonl: is there already"):
        cleaned(rows, rows)
    with pytest.raises(CallError, match=r"written as \.jsonl"):
        cleaned(rows, tmp_path / "clean.csv")


def test_checks_are_turned_on_and_off(tmp_path: Path) -> None:
    mojibake = row(99, "It is the cafÃ© where they donâ€™t hurry at all.")
    rows = write_rows(tmp_path / "rows.jsonl", [*ROWS, ROWS[0], mojibake])

    def reasons(name, *overrides, **chosen):
        return cleaned(rows, tmp_path / f"{name}.jsonl", *overrides, **chosen).reasons

    assert reasons("default") == {"duplicates": 1, "overlap": 0}
    assert reasons("only", only=["mojibake"]) == {"mojibake": 1}
    assert reasons("both", only=["mojibake", "duplicates"]) == {"mojibake": 1, "duplicates": 1}
    assert reasons("skipped", skip=["duplicates"]) == {"overlap": 0}
    assert reasons("settings", "checks.off=[duplicates]") == {"overlap": 0}
    with pytest.raises(ConfigError, match=r"there is no check 'duplicate'\n  Try: duplicates"):
        reasons("wrong", only=["duplicate"])
    assert not (tmp_path / "wrong.jsonl").exists()


def test_a_row_with_two_faults_is_taken_out_once(tmp_path: Path, out: Path) -> None:
    bad = row(99, "It is the cafÃ© where they donâ€™t hurry at all.")
    result = cleaned(write_rows(tmp_path / "rows.jsonl", [*ROWS, bad, bad]), out, only=["mojibake", "duplicates"])
    assert (result.removed, result.reasons) == (2, {"mojibake": 2, "duplicates": 1})
    assert [one["checks"] for one in listed(out)] == [["mojibake"], ["mojibake", "duplicates"]]


def test_what_taking_out_would_not_mend_is_refused(tmp_path: Path, out: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [*ROWS, row(0, "Nothing stands there, they say.")])
    with pytest.raises(CallError, match="conflicting_answers points at would mend nothing"):
        cleaned(rows, out, only=["conflicting_answers"])
    assert not out.exists()


def test_rows_that_are_held_out_too_go(tmp_path: Path, out: Path) -> None:
    write_rows(tmp_path / "train.jsonl", ROWS)
    write_rows(tmp_path / "eval.jsonl", [ROWS[4], row(77)])
    (tmp_path / "luthier.yaml").write_text("model: none\ndata: {train: train.jsonl, eval: eval.jsonl}\n")
    result = data_clean.clean(load_config(tmp_path / "luthier.yaml"), out, reporter=Listener())
    assert result.reasons["overlap"] >= 1
    assert 5 in [one["line"] for one in listed(out)]
    assert json.dumps(ROWS[4]) not in lines(out)


def test_rows_that_are_no_line_become_lines(tmp_path: Path) -> None:
    said = [row(1, 'One,\ntwo; and "three".'), row(2), row(2)]
    table = "prompt;completion\n" + "".join(f'{one["prompt"]};"{one["completion"].replace(chr(34), chr(34) * 2)}"\n' for one in said)
    (tmp_path / "a.csv").write_text(table)
    (tmp_path / "b.json").write_text(json.dumps(said, indent=2))
    pa.parquet.write_table(pa.Table.from_pylist(said), tmp_path / "c.parquet")
    for name in ("a.csv", "b.json", "c.parquet"):
        out = tmp_path / f"{name}.clean.jsonl"
        result = cleaned(tmp_path / name, out)
        assert (result.read, result.kept) == (3, 2)
        assert [json.loads(line) for line in lines(out)] == said[:2]


def test_a_conversation_of_several_rows_goes_with_all_of_them(tmp_path: Path, out: Path) -> None:
    def talk(name, answer):
        return [
            json.dumps({"conversation_id": name, "role": "user", "text": "What?", "time": 1}),
            json.dumps({"conversation_id": name, "role": "assistant", "text": answer, "time": 2}),
        ]

    one, two, again = talk("a", "This one, I think."), talk("b", "Another one, I think."), talk("c", "This one, I think.")
    result = cleaned(write_rows(tmp_path / "rows.jsonl", [*one, *two, *again]), out)
    assert (result.read, result.kept, result.removed, result.reasons["duplicates"]) == (6, 4, 2, 2)
    assert lines(out) == [*one, *two]


def test_files_of_several_formats_are_cleaned_one_by_one(tmp_path: Path, out: Path) -> None:
    (tmp_path / "rows").mkdir()
    write_rows(tmp_path / "rows" / "a.jsonl", ROWS)
    write_rows(tmp_path / "rows" / "b.jsonl", [{"text": "A text that stands by itself, for long."}])
    with pytest.raises(DataError, match=r"a\.jsonl is completion, .*b\.jsonl is text"):
        cleaned(tmp_path / "rows", out)
    write_rows(tmp_path / "rows" / "b.jsonl", [ROWS[0], row(50)])
    assert cleaned(tmp_path / "rows", out).reasons["duplicates"] == 1
    assert lines(out) == [json.dumps(one) for one in [*ROWS, row(50)]]


def test_where_none_would_be_left_nothing_is_written(tmp_path: Path, out: Path) -> None:
    with pytest.raises(DataError, match="none would be left"):
        cleaned(write_rows(tmp_path / "rows.jsonl", [row(1, "It is the cafÃ©, they donâ€™t hurry.")]), out, only=["mojibake"])
    assert not out.exists()
