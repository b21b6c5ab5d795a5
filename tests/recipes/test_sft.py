"""The whole road on the tiny model: what a run leaves behind, and that the same run twice, or stopped and resumed, is the same."""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest_runs import Listener, Write, chat_row, write_rows

from luthier import files
from luthier.config.load import load_config
from luthier.engine import batches, opening
from luthier.errors import ConfigError, DataError, NotFiniteError, RunError
from luthier.recipes import evaluation, handover, sft
from luthier.reporting import Silent
from luthier.run_folder import RunFolder, list_runs
from luthier.train import session

ROWS = [chat_row(place) for place in range(16)]
# 8 updates: 2 epochs of 16 rows in batches of 4.
EIGHT = ["training.num_train_epochs=2", "training.logging_steps=1"]
MEASURED = ("seconds", "peak_bytes")


def metrics_of(run: RunFolder) -> list[dict[str, Any]]:
    """metrics.jsonl less what a clock or a memory gauge says."""
    rows = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in row.items() if key not in MEASURED} for row in rows]


def losses_of(run: RunFolder) -> list[float]:
    return [row["loss"] for row in run.read_metrics("train")]


def weights_of(run: RunFolder) -> str:
    return files.sha256(run.adapter / "adapter_model.safetensors")


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


class PowerCut(Exception):
    """Ends a run as a power cut would: without a word."""


def cut_power() -> None:
    raise PowerCut


# What a run leaves behind


def test_the_run_folder_holds_what_the_design_says(write: Write) -> None:
    rows = [*ROWS, '{"messages": [', '{"messages": []}']
    write_rows(write(rows).file.parent / "eval.jsonl", [chat_row(place, "") for place in range(20, 23)])
    run = sft.fit(write(rows, "data.eval=eval.jsonl", "training.save_steps=2", *EIGHT))
    names = {str(path.relative_to(run.path)) for path in run.path.rglob("*") if path.is_file() and path.parent.parent != run.checkpoints}
    assert names == {
        *("config.yaml", "environment.json", "plan.json", "contract.json", "metrics.jsonl", "log.txt"),
        *("report.html", "model_card.md", "findings.json"),
        *("data/ledger.json", "data/rejected.jsonl", "data/eval.jsonl", "adapter/adapter_config.json", "adapter/adapter_model.safetensors"),
        *("adapter/luthier.json", "adapter/chat_template.jinja", "adapter/tokenizer.json", "adapter/tokenizer_config.json"),
    }
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["step-000006", "step-000008"]


def test_the_rows_of_metrics_have_the_frozen_keys(write: Write) -> None:
    write_rows(write(ROWS).file.parent / "eval.jsonl", [chat_row(20)])
    run = sft.fit(write(ROWS, "data.eval=eval.jsonl", "evaluation.every_steps=3", *EIGHT))
    train = {"kind", "step", "epoch", "loss", "grad_norm", "learning_rate", "logical_tokens", "executed_tokens", "trained_tokens", *MEASURED}
    assert {frozenset(row) for row in run.read_metrics("train")} == {frozenset(train)}
    assert {frozenset(row) for row in run.read_metrics("eval")} == {frozenset({"kind", "step", "loss", "metrics", "drift"})}
    assert [row["step"] for row in run.read_metrics("eval")] == [3, 6, 8]
    assert run.read_metrics("eval")[-1]["loss"] < run.read_metrics("eval")[0]["loss"]


def test_the_ledger_is_reconciled_and_broken_rows_are_kept_verbatim(write: Write) -> None:
    broken = ['{"messages": [{"role": "user", "content": "é', '{"messages": [{"role":"user",  "content":"no answer"}]}']
    run = sft.fit(write([*ROWS, *broken]))
    ledger = json.loads(run.ledger.read_text(encoding="utf-8"))
    assert ledger.keys() >= {"rows", "tokens", "sources"}
    assert ledger["tokens"].keys() == {"read", "trained", "masked", "cut", "repeated"}
    assert ledger["rows"]["read"] == 18 == ledger["rows"]["used"] + sum(ledger["rows"]["rejected"].values())
    assert ledger["tokens"]["read"] == sum(row["logical_tokens"] for row in run.read_metrics("train"))
    assert ledger["tokens"]["trained"] == sum(row["trained_tokens"] for row in run.read_metrics("train"))
    rejected = [json.loads(line) for line in run.rejected.read_text(encoding="utf-8").splitlines()]
    assert [row["raw"] for row in rejected] == broken
    assert [row["line"] for row in rejected] == [17, 18]


