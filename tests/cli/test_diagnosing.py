"""luthier diagnose as it is typed: a table with severity, what mends it, JSON, and a file of mended settings."""

from pathlib import Path
from typing import Any

import pytest

from luthier.records import StepReport
from luthier.run_folder import RunFolder

CONFIG = """model: some-model
data: {train: rows.jsonl}
lora: {r: 16, lora_alpha: 32, lora_dropout: 0.0}
training: {num_train_epochs: 4, learning_rate: 2e-4, batch_size: 8, micro_batch_tokens: 4096, precision: bf16}
evaluation: {max_new_tokens: 64}
"""


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A stopped run whose held-out loss rises; nothing but its settings and its numbers is there."""
    folder = RunFolder(tmp_path / "runs" / "mine")
    folder.path.mkdir(parents=True)
    folder.config.write_text(CONFIG, encoding="utf-8")
    for step in range(1, 61):
        folder.add_step(StepReport(step, step / 15, 2.0 / step**0.5, 0.8, 2e-4, 800, 600, 270, 0.5, 10**9))
        if step % 10 == 0:
            folder.add_evaluation(step, 0.8 + (step - 20) ** 2 / 1000, {})
    return folder


def test_the_table_names_finding_severity_numbers_and_cures_and_the_exit_code_is_0(call: Any, run: RunFolder) -> None:
    outcome = call("diagnose", "last", "--quick")
    assert outcome.code == 0
    assert any(line.split()[:2] == ["overfitting", "severe"] for line in outcome.out.splitlines())
    assert "the lowest was 0.800 at step 20" in outcome.out
    assert "  Try: training.num_train_epochs=2" in outcome.out
    assert "not looked at: no_stop" in outcome.out
    assert not (run.path / "mended.yaml").exists()


def test_json_is_json(call: Any, run: RunFolder) -> None:
    outcome = call("diagnose", run.path, "--quick", "--json")
    assert [one["id"] for one in outcome.json["findings"]] == ["overfitting"]
    assert outcome.json["findings"][0]["evidence"]["lowest_step"] == 20
    assert "no_stop" in outcome.json["not_looked"]
    assert run.findings.is_file()


def test_apply_writes_another_file_and_says_how_to_train_it(call: Any, run: RunFolder) -> None:
    for name in ("mended.yaml", "mended-2.yaml"):
        outcome = call("diagnose", run.path, "--quick", "--apply")
        assert outcome.code == 0
        assert "+  num_train_epochs: 2.0" in outcome.out
        assert outcome.out.rstrip().endswith(f"Next: luthier train runs/mine/{name}")
    assert run.config.read_text(encoding="utf-8") == CONFIG


def test_a_run_that_is_not_there_is_an_error_with_a_next_step(call: Any) -> None:
    outcome = call("diagnose", "nowhere")
    assert outcome.code == 1
    assert "is not a run folder" in outcome.problem
