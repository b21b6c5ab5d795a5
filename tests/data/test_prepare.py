import copy
import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from luthier.config.data import DataSettings
from luthier.data import encode, ingest, prepare
from luthier.data.ledger import read_held_out
from luthier.data.store import Picked
from luthier.errors import ConfigError, DataError, RunError
from luthier.run_folder import RunFolder

Write = Callable[..., str]
ROOMY = DataSettings(train="train.jsonl")
DROPPING = DataSettings(train="train.jsonl", too_long="drop")


def chat(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def many(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [chat(f"question {number}", f"answer {number}") for number in range(start, start + count)]


def load(base: Path, train: Any = "train.jsonl", eval: Any = None, seed: int = 0, **others: Any) -> prepare.Rows:
    return prepare.load_rows(DataSettings(train=train, eval=eval, **others), base, seed)


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
    assert len(rows.held_out) == 0
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
        "train.jsonl: messages (column messages), 50 rows",
        "train.jsonl: not read: id (50)",
        "more.json: alpaca (columns instruction, input, output), 1 rows",
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
    assert json.loads(next(iter(rows.rejected)).raw) == chat("question 2", "answer 2")
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
    write("other.jsonl", [{"mesages": chat("q", "a")["messages"]}])
    with pytest.raises(DataError) as error:
        load(tmp_path)
    assert str(error.value).startswith("train.jsonl:1: the columns mesages are of no known format\n  Try: data.columns: {messages: mesages} reads it")
    assert len(load(tmp_path, columns={"messages": "mesages"}, train="other.jsonl").train) == 1


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
    line = next(iter(rows.rejected)).detail
    assert str(error.value) == (
        "train.jsonl:21: 6 of 26 rows cannot be used\n"
        + "".join(f"  train.jsonl:{number}: no_answer: {line}\n" for number in range(21, 26))
        + "  and 1 more\n"
        + "  Try: mend these rows (luthier data clean train.jsonl --to clean.jsonl takes out and lists those that cannot be read)"
    )
    write("train.jsonl", many(100) + unanswered * 6)
    assert len(load(tmp_path).train) == 100


def test_nothing_left_is_an_error_with_the_first_rows(write: Write, tmp_path: Path) -> None:
    write("train.jsonl", [chat("a", ""), chat("b", " ")])
    with pytest.raises(DataError) as error:
        load(tmp_path)
    assert "of 2 rows none is left to train on\n  train.jsonl:1: empty_answer: messages[1].content: is" in str(error.value)
    write("train.jsonl", "nonsense\n")
    with pytest.raises(DataError, match=r"train.jsonl:1: none of the first 1 rows can be read; the first: Expecting value"):
        load(tmp_path)
    write("train.jsonl", many(3))
    write("test.jsonl", [chat("a", "")])
    with pytest.raises(DataError, match=r"test.jsonl:1: of 1 rows none can be used to evaluate"):
        load(tmp_path, eval="test.jsonl")


def test_the_books_are_kept_in_the_run_folder(write: Write, tmp_path: Path, tokenizer: Any) -> None:
    write("train.jsonl", [*many(98), chat("say <|im_end|>", "no"), chat("question 0", "answer 0")])
    rows = load(tmp_path, eval="10%")
    prepared = prepare.tokenize_rows(rows, tokenizer, 512, ROOMY)
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
    assert read_held_out(run) == list(prepared.rows.held_out)
    assert len(read_held_out(run)) == 10
    assert [example.source for example in prepared.held_out] == [row.source for row in prepared.rows.held_out]


def test_a_damaged_file_of_held_out_rows_is_named(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert read_held_out(run) == []
    run.held_out.parent.mkdir()
    run.held_out.write_text('{"messages": [')
    with pytest.raises(RunError, match="cannot be read"):
        read_held_out(run)


def test_too_long_rows_that_come_with_luthier_are_left_out_and_those_of_a_file_are_an_error(write: Write, tmp_path: Path, tokenizer: Any) -> None:
    write("train.jsonl", many(60))
    settings = DataSettings(train="train.jsonl", eval=None, replay="100%")
    prepared = prepare.tokenize_rows(prepare.load_rows(settings, tmp_path, 0), tokenizer, 64, settings)
    own, general = prepared.ledger["sources"]
    assert (own["used"], general["rejected"]["too_long"] > 1) == (60, True)
    assert any("too_long (first: " in note and "replayed.jsonl" in note for note in prepared.rows.notes)
    assert len(prepare.own_rows(prepared.rows)) == 60
    write("general.jsonl", [chat("long", "word " * (150 + number)) for number in range(9)])
    settings = DataSettings(train="train.jsonl", eval=None, replay="15%", replay_from="general.jsonl")
    with pytest.raises(DataError, match=r"general\.jsonl:9: 9 of 69 rows are longer"):
        prepare.tokenize_rows(prepare.load_rows(settings, tmp_path, 0), tokenizer, 64, settings)
    # Among rows that may be too long the longest of the others is the one that is named.
    write("train.jsonl", [*many(60), *(chat("long", "word " * (150 + number)) for number in range(9))])
    settings = DataSettings(train="train.jsonl", eval=None, replay="100%")
    with pytest.raises(DataError, match=r"train\.jsonl:69: 9 of 69 rows are longer"):
        prepare.tokenize_rows(prepare.load_rows(settings, tmp_path, 0), tokenizer, 64, settings)


def test_long_rows_are_never_cut(write: Write, tmp_path: Path, tokenizer: Any) -> None:
    write("train.jsonl", [*many(99), chat("long", "word " * 150)])
    rows = load(tmp_path)
    prepared = prepare.tokenize_rows(rows, tokenizer, 100, ROOMY)
    assert [(row.reason, row.source.line) for row in prepared.rows.rejected] == [("too_long", 100)]
    assert max(len(example.token_ids) for example in prepared.train) <= 100
    longest = next(iter(prepared.rows.rejected)).detail.split()[0]
    write("train.jsonl", [*many(98), chat("long", "word " * 150), chat("longer", "word " * 151)])
    with pytest.raises(DataError) as error:
        prepare.tokenize_rows(load(tmp_path), tokenizer, 100, ROOMY)
    assert str(error.value).startswith("train.jsonl:100: 2 of 100 rows are longer than max_length (100 tokens); this is the longest, with ")
    wanted = int(str(error.value).split("data.max_length=")[1].split()[0])
    assert wanted > int(longest)
    assert len(prepare.tokenize_rows(load(tmp_path), tokenizer, wanted, ROOMY).train) == 100
    assert len(prepare.tokenize_rows(load(tmp_path), tokenizer, 100, DROPPING).train) == 98


def test_a_weight_repeats_rows_or_draws_some(write: Write, tmp_path: Path, tokenizer: Any) -> None:
    write("a.jsonl", many(100))
    write("b.jsonl", many(100, start=100))
    rows = load(tmp_path, [{"path": "a.jsonl", "weight": 2.5}, {"path": "b.jsonl", "weight": 0.25}])
    times = Counter(row.turns[0].content for row in rows.train)
    assert {times[f"question {number}"] for number in range(100)} == {2, 3}
    assert 230 < sum(times[f"question {number}"] for number in range(100)) < 270
    drawn = sum(times[f"question {number}"] for number in range(100, 200))
    assert 10 < drawn < 40
    assert rows.rejected.counts == {"not_drawn": 100 - drawn}
    assert "its source has the weight 0.25" in next(iter(rows.rejected)).detail
    prepared = prepare.tokenize_rows(rows, tokenizer, 512, ROOMY)
    assert [example.source for example in prepared.train] == [row.source for row in rows.train]
    ledger = prepared.ledger
    assert (ledger["rows"]["read"], ledger["rows"]["used"]) == (200, 100 + drawn)
    first = ledger["sources"][0]
    assert (first["weight"], first["used"]) == (2.5, 100)
    tokens = first["tokens"]
    assert tokens["repeated"] > tokens["read"] > 0 == tokens["cut"]
    again = load(tmp_path, [{"path": "a.jsonl", "weight": 2.5}, {"path": "b.jsonl", "weight": 0.25}])
    assert list(again.train) == list(rows.train)


def test_each_source_has_its_own_books(write: Write, tmp_path: Path, tokenizer: Any) -> None:
    write("a.jsonl", [*many(9), chat("question 3", "answer 3")])
    write("b.jsonl", [*many(3), chat("long", "word " * 150), *many(5, start=20)])
    prepared = prepare.tokenize_rows(load(tmp_path, ["a.jsonl", "b.jsonl"]), tokenizer, 100, DROPPING)
    a, b = prepared.ledger["sources"]
    assert (a["rows"], a["used"], a["rejected"]) == (10, 9, {"duplicate": 1})
    assert (b["rows"], b["used"], b["rejected"]) == (9, 5, {"duplicate": 3, "too_long": 1})
    assert b["tokens"]["read"] == sum(len(example.token_ids) for example in prepared.train if example.source.file == "b.jsonl")


def test_room_for_answers_is_kept_free(write: Write, tmp_path: Path, tokenizer: Any) -> None:
    write("train.jsonl", many(30))
    length = max(len(example.token_ids) for example in prepare.tokenize_rows(load(tmp_path), tokenizer, 512, ROOMY).train)
    tight = DataSettings(train="train.jsonl", reserve_for_generation=10)
    assert len(prepare.tokenize_rows(load(tmp_path), tokenizer, length + 10, tight).train) == 30
    with pytest.raises(DataError, match=f"are longer than max_length \\({length - 1} tokens\\)"):
        prepare.tokenize_rows(load(tmp_path), tokenizer, length + 9, tight)
    with pytest.raises(ConfigError, match=r"data\.reserve_for_generation is 10 and leaves 5 of 15 tokens"):
        prepare.tokenize_rows(load(tmp_path), tokenizer, 15, tight)


def cached(pattern: str) -> list[Path]:
    return sorted(ingest.folder().glob(pattern))


def test_what_was_read_once_is_found_again(luthier_home: Path, write: Write, tmp_path: Path, tokenizer: Any) -> None:
    write("train.jsonl", many(60))
    first = prepare.tokenize_rows(load(tmp_path), tokenizer, 512, ROOMY)
    made = {path: path.stat().st_mtime_ns for path in [*cached("rows-*/*"), *cached("tokens-*/*")]}
    assert len(made) == 5
    # Another name, another split: the rows are the same.
    (tmp_path / "train.jsonl").rename(tmp_path / "same.jsonl")
    again = prepare.tokenize_rows(load(tmp_path, "same.jsonl", eval="10%"), tokenizer, 512, ROOMY)
    assert {path: path.stat().st_mtime_ns for path in [*cached("rows-*/*"), *cached("tokens-*/*")]} == made
    assert again.rows.notes[0].startswith("same.jsonl: messages")
    assert again.train[0].source.file == "same.jsonl"
    assert sorted(example.token_ids for example in [*again.train, *again.held_out]) == sorted(example.token_ids for example in first.train)


@pytest.mark.parametrize("damaged", ["rows-*/rows.arrow", "rows-*/rejected.jsonl", "rows-*/meta.json", "tokens-*/part-*.arrow", "tokens-*/meta.json"])
@pytest.mark.parametrize("how", ["flipped", "cut", "gone"])
def test_a_damaged_cache_is_made_again(damaged: str, how: str, luthier_home: Path, write: Write, tmp_path: Path, tokenizer: Any) -> None:
    write("train.jsonl", [*many(60), {"messages": []}])
    first = list(prepare.tokenize_rows(load(tmp_path), tokenizer, 512, ROOMY).train)
    (file,) = cached(damaged)
    content = file.read_bytes()
    if how == "gone":
        file.unlink()
    else:
        file.write_bytes(content[: len(content) // 2] if how == "cut" else content[:20] + bytes([content[20] ^ 1]) + content[21:])
    assert list(prepare.tokenize_rows(load(tmp_path), tokenizer, 512, ROOMY).train) == first
    assert file.read_bytes() == content


def test_another_row_template_or_limit_is_no_old_cache(luthier_home: Path, write: Write, tmp_path: Path, tokenizer: Any) -> None:
    write("train.jsonl", many(5))
    one = prepare.tokenize_rows(load(tmp_path), tokenizer, 512, ROOMY)
    other = copy.deepcopy(tokenizer)
    other.chat_template = tokenizer.chat_template.replace("You are a helpful assistant.", "You help.")
    assert prepare.tokenize_rows(load(tmp_path), other, 512, ROOMY).train[0].token_ids != one.train[0].token_ids
    write("train.jsonl", [chat("question 0", "answer X"), *many(4, start=1)])
    changed = prepare.tokenize_rows(load(tmp_path), tokenizer, 512, ROOMY)
    assert changed.train[0].token_ids != one.train[0].token_ids
    assert changed.sha256 != one.sha256


def test_several_processes_give_the_same_tokens(
    luthier_home: Path, write: Write, tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("train.jsonl", [*many(250), chat("long", "word " * 150), chat("say <|im_end|>", "no")])
    alone = prepare.tokenize_rows(load(tmp_path), tokenizer, 100, DROPPING)
    assert ingest.clear() > 0
    monkeypatch.setattr(encode, "PARALLEL_ROWS", 100)
    monkeypatch.setattr(encode, "PART_ROWS", 64)
    monkeypatch.setattr(encode, "_cores", lambda: 2)
    together = prepare.tokenize_rows(load(tmp_path), tokenizer, 100, DROPPING)
    assert len(cached("tokens-*/part-*.arrow")) == 4
    assert list(together.train) == list(alone.train)
    assert [(row.reason, row.detail, row.raw) for row in together.rows.rejected] == [(row.reason, row.detail, row.raw) for row in alone.rows.rejected]
    assert together.sha256 != ""
    assert together.ledger == alone.ledger


def test_what_lies_in_the_users_folder_is_no_module_of_the_processes(
    luthier_home: Path, write: Write, tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write("train.jsonl", many(250))
    for name in ("numpy", "tokenizers"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('not mine')\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(encode, "PARALLEL_ROWS", 100)
    monkeypatch.setattr(encode, "PART_ROWS", 64)
    monkeypatch.setattr(encode, "_cores", lambda: 2)
    monkeypatch.setattr(encode, "_write_part", None)  # this process must not need to do it
    assert len(prepare.tokenize_rows(load(tmp_path), tokenizer, 512, ROOMY).train) == 250
    assert capfd.readouterr().err == ""


def test_what_a_killed_run_left_in_the_cache_is_deleted_after_a_day(luthier_home: Path, write: Write, tmp_path: Path) -> None:
    write("train.jsonl", many(5))
    old, new = (ingest.folder() / f".rows-{name}.1.staging" for name in ("old", "new"))
    for left in (old, new):
        left.mkdir(parents=True)
        (left / "rows.arrow").write_bytes(b"half")
    for path in (old / "rows.arrow", old):
        os.utime(path, (1, 1))
    load(tmp_path)
    assert (old.exists(), new.exists()) == (False, True)


@pytest.mark.parametrize("held_out", ["eval.jsonl", "50%"])
def test_where_no_held_out_row_can_be_used_it_is_said(held_out: str, luthier_home: Path, write: Write, tmp_path: Path, tokenizer: Any) -> None:
    long = [chat(f"{number} {'word ' * 200}", "yes") for number in range(60)]
    write("eval.jsonl", long)
    write("train.jsonl", many(60))
    rows = load(tmp_path, eval=held_out)
    if held_out == "eval.jsonl":
        settings = DROPPING.model_copy(update={"eval": held_out})
        with pytest.raises(DataError, match=r"eval\.jsonl:1: none of 60 rows that are held out can be used to evaluate"):
            prepare.tokenize_rows(rows, tokenizer, 100, settings)
        return
    write("train.jsonl", [*many(60), *long])
    rows = load(tmp_path, eval=held_out)
    only_long = replace(rows, held_out=Picked(rows.every, np.arange(60, 120)), train=Picked(rows.every, np.arange(60)))
    notes = prepare.tokenize_rows(only_long, tokenizer, 100, DROPPING.model_copy(update={"eval": held_out})).rows.notes
    assert "evaluation is off: none of 60 rows that are held out can be used" in notes


def test_rows_that_changed_since_the_training_are_named(write: Write, tmp_path: Path, tokenizer: Any) -> None:
    write("train.jsonl", many(60))
    settings = DataSettings(train="train.jsonl", eval=None, max_length=512)
    run = RunFolder(tmp_path / "run")
    prepare.write_ledger(run, prepare.tokenize_rows(load(tmp_path), tokenizer, 512, settings))
    assert len(prepare.trained_rows(run, settings, tmp_path, 0, tokenizer)) == 60
    write("train.jsonl", many(61))
    with pytest.raises(DataError, match=r"train.jsonl: has changed since this run was trained on it \(sha256 \w{12} then, \w{12} now\)"):
        prepare.trained_rows(run, settings, tmp_path, 0, tokenizer)


def test_files_that_came_or_went_since_the_training_are_named(write: Write, tmp_path: Path, tokenizer: Any) -> None:
    write("rows/a.jsonl", many(60))
    settings = DataSettings(train="rows", eval=None, max_length=512)
    run = RunFolder(tmp_path / "run")
    prepare.write_ledger(run, prepare.tokenize_rows(load(tmp_path, "rows"), tokenizer, 512, settings))
    write("rows/b.jsonl", many(5, start=60))
    with pytest.raises(DataError, match=r"b\.jsonl: is new since this run was trained"):
        prepare.trained_rows(run, settings, tmp_path, 0, tokenizer)


def test_held_out_rows_have_columns_of_their_own(write: Write, tmp_path: Path) -> None:
    write("train.jsonl", many(50))
    write("test.csv", "Frage,Antwort\nwas?,das\nwer?,er\n")
    rows = load(tmp_path, eval={"path": "test.csv", "columns": {"question": "Frage", "answer": "Antwort"}})
    assert [row.answer for row in rows.held_out] == ["das", "er"]


def test_rows_that_the_template_cannot_write_lead_to_another_template(write: Write, tmp_path: Path, tokenizer: Any) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
    asked = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": [call]}]}
    write("train.jsonl", [asked])
    with pytest.raises(DataError, match=r"template_drops_text(.|\n)*Try: choose a model whose chat template writes such rows"):
        prepare.tokenize_rows(load(tmp_path), tokenizer, 512, ROOMY)


def test_the_same_file_is_not_trained_and_held_out(write: Write, tmp_path: Path) -> None:
    write("train.jsonl", many(60))
    with pytest.raises(DataError, match=r"is in data\.train and in data\.eval"):
        load(tmp_path, eval="train.jsonl")


def test_max_rows_draws_some_rows_by_the_seed_and_tokenizes_no_others(write: Write, tmp_path: Path, tokenizer: Any) -> None:
    write("train.jsonl", many(60))
    settings = DataSettings(train="train.jsonl", eval="20%", max_rows=5)
    rows = prepare.load_rows(settings, tmp_path, seed=1)
    assert (len(rows.train), len(rows.held_out)) == (5, 5)
    assert rows.rejected.counts == {"not_drawn": 50}
    assert rows.train.places.tolist() == sorted(rows.train.places.tolist())
    again, other = (prepare.load_rows(settings, tmp_path, seed=seed).train.places.tolist() for seed in (1, 2))
    assert rows.train.places.tolist() == again != other

    prepared = prepare.tokenize_rows(rows, tokenizer, 512, settings)
    assert len(prepared.train) == 5
    assert len(prepared.train.whole) == 10  # the five held-out rows too, and no other
    assert [example.source for example in prepared.train] == [row.source for row in rows.train]
    assert prepared.ledger["rows"] == {"read": 60, "used": 10, "train": 5, "eval": 5, "rejected": {"not_drawn": 50}}
    whole = prepare.tokenize_rows(prepare.load_rows(DataSettings(train="train.jsonl", eval="20%"), tmp_path, seed=1), tokenizer, 512, settings)
    assert {tuple(one.token_ids) for one in prepared.train} <= {tuple(one.token_ids) for one in whole.train}