def test_the_settings_of_a_run_load_from_anywhere(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = write(ROWS, "training.batch_size=auto", "training.learning_rate=auto", "training.precision=auto", "output_dir=out")
    run = sft.fit(config)
    monkeypatch.chdir(tmp_path)
    settings = load_config(run.config).settings
    assert settings.data.train == str(tmp_path / "project" / "train.jsonl")
    assert settings.output_dir == str(tmp_path / "project" / "out")
    assert Path(settings.model).is_absolute()
    assert "auto" not in run.config.read_text(encoding="utf-8").replace("format: auto", "")
    assert settings.training.precision == "fp32"  # the faster one on this machine
    # The same settings once more are the same run.
    assert losses_of(sft.fit(load_config(run.config))) == losses_of(run)


def test_a_home_folder_is_understood_in_paths(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    config = write(ROWS, "data.train=~/project/train.jsonl", "output_dir=~/runs")
    run = sft.fit(config)
    assert run.path.parent == tmp_path / "runs"
    assert load_config(run.config).settings.data.train == str(tmp_path / "project" / "train.jsonl")


def test_runs_of_the_same_minute_get_folders_of_their_own(write: Write) -> None:
    config = write(ROWS)
    runs = [sft.fit(config) for _ in range(3)]
    assert len({run.path for run in runs}) == 3
    assert {run.path for run in list_runs(runs[0].path.parent)} == {run.path for run in runs}


def test_peft_itself_loads_the_adapter_and_computes_the_same(learned: RunFolder, tiny_model: Path) -> None:
    import peft
    from transformers import AutoModelForCausalLM

    engine = opening.open_trained(learned, Silent())
    other = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32), str(learned.adapter)).eval()
    ids = torch.tensor([[5, 60, 7, 320, 44, 8, 9]])
    with torch.no_grad():
        expected, found = engine.model(input_ids=ids).logits, other(input_ids=ids).logits
        with opening.as_base(engine, learned):
            base = engine.model(input_ids=ids).logits
    assert torch.allclose(expected, found, atol=1e-4)
    assert not torch.allclose(base, found, atol=1e-1)


# Few rows, other rows


def test_three_rows_train_and_it_is_said_what_is_off(write: Write) -> None:
    listener = Listener()
    run = sft.fit(write(ROWS[:3], "data.eval=5%", "training.batch_size=auto", "training.num_train_epochs=8"), listener)
    assert any(line.startswith("evaluation is off: 3 rows are too few") for line in listener.lines)
    assert load_config(run.config).settings.training.batch_size <= 3  # type: ignore[operator]
    assert losses_of(run)[-1] < losses_of(run)[0]
    assert run.read_metrics("eval") == []


def test_forty_rows_train(write: Write) -> None:
    run = sft.fit(write([chat_row(place) for place in range(40)], "data.eval=5%", "training.batch_size=auto"))
    assert sum(row["trained_tokens"] for row in run.read_metrics("train")) == json.loads(run.ledger.read_text())["tokens"]["trained"]


def test_from_forty_one_rows_on_some_are_held_out(write: Write) -> None:
    run = sft.fit(write([chat_row(place) for place in range(41)], "data.eval=5%"))
    assert len(run.held_out.read_text(encoding="utf-8").splitlines()) == 2
    assert len(run.read_metrics("eval")) == 1


BARE = {
    "completion": [{"prompt": f"{place} Pierce Rd: ", "completion": f"Town {place}"} for place in range(44)],
    "text": [{"text": f"A luthier builds {place} guitars."} for place in range(44)],
}


