"""Findings from run folders that were recorded: what is about long curves, the machine, or another room's numbers."""

import dataclasses
import json
import math
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from luthier.diagnose import evidence, finding, mending, table
from luthier.diagnose.evidence import Noise, RowLosses
from luthier.diagnose.rank import effective_rank, updates_of
from luthier.models.facts import ModelFacts
from luthier.records import Metric, Scorecard, Source, StepReport
from luthier.run_folder import RunFolder

CONFIG = """model: some-model
data: {train: rows.jsonl}
method: lora
lora: {r: 16, lora_alpha: 32, lora_dropout: 0.0}
training: {num_train_epochs: 4, learning_rate: 2e-4, batch_size: 8, micro_batch_tokens: 4096, precision: bf16, warmup_ratio: 0.03}
evaluation: {every_steps: 20, max_new_tokens: 64, metrics: [exact_match]}
"""
STEPS = 120
FACTS = ModelFacts(135_000_000, 30, 576, 1536, 9, 3, 64, 49_152, 8192, True)


def healthy(step: int) -> float:
    return 0.5 + 1.5 * math.exp(-step / 20)


def record(folder: Path, loss: Callable[[int], float] = healthy, held_out: Callable[[int], float] = healthy, peak_bytes: int = 10**9) -> RunFolder:
    """A run of STEPS updates as its folder holds it."""
    (folder / "data").mkdir(parents=True)
    run = RunFolder(folder)
    run.config.write_text(CONFIG, encoding="utf-8")
    run.plan.write_text(json.dumps({"machine": {"memory_bytes": 8 * 10**9}}), encoding="utf-8")
    ledger = {
        "rows": {"read": 240, "used": 240, "rejected": {}},
        "tokens": {"read": 24_000, "trained": 8000, "masked": 16_000, "cut": 0},
        "sources": [{"file": "rows.jsonl", "path": "/rows.jsonl", "tokens": {"trained": 8000}}],
        "max_length": 1024,
    }
    run.ledger.write_text(json.dumps(ledger), encoding="utf-8")
    draws = random.Random(0)
    for step in range(1, STEPS + 1):
        noise = 0.05 * draws.gauss(0, 1)
        run.add_step(StepReport(step, round(step / 30, 4), loss(step) + noise, 0.8, 2e-4, 800, 600, 270, 0.5, peak_bytes))
        if step % 20 == 0:
            run.add_evaluation(step, held_out(step), {})
    run.add_reading(STEPS, 0.4)
    return run


def look(run: RunFolder, **known: object) -> dict[str, finding.Finding]:
    found, _ = table.look(dataclasses.replace(evidence.read(run), usual_rate=2e-4, model=FACTS, **known))
    return {one.id: one for one in found}


def test_a_healthy_run_has_no_findings(tmp_path: Path) -> None:
    assert look(record(tmp_path / "run")) == {}


def test_overfitting_is_the_held_out_loss_that_rises_while_the_other_falls(tmp_path: Path) -> None:
    run = record(tmp_path / "run", held_out=lambda step: 0.8 + (step - 40) ** 2 / 10_000)
    found = look(run)
    assert set(found) == {"overfitting"}
    assert found["overfitting"].evidence["lowest_step"] == 40
    assert found["overfitting"].first.changes["training.num_train_epochs"] == 2
    words = " ".join(cure.what for cure in found["overfitting"].cures)
    for cure in ("lora.lora_dropout=0.05", "lora.r=8", "early_stopping_patience", "load_best_model_at_end", "luthier data synth"):
        assert cure in words


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (lambda step: 2.0 - 0.008 * step, {"underfitting"}),
        (lambda step: healthy(step) if step < 70 else 4.0, {"divergence", "learning_rate_too_high"}),
        (lambda step: healthy(step) + (6.0 if step == 60 else 0.0), {"loss_spikes"}),
        (lambda step: 2.0 + 1.5 * math.sin(math.pi * min(1.0, step / 80)), {"learning_rate_too_high"}),
    ],
    ids=["underfitting", "divergence", "spike", "too high"],
)
def test_the_shape_of_a_curve_is_told(tmp_path: Path, loss: Callable[[int], float], expected: set[str]) -> None:
    assert set(look(record(tmp_path / "run", loss=loss, held_out=lambda step: 2.0 - step / 1000))) == expected


def mixed(draws: random.Random, batch: int, hard_share: float, step: int) -> float:
    """The loss of a batch of easy and rare hard rows, where each kind has fallen by half at the end."""
    rows = [(8.0 if draws.random() < hard_share else 0.4) * math.exp(0.2 * draws.gauss(0, 1)) for _ in range(batch)]
    return (0.5 + 0.5 * math.exp(-step / 24)) * sum(rows) / batch


