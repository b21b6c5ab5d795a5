"""`luthier predict`: every row answered or listed, beside its own columns, and the same after a kill."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from conftest_runs import chat_row
from typer.testing import CliRunner

from luthier import files
from luthier.cli.app import _build
from luthier.errors import CallError, DataError, LuthierError, RunError
from luthier.recipes import predicting
from luthier.recipes.predicting import Call, predict
from luthier.reporting import NO_NUMBERS, Silent
from luthier.run_folder import RunFolder

ROWS: list[Any] = [{"id": place, "messages": [chat_row(place)["messages"][1]]} for place in range(6)]
EXPECTED = [chat_row(place)["messages"][2]["content"] for place in range(6)]


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def call(run: RunFolder, data: str, to: Path, **more: Any) -> Call:
    return Call(str(run.path), [data], to, max_new_tokens=40, **more)


def test_every_row_is_answered_or_listed(learned: RunFolder, tmp_path: Path) -> None:
    rows = [*ROWS[:3], "broken", {"id": 9, "messages": []}, {"id": 10, "messages": [{"role": "user", "content": "a<|im_end|>"}]}, *ROWS[3:]]
    rows.append({"id": 11, "messages": [{"role": "user", "content": "word " * 600}]})
    to = tmp_path / "out" / "answers.jsonl"
    found = predict(call(learned, write(tmp_path / "rows.jsonl", rows), to))
    assert [found.read, found.answered, found.cut] == [10, 6, 0]
    assert found.rejected == {"not_json": 1, "no_answer": 1, "not_askable": 1, "too_long": 1}
    answered = lines(to)
    assert [row["prediction"] for row in answered] == EXPECTED  # with the run's own system message, as it was trained
    assert [{name: row[name] for name in ("id", "messages")} for row in answered] == ROWS
    assert {row["prediction_finish"] for row in answered} == {"stop"}
    listed = lines(Path(found.rejected_file))
    assert [row["line"] for row in listed] == [4, 5, 6, 10]
    assert listed[0]["raw"] == "broken"
    assert not call(learned, "", to).part.exists()


def test_an_exported_folder_is_held_to_the_contract_beside_it(learned: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = shutil.copytree(learned.adapter, tmp_path / "adapter")
    shutil.copy(learned.contract, folder)
    data = write(tmp_path / "rows.jsonl", ROWS)
    asked = Call("~/adapter", [data], tmp_path / "answers.jsonl", max_new_tokens=40)
    predict(asked)
    assert [row["prediction"] for row in lines(asked.to)] == EXPECTED  # with the contract's system message
    kept = json.loads(learned.contract.read_text())
    kept["golden"][0]["ids"][3] += 1
    (folder / "contract.json").write_text(json.dumps(kept))
    with pytest.raises(RunError, match="chat template has changed"):
        predict(replace(asked, to=tmp_path / "other.jsonl"))


class Bar:
    def __init__(self, after: int) -> None:
        self.after = after

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *ended: object) -> None:
        return

    def advance(self, done: int, text: str = "", numbers: Any = NO_NUMBERS) -> None:
        if done >= self.after:
            raise KeyboardInterrupt


class Stopping(Silent):
    """Ends the work, as a signal would, once so many rows are answered; what is said is kept."""

    def __init__(self, after: int) -> None:
        self.after, self.said = after, list[str]()

    def say(self, line: str) -> None:
        self.said.append(line)

    def bar(self, title: str, total: int) -> Any:
        return Bar(self.after)


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_killed_prediction_goes_on_to_the_same_file(
    temperature: float, learned: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predicting, "CHUNK", 2)
    data = write(tmp_path / "rows.jsonl", [*ROWS, ROWS[0]])
    how = predicting.Sampling(temperature=temperature, seed=5)
    straight = tmp_path / "straight.jsonl"
    predict(call(learned, data, straight, sampling=how))
    stopped = call(learned, data, tmp_path / "stopped.jsonl", sampling=how)
    with pytest.raises(KeyboardInterrupt):
        predict(stopped, Stopping(after=3))
    assert not stopped.to.exists()
    kept = stopped.part / predicting.ANSWERS
    files.write_text(kept, kept.read_text() + '{"key": "half of a li')  # as a kill leaves it
    reporter = Stopping(after=100)
    predict(stopped, reporter)
    assert "2 of 7 answers are kept from before" in reporter.said
    assert stopped.to.read_bytes() == straight.read_bytes()


def test_nothing_is_overwritten_and_no_other_call_is_gone_on_with(learned: RunFolder, tmp_path: Path) -> None:
    data = write(tmp_path / "rows.jsonl", ROWS[:2])
    to = tmp_path / "answers.jsonl"
    with pytest.raises(KeyboardInterrupt):
        predict(call(learned, data, to), Stopping(after=1))
    with pytest.raises(CallError, match="begun with another max new tokens"):
        predict(Call(str(learned.path), [data], to, max_new_tokens=41))
    write(tmp_path / "rows.jsonl", ROWS[:3])
    with pytest.raises(CallError, match="begun with another data"):
        predict(call(learned, data, to))
    write(tmp_path / "rows.jsonl", ROWS[:2])
    predict(call(learned, data, to))
    before = to.read_bytes()
    with pytest.raises(CallError, match="nothing is overwritten"):
        predict(call(learned, data, to))
    assert to.read_bytes() == before
    with pytest.raises(CallError, match="JSON lines"):
        predict(call(learned, data, tmp_path / "answers.csv"))
    with pytest.raises(CallError, match="a column messages of its own"):
        predict(call(learned, data, tmp_path / "other.jsonl", column="messages"))
    with pytest.raises(DataError, match="no row can be asked"):
        predict(call(learned, write(tmp_path / "text.jsonl", [{"text": "a"}]), tmp_path / "other.jsonl"))


def test_a_model_that_is_not_there_leaves_nothing_behind(tmp_path: Path) -> None:
    data = write(tmp_path / "rows.jsonl", ROWS[:1])
    with pytest.raises(LuthierError):
        predict(Call(str(tmp_path / "nowhere"), [data], tmp_path / "answers.jsonl"))
    assert [path.name for path in tmp_path.iterdir() if path.is_dir() or path.suffix != ".jsonl"] == []


def test_tables_are_read_and_the_verb_says_what_it_wrote(learned: RunFolder, tmp_path: Path) -> None:
    question = ROWS[2]["messages"][0]["content"]
    with open(tmp_path / "rows.csv", "w", newline="") as file:
        csv.writer(file).writerows([["id", "question"], ["7", question]])
    pyarrow.parquet.write_table(pa.table({"id": [7], "question": [question]}), tmp_path / "rows.parquet")
    for kind, id in (("csv", "7"), ("parquet", 7)):
        to = tmp_path / f"{kind}.jsonl"
        arguments = [str(learned.path), "--data", str(tmp_path / f"rows.{kind}"), "--to", str(to), "--max-new-tokens", "40", "--json"]
        done = CliRunner().invoke(_build(), ["predict", *arguments])
        assert done.exception is None
        assert json.loads(done.stdout)["answered"] == 1
        assert lines(to) == [{"id": id, "question": question, "prediction": EXPECTED[2], "prediction_finish": "stop"}]
    cut = CliRunner().invoke(_build(), ["predict", *arguments[:4], str(tmp_path / "cut.jsonl"), "--max-new-tokens", "2", "--column", "said"])
    assert "1 answered, 1 of them cut" in cut.output
    assert lines(tmp_path / "cut.jsonl")[0]["said_finish"] == "length"