@pytest.mark.parametrize("format", BARE)
def test_rows_without_a_template_train_and_can_be_shown(format: str, write: Write) -> None:
    settings = ["data.eval=5%", "evaluation.every_steps=4", "evaluation.sample_answers=2"]
    run = sft.fit(write(BARE[format], *settings), listener := Listener())
    assert losses_of(run)[-1] < losses_of(run)[0]
    assert len(run.read_metrics("eval")) == 3
    shown = [line for line in listener.lines if "  ->  " in line]
    assert len(shown) == (6 if format == "completion" else 0)  # a text asks nothing


def test_sample_answers_are_printed_while_training(write: Write) -> None:
    config = write(ROWS)
    write_rows(config.file.parent / "eval.jsonl", [chat_row(place) for place in range(20, 25)])
    listener = Listener()
    sft.fit(write(ROWS, "data.eval=eval.jsonl", "evaluation.every_steps=2", "evaluation.sample_answers=2"), listener)
    shown = [line for line in listener.lines if "  ->  " in line]
    assert [line.partition("  ->  ")[0].strip() for line in shown] == ["120 Pierce Rd, Aurora", "121 Pierce Rd, Peoria"] * 2


def test_broken_data_stops_before_a_model_is_looked_for(write: Write) -> None:
    with pytest.raises(DataError, match="rows can"):
        sft.fit(write(['{"messages": ['] * 8, "model=./no-such-model"))


def test_a_metric_that_the_rows_do_not_allow_stops_before_training(write: Write) -> None:
    config = write(BARE["completion"], "data.eval=5%", "evaluation.metrics=[field_f1]")
    with pytest.raises(DataError, match="field_f1 compares the fields of JSON objects"):
        sft.fit(config)
    assert list_runs(config.file.parent / "runs") == []


@pytest.mark.parametrize("kind", ["a file", "not writable"])
def test_an_output_dir_that_cannot_be_used_is_named(kind: str, write: Write) -> None:
    config = write(ROWS)
    place = config.file.parent / "runs"
    if kind == "a file":
        place.write_text("mine")
    elif os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    else:
        place.mkdir(mode=0o500)
    with pytest.raises(RunError, match="a file stands where a folder is needed" if kind == "a file" else "not writable"):
        sft.fit(config)


def test_a_disk_without_room_is_named_before_training(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1_000_000))  # type: ignore[attr-defined]
    with pytest.raises(RunError, match="only 1 MB are free"):
        sft.fit(write(ROWS))


# The same run is the same


def test_two_runs_with_the_same_seed_are_the_same_and_another_seed_is_not(write: Write) -> None:
    one, other, elsewhere = (sft.fit(write(ROWS, *EIGHT, f"seed={seed}")) for seed in (0, 0, 1))
    assert metrics_of(one) == metrics_of(other)
    assert weights_of(one) == weights_of(other)
    assert losses_of(one) != losses_of(elsewhere)


@pytest.mark.parametrize("change", ["training.micro_batch_tokens=64", "training.micro_batch_tokens=1", "training.share_prefixes=false"])
def test_how_an_update_is_cut_does_not_change_the_losses(change: str, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "PASS_TOKENS", 0)  # these rows are short: nothing shared would pay
    straight, cut = sft.fit(write(ROWS, *EIGHT)), sft.fit(write(ROWS, *EIGHT, change))
    assert losses_of(cut) == pytest.approx(losses_of(straight), rel=1e-5)
    executed = [sum(row["executed_tokens"] for row in run.read_metrics("train")) for run in (straight, cut)]
    assert (executed[0] < executed[1]) == ("share_prefixes" in change)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("stop_after", [1, 3, 7])
def test_a_run_stopped_by_ctrl_c_and_resumed_is_the_straight_one_to_the_bit(stop_after: int, dropout: float, write: Write) -> None:
    config = write(ROWS, *EIGHT, f"lora.lora_dropout={dropout}", "training.lr_scheduler_type=cosine")
    straight = sft.fit(config)

    with pytest.raises(session.Interrupted) as stopped:
        sft.fit(config, Listener(**{f"step_{stop_after}/8": interrupt}))
    assert stopped.value.exit_code == 130
    run = RunFolder(Path(stopped.value.where))
    assert stopped.value.next_step == f"luthier train --resume {run.path}"
    assert [path.name for path in run.checkpoints.iterdir()] == [f"step-{stop_after:06d}"]
    assert not run.adapter.exists()

    assert sft.fit(load_config(run.config), resume=run) == run
    assert metrics_of(run) == metrics_of(straight)
    assert weights_of(run) == weights_of(straight)