@pytest.mark.parametrize(("batch", "hard_share"), [(1, 0.05), (2, 0.1)])
def test_rare_hard_rows_make_no_rate_too_high(tmp_path: Path, batch: int, hard_share: float) -> None:
    known = dataclasses.replace(evidence.read(record(tmp_path / "run")), usual_rate=2e-4, model=FACTS)
    rose = ("learning_rate_too_high", "divergence")
    for seed in range(40):
        draws = random.Random(seed)
        steps = [dict(row, loss=mixed(draws, batch, hard_share, row["step"])) for row in known.steps]
        assert [one.id for one in table.look(dataclasses.replace(known, steps=steps))[0] if one.id in rose] == [], seed
        blown_up = [dict(row, loss=row["loss"] + (5.0 if row["step"] > 80 else 0.0)) for row in steps]
        assert "learning_rate_too_high" in {one.id for one in table.look(dataclasses.replace(known, steps=blown_up))[0]}, seed


def test_a_flat_curve_is_a_rate_that_is_too_low_only_where_the_rate_is_low(tmp_path: Path) -> None:
    run = record(tmp_path / "run", loss=lambda step: 2.0, held_out=lambda step: 2.0)
    known = dataclasses.replace(evidence.read(run), model=FACTS)
    assert "learning_rate_too_low" in {one.id for one in table.look(dataclasses.replace(known, usual_rate=2e-3))[0]}
    assert table.look(dataclasses.replace(known, usual_rate=2e-4))[0] == []


def test_general_text_that_became_less_likely_is_forgetting(tmp_path: Path) -> None:
    run = record(tmp_path / "run")
    run.add_evaluation(STEPS, 0.5, {}, drift={"kl": 0.1, "general_loss": 3.0, "base_general_loss": 2.9})
    assert look(run) == {}
    run.add_evaluation(STEPS, 0.5, {}, drift={"kl": 0.9, "general_loss": 3.6, "base_general_loss": 2.9})
    found = look(run)["forgetting"]
    assert found.first.changes == {"data.replay": "10%"}
    assert [cure.what.split(":")[0] for cure in found.cures] == ["mix general rows in", "a lower rate", "a shorter run"]
    # A base that guesses has nothing to forget.
    run.add_evaluation(STEPS, 0.5, {}, drift={"kl": 5.0, "general_loss": 13.0, "base_general_loss": 11.0})
    assert look(run) == {}


def test_a_suite_that_scores_lower_is_forgetting_and_a_task_that_does_not_score_higher_is_told(tmp_path: Path) -> None:
    run = record(tmp_path / "run")
    good, poor = Metric(0.8, 0.75, 0.85, 200), Metric(0.5, 0.45, 0.55, 200)
    run.write_scorecard(Scorecard({"base": {"exact_match": poor, "mmlu": good}, "tuned": {"exact_match": good, "mmlu": good}}, {}, {}))
    assert look(run) == {}
    run.write_scorecard(Scorecard({"base": {"exact_match": poor, "mmlu": good}, "tuned": {"exact_match": poor, "mmlu": poor}}, {}, {}))
    found = look(run)
    assert set(found) == {"forgetting", "not_better_than_base"}
    assert found["forgetting"].evidence["lost"] == {"mmlu": [0.8, 0.5]}


def test_a_score_without_an_interval_is_not_surely_lost(tmp_path: Path) -> None:
    run = record(tmp_path / "run")
    base, tuned, own = Metric(0.5, 0.5, 0.5, 200), Metric(0.45, 0.4, 0.49, 200), Metric(0.8, 0.75, 0.85, 200)
    poor = Metric(0.5, 0.45, 0.55, 200)
    run.write_scorecard(Scorecard({"base": {"exact_match": poor, "mmlu": base}, "tuned": {"exact_match": own, "mmlu": tuned}}, {}, {}))
    assert look(run) == {}


def test_rows_that_are_replayed_are_no_fault(tmp_path: Path) -> None:
    """Few, hard and too long as they may be: data.replay is a cure of Luthier's own."""
    run = record(tmp_path / "run")
    ledger = json.loads(run.ledger.read_text(encoding="utf-8"))
    tokens = {"read": 900, "trained": 100, "masked": 0, "cut": 800}
    ledger["sources"].append({"file": "general.jsonl", "path": "/g", "replay": True, "rows": 40, "rejected": {"too_long": 30}, "tokens": tokens})
    ledger["rows"] |= {"read": 280, "rejected": {"too_long": 30}}
    ledger["tokens"] |= {"read": 24_900, "cut": 800}
    run.ledger.write_text(json.dumps(ledger), encoding="utf-8")
    rows = [RowLosses(f"rows.jsonl:{line}", [(step, 0.2) for step in (1, 31, 61)]) for line in range(1, 101)]
    rows += [RowLosses(f"general.jsonl:{line}", [(step, 3.0) for step in (2, 32, 62)]) for line in range(1, 11)]
    assert look(run, row_losses=rows) == {}
    for mark in ledger["sources"]:
        mark.pop("replay", None)
    run.ledger.write_text(json.dumps(ledger), encoding="utf-8")
    assert set(look(run, row_losses=rows)) == {"noisy_labels", "source_imbalance", "truncation"}


