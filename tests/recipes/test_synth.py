"""`luthier data synth` against a real server on loopback that answers as it is told."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from canned_server import Canned, canned, said

from luthier.data import endpoint
from luthier.errors import CallError, DataError, LuthierError
from luthier.recipes import synth as recipe
from luthier.recipes.synth import Call, synth

SEEDS = [{"question": f"What is number {number} good for?", "answer": f"For counting to {number}."} for number in range(1, 7)]


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "FIRST_WAIT_S", 0.01)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with seeds.jsonl, which is the working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "seeds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in SEEDS), encoding="utf-8")
    return tmp_path


def lines_of(path: str) -> list[Any]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def new_row(number: int) -> Canned:
    return said(f"Question: Who invented object {number * 7919}?\nAnswer: Person {number} did.")


def call_of(address: str, **changes: Any) -> Call:
    return Call(**{"endpoint": address, "model": "m", "source": "seeds.jsonl", "rows": 12, "to": Path("made.jsonl"), **changes})


class Lines:
    """A reporter that keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)

    bar = recipe.Silent.bar
    table = recipe.Silent.table


def test_rows_with_their_provenance_and_the_bill(folder: Path) -> None:
    with canned(lambda number, body: new_row(number)) as server:
        made = synth(call_of(server.address, price_per_million_input=2.0, price_per_million_output=4.0))
    assert (made.rows, made.rejected, made.bill.requests) == (12, {}, 12)
    assert (made.bill.prompt_tokens, made.bill.completion_tokens, made.cost) == (120, 60, pytest.approx(0.00048))
    rows = lines_of("made.jsonl")
    assert len(rows) == 12
    first = rows[0]["provenance"]
    assert (first["model"], first["endpoint"], first["prompt"]) == ("m", server.address.removeprefix("http://"), "bootstrap-1")
    assert set(first["from"]) <= {f"seeds.jsonl:{line}" for line in range(1, 7)}
    assert first["created"].endswith("Z")
    assert [message["role"] for message in rows[0]["messages"]] == ["user", "assistant"]


def test_what_is_set_aside_is_kept_with_its_reason(folder: Path) -> None:
    bad = {
        1: said("What is number 3 good for? For counting."),
        2: said("Question: What is number 3 good for?\nAnswer: Counting."),
        3: said("Question: Who wrote this?\nAnswer: The", "length"),
        4: said("Question: Who wrote this?\nAnswer: As an AI language model, I"),
        5: said("Question: Who wrote it?\nAnswer: Ann.\nQuestion: Who wrote it?\nAnswer: Bea."),
        6: said(""),
    }
    with canned(lambda number, body: bad.get(number) or new_row(number)) as server:
        made = synth(call_of(server.address, concurrency=1, rows=3))
    assert made.rejected == {"no_pair": 2, "duplicate": 2, "cut_answer": 1, "refusal": 1}
    rejected = lines_of("made.rejected.jsonl")
    assert {row["reason"]: row["request"] for row in rejected}["cut_answer"] == 3
    assert next(row["text"] for row in rejected if row["reason"] == "no_pair") == "What is number 3 good for? For counting."
    assert [row["answer"] for row in rejected if row["reason"] == "duplicate"] == ["Counting.", "Bea."]
    assert made.bill.requests == len([entry for entry in lines_of("made.journal.jsonl") if entry["kind"] == "answered"])


def test_never_more_rows_than_were_asked_for(folder: Path) -> None:
    two = "Question: Who made {0}?\nAnswer: Me.\nQuestion: When was {0} made?\nAnswer: Now."
    with canned(lambda number, body: said(two.format(f"object {number * 7919}"))) as server:
        made = synth(call_of(server.address, rows=5, concurrency=3))
    assert made.rows == len(lines_of("made.jsonl")) == 5
    assert made.rejected.get("more_than_asked", 0) == made.bill.requests * 2 - 5


def test_the_same_call_with_more_rows_goes_on(folder: Path) -> None:
    with canned(lambda number, body: new_row(number)) as server:
        synth(call_of(server.address, rows=4))
        before = Path("made.jsonl").read_bytes()
        assert synth(call_of(server.address, rows=4)).bill.requests == 4
        assert synth(call_of(server.address, rows=9)).rows == 9
    assert len(server.asked) == 9
    assert Path("made.jsonl").read_bytes().startswith(before)
    questions = [row["messages"][0]["content"] for row in lines_of("made.jsonl")]
    assert len(set(questions)) == 9