def test_dropout_changes_the_losses(write: Write) -> None:
    assert losses_of(sft.fit(write(ROWS, *EIGHT, "lora.lora_dropout=0.1"))) != losses_of(sft.fit(write(ROWS, *EIGHT)))


def test_a_run_that_lost_its_power_goes_on_from_its_last_checkpoint(write: Write) -> None:
    write_rows(write(ROWS).file.parent / "eval.jsonl", [chat_row(20)])
    config = write(ROWS, *EIGHT, "training.save_steps=3", "data.eval=eval.jsonl", "evaluation.every_steps=2")
    straight = sft.fit(config)
    with pytest.raises(PowerCut):
        sft.fit(config, Listener(**{"step_5/8  loss": cut_power}))
    (run,) = (run for run in list_runs(config.file.parent / "runs") if run != straight)
    with run.metrics.open("a") as file:
        file.write('{"kind": "tr')  # half a line, as a cut leaves it
    listener = Listener()
    sft.fit(load_config(run.config), listener, resume=run)
    assert f"resumed from {run.checkpoints / 'step-000003'}" in listener.lines
    assert metrics_of(run) == metrics_of(straight)
    assert weights_of(run) == weights_of(straight)


def test_a_damaged_checkpoint_is_said_and_the_older_one_used(write: Write) -> None:
    config = write(ROWS, *EIGHT, "training.save_steps=2")
    straight = sft.fit(config)
    with pytest.raises(session.Interrupted) as stopped:
        sft.fit(config, Listener(**{"step_5/8": interrupt}))
    run = RunFolder(Path(stopped.value.where))
    (run.checkpoints / "step-000005" / "trained.safetensors").write_bytes(b"")
    listener = Listener()
    sft.fit(load_config(run.config), listener, resume=run)
    assert any(line.startswith("not used: step-000005: trained.safetensors has 0 bytes, and ") for line in listener.lines)
    assert weights_of(run) == weights_of(straight)


def test_a_run_is_not_resumed_on_other_rows(write: Write) -> None:
    config = write(ROWS, *EIGHT)
    with pytest.raises(session.Interrupted) as stopped:
        sft.fit(config, Listener(**{"step_3/8": interrupt}))
    run = RunFolder(Path(stopped.value.where))
    before = run.metrics.read_bytes()
    write_rows(config.file.parent / "train.jsonl", [*ROWS[:-1], chat_row(99)])
    with pytest.raises(RunError, match="the training rows have changed"):
        sft.fit(load_config(run.config), resume=run)
    assert run.metrics.read_bytes() == before


@pytest.mark.parametrize("name", ["own.jinja", "own.jinja2", "own.j2"])
def test_a_template_that_changed_is_no_promise_of_a_run_that_was_trained_with_another(name: str, write: Write, tiny_model: Path) -> None:
    config = write(ROWS, *EIGHT, f"template={name}")
    template = config.file.parent / name
    template.write_text((tiny_model / "chat_template.jinja").read_text(encoding="utf-8"), encoding="utf-8")
    run = sft.fit(config)
    promised = run.contract.read_bytes()
    template.write_text(template.read_text(encoding="utf-8").replace("helpful", "terse"), encoding="utf-8")
    write_rows(config.file.parent / "train.jsonl", [chat_row(99, ""), *ROWS])
    with pytest.raises(RunError, match="the training rows have changed"):
        sft.fit(load_config(run.config), resume=run)
    assert run.contract.read_bytes() == promised