def test_memory_that_is_short_is_told(tmp_path: Path) -> None:
    run = record(tmp_path / "run")
    run.add_smaller_cut(7, 4096, 2048)
    assert look(run)["memory_pressure"].first.changes == {"training.micro_batch_tokens": 2048}
    full = look(record(tmp_path / "full", peak_bytes=int(7.9e9)))["memory_pressure"]
    assert "7.90 GB of 8.00 GB" in full.seen


def test_rows_that_come_slowly_are_told(tmp_path: Path) -> None:
    run = record(tmp_path / "run")
    run.add_reading(STEPS, 30.0)  # of 60
    assert set(look(run)) == {"slow_data"}


def test_skipped_updates_are_told_with_their_rows(tmp_path: Path) -> None:
    run = record(tmp_path / "run")
    run.add_skipped(STEPS + 1, [Source("rows.jsonl", 7)], overflowed=True)  # fp16 looking for its scale is no fault
    assert look(run) == {}
    run.add_skipped(STEPS + 1, [Source("rows.jsonl", 7)])
    assert "rows.jsonl:7" in look(run)["not_finite"].seen


def write_adapter(run: RunFolder, rank: int, used: int) -> None:
    """Two layers whose B·A has `rank` columns and `used` equal singular values."""
    from safetensors.numpy import save_file

    run.adapter.mkdir()
    (run.adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": rank}), encoding="utf-8")
    tensors = {}
    for layer in range(2):
        name = f"base_model.model.layers.{layer}.q_proj"
        tensors[f"{name}.lora_A.weight"] = np.eye(rank, 64, dtype=np.float32)
        tensors[f"{name}.lora_B.weight"] = np.eye(48, rank, dtype=np.float32) * (np.arange(rank) < used)
    save_file({key: np.ascontiguousarray(value, np.float32) for key, value in tensors.items()}, run.adapter / "adapter_model.safetensors")


@pytest.mark.parametrize(("used", "expected"), [(1, {"rank_too_high"}), (8, set()), (16, set())])
def test_a_rank_that_is_not_used_is_told(tmp_path: Path, used: int, expected: set[str]) -> None:
    run = record(tmp_path / "run")
    write_adapter(run, 16, used)
    assert [(update.rank, round(update.effective_rank, 3)) for update in updates_of(run.adapter)] == [(16, used)] * 2
    assert set(look(run)) == expected


def test_the_effective_rank_is_the_exponential_of_the_entropy() -> None:
    values = np.array([0.5, 0.25, 0.25, 0.0])
    assert effective_rank(values) == pytest.approx(math.exp(0.5 * math.log(2) + 0.5 * math.log(4)))
    assert effective_rank(10 * values) == pytest.approx(effective_rank(values))
    assert effective_rank(np.zeros(4)) == 0


def test_the_noise_scale_of_known_gradients() -> None:
    """Gradients g + n with |g|^2 = 4 and a covariance of trace 80: batches of b have a squared norm of 4 + 80 / b."""
    assert Noise(1, 84.0, 16, 9.0).scale == pytest.approx(20.0)
    assert Noise(1, 80.0, 16, 5.0).scale == math.inf  # no signal at all


def test_findings_are_read_as_they_were_written_and_the_gravest_stands_first(tmp_path: Path) -> None:
    run = record(tmp_path / "run", held_out=lambda step: 0.8 + (step - 40) ** 2 / 10_000)
    run.add_smaller_cut(7, 4096, 2048)
    found, not_looked = table.look(evidence.read(run))
    assert finding.read_findings(run) is None
    finding.keep(run, found, not_looked)
    assert finding.read_findings(run) == found
    assert [one.severity for one in found] == ["severe", "warning"]


def test_of_two_cures_for_one_setting_the_graver_finding_has_its_way(tmp_path: Path) -> None:
    run = record(tmp_path / "run")
    cures = [finding.Cure("sooner", {"training.num_train_epochs": 2.0})], [finding.Cure("later", {"training.num_train_epochs": 8.0})]
    found = [finding.Finding(name, "severe" if name == "b" else "note", name, "seen", "why", cure) for name, cure in zip("ab", cures, strict=True)]
    mended = mending.mend(run, found)
    assert mended.file is not None
    assert "num_train_epochs: 8" in mended.file.read_text(encoding="utf-8")
    assert mended.left_out == ["a: sooner (a graver finding sets training.num_train_epochs)"]


def test_a_cure_that_the_settings_refuse_is_left_out_and_said(tmp_path: Path) -> None:
    run = record(tmp_path / "run")
    cures = [finding.Cure("nonsense", {"training.nonsense": 1}), finding.Cure("more", {"training.batch_size": 16})]
    mended = mending.mend(run, [finding.Finding("x", "note", "x", "seen", "why", cures[:1])])
    assert mended.file is None
    assert mended.left_out[0].startswith("x: nonsense (")
    assert not list(run.path.glob("mended*"))
    mended = mending.mend(run, [finding.Finding("x", "note", "x", "seen", "why", cures)])  # the next one is taken
    assert mended.file is not None
    assert "batch_size: 16" in mended.file.read_text(encoding="utf-8")
