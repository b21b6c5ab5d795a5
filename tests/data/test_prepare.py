import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from luthier.config.settings import DataSettings
from luthier.data import prepare
from luthier.data.ledger import read_held_out
from luthier.errors import DataError, LuthierError, RunError
from luthier.run_folder import RunFolder

Write = Callable[..., str]


def chat(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def many(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [chat(f"question {number}", f"answer {number}") for number in range(start, start + count)]


def load(base: Path, train: str | list[str] = "train.jsonl", eval: str | None = None, seed: int = 0, format: Any = "auto") -> prepare.Rows:
    return prepare.load_rows(DataSettings(train=train, eval=eval, format=format), base, seed)


def questions(rows: list[Any]) -> set[str]:
    return {row.turns[0].content for row in rows}


def test_a_share_is_held_out_and_stays_the_same(write: Write, tmp_path: Path) -> None:
    write("train.jsonl", many(200))
    rows = load(tmp_path, eval="5%")
    assert (len(rows.train), len(rows.held_out), rows.read) == (190, 10, 200)
    assert questions(rows.held_out) == questions(load(tmp_path, eval="5%").held_out)
    assert questions(rows.held_out) != questions(load(tmp_path, eval="5%", seed=1).held_out)
    # More rows only add to what is held out: none of them moves back to training by being shuffled anew.
    write("train.jsonl", many(40, start=200) + many(200))
    assert questions(rows.held_out) & questions(many_held := load(tmp_path, eval="5%").held_out)
    assert len(many_held) == 12


def test_rows_that_ask_the_same_stay_on_one_side(write: Write, tmp_path: Path) -> None:
    write("train.jsonl", [chat(f"Question  {number // 2}" if number % 2 else f"question {number // 2}", f"answer {number}") for number in range(200)])
    rows = load(tmp_path, eval="10%")
    sides = [{question.casefold().replace("  ", " ") for question in questions(side)} for side in (rows.train, rows.held_out)]
    assert len(rows.held_out) == 20
    assert not sides[0] & sides[1]


def test_a_group_too_big_for_its_share_stays_in_training(write: Write, tmp_path: Path) -> None:
    same = [chat("always asked", f"answer {number}") for number in range(150)]
    write("train.jsonl", same + many(50))
    for seed in range(5):
        rows = load(tmp_path, eval="5%", seed=seed)
        assert len(rows.held_out) == 10
        assert "always asked" not in questions(rows.held_out)
    write("train.jsonl", same)
    rows = load(tmp_path, eval="5%")
    assert rows.held_out == []
    assert rows.notes[1:] == ["evaluation is off: rows that ask the same stay together, and no group of them fits into 8 rows"]


@pytest.mark.parametrize(("count", "held_out"), [(1, 0), (3, 0), (40, 0), (41, 1), (60, 1)])
def test_few_rows_train_without_evaluation(count: int, held_out: int, write: Write, tmp_path: Path) -> None:
    write("train.jsonl", many(count))
    rows = load(tmp_path, eval="1%")
    assert (len(rows.train), len(rows.held_out)) == (count - held_out, held_out)
    said = [note for note in rows.notes if note.startswith("evaluation is off")]
    assert said == ([] if held_out else [f"evaluation is off: {count} rows are too few to hold some out (from 41 on; or set data.eval to a file)"])
    assert any("by heart" in note for note in rows.notes) == (count < 3)


def test_a_hundred_percent_is_refused(write: Write, tmp_path: Path) -> None:
    write("train.jsonl", many(50))
    with pytest.raises(DataError, match=r"data.eval: 100% held out leaves no row to train on"):
        load(tmp_path, eval="100%")


def test_what_was_found_is_said(write: Write, tmp_path: Path) -> None:
    write("train.jsonl", [{**row, "id": 1} for row in many(50)])
    write("more.json", json.dumps([{"instruction": "add", "input": "1", "output": "2"}]))
    rows = load(tmp_path, train=["train.jsonl", "more.json"])
    assert rows.notes == [
        "train.jsonl: messages (column messages), 50 rows; not read: id",
        "more.json: alpaca (columns instruction, output), 1 rows",
    ]
    assert [(source["file"], source["rows"], source["format"]) for source in rows.sources] == [
        ("train.jsonl", 50, "messages"),
        ("more.json", 1, "alpaca"),
    ]


def test_duplicates_and_held_out_rows_leave_training(write: Write, tmp_path: Path) -> None:
    write("train.jsonl", [*many(5), chat("question 2", "answer 2"), chat("Question 4", "answer  4")])
    write("test.jsonl", many(2, start=3))
    rows = load(tmp_path, eval="test.jsonl")
    assert questions(rows.train) == {"question 0", "question 1", "question 2"}
    assert [(row.reason, row.source.line, row.detail) for row in rows.rejected] == [
        ("duplicate", 6, "is the same row as train.jsonl:3"),
        ("also_in_eval", 4, "is held out too, at test.jsonl:1"),
        ("also_in_eval", 5, "is held out too, at test.jsonl:2"),
        ("also_in_eval", 7, "is held out too, at test.jsonl:2"),
    ]
    assert json.loads(rows.rejected[0].raw) == chat("question 2", "answer 2")
    assert "set aside: 1 duplicate (first: train.jsonl:6: is the same row as train.jsonl:3)" in rows.notes


def test_many_duplicates_are_no_broken_rows(write: Write, tmp_path: Path) -> None:
    write("train.jsonl", many(20) * 5)
    rows = load(tmp_path)
    assert (len(rows.train), len(rows.rejected)) == (20, 80)


def test_mixed_formats_stop_where_they_change(write: Write, tmp_path: Path) -> None:
    write("train.jsonl", [*many(3), {"instruction": "x", "output": "y"}])
    with pytest.raises(DataError) as error:
        load(tmp_path)
    assert str(error.value).startswith("train.jsonl:4: the rows before this one are messages, this one is alpaca\n  Try: keep one format in a file")


def test_unknown_columns_name_the_nearest(write: Write, tmp_path: Path) -> None:
    write("train.jsonl", [{"mesages": []}])
    with pytest.raises(DataError) as error:
        load(tmp_path)
    assert str(error.value).startswith("train.jsonl:1: the columns mesages are of no known format (messages: messages; ")
    assert '"mesages" is near "messages"' in str(error.value)


def test_a_format_that_was_asked_for_is_used(write: Write, tmp_path: Path) -> None:
    write("train.jsonl", [{"prompt": "p", "completion": "c", "text": "t"}])
    assert load(tmp_path).train[0].answer == "c"
    assert load(tmp_path, format="text").train[0].answer == "t"


def test_a_few_broken_rows_are_set_aside_and_many_stop(write: Write, tmp_path: Path) -> None:
    unanswered = [{"messages": [{"role": "user", "content": "why?"}]}]
    write("train.jsonl", many(20) + unanswered * 5)
    rows = load(tmp_path)
    assert (len(rows.train), [row.reason for row in rows.rejected]) == (20, ["no_answer"] * 5)
    write("train.jsonl", many(20) + unanswered * 6)
    with pytest.raises(DataError) as error:
        load(tmp_path)
    line = "no_answer: the row does not end with an assistant turn, so there is nothing to learn"
    assert str(error.value) == (
        "train.jsonl:21: 6 of 26 rows cannot be used\n"
        + "".join(f"  train.jsonl:{number}: {line}\n" for number in range(21, 26))
        + "  and 1 more\n"
        + "  Try: mend or remove these rows (luthier data check FILE lists all of them)"
    )
    write("train.jsonl", many(100) + unanswered * 6)
    assert len(load(tmp_path).train) == 100


def test_nothing_left_is_an_error_with_the_first_rows(write: Write, tmp_path: Path) -> None:
    write("train.jsonl", [chat("a", ""), chat("b", " ")])
    with pytest.raises(DataError) as error:
        load(tmp_path)
    assert "of 2 rows none is left to train on\n  train.jsonl:1: empty_answer: turn 2 (assistant) has no text" in str(error.value)
    write("train.jsonl", "nonsense\n")
    with pytest.raises(DataError, match=r"none of 1 rows can be read\n  train.jsonl:1: not_json: Expecting value"):
        load(tmp_path)
    write("train.jsonl", many(3))
    write("test.jsonl", [chat("a", "")])
    with pytest.raises(DataError, match=r"test.jsonl:1: of 1 rows none can be used to evaluate"):
        load(tmp_path, eval="test.jsonl")


def test_the_books_are_kept_in_the_run_folder(write: Write, tmp_path: Path, tokenizer: Any) -> None:
    write("train.jsonl", [*many(98), chat("say <|im_end|>", "no"), chat("question 0", "answer 0")])
    rows = load(tmp_path, eval="10%")
    prepared = prepare.tokenize_rows(rows, tokenizer, 512, "error")
    run = RunFolder(tmp_path / "run")
    prepare.write_ledger(run, prepared)
    ledger = json.loads(run.ledger.read_text())
    tokens = sum(len(example.token_ids) for example in prepared.train)
    trained = sum(example.trained_tokens for example in prepared.train)
    assert ledger["rows"] == {"read": 100, "used": 98, "train": 88, "eval": 10, "rejected": {"duplicate": 1, "special_token_in_text": 1}}
    assert ledger["tokens"] == {"read": tokens, "trained": trained, "masked": tokens - trained, "cut": 0, "repeated": 0}
    assert ledger["eval_tokens"] == sum(len(example.token_ids) for example in prepared.held_out) > 0
    assert [row["rows"] for row in ledger["sources"]] == [100]
    rejected = [json.loads(line) for line in run.rejected.read_text().splitlines()]
    assert [(row["reason"], row["file"], row["line"]) for row in rejected] == [
        ("duplicate", "train.jsonl", 100),
        ("special_token_in_text", "train.jsonl", 99),
    ]
    assert json.loads(rejected[1]["raw"]) == chat("say <|im_end|>", "no")
    assert read_held_out(run) == prepared.rows.held_out
    assert len(read_held_out(run)) == 10
    assert [example.source for example in prepared.held_out] == [row.source for row in prepared.rows.held_out]


def test_a_damaged_file_of_held_out_rows_is_named(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert read_held_out(run) == []
    run.held_out.parent.mkdir()
    run.held_out.write_text('{"messages": [')
    with pytest.raises(RunError, match="cannot be read"):
        read_held_out(run)


def test_books_that_do_not_add_up_are_our_fault(write: Write, tmp_path: Path, tokenizer: Any) -> None:
    write("train.jsonl", many(5))
    rows = load(tmp_path)
    rows.train.pop()
    with pytest.raises(LuthierError, match="5 rows were read, but 4 used and 0 set aside make 4\n  Try: this is a fault of ours"):
        prepare.tokenize_rows(rows, tokenizer, 512, "error")


def test_long_rows_are_never_cut(write: Write, tmp_path: Path, tokenizer: Any) -> None:
    write("train.jsonl", [*many(99), chat("long", "word " * 150)])
    rows = load(tmp_path)
    prepared = prepare.tokenize_rows(rows, tokenizer, 100, "error")
    assert [(row.reason, row.source.line) for row in prepared.rows.rejected] == [("too_long", 100)]
    assert max(len(example.token_ids) for example in prepared.train) <= 100
    longest = prepared.rows.rejected[0].detail.split()[0]
    write("train.jsonl", [*many(98), chat("long", "word " * 150), chat("longer", "word " * 151)])
    with pytest.raises(DataError) as error:
        prepare.tokenize_rows(load(tmp_path), tokenizer, 100, "error")
    assert str(error.value).startswith("train.jsonl:100: 2 of 100 rows are longer than max_length (100 tokens); this is the longest, with ")
    wanted = int(str(error.value).split("data.max_length=")[1].split()[0])
    assert wanted > int(longest)
    assert len(prepare.tokenize_rows(load(tmp_path), tokenizer, wanted, "error").train) == 100
    assert len(prepare.tokenize_rows(load(tmp_path), tokenizer, 100, "drop").train) == 98


def test_a_model_without_a_template_is_named_before_any_row(write: Write, tmp_path: Path, tokenizer: Any) -> None:
    import copy

    bare = copy.deepcopy(tokenizer)
    bare.chat_template = None
    write("train.jsonl", many(3))
    with pytest.raises(DataError, match="this model has no chat template"):
        prepare.tokenize_rows(load(tmp_path), bare, 512, "error")
    write("train.jsonl", [{"prompt": "p", "completion": "c"}])
    assert len(prepare.tokenize_rows(load(tmp_path), bare, 512, "error").train) == 1
