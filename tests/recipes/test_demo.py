"""The main job on the real model: its road shortened, and its bars in full."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest_runs import Listener

from luthier.config.load import load_config
from luthier.data.us_addresses import demo_rows
from luthier.recipes.demo import demo
from luthier.recipes.verify import SHORT


@pytest.mark.slow
@pytest.mark.real_model
def test_the_demo_walks_the_whole_road(default_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_HOME", str(default_model.parent.parent))
    listener = Listener()
    outcome = demo(listener, output_dir=tmp_path / "runs", max_steps=2, rows=4)
    run = outcome.run
    assert run.path.parent == tmp_path / "runs"
    assert run.name.startswith("demo-")
    assert load_config(run.path / "demo.yaml").settings.output_dir == str(tmp_path / "runs")
    for path in (run.config, run.plan, run.ledger, run.contract, run.metrics, run.scorecard, run.samples, run.parity, run.verified, run.report):
        assert path.is_file(), path
    # After two updates bf16 cannot hold all of what was learned.
    assert (run.path / ("merged" if outcome.parity.passed else "merged.failed") / "model.safetensors").is_file()

    assert list(outcome.scorecard.models) == ["base", "base_5shot", "tuned"]
    assert list(outcome.scorecard.models["tuned"]) == ["exact_match", "valid_json", "field_f1"]
    assert {proof.check: proof.status for proof in outcome.verdict.proofs} == dict.fromkeys(SHORT, "passed")
    assert "rows together against one by one" in run.report.read_text(encoding="utf-8")
    assert outcome.parity.mean_kl < 0.02  # two updates leave an answer undecided: rounding to bf16 may turn it
    assert len(run.read_metrics("train")) == 2
    assert all(row["executed_tokens"] < row["logical_tokens"] for row in run.read_metrics("train"))  # the system prompt is shared
    assert any(re.match(r"step 2/2  loss \d+\.\d{4}  rate ", line) for line in listener.lines)


def test_the_settings_that_are_written_are_a_users_own(tmp_path: Path) -> None:
    """Every number that decides is in the file: all that a machine decides is the number format."""
    from luthier.recipes import demo as recipe

    config = recipe._read(recipe._settings(tmp_path / "runs"), [])
    assert [config.settings.data.train, config.settings.data.eval] == [str(path) for path in demo_rows()]
    assert "auto" not in (config.settings.training.batch_size, config.settings.training.learning_rate)
    assert config.settings.output_dir == str((tmp_path / "runs").resolve())


def test_no_address_is_in_both_parts() -> None:
    train, test = ([json.loads(line)["messages"] for line in path.read_text(encoding="utf-8").splitlines()] for path in demo_rows())
    asked = {row[1]["content"].casefold() for row in train}
    assert len(test) >= 300
    assert not asked & {row[1]["content"].casefold() for row in test}
    assert len({row[0]["content"] for row in train + test}) == 1  # one system prompt, which the engine shares


@pytest.mark.nightly
@pytest.mark.real_model
def test_the_demo_clears_its_bars_and_does_so_twice(default_model: Path, tmp_path: Path) -> None:
    outcomes = [run_demo(default_model.parent.parent, tmp_path / str(number)) for number in range(2)]
    for outcome in outcomes:
        tuned, base = outcome["scorecard"]["tuned"], outcome["scorecard"]["base"]
        sys.stdout.write(f"demo: {outcome['seconds']:.0f} s, exact match {tuned['exact_match']['value']:.3f}\n")
        assert tuned["exact_match"]["n"] >= 300
        assert tuned["exact_match"]["value"] >= 0.65
        assert tuned["valid_json"]["value"] >= 0.98
        assert base["exact_match"]["n"] == 60
        assert base["exact_match"]["value"] <= 0.05
        assert outcome["parity"]["passed"]
        assert outcome["verified"]["passed"]
        assert max(row["peak_bytes"] for row in train_rows(outcome)) < 4 * 2**30
    one, other = outcomes
    assert one["scorecard"] == other["scorecard"]
    assert [row["loss"] for row in train_rows(one)] == [row["loss"] for row in train_rows(other)]


def run_demo(home: Path, output_dir: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "luthier", "demo", "--output-dir", str(output_dir), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3600, env={**os.environ, "LUTHIER_HOME": str(home)})
    assert done.returncode == 0, done.stderr
    outcome: dict[str, Any] = json.loads(done.stdout)
    return outcome


def train_rows(outcome: dict[str, Any]) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (Path(outcome["run"]) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if row["kind"] == "train"]
