"""What a run does on a GPU and not on a CPU, shown on a CPU: it tells late, and what it keeps is what it should be."""

import pytest
import torch
from conftest_runs import Write, chat_row, write_rows
from safetensors.torch import load_file

from luthier.engine import Engine, fp8
from luthier.errors import ConfigError
from luthier.recipes import sft

ROWS = [chat_row(place) for place in range(16)]
# 4 updates; a checkpoint after 2 and 4, held-out losses after 3 and 4.
SETTINGS = ["data.eval=eval.jsonl", "evaluation.every_steps=3", "training.save_steps=2", "training.num_train_epochs=1", "training.logging_steps=1"]


def test_a_run_that_tells_late_keeps_and_measures_the_same(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []
    for late in (False, True):
        config = write(ROWS, *SETTINGS, name=f"late-{late}")
        write_rows(config.file.parent / "eval.jsonl", [chat_row(place) for place in (20, 21)])
        monkeypatch.setattr(Engine, "reads_late", late)
        runs.append(sft.fit(config))
    early, told_late = runs
    for step in ("step-000002", "step-000004"):
        wanted, found = (load_file(run.checkpoints / step / "trained.safetensors") for run in runs)
        assert wanted.keys() == found.keys()
        for name, weight in wanted.items():
            torch.testing.assert_close(found[name], weight, rtol=1e-3, atol=1e-5)
    for kind in ("train", "eval"):
        one, other = ([(row["step"], row["loss"]) for row in run.read_metrics(kind)] for run in (early, told_late))
        assert [step for step, _ in one] == [step for step, _ in other] == ([1, 2, 3, 4] if kind == "train" else [3, 4])
        assert [loss for _, loss in other] == pytest.approx([loss for _, loss in one], rel=1e-4)


def test_fp8_is_refused_on_a_cpu_before_anything_is_loaded(write: Write) -> None:
    config = write(ROWS, "training.frozen_base=fp8", "training.precision=bf16", "model=/no/such/folder")
    with pytest.raises(ConfigError, match="fp8 needs an NVIDIA GPU of compute capability"):
        sft.fit(config)


def test_fp8_tells_its_gap_in_the_log(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fp8, "require", lambda *told: None)
    run = sft.fit(write(ROWS, "training.frozen_base=fp8", "training.max_steps=1"))
    assert "frozen_base: fp8: the loss of " in run.log.read_text(encoding="utf-8")
