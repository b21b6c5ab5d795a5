"""Rows made by a real model behind a real server on loopback, by a command that is killed twice."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from loopback_model import serving

from luthier.data.making import Known, plain

SEEDS = [
    ("What is the capital of France?", "Paris is the capital of France."),
    ("Name three fruits that grow in cold countries.", "Apples, pears and cherries."),
    ("Why does ice float on water?", "Ice is less dense than liquid water, because its molecules stand further apart."),
    ("How does one ask a neighbor to turn down the music?", "Would you mind turning the music down a little, please?"),
    ("What is 15 percent of 200?", "15 percent of 200 is 30."),
    ("Explain what a verb is to a child.", "A verb is a doing word, like run, eat or sleep."),
    ("Which planet is the largest in the solar system?", "Jupiter is the largest planet in the solar system."),
    ("Give a synonym for the word happy.", "Joyful is a synonym for happy."),
    ("How do you boil an egg?", "Put the egg into boiling water for eight minutes, then cool it in cold water."),
    ("What does a luthier do?", "A luthier builds and repairs stringed instruments such as guitars and violins."),
]


def lines_of(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def start(folder: Path, address: str, count: int) -> "subprocess.Popen[str]":
    settings = ["--from", "seeds.jsonl", "--to", "made.jsonl", "-n", str(count), "--max-tokens", "96", "--concurrency", "24"]
    command = [sys.executable, "-m", "luthier", "data", "synth", "--endpoint", address, "--model", "small", *settings, "--json"]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ))


def kill_at(making: "subprocess.Popen[str]", made: Path, rows: int) -> None:
    while made.exists() is False or made.read_bytes().count(b"\n") < rows:
        assert making.poll() is None, making.communicate()
        time.sleep(0.05)
    making.send_signal(signal.SIGKILL)
    making.communicate()


@pytest.mark.parametrize("count", [pytest.param(60, marks=pytest.mark.slow), pytest.param(300, marks=pytest.mark.nightly)])
@pytest.mark.real_model
def test_rows_killed_twice_have_no_duplicates_and_cost_what_the_server_says(count: int, tmp_path: Path, default_model: Path) -> None:
    seeds = "".join(json.dumps({"question": question, "answer": answer}) + "\n" for question, answer in SEEDS)
    (tmp_path / "seeds.jsonl").write_text(seeds, encoding="utf-8")
    made = tmp_path / "made.jsonl"
    with serving(str(default_model)) as (address, server):
        for rows in (count // 3, 2 * count // 3):
            kill_at(start(tmp_path, address, count), made, rows)
        out, err = start(tmp_path, address, count).communicate()
    assert "requests had no answer yet and are sent again under their old ids" in err
    bill = json.loads(out)["bill"]
    assert {name: bill[name] for name in server.bill} == server.bill

    questions = [row["messages"][0]["content"] for row in lines_of(made)]
    assert len(questions) == len({plain(question) for question in questions}) == count
    known = Known(0.8)
    for question in [*(question for question, _ in SEEDS), *questions]:
        assert known.twin(question) is None
        known.add(question, "there")
    assert all(row["provenance"]["from"] and row["messages"][1]["content"] for row in lines_of(made))
    journal = lines_of(tmp_path / "made.journal.jsonl")
    assert sum(entry["kind"] == "resumed" for entry in journal) == 2
    assert sum(len(entry["rows"]) for entry in journal if entry["kind"] == "answered") == count
