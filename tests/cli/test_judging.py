"""luthier judge as a person uses it: in a terminal of its own."""

import json
import os
import pty
import re
import select
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from luthier.cli.app import main
from luthier.records import Conversation, Source, Turn
from luthier.run_folder import RunFolder

ROWS = [("Name a river.", "The Rhine.", "A river? Water."), ("1 + 1?", "2", "eleven"), ("Say hi.", "Hi!", "\x1b[31mHello")]


class Person:
    """Someone at a terminal: sees what is shown, and types."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.seen = ""
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            os.chdir(folder)
            sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115 - until the process ends
            sys.argv = ["luthier", *arguments]
            code = 70
            try:
                main()
            except SystemExit as ended:
                code = int(ended.code or 0)
            finally:
                sys.stdout.flush()
                os._exit(code)

    def reads_until(self, words: str, seconds: float = 30) -> str:
        """What is shown up to `words`, which must come."""
        end = time.monotonic() + seconds
        while words not in self.seen:
            assert time.monotonic() < end, f"{words!r} did not come: {self.seen}"
            if select.select([self.terminal], [], [], 0.5)[0]:
                try:
                    self.seen += os.read(self.terminal, 65536).decode()
                except OSError:  # the process has ended
                    assert words in self.seen, f"{words!r} did not come: {self.seen}"
        read, self.seen = self.seen.split(words, 1)
        return read + words

    def types(self, text: str) -> None:
        os.write(self.terminal, f"{text}\n".encode())

    def left(self) -> int:
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        os.close(self.terminal)
        return code


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run with held-out rows whose answers are kept already: its own ones are right, the base's are not."""
    from luthier.evaluate import rivals

    folder = RunFolder(tmp_path / "runs" / "towns")
    (folder.path / "data").mkdir(parents=True)
    folder.config.write_text("model: nowhere\ndata: {train: rows.jsonl}\nevaluation: {max_new_tokens: 20}\n")
    rows = [
        Conversation((Turn("user", question), Turn("assistant", right)), Source("eval.jsonl", n)) for n, (question, right, _) in enumerate(ROWS, 1)
    ]
    answers = {"towns": {row.source: right for row, (_, right, _) in zip(rows, ROWS, strict=True)}}
    answers["base"] = {row.source: wrong for row, (_, _, wrong) in zip(rows, ROWS, strict=True)}
    monkeypatch.setattr("luthier.data.ledger.read_held_out", lambda run: rows)
    kept = {name: {str(source): (text,) for source, text in found.items()} for name, found in answers.items()}
    monkeypatch.setattr(rivals, "kept", lambda path: kept[path.stem])
    return folder


def rated(run: RunFolder) -> list[dict[str, Any]]:
    paths = sorted(run.path.glob("judgments/*/ratings/*.jsonl"))
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def test_a_person_rates_blind_pairs_stops_and_goes_on_where_they_stopped(run: RunFolder, tmp_path: Path) -> None:
    ann = Person(tmp_path, "judge", "towns", "--against", "base", "--rater", "ann")
    shown = ann.reads_until("relevance: Which one answers what was asked?")
    assert "ann: 3 of 3 pairs to rate" in shown
    assert "Name a river." in shown
    assert "\x1b[31mHello" not in shown
    assert not re.search(r"base|towns|tuned", shown.partition("1 of 3")[2]), "nothing says whose answer is whose"
    right = "a" if re.search(r"A:\s+The Rhine\.", shown) else "b"
    ann.types("x")
    ann.reads_until("a, b or =; q ends")
    for question in ("correctness", "helpfulness", "safety", "format"):
        ann.types(right)
        ann.reads_until(f"{question}: ")
    ann.types("=")
    shown = ann.reads_until("relevance: ")
    assert "2 of 3" in shown
    ann.types("a")
    ann.reads_until("correctness: ")
    ann.types("q")
    ann.reads_until("2 pairs are left")
    assert ann.left() == 0
    (first,) = rated(run)
    assert first["marks"] == {**dict.fromkeys(("relevance", "correctness", "helpfulness", "safety"), "model"), "format": "tie"}

    again = Person(tmp_path, "judge", "towns", "--against", "base", "--rater", "ann")
    shown = again.reads_until("relevance: ")
    assert "ann: 2 of 3 pairs to rate" in shown
    assert "Name a river." not in shown
    again.types("aab=a")
    shown = again.reads_until("relevance: ")
    again.types("=====")
    again.reads_until("all pairs are rated")
    again.reads_until("kept in")
    assert again.left() == 0
    assert [len(one["marks"]) for one in rated(run)] == [5, 5, 5]
    assert (result := json.loads(next(run.path.glob("judgments/*/result.json")).read_text()))["raters"] == {"ann": 3}
    assert result["names"] == ["towns", "base"]


def test_a_kill_in_the_midst_costs_the_pair_at_hand_only(run: RunFolder, tmp_path: Path) -> None:
    eve = Person(tmp_path, "judge", "towns", "--rater", "eve")
    eve.reads_until("relevance: ")
    eve.types("aaaaa")
    eve.reads_until("2 of 3")
    os.kill(eve.pid, 9)
    assert eve.left() == -9
    path = next(run.path.glob("judgments/*/ratings/*.jsonl"))
    path.write_text(path.read_text() + '{"pair": "2", "rat')
    again = Person(tmp_path, "judge", "towns", "--rater", "eve")
    assert "2 of 3 pairs to rate" in again.reads_until("relevance: ")
    again.types("bbbbb")
    again.reads_until("relevance: ")
    again.types("q")
    again.reads_until("kept in")
    assert again.left() == 0
    whole = [line for line in path.read_text().splitlines() if line.endswith("}")]
    assert len({json.loads(line)["pair"] for line in whole}) == 2


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--judge-model", "m"), "--judge-model: is for a judge behind an endpoint"),
        (("--how", "single"), "--how: is for a judge behind an endpoint"),
        (("--with", "http://127.0.0.1:1/v1"), "--with: a judge needs its name there"),
        (("--with", "http://127.0.0.1:1/v1", "--judge-model", "m", "--how", "both"), "--how both: there is no such way"),
        (("--with", "http://127.0.0.1:1/v1", "--judge-model", "m", "--rater", "ann"), "--rater: is for people"),
        (("--against", "nothing"), "--against nothing: is no run and no file"),
        (("--rater", "a/b"), "--rater a/b: is no name of a rater"),
        (("--import", "ann=missing.csv"), "missing.csv: cannot be read"),
    ],
)
def test_wrong_calls_are_named(call: Any, run: RunFolder, tmp_path: Path, arguments: tuple[str, ...], problem: str) -> None:
    outcome = call("judge", "towns", *arguments)
    assert (outcome.code, problem in outcome.problem) == (2, True), outcome.problem


def test_a_table_for_others_and_json(call: Any, run: RunFolder) -> None:
    assert "3 pairs" in call("judge", "towns", "--export", "pairs.csv").out
    shutil.copy("pairs.csv", "filled.csv")
    filled = Path("filled.csv").read_text().replace(",,,,,", ",a,a,a,a,a")
    Path("filled.csv").write_text(filled)
    outcome = call("judge", "towns", "--import", "ben=filled.csv")
    assert "filled.csv: 3 ratings" in outcome.out
    found = call("judge", "towns", "--json").json
    assert found["raters"] == {"ben": 3}
    assert set(found["win_rates"]) == {"overall", "relevance", "correctness", "helpfulness", "safety", "format"}