def test_chats_that_were_split_can_be_held_out_shown_measured_and_exported(write: Write, tmp_path: Path) -> None:
    """A chat of many turns is trained in parts that fit; the question before its last answer is longer than the model's context."""
    turns = [turn for place in range(30) for turn in chat_row(place, "")["messages"]]
    write_rows(tmp_path / "eval.jsonl", [{"messages": turns}, chat_row(30)])
    listener = Listener()
    overrides = ["data.too_long=split", f"data.eval={tmp_path / 'eval.jsonl'}", "evaluation.sample_answers=2"]
    run = sft.fit(write(ROWS, *overrides), listener)
    assert sum("  ->  " in line for line in listener.lines) == 1
    assert evaluation.evaluate(run, listener).data["rows"] == 1
    assert "not asked: 1 of 2 questions, which leave no room for an answer in 512 tokens" in listener.lines
    assert handover.export(run, "merged", precision="fp32")[1].passed


def test_a_loss_that_is_no_number_stops_the_run(write: Write) -> None:
    config = write(ROWS, *EIGHT, "training.save_steps=1", "training.learning_rate=1", "lora.lora_alpha=1e38", "training.max_grad_norm=1e30")
    with pytest.raises(NotFiniteError, match=r"step \d \(rows .*train\.jsonl:\d+"):
        sft.fit(config)
    (run,) = list_runs(config.file.parent / "runs")
    assert not run.adapter.exists()
    assert len(list(run.checkpoints.iterdir())) == min(2, len(losses_of(run)))


# From an earlier run


def test_init_from_goes_on_from_an_old_adapter_and_leaves_it_alone(write: Write) -> None:
    old = sft.fit(write(ROWS, *EIGHT, "output_dir=runs"))
    before = {path: path.read_bytes() for path in old.path.rglob("*") if path.is_file()}
    new = sft.fit(write(ROWS, *EIGHT, f"init_from={old.name}", "seed=5"))
    assert new.path != old.path
    assert losses_of(new)[0] < 0.6 * losses_of(old)[0]
    assert {path: path.read_bytes() for path in old.path.rglob("*") if path.is_file()} == before
    assert load_config(new.config).settings.init_from == str(old.path)


def test_init_from_a_run_that_has_not_ended_is_refused(write: Write) -> None:
    with pytest.raises(session.Interrupted) as stopped:
        sft.fit(write(ROWS, *EIGHT), Listener(**{"step_3/8": interrupt}))
    config = write(ROWS, f"init_from={stopped.value.where}")
    with pytest.raises(ConfigError, match="has no adapter"):
        sft.fit(config)
    with pytest.raises(ConfigError, match=r"init_from: nothing is not a run\n  Try: luthier runs list"):
        sft.fit(write(ROWS, "init_from=nothing"))


def test_init_from_takes_the_form_of_the_old_adapter(write: Write) -> None:
    """Settings that say otherwise are not silently passed over, and the old dropout goes on to forbid shared prefixes."""
    old = sft.fit(write(ROWS, "lora.lora_dropout=0.1"))
    with pytest.raises(ConfigError, match=r"lora\.r is 8 and the adapter in .* was made with 4"):
        sft.fit(write(ROWS, f"init_from={old.path}", "lora.r=8"))
    config = write(ROWS, f"init_from={old.path}")
    text = config.file.read_text(encoding="utf-8").replace("lora: {r: 4, lora_alpha: 8, lora_dropout: 0.0}\n", "")
    config.file.write_text(text, encoding="utf-8")
    new = sft.fit(load_config(config.file, [f"init_from={old.path}", "training.batch_size=4", "training.num_train_epochs=1"]))
    assert load_config(new.config).settings.lora == load_config(old.config).settings.lora
    assert [row["executed_tokens"] for row in new.read_metrics("train")] == [row["executed_tokens"] for row in old.read_metrics("train")]


def test_init_from_last_is_the_run_before_this_one(write: Write) -> None:
    old = sft.fit(write(ROWS))
    assert load_config(sft.fit(write(ROWS, "init_from=last")).config).settings.init_from == str(old.path)


def test_a_refused_run_leaves_no_folder(write: Write) -> None:
    config = write(ROWS, "init_from=nothing")
    with pytest.raises(ConfigError):
        sft.fit(config)
    assert not (config.file.parent / "runs").exists()


# Ctrl-C for real
