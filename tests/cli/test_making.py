"""luthier data split | mix | convert | schema, as a user calls them."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest


def write(name: str, rows: list[Any]) -> Path:
    path = Path(name)
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8")
    return path


def lines(name: str) -> list[str]:
    return Path(name).read_text(encoding="utf-8").split("\n")[:-1]


def asked(number: int, **more: Any) -> dict[str, Any]:
    return {"question": f"What is number {number}?", "answer": f"It is {number}.", **more}


CHAT = {"messages": [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hi."}]}


# --- split


def test_split_writes_every_row_verbatim_on_one_side(call: Any) -> None:
    rows = [f'{{ "question":"What is {number % 80}?",  "answer": "v{number}"}}' for number in range(100)]
    write("rows.jsonl", [*rows, "broken", {"question": "no answer"}])
    outcome = call("data", "split", "rows.jsonl", "--eval", "20%", "--test", "10%", "--to", "parts")
    assert outcome.code == 0, outcome.err
    parts = {name: lines(f"parts/{name}.jsonl") for name in ("train", "eval", "test")}
    assert sorted([*parts["train"], *parts["eval"], *parts["test"]]) == sorted(rows)
    questions = {name: {json.loads(row)["question"] for row in part} for name, part in parts.items()}
    assert not questions["train"] & (questions["eval"] | questions["test"])
    assert not questions["eval"] & questions["test"]
    assert (len(parts["eval"]), len(parts["test"])) == (20, 10)
    assert "parts: 102 rows read = 70 train + 20 eval + 10 test + 2 set aside" in outcome.out
    assert [json.loads(row)["line"] for row in lines("parts/rejected.jsonl")] == [101, 102]


def test_split_is_the_same_for_the_same_seed_and_never_overwrites(call: Any) -> None:
    write("rows.jsonl", [asked(number) for number in range(60)])
    for to, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert call("data", "split", "rows.jsonl", "--eval", "0.1", "--to", to, "--seed", seed).code == 0
    assert lines("a/eval.jsonl") == lines("b/eval.jsonl") != lines("c/eval.jsonl")
    again = call("data", "split", "rows.jsonl", "--eval", "10%", "--to", "a", "--seed", "1")
    assert (again.code, "a: exists already" in again.problem) == (2, True)
    assert lines("a/eval.jsonl") == lines("b/eval.jsonl")


def test_split_keeps_a_column_together_and_divides_each_category(call: Any) -> None:
    write("rows.jsonl", [asked(number, category="rare" if number % 5 == 0 else "common", customer=number // 2) for number in range(200)])
    told = call("data", "split", "rows.jsonl", "--eval", "10%", "--to", "parts", "--by", "customer", "--json").json
    customers = {name: {json.loads(row)["customer"] for row in lines(f"parts/{name}.jsonl")} for name in ("train", "eval")}
    assert not customers["train"] & customers["eval"]
    assert told["rows"] == {"train": 180, "eval": 20}
    write("single.jsonl", [asked(number, category="rare" if number % 5 == 0 else "common") for number in range(200)])
    told = call("data", "split", "single.jsonl", "--eval", "10%", "--to", "stratified", "--json").json
    assert told["categories"] == {"common": {"train": 144, "eval": 16}, "rare": {"train": 36, "eval": 4}}
    missing = call("data", "split", "single.jsonl", "--eval", "10%", "--to", "other", "--by", "customer")
    assert "single.jsonl:1: has no column customer (it has question, answer, category)" in missing.problem


def test_split_keeps_near_duplicates_together_where_asked(call: Any) -> None:
    text = "Please tell me in your own words how one tunes the strings of instrument number"
    rows = [{"question": f"{text} {number // 2} in a cold room{' today' if number % 2 else ''}", "answer": f"v{number}"} for number in range(40)]
    write("rows.jsonl", [*rows[:2], *(asked(number) for number in range(38))])
    sides = set()
    for seed in range(12):
        assert call("data", "split", "rows.jsonl", "--eval", "50%", "--to", f"p{seed}", "--seed", seed, "--near").code == 0
        sides.add(sum(row["answer"] in ("v0", "v1") for row in map(json.loads, lines(f"p{seed}/eval.jsonl"))))
    assert sides <= {0, 2}


def test_split_of_other_kinds_of_files_and_of_grouped_rows(call: Any) -> None:
    Path("rows.csv").write_text("question,answer\n" + "".join(f'"Q {number}, or not?",A\n' for number in range(50)))
    assert call("data", "split", "rows.csv", "--eval", "10%", "--to", "a").code == 0
    assert json.loads(lines("a/eval.jsonl")[0])["answer"] == "A"
    log = [
        {"conversation_id": number // 2, "role": "user" if number % 2 == 0 else "assistant", "text": f"t{number}", "time": number}
        for number in range(80)
    ]
    write("log.jsonl", log)
    assert call("data", "split", "log.jsonl", "--eval", "10%", "--to", "b", "--json").json["rows"] == {"train": 72, "eval": 8}
    counts = Counter(json.loads(row)["conversation_id"] for row in lines("b/eval.jsonl"))
    assert set(counts.values()) == {2}


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--eval", "0%"], "--eval 0%: is not a share"),
        (["--eval", "many"], "--eval many: is not a share"),
        (["--eval", "50%", "--test", "50%"], "nothing would be left to train on"),
        (["--eval", "1%"], "leave none for eval.jsonl"),
        (["--eval", "5%", "--format", "alpacca"], "alpacca: there is no such format; nearest: alpaca"),
        (["--eval", "5%", "--column", "question"], "--column question: is not OUR_NAME=THEIR_NAME"),
    ],
)
def test_split_called_wrongly(call: Any, arguments: list[str], problem: str) -> None:
    write("rows.jsonl", [asked(number) for number in range(20)])
    outcome = call("data", "split", "rows.jsonl", "--to", "parts", *arguments)
    assert outcome.code in (1, 2)
    assert problem in outcome.problem
    assert not Path("parts").exists()


# --- mix


def test_mix_by_weight_uses_no_row_twice(call: Any) -> None:
    write("a.jsonl", [asked(number) for number in range(100)])
    write("b.jsonl", [asked(number) for number in range(1000, 1050)])
    outcome = call("data", "mix", "a.jsonl:0.9", "b.jsonl:0.1", "--to", "mixed.jsonl")
    assert "mixed.jsonl: 111 rows, verbatim" in outcome.out
    assert "  100 (90.1%) of 100 in a.jsonl [question_answer]" in outcome.out
    mixed = lines("mixed.jsonl")
    assert len(set(mixed)) == 111
    assert set(mixed) <= {*lines("a.jsonl"), *lines("b.jsonl")}
    assert call("data", "mix", "a.jsonl:0.9", "b.jsonl:0.1", "--to", "same.jsonl").code == 0
    assert lines("same.jsonl") == mixed
    assert call("data", "mix", "a.jsonl:0.9", "b.jsonl:0.1", "--to", "other.jsonl", "--seed", "1").code == 0
    assert lines("other.jsonl") != mixed


def test_mix_adds_a_share_of_general_rows(call: Any) -> None:
    write("mine.jsonl", [asked(number) for number in range(40)])
    write("general.jsonl", [asked(number) for number in range(1000, 1100)])
    told = call("data", "mix", "mine.jsonl", "--add", "general.jsonl:10%", "--to", "out/mixed.jsonl", "--origins", "--json").json
    assert [one["rows"] for one in told["taken"]] == [40, 4]
    origins = [json.loads(row)["mixed_from"] for row in lines("out/mixed.jsonl")]
    assert sum(origin.startswith("general.jsonl:") for origin in origins) == 4
    assert len(set(origins)) == 44


def test_mix_repeats_rows_only_where_so_many_are_wanted(call: Any) -> None:
    write("a.jsonl", [asked(number) for number in range(10)])
    outcome = call("data", "mix", "a.jsonl", "--to", "mixed.jsonl", "-n", "25")
    assert "25 (100.0%) of 10 in a.jsonl [question_answer] (each up to 3 times)" in outcome.out
    assert sorted(Counter(lines("mixed.jsonl")).values()) == [2] * 5 + [3] * 5


def test_mix_of_two_formats_is_turned_into_one_and_the_rest_is_listed(call: Any) -> None:
    write("a.jsonl", [asked(number) for number in range(4)])
    write("b.jsonl", [CHAT, {"messages": [{"role": "user", "content": "no answer"}]}])
    outcome = call("data", "mix", "a.jsonl", "b.jsonl", "--to", "mixed.jsonl")
    assert "mixed.jsonl: 5 rows, all turned into messages" in outcome.out
    assert all("messages" in json.loads(row) for row in lines("mixed.jsonl"))
    assert [json.loads(row)["line"] for row in lines("mixed.rejected.jsonl")] == [2]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["a.jsonl:0.9", "b.jsonl"], "b.jsonl: has no weight, and others have one"),
        (["a.jsonl:-1"], "the weight -1 is not a number above 0"),
        (["a.jsonl", "--add", "b.jsonl"], "--add b.jsonl: needs its share"),
        (["a.jsonl", "a.jsonl"], "is named twice"),
        (["a.jsonl", "c.jsonl"], "c.jsonl: there is no such file"),
    ],
)
def test_mix_called_wrongly(call: Any, arguments: list[str], problem: str) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        write(name, [asked(number) for number in range(4)])
    outcome = call("data", "mix", *arguments, "--to", "mixed.jsonl")
    assert outcome.code in (1, 2)
    assert problem in outcome.problem
    assert not Path("mixed.jsonl").exists()


def test_mix_never_overwrites(call: Any) -> None:
    before = write("a.jsonl", [asked(number) for number in range(4)]).read_bytes()
    assert "a.jsonl: exists already" in call("data", "mix", "a.jsonl", "--to", "a.jsonl").problem
    assert Path("a.jsonl").read_bytes() == before


# --- convert and schema


def test_convert_says_where_every_row_went(call: Any) -> None:
    tools = {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}
    write("chats.jsonl", [CHAT, {"messages": [CHAT["messages"][0], tools]}, "broken"])
    outcome = call("data", "convert", "chats.jsonl", "--to", "alpaca", "-o", "rows.jsonl")
    assert "rows.jsonl: 3 rows read = 1 written + 2 set aside" in outcome.out
    assert json.loads(lines("rows.jsonl")[0])["output"] == "Hi."
    rejected = [json.loads(row) for row in lines("rows.rejected.jsonl")]
    assert [row["line"] for row in rejected] == [2, 3]
    assert rejected[0]["reason"] == "not_expressible"
    assert "alpaca cannot hold" in rejected[0]["detail"]


@pytest.mark.parametrize("target", ["messages", "alpaca", "sharegpt", "openai"])
def test_convert_there_and_back(call: Any, target: str) -> None:
    write("chats.jsonl", [CHAT] * 3)
    assert call("data", "convert", "chats.jsonl", "--to", target, "-o", "there.jsonl").code == 0
    assert call("data", "convert", "there.jsonl", "--to", "messages", "-o", "back.jsonl").code == 0
    assert [json.loads(row) for row in lines("back.jsonl")] == [CHAT] * 3


def test_convert_with_a_column_map(call: Any) -> None:
    Path("rows.csv").write_text("Frage;Antwort\nWer?;Ich.\n")
    outcome = call(
        "data", "convert", "rows.csv", "--column", "question=Frage", "--column", "answer=Antwort", "--to", "messages", "-o", "rows.jsonl", "--json"
    )
    assert outcome.json["written"] == 1
    assert json.loads(lines("rows.jsonl")[0])["messages"][0]["content"] == "Wer?"


def test_convert_refuses_what_it_cannot_do(call: Any) -> None:
    write("chats.jsonl", [CHAT])
    assert "there is no such target; nearest: alpaca" in call("data", "convert", "chats.jsonl", "--to", "alpacca", "-o", "x.jsonl").problem
    assert "chats.jsonl: exists already" in call("data", "convert", "chats.jsonl", "--to", "alpaca", "-o", "chats.jsonl").problem
    write("texts.jsonl", [{"text": "Once upon a time."}])
    assert "no row can be written as alpaca" in call("data", "convert", "texts.jsonl", "--to", "alpaca", "-o", "x.jsonl").problem
    assert not Path("x.jsonl").exists()


def test_schema_prints_json_and_names_the_nearest(call: Any) -> None:
    assert call("data", "schema", "alpaca").json["type"] == "object"
    outcome = call("data", "schema", "sharegtp")
    assert (outcome.code, "nearest: sharegpt" in outcome.problem) == (2, True)


@pytest.mark.parametrize("verb", ["synth", "split", "mix", "convert", "schema"])
def test_help_has_an_example(call: Any, verb: str) -> None:
    assert f"Example: luthier data {verb}" in call("data", verb, "--help").out


def test_synth_called_wrongly(call: Any) -> None:
    write("seeds.jsonl", [asked(1)])
    settings = ["--model", "m", "--from", "seeds.jsonl", "--to", "out.jsonl"]
    assert "is no http:// or https:// address" in call("data", "synth", "--endpoint", "localhost:1", *settings).problem
    assert "nearest: evolve" in call("data", "synth", "--endpoint", "http://127.0.0.1:1", "--how", "evolv", *settings).problem
    assert not Path("out.jsonl").exists()


def test_of_judged_rows_only_the_good_answers_become_rows_to_learn_from(call: Any) -> None:
    asked_it, good, bad = {"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hi."}, {"role": "assistant", "content": "No."}
    write("pairs.jsonl", [{"prompt": [asked_it], "chosen": [good], "rejected": [bad]}])
    write("labeled.jsonl", [{"prompt": "Hello?", "completion": "Hi.", "label": True}, {"prompt": "Hello?", "completion": "No.", "label": False}])
    for name, rejected in (("pairs.jsonl", {}), ("labeled.jsonl", {"bad_answer": 1})):
        told = call("data", "convert", name, "--to", "messages", "--only-good", "-o", f"good-{name}", "--json").json
        assert (told["schema"], told["used"], told["rejected"]) == (1, 1, rejected)
        assert [json.loads(row) for row in lines(f"good-{name}")] == [CHAT]
    refused = call("data", "convert", "pairs.jsonl", "--to", "alpaca", "-o", "no.jsonl")
    assert "--only-good keeps the good answers" in refused.err
    told = call("data", "convert", "pairs.jsonl", "--to", "alpaca", "--only-good", "-o", "yes.jsonl", "--json").json
    assert told["used"] == 1


def test_every_json_says_which_shape_it_has(call: Any) -> None:
    rows = str(write("rows.jsonl", [asked(number) for number in range(40)]))
    calls = (
        ("split", rows, "--eval", "10%", "--to", "parts"),
        ("mix", rows, "--to", "mixed.jsonl"),
        ("convert", rows, "--to", "messages", "-o", "chats.jsonl"),
        ("check", rows, "--quick"),
        ("clean", rows, "--to", "clean.jsonl"),
    )
    assert [call("data", *one, "--json").json["schema"] for one in calls] == [1] * 5