def test_a_cut_file_is_mended_from_the_journal(folder: Path) -> None:
    with canned(lambda number, body: new_row(number)) as server:
        synth(call_of(server.address, rows=6))
        whole = Path("made.jsonl").read_bytes()
        Path("made.jsonl").write_bytes(whole[: len(whole) // 2])
        synth(call_of(server.address, rows=6))
    assert Path("made.jsonl").read_bytes() == whole


def test_a_file_that_was_edited_is_not_touched(folder: Path) -> None:
    with canned(lambda number, body: new_row(number)) as server:
        synth(call_of(server.address, rows=3))
        Path("made.jsonl").write_text("mine\n")
        with pytest.raises(CallError, match="was changed since it was made"):
            synth(call_of(server.address, rows=6))
    assert Path("made.jsonl").read_text() == "mine\n"


@pytest.mark.parametrize("name", ["made.jsonl", "made.rejected.jsonl"])
def test_nothing_is_overwritten(folder: Path, name: str) -> None:
    Path(name).write_text("mine\n")
    with canned(lambda number, body: new_row(number)) as server, pytest.raises(CallError, match="nothing is overwritten"):
        synth(call_of(server.address))
    assert Path(name).read_text() == "mine\n"
    assert not server.asked


OTHERS = [({"model": "n"}, "model"), ({"seed": 1}, "seed"), ({"temperature": 0.5}, "temperature"), ({"way": "evolve"}, "prompt")]


@pytest.mark.parametrize(("change", "named"), OTHERS)
def test_another_call_is_refused(folder: Path, change: dict[str, Any], named: str) -> None:
    with canned(lambda number, body: new_row(number)) as server:
        synth(call_of(server.address, rows=2))
        with pytest.raises(CallError, match=f"was begun with {named}"):
            synth(call_of(server.address, **change))


def test_changed_seeds_are_another_call(folder: Path) -> None:
    with canned(lambda number, body: new_row(number)) as server:
        synth(call_of(server.address, rows=2))
        with open("seeds.jsonl", "a") as file:
            file.write(json.dumps({"question": "Another one?", "answer": "Yes."}) + "\n")
        with pytest.raises(CallError, match="was begun with from_sha256"):
            synth(call_of(server.address))


def test_a_wrong_key_ends_it_and_the_right_one_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def guarded(number: int, body: dict[str, Any]) -> Canned:
        return new_row(number) if server.asked[-1]["headers"].get("Authorization") == "Bearer right" else Canned({"error": {"message": "no"}}, 401)

    with canned(guarded) as server:
        monkeypatch.setenv("MY_KEY", "wrong")
        with pytest.raises(LuthierError, match="answered 401"):
            synth(call_of(server.address, key_env="MY_KEY", model="typo"))
        monkeypatch.setenv("MY_KEY", "right")
        assert synth(call_of(server.address, key_env="MY_KEY")).rows == 12
    assert not any(b"right" in path.read_bytes() for path in folder.iterdir())


def test_a_key_that_is_not_there(folder: Path) -> None:
    with pytest.raises(CallError, match="--key-env NO_SUCH_KEY: this environment variable is not set"):
        synth(call_of("http://127.0.0.1:1", key_env="NO_SUCH_KEY"))


def test_a_refused_question_is_counted_and_three_in_a_row_end_it(folder: Path) -> None:
    refusal = Canned({"error": {"message": "too long"}}, 400)
    with canned(lambda number, body: refusal if number == 2 else new_row(number)) as server:
        assert synth(call_of(server.address)).refused_requests == 1
    with canned(lambda number, body: refusal) as server, pytest.raises(LuthierError, match="answered 400 Bad Request: too long"):
        synth(call_of(server.address, to=Path("other.jsonl"), concurrency=1))
    assert len(server.asked) == 3


def test_a_model_that_never_writes_a_row_is_given_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "FRUITLESS_REQUESTS", 10)
    with (
        canned(lambda number, body: said("hm")) as server,
        pytest.raises(DataError, match=r"10 requests in a row gave no row that can be kept \(10 no_pair\)"),
    ):
        synth(call_of(server.address, concurrency=1))
    assert len(server.asked) == 10


def test_rows_from_documents_are_grounded_and_say_where(folder: Path) -> None:
    (folder / "docs").mkdir()
    (folder / "docs" / "bridge.md").write_text("# Bridge\n\nThe bridge was built in 1894 by Lucy Hale. It carries two tracks across the river.\n")
    answers = {1: "Lucy Hale built the bridge.", 2: "It was built in 1895.", 3: "Zebras enjoy eating yellow bananas."}
    with canned(lambda number, body: said(f"Question: Which fact of {number * 7919} is it?\nAnswer: {answers.get(number, 'In 1894.')}")) as server:
        made = synth(call_of(server.address, source="docs", rows=2, concurrency=1))
    assert made.rejected == {"not_grounded": 2}
    assert [row["provenance"]["from"] for row in lines_of("made.jsonl")] == [["docs/bridge.md:1-3"]] * 2
    assert "The bridge was built in 1894" in server.asked[0]["body"]["messages"][-1]["content"]


def test_evolving_rewrites_one_question(folder: Path) -> None:
    with canned(lambda number, body: new_row(number)) as server:
        synth(call_of(server.address, way="evolve", rows=3))
    assert lines_of("made.jsonl")[0]["provenance"]["prompt"] == "evolve-1"
    assert "Rewrite this question." in server.asked[0]["body"]["messages"][-1]["content"]


def test_what_cannot_be_a_seed_is_said(folder: Path) -> None:
    turns = [{"role": role, "content": "word"} for role in ("user", "assistant")]
    rows = [{"messages": turns * 2}, {"messages": turns[:1]}]
    (folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match="no row can be a seed"):
        synth(call_of("http://127.0.0.1:1", source="chats.jsonl"))
    lines = Lines()
    (folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"messages": turns}]))
    with canned(lambda number, body: new_row(number)) as server:
        synth(call_of(server.address, source="chats.jsonl", rows=1), lines)
    assert any("1 not used: not one question with one answer" in line for line in lines.lines)


