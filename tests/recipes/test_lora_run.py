"""LoRA's variants along the whole road: resumed as if never stopped, opened again as they were, gone on from, and exported with a word."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from conftest_runs import Listener, Write, chat_row
from safetensors.torch import load_file

from luthier import files
from luthier.config.load import load_config
from luthier.engine import opening
from luthier.errors import ConfigError, ModelError
from luthier.models import load, weights
from luthier.recipes import handover, sft
from luthier.reporting import Silent
from luthier.run_folder import RunFolder
from luthier.train import session

ROWS = [chat_row(place) for place in range(16)]
LOGGED = "training.logging_steps=1"


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def losses_of(run: RunFolder) -> list[float]:
    return [row["loss"] for row in run.read_metrics("train")]


def config_of(run: RunFolder) -> dict[str, Any]:
    config: dict[str, Any] = files.read_json(run.adapter / "adapter_config.json")
    return config


VARIANTS = {
    "dora": ["method=dora"],
    "pissa": ["lora.init_lora_weights=pissa"],
    "olora": ["lora.init_lora_weights=olora", "lora.use_rslora=true"],
    "loftq": ["lora.init_lora_weights=loftq", "lora.lora_dropout=0.1"],
    "orthogonal": ["lora.init_lora_weights=orthogonal"],
    "eva": ["lora.init_lora_weights=eva"],
    "loftq on 4 bits": ["method=qlora", "lora.init_lora_weights=loftq"],
    "pissa on 4 bits": ["method=qlora", "lora.init_lora_weights=pissa"],
    "loraplus": ["lora.loraplus_lr_ratio=16", "training.learning_rate=1e-3"],
    "patterns": ["lora.rank_pattern={q_proj: 2}", "lora.alpha_pattern={v_proj: 3}", "lora.target_modules=.*(q|v)_proj"],
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_that_is_stopped_and_resumed_is_the_straight_one_to_the_bit(variant: str, write: Write) -> None:
    config = write(ROWS, LOGGED, *VARIANTS[variant])
    straight = sft.fit(config)
    with pytest.raises(session.Interrupted) as stopped:
        sft.fit(config, Listener(step_2=interrupt))
    run = RunFolder(Path(stopped.value.where))
    for kept in (run.path / "start").glob("*"):
        assert load_file(kept)
    sft.fit(load_config(run.config), resume=run)
    assert losses_of(run) == losses_of(straight)
    assert losses_of(run)[-1] < losses_of(run)[0]
    one, other = (load_file(each.adapter / "adapter_model.safetensors") for each in (run, straight))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert config_of(run) == config_of(straight)
    assert config_of(run)["init_lora_weights"] is True


@pytest.mark.parametrize("how", ["pissa", "olora", "loftq"])
def test_what_an_adapter_began_at_is_kept_for_resuming_and_not_made_again(how: str, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    config = write(ROWS, LOGGED, f"lora.init_lora_weights={how}")
    straight = sft.fit(config)
    with pytest.raises(session.Interrupted) as stopped:
        sft.fit(config, Listener(step_2=interrupt))
    run = RunFolder(Path(stopped.value.where))

    def another_machine(*_: Any, **__: Any) -> Any:
        raise AssertionError("its singular vectors may differ in the last bits")

    monkeypatch.setattr(torch.linalg, "svd", another_machine)
    monkeypatch.setattr(torch.linalg, "qr", another_machine)
    sft.fit(load_config(run.config), resume=run)
    assert losses_of(run) == losses_of(straight)


def test_a_trained_start_is_opened_again_as_plain_lora(write: Write, tiny_model: Path) -> None:
    listener = Listener()
    run = sft.fit(write(ROWS, LOGGED, "lora.init_lora_weights=pissa"), listener)
    assert "init_lora_weights: pissa begins as the base does, and is saved as plain LoRA of twice the rank" in listener.lines
    assert (config_of(run)["r"], config_of(run)["lora_alpha"]) == (8, 16)
    ids = torch.arange(3, 40)[None]
    ours = opening.open_trained(run, Silent())
    theirs = peft.PeftModel.from_pretrained(load.load_model(tiny_model, "fp32", "cpu"), str(run.adapter))
    with torch.no_grad():
        expected, found = ours.model(input_ids=ids).logits, theirs(input_ids=ids).logits
    assert float((expected - found).abs().max() / expected.std()) < 1e-4


def test_what_is_trained_is_said_in_numbers_and_kept_with_the_base(write: Write, tiny_model: Path) -> None:
    listener = Listener()
    run = sft.fit(write(ROWS, LOGGED), listener)
    lora = sum(tensor.numel() for tensor in load_file(run.adapter / "adapter_model.safetensors").values())
    base = sum(tensor.numel() for tensor in load_file(tiny_model / "model.safetensors").values())
    (line,) = (line for line in listener.lines if line.startswith("trained: "))
    assert line == f"trained: {lora:,} of {base + lora:,} parameters ({100 * lora / (base + lora):.2f} %)"
    assert line in run.log.read_text()
    assert files.read_json(run.environment)["base_sha256"] == weights.fingerprint(tiny_model)
    assert files.read_json(run.adapter / "luthier.json") == {"base": str(tiny_model), "base_sha256": weights.fingerprint(tiny_model)}


def test_lora_plus_moves_b_faster_from_the_first_update(write: Write) -> None:
    def lengths(*settings: str) -> tuple[float, float]:
        run = sft.fit(write(ROWS, "training.max_steps=1", "training.lr_scheduler_type=constant", "training.learning_rate=1e-4", *settings))
        stored = load_file(run.adapter / "adapter_model.safetensors")
        return tuple(sum(float(tensor.norm()) for name, tensor in stored.items() if half in name) for half in ("lora_A", "lora_B"))  # type: ignore[return-value]

    (a, b), (same_a, faster_b) = lengths(), lengths("lora.loraplus_lr_ratio=16")
    assert faster_b == pytest.approx(16 * b, rel=1e-3)
    assert same_a == pytest.approx(a, rel=1e-6)


# From an adapter of another tool


def adapter_of_peft(folder: Path, model: Path) -> Path:
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], use_rslora=True, task_type="CAUSAL_LM")
    theirs = peft.get_peft_model(load.load_model(model, "fp32", "cpu"), config)
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1, generator=torch.Generator().manual_seed(len(name)))
    theirs.save_pretrained(folder)
    return folder


def without_lora(config: Any, *overrides: str) -> Any:
    """The same settings with no word about LoRA."""
    config.file.write_text(config.file.read_text(encoding="utf-8").replace("lora: {r: 4, lora_alpha: 8, lora_dropout: 0.0}\n", ""), encoding="utf-8")
    return load_config(config.file, ["training.precision=fp32", "training.learning_rate=1e-2", "training.batch_size=4", *overrides])


def test_a_run_goes_on_from_an_adapter_of_peft_as_it_is(write: Write, tmp_path: Path, tiny_model: Path) -> None:
    theirs = adapter_of_peft(tmp_path / "theirs", tiny_model)
    untouched = {path.name: path.read_bytes() for path in theirs.iterdir()}
    config = without_lora(write(ROWS), "init_from=../theirs", "training.max_steps=2")
    run = sft.fit(config)
    settings = load_config(run.config).settings
    assert (settings.lora.r, settings.lora.use_rslora, settings.lora.target_modules) == (4, True, ["q_proj", "v_proj"])
    assert settings.init_from == str(theirs)
    before, after = load_file(theirs / "adapter_model.safetensors"), load_file(run.adapter / "adapter_model.safetensors")
    assert before.keys() == after.keys()
    assert all(0 < (before[name] - after[name]).abs().max() < 0.1 for name in before)
    assert config_of(run)["use_rslora"]
    assert config_of(run)["target_modules"] == ["q_proj", "v_proj"]
    assert {path.name: path.read_bytes() for path in theirs.iterdir()} == untouched
    again = sft.fit(load_config(run.config, [f"init_from={run.adapter}"]))  # the adapter's own folder, of a run too
    assert losses_of(again)[0] < losses_of(run)[0]


def test_what_such_an_adapter_is_not_is_refused(write: Write, tmp_path: Path, tiny_model: Path) -> None:
    theirs = adapter_of_peft(tmp_path / "theirs", tiny_model)
    with pytest.raises(ConfigError, match=r"lora\.lora_alpha is 16.0 and the adapter in .*theirs was made with 8"):
        sft.fit(write(ROWS, "init_from=../theirs", "lora.lora_alpha=16"))
    with pytest.raises(ConfigError, match="without column lengths"):
        sft.fit(without_lora(write(ROWS), "init_from=../theirs", "method=dora"))
    with pytest.raises(ConfigError, match=r"holds an adapter, and method: full goes on from a run"):
        sft.fit(without_lora(write(ROWS), "init_from=../theirs", "method=full"))
    config = json.loads((theirs / "adapter_config.json").read_text())
    (theirs / "adapter_config.json").write_text(json.dumps(config | {"peft_type": "IA3"}))
    with pytest.raises(ModelError, match="holds an adapter of kind IA3"):
        sft.fit(without_lora(write(ROWS), "init_from=../theirs"))


def test_a_run_goes_on_from_a_converted_start_as_the_plain_lora_that_it_is(write: Write) -> None:
    old = sft.fit(write(ROWS, "lora.init_lora_weights=pissa"))
    new = sft.fit(without_lora(write(ROWS), f"init_from={old.path}", "training.max_steps=2"))
    assert (load_config(new.config).settings.lora.r, load_config(new.config).settings.lora.init_lora_weights) == (8, "default")
    assert config_of(new)["r"] == 8
    assert losses_of(new)[0] < losses_of(old)[0]


# Settings that cannot be together

TOGETHER = {
    "dora that is none": (["method=dora", "lora.use_dora=false"], "method: dora is lora with use_dora: true"),
    "dora from elsewhere": (["method=dora", "lora.init_lora_weights=pissa"], "is saved as plain LoRA, and use_dora adapters cannot be"),
    "eva and ranks": (["lora.init_lora_weights=eva", "lora.rank_pattern={q_proj: 2}"], "eva gives layers with one input one rank"),
}


@pytest.mark.parametrize("case", TOGETHER)
def test_what_cannot_be_together_is_refused_when_the_settings_are_read(case: str, write: Write) -> None:
    overrides, words = TOGETHER[case]
    with pytest.raises(ConfigError, match=words):
        write(ROWS, *overrides)


NOTES = {
    "plain": ([], []),
    "dora": (["method=dora"], ["do not read the column lengths of use_dora: export --to merged for these"]),
    "tables": (["lora.modules_to_save=[embed_tokens, lm_head]"], ["do not read an embedding or a head from an adapter"]),
    "rows": (["tokenizer.add_special_tokens=['<|call|>']"], ["do not read the rows of added tokens from an adapter"]),
}


@pytest.mark.parametrize("case", NOTES)
def test_an_exported_adapter_says_who_cannot_read_it(case: str, write: Write) -> None:
    overrides, words = NOTES[case]
    run = sft.fit(write(ROWS, "training.max_steps=1", *overrides))
    listener = Listener()
    _, certificate = handover.export(run, "adapter", listener)
    assert certificate.passed
    readers = "peft" if case == "dora" else "peft, vllm, sglang, lorax, llama.cpp"
    method = "dora" if case == "dora" else "lora"
    assert f"adapters of method: {method} are read by luthier, {readers}; for others: export --to merged" in listener.lines
    said = [line for line in listener.lines if "do not read" in line]
    assert len(said) == len(words)
    assert all(word in line for word, line in zip(words, said, strict=True))


OWN = {
    "pissa": (["lora.init_lora_weights=pissa"], 8, 1),
    "pissa on 4 bits": (["method=qlora", "lora.init_lora_weights=pissa"], 8, 1),
    "loftq on 4 bits": (["method=qlora", "lora.init_lora_weights=loftq"], 4, 0),
    "eva": (["lora.init_lora_weights=eva"], 4, 0),
}


@pytest.mark.parametrize("start", OWN)
def test_a_run_goes_on_with_the_settings_that_it_was_made_with(start: str, write: Write) -> None:
    own, rank, notes = OWN[start]
    old = sft.fit(write(ROWS, "training.max_steps=2", *own))
    listener = Listener()
    new = sft.fit(write(ROWS, *own, f"init_from={old.path}", "training.max_steps=2"), listener)
    assert (config_of(new)["r"], load_config(new.config).settings.lora.r) == (rank, rank)
    said = [line for line in listener.lines if line.startswith("init_from")]
    assert len(said) == notes
    assert all("began at pissa and is plain LoRA now: the adapter has twice the rank (8), and all of it is trained" in line for line in said)
    with pytest.raises(ConfigError, match=rf"lora\.r is 3 and the adapter in .* was made with {rank}"):
        session.with_earlier_adapter(write(ROWS, *own, f"init_from={old.path}", "lora.r=3"))


def test_column_lengths_are_not_taken_out_of_an_earlier_adapter(write: Write) -> None:
    old = sft.fit(write(ROWS, "training.max_steps=1", "method=dora"))
    with pytest.raises(ConfigError, match=r"lora\.use_dora is False and the adapter in .* was made with True"):
        session.with_earlier_adapter(write(ROWS, f"init_from={old.path}", "lora.use_dora=false"))


def test_another_base_below_an_earlier_adapter_is_said(write: Write) -> None:
    def said(*overrides: str) -> list[str]:
        config = session.with_earlier_adapter(write(ROWS, f"init_from={old.path}", *overrides))
        return [line.partition(" was trained ")[2] for line in config.notes if "was trained" in line]

    old = sft.fit(write(ROWS, "training.max_steps=1", name="plain"))
    assert said() == []
    assert said("method=qlora")[0].startswith("beside an unquantized base and goes on beside a base in nf4: ")
    listener = Listener()
    old = sft.fit(write(ROWS, "training.max_steps=1", "method=qlora", f"init_from={old.path}", name="quantized"), listener)
    assert any("goes on beside a base in nf4" in line for line in listener.lines)
    assert said("method=qlora") == []
    assert said()[0].startswith("beside a base in nf4 and goes on beside an unquantized base")
    assert "beside a base in int8" in said("method=qlora", "qlora.quantization=int8")[0]
    assert "a base in nf4 without double_quant" in said("method=qlora", "qlora.double_quant=false")[0]
