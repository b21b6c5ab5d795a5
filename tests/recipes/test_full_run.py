"""`method: full` on the tiny model, down the whole road: train, stop and resume, eval, chat, export, and going on from it."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest_runs import MACHINE, Listener, Write, chat_row, write_rows
from transformers import AutoModelForCausalLM, AutoTokenizer

from luthier import files
from luthier.config.load import Config, load_config
from luthier.engine import opening
from luthier.errors import CallError, ConfigError, RunError
from luthier.plan.machine import store_machine
from luthier.recipes import evaluation, handover, sft
from luthier.recipes.conversation import open_talk
from luthier.reporting import Silent
from luthier.run_folder import RunFolder
from luthier.train import session

ROWS = [chat_row(place) for place in range(8)]
QUESTION, ANSWER = (turn["content"] for turn in chat_row(2)["messages"][1:])


def full_config(folder: Path, model: Path, rows: list[dict[str, Any]], *overrides: str) -> Config:
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / "train.jsonl", rows)
    (folder / "luthier.yaml").write_text(f"model: {model}\nmethod: full\ndata: {{train: train.jsonl, eval: null}}\ndevice: cpu\n", encoding="utf-8")
    numbers = {"precision": "bf16", "learning_rate": "2e-3", "batch_size": 4, "num_train_epochs": 2, "logging_steps": 1}
    return load_config(folder / "luthier.yaml", [*(f"training.{name}={value}" for name, value in numbers.items()), *overrides])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> RunFolder:
    """A run whose weights know its 6 rows by heart, with 2 of them as held-out rows."""
    folder = tmp_path_factory.mktemp("full")
    write_rows(folder / "eval.jsonl", [chat_row(place, "Another system message.") for place in range(2)])
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("LUTHIER_HOME", str(folder / "home"))
        store_machine(folder / "home", MACHINE)
        return sft.fit(full_config(folder, tiny_model, ROWS[:6], "data.eval=eval.jsonl", "training.num_train_epochs=40"))


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def losses(run: RunFolder) -> list[tuple[float, float]]:
    return [(row["loss"], row["grad_norm"]) for row in run.read_metrics("train")]


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_a_run_that_is_stopped_and_resumed_is_the_straight_one_to_the_bit(precision: str, tmp_path: Path, tiny_model: Path) -> None:
    config = full_config(tmp_path, tiny_model, ROWS, f"training.precision={precision}")
    straight = sft.fit(config)
    with pytest.raises(session.Interrupted) as stopped:
        sft.fit(config, Listener(**{"step_2/4": interrupt}))
    run = RunFolder(Path(stopped.value.where))
    assert not run.trained.exists()
    sft.fit(load_config(run.config), resume=run)
    assert losses(run) == losses(straight)
    assert files.sha256(run.model / "model.safetensors") == files.sha256(straight.model / "model.safetensors")
    assert ("loss_scale" in files.read_json(run.checkpoints / "step-000004" / "state.json")["engine"]) == (precision == "fp16")


def test_eight_bit_moments_are_resumed_to_the_bit_and_by_no_other_optimizer(tmp_path: Path, tiny_model: Path) -> None:
    pytest.importorskip("bitsandbytes")
    config = full_config(tmp_path, tiny_model, ROWS, "training.optim=adamw_8bit")
    straight = sft.fit(config)
    with pytest.raises(session.Interrupted) as stopped:
        sft.fit(config, Listener(**{"step_2/4": interrupt}))
    run = RunFolder(Path(stopped.value.where))
    with pytest.raises(RunError, match="optim was adamw_8bit and is now adamw"):
        sft.fit(load_config(run.config, ["training.optim=adamw"]), resume=run)
    sft.fit(load_config(run.config), resume=run)
    assert losses(run) == losses(straight)


def test_the_run_leaves_a_model_that_transformers_loads_and_no_adapter(trained: RunFolder) -> None:
    assert not trained.adapter.exists()
    assert trained.trained == trained.model
    model = AutoModelForCausalLM.from_pretrained(trained.model)
    tokenizer = AutoTokenizer.from_pretrained(trained.model)
    assert model.dtype == torch.bfloat16
    prompt = tokenizer.apply_chat_template(ROWS[2]["messages"][:2], add_generation_prompt=True, return_tensors="pt")
    said = model.generate(**prompt, max_new_tokens=60, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(said, skip_special_tokens=True) == ANSWER
    assert files.read_json(trained.plan)["memory_bytes"]["gradients and optimizer"] > 0


def test_eval_measures_the_model_beside_its_base(trained: RunFolder, tmp_path: Path) -> None:
    scorecard = evaluation.evaluate(trained, data=str(write_rows(tmp_path / "rows.jsonl", ROWS[2:5])))
    assert scorecard.models["tuned"]["exact_match"].value == 1.0
    assert scorecard.models["base"]["exact_match"].value == 0.0
    assert trained.report.is_file()


def test_chat_speaks_with_the_model_and_with_its_base(trained: RunFolder) -> None:
    talk = open_talk(trained, max_new_tokens=40)
    assert "".join(talk.ask(QUESTION)) == ANSWER
    base = ["".join(talk.ask(QUESTION, "base")) for _ in range(2)]
    assert ANSWER not in base
    assert talk.base is not None


def test_export_gives_the_model_in_the_format_asked_for_and_there_is_no_adapter(trained: RunFolder, tmp_path: Path) -> None:
    folder, parity = handover.export(trained, "merged", folder=tmp_path / "out", precision="fp32")
    assert parity.passed
    assert parity.greedy_agreement == 1.0
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float32"
    with pytest.raises(CallError, match="trained every weight and has no adapter\n  Try: --to merged"):
        handover.export(trained, "adapter")


def test_a_run_goes_on_from_the_model_of_an_earlier_one(trained: RunFolder, tmp_path: Path, tiny_model: Path) -> None:
    run = sft.fit(full_config(tmp_path, tiny_model, ROWS[:6], f"init_from={trained.path}", "training.max_steps=1"))
    assert losses(run)[0][0] < 0.1
    engine = opening.open_trained(run, Silent())
    assert engine.trained_parameters == []


def test_an_adapter_and_a_model_are_no_continuation_of_each_other(
    trained: RunFolder, learned: RunFolder, write: Write, tmp_path: Path, tiny_model: Path
) -> None:
    with pytest.raises(ConfigError, match=r"trained a whole model, and method: lora goes on with an adapter\n  Try: method: full, or model: "):
        sft.fit(write(ROWS, f"init_from={trained.path}"))
    with pytest.raises(ConfigError, match=r"trained an adapter, and method: full goes on with a whole model\n  Try: luthier export "):
        sft.fit(full_config(tmp_path, tiny_model, ROWS, f"init_from={learned.path}"))


def test_tokens_that_are_added_are_trained_and_kept(tmp_path: Path, tiny_model: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": "call"}, {"role": "assistant", "content": "<|call|> now"}]}] * 4
    run = sft.fit(full_config(tmp_path, tiny_model, rows, "tokenizer.add_special_tokens=[<|call|>]", "training.max_steps=80"))
    engine = opening.open_trained(run, Silent())
    assert len(engine.tokenizer("<|call|>")["input_ids"]) == 1
    assert "".join(open_talk(run, max_new_tokens=10).ask("call")) == "<|call|> now"
    with opening.as_base(engine, run) as base:
        assert base.model.get_input_embeddings().weight.shape == engine.model.get_input_embeddings().weight.shape


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_gradient_checkpointing_tells_its_price_and_changes_no_loss(mode: str, write: Write) -> None:
    listener = Listener()
    run = sft.fit(write(ROWS, f"training.gradient_checkpointing={mode}"), listener)
    told = [line for line in listener.lines if line.startswith(f"gradient_checkpointing: {mode} takes ")]
    assert len(told) == 1
    assert " and saves about " in told[0]
    assert losses(run) == losses(sft.fit(write(ROWS, "training.gradient_checkpointing=off")))


def test_fp16_updates_lost_to_the_loss_scale_are_told_and_do_not_stop_the_run(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from luthier.engine import engine as engines
    from luthier.engine.precision import LossScale

    monkeypatch.setattr(engines, "loss_scale_of", lambda dtype: LossScale(value=2.0**25))
    listener = Listener()
    run = sft.fit(full_config(tmp_path, tiny_model, ROWS, "training.precision=fp16", "training.num_train_epochs=10"), listener)
    lost = [line for line in listener.lines if "the loss scale is halved" in line]
    assert len(lost) > 3  # three in a row would stop another run
    assert len(run.read_metrics("skipped")) == len(lost)
    assert len(losses(run)) == 20 - len(lost)
    assert losses(run)[-1][0] < losses(run)[0][0]
