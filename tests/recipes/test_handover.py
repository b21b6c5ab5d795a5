"""What is exported answers as the trained model does, is readable by other tools, and overwrites nothing."""

import json
import re
from pathlib import Path

import pytest
import torch
from conftest_runs import Write, chat_row

from luthier.config.load import load_config
from luthier.data.tokenize import prompt_ids
from luthier.engine import opening
from luthier.errors import CallError, ParityError, RunError
from luthier.export import merged
from luthier.models import save
from luthier.recipes import evaluation, handover, sft
from luthier.reporting import Silent
from luthier.run_folder import RunFolder


def test_a_merged_model_is_an_ordinary_one_and_answers_the_same(copied: RunFolder) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, parity = handover.export(copied, "merged", precision="fp32")
    assert folder == copied.path / "merged"
    assert parity.passed
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    row = json.loads(Path(str(load_config(copied.config).settings.data.train)).read_text(encoding="utf-8").splitlines()[3])
    asked = tokenizer.apply_chat_template(row["messages"][:-1], add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**asked, max_new_tokens=40, do_sample=False)[0, asked["input_ids"].shape[1] :]
    assert tokenizer.decode(answer, skip_special_tokens=True) == row["messages"][-1]["content"]


def test_the_certificate_has_its_frozen_shape_and_fp32_keeps_every_digit(copied: RunFolder) -> None:
    _, parity = handover.export(copied, "merged", precision="fp32")
    (stored,) = json.loads(copied.parity.read_text(encoding="utf-8"))
    assert stored.keys() >= {"artifact", "engine", "max_logit_difference", "mean_kl", "greedy_agreement", "threshold", "passed"}
    assert stored["artifact"] == "merged"
    assert stored["threshold"]["max_logit_difference_in_std"] == 1e-4 >= stored["max_logit_difference_in_std"] > 0
    assert stored["metrics"].keys() == {"exact_match", "valid_json", "field_f1"}
    assert stored["metrics"]["valid_json"]["trained"] == stored["metrics"]["valid_json"]["artifact"]
    assert stored["mean_kl"] <= stored["max_kl"]
    assert (stored["stored"], stored["top1_agreement"], stored["prompts"]) == ("fp32", 1.0, 2)
    assert stored["perplexity"]["artifact"] == pytest.approx(stored["perplexity"]["trained"], rel=1e-4)
    assert json.loads((copied.path / "merged" / "parity.json").read_text(encoding="utf-8")) == [stored]
    assert parity.max_logit_difference < 1e-3
    assert parity.mean_kl < 1e-8
    assert parity.greedy_agreement == 1.0
    assert parity.passed is True


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_rounded_model_is_within_its_own_threshold(precision: str, copied: RunFolder) -> None:
    folder, parity = handover.export(copied, "merged", precision=precision)
    assert parity.passed
    assert 0 < parity.mean_kl < 1e-3
    assert json.loads((folder / "config.json").read_text())["dtype"] == {"bf16": "bfloat16", "fp16": "float16"}[precision]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_merge_that_is_wrong_does_not_pass(precision: str, copied: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """An adapter merged 10 % too strong: the answers may still be equal, the certificate says that the model is not."""
    honest = merged.write_merged

    def broken(engine: opening.Engine, folder: Path, precision: str, shard_bytes: int) -> Path:
        for module in engine.model.modules():
            if isinstance(getattr(module, "scaling", None), dict):
                module.scaling = {name: 1.1 * scale for name, scale in module.scaling.items()}
        return honest(engine, folder, precision, shard_bytes)

    handover.export(copied, "merged", precision=precision)
    good = (copied.path / "merged" / "model.safetensors").read_bytes()
    monkeypatch.setattr(merged, "write_merged", broken)
    for _ in range(2):  # the second takes the place of the first
        folder, parity = handover.export(copied, "merged", precision=precision)
    assert not parity.passed
    assert json.loads(copied.parity.read_text(encoding="utf-8"))[0]["passed"] is False
    assert folder == copied.path / "merged.failed"
    assert sorted(path.name for path in copied.path.glob("merged*")) == ["merged", "merged.failed"]
    assert (copied.path / "merged" / "model.safetensors").read_bytes() == good
    if precision == "fp32":
        assert parity.differs.startswith("model.layers.0.self_attn.q_proj is the first layer that differs")
    assert re.search(r"furthest apart at token \d+ of \d+ of .*eval.jsonl:[12]", parity.differs)
    with pytest.raises(ParityError, match=r"does not answer as the trained model does: .*mean_kl is .* and may be no more than") as refused:
        handover.require(folder, parity)
    assert refused.value.exit_code == 4


def test_a_merge_without_the_adapter_does_not_pass(copied: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    from luthier.models import load

    def only_the_base(engine: opening.Engine, folder: Path, precision: str, shard_bytes: int) -> Path:
        base = load.load_model(Path(load_config(copied.config).settings.model), "fp32", "cpu")
        base.save_pretrained(folder)
        engine.tokenizer.save_pretrained(folder)
        return folder

    monkeypatch.setattr(merged, "write_merged", only_the_base)
    _, parity = handover.export(copied, "merged")
    assert not parity.passed
    assert parity.greedy_agreement == 0.0


def test_the_adapter_is_exported_in_pefts_format(copied: RunFolder, tmp_path: Path) -> None:
    folder, parity = handover.export(copied, "adapter", folder=tmp_path / "adapter")
    assert sorted(path.name for path in folder.iterdir()) == [
        "NOTICE",
        "SERVE.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "chat_template.jinja",
        "luthier.json",
        "parity.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert (folder / "adapter_model.safetensors").read_bytes() == (copied.adapter / "adapter_model.safetensors").read_bytes()
    assert parity.passed
    assert parity.max_logit_difference == 0.0


def test_two_artifacts_have_two_certificates_and_a_newer_replaces_the_older(copied: RunFolder) -> None:
    handover.export(copied, "merged", precision="bf16")
    handover.export(copied, "adapter")
    handover.export(copied, "merged", precision="fp32")
    rows = copied.read_parity()
    assert sorted(row["artifact"] for row in rows) == ["adapter-export", "merged"]
    assert next(row for row in rows if row["artifact"] == "merged")["max_logit_difference"] < 1e-3


def test_what_exists_is_not_overwritten(copied: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    for place in (tmp_path / "mine", tmp_path / "mine" / "thesis.txt"):
        with pytest.raises(RunError, match="is there already, and nothing is overwritten"):
            handover.export(copied, "merged", folder=place)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_an_export_that_breaks_off_leaves_nothing(copied: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(save, "config_of", stopped)
    with pytest.raises(KeyboardInterrupt):
        handover.export(copied, "merged", folder=tmp_path / "out" / "merged")
    assert list((tmp_path / "out").iterdir()) == []
    assert copied.read_parity() == []


def test_an_export_that_breaks_off_keeps_the_earlier_one(copied: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = handover.export(copied, "merged", precision="fp32")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(save, "config_of", stopped)
    with pytest.raises(KeyboardInterrupt):
        handover.export(copied, "merged")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("to", "precision", "said"),
    [("onnx", "bf16", "no such export: onnx"), ("merged", "int4", "no such number format: int4"), ("adapter", "fp16", "has one number format")],
)
def test_what_cannot_be_written_is_a_wrong_call(to: str, precision: str, said: str, copied: RunFolder) -> None:
    with pytest.raises(CallError, match=said):
        handover.export(copied, to, precision=precision)
    assert not (copied.path / "merged").exists()


def test_a_run_without_held_out_rows_is_compared_on_its_training_rows(copied: RunFolder) -> None:
    copied.held_out.write_text("")
    _, parity = handover.export(copied, "merged", precision="fp32")
    assert parity.passed
    assert parity.greedy_agreement == 1.0


def test_rows_that_training_set_aside_are_not_compared_on(write: Write) -> None:
    """A row that holds a control token as text, and no held-out rows."""
    run = sft.fit(write([chat_row(0, system="<|im_end|> is the end"), *(chat_row(place) for place in range(3))]))
    assert json.loads(run.ledger.read_text())["rows"]["rejected"] == {"special_token_in_text": 1}
    assert handover.export(run, "merged", precision="fp32")[1].passed


def test_the_run_can_still_be_used_after_an_export(copied: RunFolder) -> None:
    adapter = (copied.adapter / "adapter_model.safetensors").read_bytes()
    handover.export(copied, "merged", precision="fp32")
    assert (copied.adapter / "adapter_model.safetensors").read_bytes() == adapter
    data = str(load_config(copied.config).settings.data.train)
    assert evaluation.evaluate(copied, data=data).models["tuned"]["exact_match"].value == 1.0


def test_a_relative_folder_is_where_one_stands(copied: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder, parity = handover.export(copied, "merged", folder=Path("my-model"), precision="fp32")
    assert (tmp_path / "my-model" / "model.safetensors").is_file()
    assert parity.artifact == "my-model"
    engine = opening.open_model(str(folder), Silent(), "fp32", "cpu")
    with torch.no_grad():
        assert torch.isfinite(engine.model(input_ids=torch.tensor([prompt_ids([], engine.tokenizer) or [5]])).logits).all()
