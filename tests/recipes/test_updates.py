"""How updates are made, through the whole road: optimizers, schedules, noise and smoothed labels; and text that is only continued."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest_runs import Listener, Write, chat_row, write_rows
from transformers import AutoModelForCausalLM

from luthier import files
from luthier.config.load import Config, load_config
from luthier.engine import opening
from luthier.errors import ConfigError, LuthierError, RunError
from luthier.recipes import sft
from luthier.reporting import Silent
from luthier.run_folder import RunFolder, list_runs

ROWS = [chat_row(place) for place in range(16)]
EIGHT = ["training.num_train_epochs=2", "training.logging_steps=1"]
WORDS = ["wood", "string", "bridge", "neck", "varnish", "scroll", "bow", "tone"]
HOW = {
    "free":    ["training.optim=schedule_free", "training.neftune_noise_alpha=5", "method=full", "training.precision=bf16"],
    "falling": ["training.lr_scheduler_type=warmup_stable_decay", "training.decay_ratio=0.5", "training.optim=lion_8bit"],
    "again":   ["training.lr_scheduler_type=cosine_with_restarts", "training.num_cycles=2", "training.label_smoothing_factor=0.1"],
}  # fmt: skip


class PowerCut(Exception):
    """Ends a run as a power cut would: without a word."""


@pytest.fixture
def write(tmp_path: Path, tiny_model: Path) -> Write:
    """As the fixture of all recipes, but with no word of the method."""

    def write_project(rows: list[Any], *overrides: str) -> Config:
        (tmp_path / "project").mkdir(exist_ok=True)
        write_rows(tmp_path / "project" / "train.jsonl", rows)
        file = tmp_path / "project" / "luthier.yaml"
        file.write_text(f"model: {tiny_model}\ndata: {{train: train.jsonl, eval: null}}\ndevice: cpu\n", encoding="utf-8")
        numbers = ["training.precision=fp32", "training.learning_rate=1e-2", "training.batch_size=4", "training.num_train_epochs=1"]
        return load_config(file, [*numbers, *overrides])

    return write_project


def cut_power() -> None:
    raise PowerCut


def steps_of(run: RunFolder) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in row.items() if key not in ("seconds", "peak_bytes")} for row in rows]


def weights_of(run: RunFolder) -> list[str]:
    return [files.sha256(path) for path in sorted(run.trained.glob("*.safetensors"))]


@pytest.mark.parametrize("how", HOW.values(), ids=HOW)
def test_a_run_that_lost_its_power_goes_on_as_the_straight_one(how: list[str], write: Write) -> None:
    if "schedule_free" in how[0]:
        pytest.importorskip("schedulefree")
    write_rows(write(ROWS).file.parent / "eval.jsonl", [chat_row(20)])
    config = write(ROWS, *EIGHT, *how, "training.save_steps=3", "data.eval=eval.jsonl", "evaluation.every_steps=2")
    straight = sft.fit(config)
    with pytest.raises(PowerCut):
        sft.fit(config, Listener(**{"step_5/8  loss": cut_power}))
    (run,) = (run for run in list_runs(config.file.parent / "runs") if run != straight)
    sft.fit(load_config(run.config), resume=run)
    assert steps_of(run) == steps_of(straight)
    assert weights_of(run) == weights_of(straight)
    # What was evaluated last is what was saved.
    last = [row["loss"] for row in steps_of(straight) if row["kind"] == "eval"][-1]
    engine = opening.open_trained(straight, Silent())
    held_out = engine.tokenize([chat_row(20)])
    assert engine.held_out_loss(held_out) == pytest.approx(last, rel=1e-6)


def test_the_rates_are_those_of_the_schedule(write: Write) -> None:
    overrides = ["training.lr_scheduler_type=warmup_stable_decay", "training.decay_steps=4", "training.warmup_steps=2", "training.learning_rate=1e-3"]
    rates = [row["learning_rate"] for row in sft.fit(write(ROWS, *EIGHT, *overrides)).read_metrics("train")]
    assert rates[:5] == pytest.approx([5e-4, 1e-3, 1e-3, 1e-3, 1e-3])
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[6] == pytest.approx(5e-4)


def test_the_rate_begins_again_as_often_as_asked(write: Write) -> None:
    overrides = ["training.lr_scheduler_type=cosine_with_restarts", "training.num_cycles=2", "training.warmup_steps=0", "training.learning_rate=1e-3"]
    rates = [row["learning_rate"] for row in sft.fit(write(ROWS, *EIGHT, *overrides)).read_metrics("train")]
    assert rates[4:] == pytest.approx(rates[:4])
    assert rates[4] == pytest.approx(1e-3)
    assert rates[3] < 5e-4


def test_how_a_noisy_update_is_cut_changes_nothing(write: Write) -> None:
    straight, cut = (sft.fit(write(ROWS, *EIGHT, "training.neftune_noise_alpha=5", f"training.micro_batch_tokens={tokens}")) for tokens in (4096, 64))
    losses = [[row["loss"] for row in run.read_metrics("train")] for run in (straight, cut)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_lora_plus_is_a_rate_of_its_own_for_every_b(write: Write) -> None:
    plain, plus = (sft.fit(write(ROWS, "training.max_steps=2", f"lora.loraplus_lr_ratio={ratio}")) for ratio in ("null", 16))
    assert weights_of(plain) != weights_of(plus)


def test_a_rate_for_weights_that_are_not_trained_stops_before_the_first_update(write: Write) -> None:
    with pytest.raises(ConfigError, match=r"training.learning_rates: 'embed_tokens' is found in no name of a trained weight"):
        sft.fit(write(ROWS, "training.learning_rates={embed_tokens: 0.1}"))


@pytest.mark.parametrize("method", ["lora", "full"])
def test_long_texts_are_cut_into_windows_and_continued(method: str, write: Write) -> None:
    """Continued pretraining: every token of a document is learned, in rows that fit; short documents stand beside them in one update."""
    book = {"text": " ".join(WORDS[(place * place + place // 7) % len(WORDS)] for place in range(400)) + "."}
    notes = [{"text": f"The {word} of a violin is made by hand."} for word in WORDS]
    overrides = ["data.max_length=64", "data.too_long=split", f"method={method}", "training.num_train_epochs=6", "training.learning_rate=2e-3"]
    run = sft.fit(write([book, *notes], *overrides))
    ledger = json.loads(run.ledger.read_text(encoding="utf-8"))
    assert ledger["rows"]["rejected"] == {}
    metrics = run.read_metrics("train")
    losses = [row["loss"] for row in metrics]
    assert losses[-1] < 0.7 * losses[0]
    engine = opening.open_trained(run, Silent())
    (whole,) = engine.tokenize([book])
    windows = -(-len(whole.token_ids) // 64)
    assert windows > 5
    seen = sum(row["logical_tokens"] for row in metrics) / 6
    assert seen >= len(whole.token_ids)
    assert sum(row["trained_tokens"] for row in metrics) / 6 >= 0.95 * (seen - windows - len(notes))
    assert engine.plain_reason == ""


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_run_does_not_go_on_with_another_base(method: str, write: Write, tiny_model: Path, tmp_path: Path) -> None:
    """Another vocabulary or shape, and the same shapes with other weights: both models are named."""
    run = sft.fit(write(ROWS, f"method={method}", "training.max_steps=2", "training.save_steps=1"))
    other = tmp_path / "other"
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    model.get_input_embeddings().weight.data.mul_(1.5)
    model.save_pretrained(other)
    for file in tiny_model.glob("*token*"):
        shutil.copy(file, other / file.name)
    shutil.copy(tiny_model / "chat_template.jinja", other)
    with pytest.raises(LuthierError, match="hash") as refused:
        sft.fit(write(ROWS, f"method={method}", f"model={other}", f"init_from={run.path}"))
    assert str(other) in refused.value.problem
    assert str(tiny_model) in refused.value.problem
    run.config.write_text(run.config.read_text(encoding="utf-8").replace(str(tiny_model), str(other)), encoding="utf-8")
    with pytest.raises(RunError, match=f"{run.name} began with {tiny_model}") as resumed:
        sft.fit(load_config(run.config), resume=run)
    assert str(other) in resumed.value.problem
