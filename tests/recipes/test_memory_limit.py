"""max_memory holds: what the plan chooses for 3 GB really trains in less, and what cannot is not begun."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

LIMIT_BYTES = 3_000_000_000
WORDS = ["the", "luthier", "sets", "a", "bridge", "under", "steel", "strings", "and", "listens", "to", "what", "spruce", "says"]


def train(folder: Path, home: Path, *settings: str) -> subprocess.CompletedProcess[str]:
    (folder / "luthier.yaml").write_text("model: smollm2-135m-instruct\ndata: {train: rows.jsonl, eval: null}\n", encoding="utf-8")
    command = [sys.executable, "-m", "luthier", "train", str(folder / "luthier.yaml"), *settings]
    env = {**os.environ, "LUTHIER_HOME": str(home)}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=900, check=False)


@pytest.fixture
def long_rows(tmp_path: Path) -> Path:
    """Rows of about 150 to 1,200 tokens, all of which are trained."""
    lengths = [150 + 33 * (7 * number % 32) for number in range(32)]
    rows = [{"text": f"Row {row}. " + " ".join(WORDS[(row + place) % len(WORDS)] for place in range(words))} for row, words in enumerate(lengths)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return tmp_path


# In bf16 a processor that lacks it takes a quarter of an hour.
@pytest.mark.parametrize("precision", [pytest.param("fp32", marks=pytest.mark.slow), pytest.param("bf16", marks=pytest.mark.nightly)])
def test_told_that_3_gb_are_free_a_run_stays_below(precision: str, default_model: Path, long_rows: Path) -> None:
    settings = ("max_memory=3GB", "training.batch_size=4", "training.max_steps=2", f"training.precision={precision}")
    done = train(long_rows, default_model.parents[1], *settings)
    assert done.returncode == 0, done.stderr
    run = next((long_rows / "runs").iterdir())
    plan = json.loads((run / "plan.json").read_text(encoding="utf-8"))
    training = plan["settings"]["training"]
    assert training["micro_batch_tokens"] < 4096 or training["gradient_checkpointing"] == "full", "the usual cut would need more"
    peaks = [step["peak_bytes"] for step in map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()) if "peak_bytes" in step]
    assert max(peaks) < LIMIT_BYTES


@pytest.mark.slow
def test_what_does_not_fit_is_not_begun(default_model: Path, long_rows: Path) -> None:
    done = train(long_rows, default_model.parents[1], "max_memory=1GB")
    assert done.returncode != 0
    assert "may take 85% of max_memory: 1GB" in done.stderr
    assert "a smaller model, or max_memory: " in done.stderr
    assert not (long_rows / "runs").exists()
