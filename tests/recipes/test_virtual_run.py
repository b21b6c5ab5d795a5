"""Prefix, prompt and p-tuning down the whole road: train, stop and resume, eval, chat, and going on from one."""

import os
import signal
from pathlib import Path

import pytest
import torch
from conftest_runs import MACHINE, Listener, chat_row, write_rows
from peft import PeftModel
from safetensors.torch import load_file

from luthier import files
from luthier.config.load import Config, load_config
from luthier.engine import opening
from luthier.errors import CallError, ConfigError, ModelError
from luthier.models import load
from luthier.plan.machine import store_machine
from luthier.recipes import evaluation, handover, sft
from luthier.recipes.conversation import open_talk
from luthier.reporting import Silent
from luthier.run_folder import RunFolder
from luthier.train import session

ROWS = [chat_row(place) for place in range(8)]
SECTIONS = {
    "prefix": "prefix: {num_virtual_tokens: 4}",
    "prompt": "prompt: {num_virtual_tokens: 4, prompt_tuning_init_text: Turn the address into JSON.}",
    "p_tuning": "p_tuning: {num_virtual_tokens: 4, encoder_reparameterization_type: LSTM, encoder_hidden_size: 16, encoder_dropout: 0.2}",
}


def config_of(folder: Path, model: Path, method: str, *overrides: str) -> Config:
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / "train.jsonl", ROWS)
    write_rows(folder / "eval.jsonl", [chat_row(place, "Another system message.") for place in range(2)])
    text = f"model: {model}\nmethod: {method}\n{SECTIONS[method]}\ndata: {{train: train.jsonl, eval: eval.jsonl}}\ndevice: cpu\n"
    (folder / "luthier.yaml").write_text(text, encoding="utf-8")
    numbers = {"precision": "fp32", "learning_rate": "1e-2", "batch_size": 4, "num_train_epochs": 2, "logging_steps": 1}
    return load_config(folder / "luthier.yaml", [*(f"training.{name}={value}" for name, value in numbers.items()), *overrides])


@pytest.fixture(autouse=True)
def a_machine_that_is_known(luthier_home: Path) -> None:
    store_machine(luthier_home, MACHINE)


def losses(run: RunFolder) -> list[tuple[float, float]]:
    return [(row["loss"], row["grad_norm"]) for row in run.read_metrics("train")]


@pytest.mark.parametrize(("method", "precision"), [("prefix", "fp32"), ("prompt", "bf16"), ("p_tuning", "bf16")])
def test_a_run_that_is_stopped_and_resumed_is_the_straight_one_and_answers_as_plain_peft(
    method: str, precision: str, tmp_path: Path, tiny_model: Path
) -> None:
    config = config_of(tmp_path, tiny_model, method, f"training.precision={precision}")
    listener = Listener()
    straight = sft.fit(config, listener)
    assert not any("plain" in line for line in listener.lines)
    with pytest.raises(session.Interrupted) as stopped:
        sft.fit(config, Listener(**{"step_2/4": lambda: os.kill(os.getpid(), signal.SIGINT)}))
    run = RunFolder(Path(stopped.value.where))
    if method == "p_tuning":  # the network is not in the adapter, but it is in the checkpoint
        assert any("lstm_head" in name for name in load_file(run.checkpoints / "step-000002" / "trained.safetensors"))
    sft.fit(load_config(run.config), resume=run)
    assert losses(run) == losses(straight)
    assert files.sha256(run.adapter / "adapter_model.safetensors") == files.sha256(straight.adapter / "adapter_model.safetensors")

    engine = opening.open_trained(run, Silent(), "fp32")
    plain = PeftModel.from_pretrained(load.load_model(tiny_model, "fp32", "cpu"), str(run.adapter)).eval()
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        assert torch.equal(engine.model(ids).logits, plain(ids).logits)
    scorecard = evaluation.evaluate(run, Silent())
    assert {"tuned", "base"} <= scorecard.models.keys()
    assert isinstance("".join(open_talk(run, max_new_tokens=3).ask("Where?")), str)
    with pytest.raises((CallError, ConfigError), match="merge"):
        handover.export(run, "merged", Silent())


@pytest.mark.parametrize("method", ["prefix", "prompt"])
def test_an_earlier_run_is_gone_on_with(method: str, tmp_path: Path, tiny_model: Path) -> None:
    first = sft.fit(config_of(tmp_path / "first", tiny_model, method))
    engine = opening.open_trained(first, Silent())
    listener = Listener()
    sft.fit(config_of(tmp_path / "second", tiny_model, method, f"init_from={first.path}", "training.max_steps=1"), listener)
    second = RunFolder(next((tmp_path / "second" / "runs").iterdir()))
    before, after = (load_file(run.adapter / "adapter_model.safetensors")["prompt_embeddings"] for run in (first, second))
    assert 0 < float((before - after).abs().max()) < 0.03
    assert engine.context == 508


def test_p_tuning_is_not_gone_on_with_since_its_network_is_not_kept(tmp_path: Path, tiny_model: Path) -> None:
    first = sft.fit(config_of(tmp_path / "first", tiny_model, "p_tuning"))
    with pytest.raises(ModelError, match="not the network that made them"):
        sft.fit(config_of(tmp_path / "second", tiny_model, "p_tuning", f"init_from={first.path}"))
    assert not (tmp_path / "second" / "runs").exists()


def test_rows_are_cut_to_what_virtual_tokens_leave_of_the_context(tmp_path: Path, tiny_model: Path) -> None:
    with pytest.raises(ConfigError, match=r"509 tokens are more than .* 512, of which 4 are virtual\n  Try: data.max_length: 508"):
        sft.fit(config_of(tmp_path, tiny_model, "prefix", "data.max_length=509"))
    with pytest.raises(ConfigError, match=r"511 virtual tokens leave no room"):
        sft.fit(config_of(tmp_path, tiny_model, "prefix", "prefix.num_virtual_tokens=511"))
