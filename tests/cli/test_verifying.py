"""luthier verify as it is typed: the table, the exit code, and what is written."""

import json
from pathlib import Path
from typing import Any

import pytest

from luthier.recipes import verify as recipe
from luthier.recipes.proofs.bench import failed, passed


@pytest.fixture
def one_red(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two checks, of which one fails."""
    monkeypatch.setattr(
        recipe, "CHECKS", {"masks": lambda bench: passed("all is well"), "packed": lambda bench: failed("2 is not 3", "count again", apart=1)}
    )


def test_a_red_check_ends_with_exit_code_3_and_the_next_step(call: Any, settings_file: Path, one_red: None) -> None:
    outcome = call("verify", settings_file, "--output", "found.json")
    assert outcome.code == 3
    assert "1 of 2 checks failed: packed" in outcome.err
    rows = [line.split() for line in outcome.out.splitlines()]
    assert any(row[:2] == ["masks", "pass"] for row in rows)
    assert any(row[:2] == ["packed", "FAIL"] for row in rows)
    assert "Try: count again" in outcome.out
    written = json.loads(Path("found.json").read_text(encoding="utf-8"))
    assert [check["status"] for check in written["checks"]] == ["passed", "failed"]
    assert not Path("runs").exists()


def test_json_is_json_and_green_is_0(call: Any, settings_file: Path) -> None:
    outcome = call("verify", settings_file, "--only", "masks", "--json", "--rows", "4")
    assert outcome.code == 0
    assert outcome.json["passed"] is True
    assert (outcome.json["rows"], outcome.json["checks"][0]["check"]) == (4, "masks")
    assert "rows.jsonl:" in outcome.json["checks"][0]["evidence"]


def test_nothing_is_overwritten(call: Any, settings_file: Path) -> None:
    outcome = call("verify", settings_file, "--only", "masks", "--output", settings_file)
    assert outcome.code == 2
    assert "nothing is overwritten" in outcome.problem


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["no-such-run"], "is not a run folder"),
        (["missing.yaml"], "no such file"),
        (["luthier.yaml", "--only", "mask"], "there is no check 'mask'"),
        (["luthier.yaml", "--rehearse", "--only", "masks"], "--rehearse runs everything"),
    ],
)
def test_a_wrong_call_says_what_is_wrong(arguments: list[str], said: str, call: Any, settings_file: Path) -> None:
    outcome = call("verify", *arguments)
    assert outcome.code in (1, 2)
    assert said in outcome.problem