def test_a_system_message_of_the_seeds_stands_in_the_rows(folder: Path) -> None:
    turns = [("system", "Be short."), ("user", "What is up here?"), ("assistant", "The sky.")]
    (folder / "chats.jsonl").write_text(json.dumps({"messages": [{"role": role, "content": text} for role, text in turns]}) + "\n")
    with canned(lambda number, body: new_row(number)) as server:
        synth(call_of(server.address, source="chats.jsonl", rows=2))
    assert all(row["messages"][0] == {"role": "system", "content": "Be short."} for row in lines_of("made.jsonl"))


def started(folder: Path, address: str, rows: int) -> "subprocess.Popen[str]":
    settings = ["--model", "m", "--from", "seeds.jsonl", "--to", "made.jsonl", "-n", str(rows), "--concurrency", "3", "--json"]
    command = [sys.executable, "-m", "luthier", "data", "synth", "--endpoint", address, *settings]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ))


def wait_for_rows(folder: Path, rows: int) -> None:
    made = folder / "made.jsonl"
    for _ in range(2000):
        if made.exists() and made.read_bytes().count(b"\n") >= rows:
            return
        time.sleep(0.01)
    raise AssertionError("no rows came")


def test_killed_twice_and_paid_once(folder: Path) -> None:
    bill: dict[str, int] = {}
    answers: dict[str, Canned] = {}

    def billed(number: int, body: dict[str, Any]) -> Canned:
        key = server.asked[-1]["headers"]["Idempotency-Key"]
        if key not in answers:
            bill[key] = number
            answers[key] = Canned(said(f"Question: Who made {number * 7919}?\nAnswer: Me.", usage=(number, 1)).body, delay_s=0.03)
        return answers[key]

    with canned(billed) as server:
        for rows in (8, 16):
            making = started(folder, server.address, 30)
            wait_for_rows(folder, rows)
            making.send_signal(signal.SIGKILL)
            making.communicate()
        out, err = started(folder, server.address, 30).communicate()
    told = json.loads(out)
    assert (told["rows"], len(lines_of("made.jsonl"))) == (30, 30)
    assert (told["bill"]["requests"], told["bill"]["prompt_tokens"]) == (len(bill), sum(bill.values()))
    assert len(server.asked) > len(bill)  # what was open when it was killed was sent again, and billed once
    assert "had no answer yet" in err
    assert len({row["messages"][0]["content"] for row in lines_of("made.jsonl")}) == 30


def test_ctrl_c_keeps_what_is_on_its_way(folder: Path) -> None:
    def answer(number: int, body: dict[str, Any]) -> Canned:
        return Canned(new_row(number).body, delay_s=0.0 if number < 5 else 0.4)

    with canned(answer) as server:
        making = started(folder, server.address, 30)
        wait_for_rows(folder, 4)
        making.send_signal(signal.SIGINT)
        _, err = making.communicate()
    assert making.returncode == 130
    assert "the same command goes on from here" in err
    assert "Traceback" not in err
    assert len(lines_of("made.jsonl")) == len(server.asked) >= 5
