"""Bottleneck, IA3, PEFT's other methods and a part of the weights, down the whole road: train, stop and resume, eval, chat, export, go on."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest_runs import MACHINE, Listener, chat_row, write_rows

from luthier import files
from luthier.config.load import Config, load_config
from luthier.engine import opening
from luthier.errors import CallError, ConfigError
from luthier.plan.machine import store_machine
from luthier.recipes import evaluation, handover, sft
from luthier.recipes.conversation import open_talk
from luthier.reporting import Silent
from luthier.run_folder import RunFolder
from luthier.train import session

ROWS = [chat_row(place) for place in range(8)]
QUESTION, ANSWER = (turn["content"] for turn in chat_row(2)["messages"][1:])
# method, its section, rate
SETTINGS: dict[str, tuple[str, dict[str, Any], float]] = {
    "bottleneck": ("bottleneck", {"bottleneck": {"kind": "houlsby", "reduction_factor": 1}}, 1e-2),
    "ia3": ("ia3", {}, 3e-2),
    "vera": ("peft", {"peft": {"type": "VERA", "r": 16}}, 3e-2),
    "ln_tuning": ("peft", {"peft": {"type": "LN_TUNING"}}, 1e-2),
    "oft": ("peft", {"peft": {"type": "OFT", "oft_block_size": 8}}, 1e-2),
    "fourierft": ("peft", {"peft": {"type": "FOURIERFT", "n_frequency": 50}}, 1e-2),
    "freeze": ("full", {"freeze": {"layers": "0", "embeddings": True}}, 2e-3),
}


def config_of(name: str, folder: Path, model: Path, rows: list[dict[str, Any]], *overrides: str) -> Config:
    method, sections, rate = SETTINGS[name]
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / "train.jsonl", rows)
    settings = {
        "model": str(model), "method": method, "data": {"train": "train.jsonl", "eval": None}, "device": "cpu",
        "training": {"precision": "bf16", "learning_rate": rate, "batch_size": 4, "num_train_epochs": 2, "logging_steps": 1}, **sections,
    }  # fmt: skip
    files.write_json(folder / "luthier.yaml", settings)  # JSON is YAML
    return load_config(folder / "luthier.yaml", list(overrides))


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def losses(run: RunFolder) -> list[tuple[float, float]]:
    return [(row["loss"], row["grad_norm"]) for row in run.read_metrics("train")]


@pytest.mark.parametrize("name", SETTINGS)
def test_a_run_that_is_stopped_and_resumed_is_the_straight_one_to_the_bit(name: str, tmp_path: Path, tiny_model: Path) -> None:
    config = config_of(name, tmp_path, tiny_model, ROWS)
    straight = sft.fit(config)
    with pytest.raises(session.Interrupted) as stopped:
        sft.fit(config, Listener(**{"step_2/4": interrupt}))
    run = RunFolder(Path(stopped.value.where))
    assert not run.trained.exists()
    sft.fit(load_config(run.config), resume=run)
    assert losses(run) == losses(straight)
    file = "model.safetensors" if name == "freeze" else "adapter_model.safetensors"
    assert files.sha256(run.trained / file) == files.sha256(straight.trained / file)


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> RunFolder:
    """A run whose bottleneck adapter knows its 6 rows by heart."""
    folder = tmp_path_factory.mktemp("bottleneck")
    write_rows(folder / "eval.jsonl", [chat_row(place, "Another system message.") for place in range(2)])
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("LUTHIER_HOME", str(folder / "home"))
        store_machine(folder / "home", MACHINE)
        return sft.fit(
            config_of(
                "bottleneck",
                folder,
                tiny_model,
                ROWS[:6],
                "data.eval=eval.jsonl",
                "training.num_train_epochs=60",
                "training.lr_scheduler_type=linear",
            )
        )


def test_a_bottleneck_run_is_evaluated_and_talks(learned: RunFolder, tmp_path: Path) -> None:
    scorecard = evaluation.evaluate(learned, data=str(write_rows(tmp_path / "rows.jsonl", ROWS[2:5])))
    assert scorecard.models["tuned"]["exact_match"].value == 1.0
    assert scorecard.models["base"]["exact_match"].value == 0.0
    talk = open_talk(learned)
    assert "".join(talk.ask(QUESTION)) == ANSWER
    assert "".join(talk.ask(QUESTION, "base")) != ANSWER


def test_its_adapter_is_exported_and_merging_is_refused(learned: RunFolder, tmp_path: Path) -> None:
    target, certificate = handover.export(learned, "adapter", folder=tmp_path / "out")
    assert certificate.passed
    assert certificate.greedy_agreement == 1.0
    assert (target / "adapter_config.json").is_file()
    with pytest.raises(CallError, match="--to adapter"):
        handover.export(learned, "merged", folder=tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_it_goes_on_from_an_earlier_adapter_of_its_own_kind(learned: RunFolder, tmp_path: Path, tiny_model: Path) -> None:
    def again(name: str, *overrides: str) -> Config:
        return config_of(name, tmp_path / name, tiny_model, ROWS[:6], f"init_from={learned.path}", "training.max_steps=1", *overrides)

    run = sft.fit(again("bottleneck"))
    assert losses(run)[0][0] < 0.1  # it knew the rows
    with pytest.raises(ConfigError, match=r"bottleneck\.kind is parallel and the adapter in .* was made with houlsby"):
        sft.fit(again("bottleneck", "bottleneck.kind=parallel"))
    with pytest.raises(ConfigError, match=r"was trained with method: bottleneck"):
        sft.fit(again("ia3"))


def test_a_type_that_does_not_begin_as_its_base_is_named(tmp_path: Path, tiny_model: Path) -> None:
    said: dict[str, list[str]] = {}
    for name in ("fourierft", "vera"):
        listener = Listener()
        sft.fit(config_of(name, tmp_path / name, tiny_model, ROWS, "training.max_steps=1"), listener)
        said[name] = [line for line in listener.lines if "does not begin as its base" in line]
    assert len(said["fourierft"]) == 1
    assert said["fourierft"][0].startswith("peft FOURIERFT does not begin as its base: the loss of a row is ")
    assert said["vera"] == []


def test_a_plain_path_is_said(tmp_path: Path, tiny_model: Path) -> None:
    listener = Listener()
    config = config_of("vera", tmp_path, tiny_model, ROWS, "peft={type: LILY, r: 4}", "training.max_steps=1")
    run = sft.fit(config, listener)
    assert "the plain path is used, one row at a time: the layers of lily mix the tokens that they are given" in listener.lines
    assert opening.open_trained(run, Silent()).plain_reason


def test_a_partly_frozen_model_is_saved_whole(tmp_path: Path, tiny_model: Path) -> None:
    run = sft.fit(config_of("freeze", tmp_path, tiny_model, ROWS))
    trained = opening.open_trained(run, Silent()).model.state_dict()
    base = opening.open_base(run, opening.open_trained(run, Silent()).tokenizer).model.state_dict()
    changed = {name for name in base if not torch.equal(base[name], trained[name])}
    assert trained.keys() == base.keys()
    assert {".".join(name.split(".")[:3]) for name in changed} == {"model.layers.1", "model.norm.weight"}


def test_a_wrong_type_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    config = config_of("vera", tmp_path, tmp_path / "no-model", ROWS, "peft={type: VERRA}")
    with pytest.raises(ConfigError, match=r"PEFT has no type VERRA\n.*did you mean VERA"):
        sft.fit(config)


def test_another_adapter_of_peft_than_the_earlier_one_is_refused(tmp_path: Path, tiny_model: Path) -> None:
    def again(*overrides: str) -> Config:
        return config_of("vera", tmp_path / "new", tiny_model, ROWS, f"init_from={old.path}", "training.max_steps=1", *overrides)

    old = sft.fit(config_of("vera", tmp_path / "old", tiny_model, ROWS, "training.max_steps=1"))
    for override, words in {
        "peft={type: VERA, r: 8}": r"peft\.r is 8 and the adapter in .* was made with 16",
        "peft={type: VERA, r: 16, target_modules: [q_proj]}": r"peft\.target_modules is \['q_proj'\] and .* without it \(type: VERA, r: 16\)",
        "peft={type: LOHA, r: 4}": r"peft\.type is LOHA and the adapter in .* was made with VERA",
        "peft.target_modules=[q_proj]": r"peft\.target_modules is \['q_proj'\]",
    }.items():
        with pytest.raises(ConfigError, match=words) as refused:
            session.with_earlier_adapter(again(override))
        assert refused.value.where == f"command line: {override}"
    for same in ((), ("peft={type: vera, r: 16}",), ("peft={type: VERA}",)):
        assert session.with_earlier_adapter(again(*same)).settings.peft == {"type": "VERA", "r": 16}


def test_a_folder_of_another_kind_than_lora_is_gone_on_from_by_its_run(learned: RunFolder, tmp_path: Path, tiny_model: Path) -> None:
    with pytest.raises(ConfigError, match=rf"goes on from a run\n[\s\S]*init_from: RUN, the run that trained it \({learned.path}\)"):
        session.with_earlier_adapter(config_of("bottleneck", tmp_path, tiny_model, ROWS, f"init_from={learned.adapter}"))


@pytest.mark.parametrize(("name", "readers"), [("bottleneck", "luthier"), ("ia3", "luthier, peft; for others: export --to merged")])
def test_an_exported_adapter_says_which_programs_read_it(name: str, readers: str, tmp_path: Path, tiny_model: Path) -> None:
    listener = Listener()
    handover.export(sft.fit(config_of(name, tmp_path, tiny_model, ROWS, "training.max_steps=1")), "adapter", listener)
    assert f"adapters of method: {name} are read by {readers}" in listener.lines
