"""What a run does with the settings of its engine: losses of rows, another attention, stored layers, the trial of the worst update."""

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from conftest_runs import Listener, Write, chat_row

from luthier.engine import opening
from luthier.errors import ConfigError, RunError
from luthier.recipes import sft
from luthier.reporting import Silent
from luthier.run_folder import RunFolder, list_runs
from luthier.train import session

ROWS = [chat_row(place) for place in range(8)]
FOUR = ["training.num_train_epochs=2", "training.logging_steps=1"]


def rows_of(run: RunFolder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.rows.read_text(encoding="utf-8").splitlines()]


def test_without_being_asked_no_rows_are_written(write: Write) -> None:
    assert not sft.fit(write(ROWS)).rows.exists()


@pytest.mark.parametrize("attention", ["auto", "sdpa"])
def test_every_row_of_every_update_has_its_loss(write: Write, attention: str) -> None:
    run = sft.fit(write(ROWS, "training.rows_file=true", f"training.attn_implementation={attention}", *FOUR))
    rows = rows_of(run)
    assert {frozenset(row) for row in rows} == {frozenset({"source", "loss", "trained_tokens", "step"})}
    assert [row["step"] for row in rows] == [step for step in (1, 2, 3, 4) for _ in range(4)]
    assert sorted(row["source"] for row in rows[:8]) == [f"train.jsonl:{line}" for line in range(1, 9)]
    for update in run.read_metrics("train"):
        of_update = [row for row in rows if row["step"] == update["step"]]
        total = sum(row["loss"] * row["trained_tokens"] for row in of_update)
        assert sum(row["trained_tokens"] for row in of_update) == update["trained_tokens"]
        assert total / update["trained_tokens"] == pytest.approx(update["loss"], rel=1e-5)
    assert len({row["loss"] for row in rows}) == len(rows)


def test_a_resumed_run_has_each_row_once(write: Write) -> None:
    settings = ["training.rows_file=true", "training.save_steps=1", *FOUR]
    straight = rows_of(sft.fit(write(ROWS, *settings, name="straight")))
    config = write(ROWS, *settings, name="stopped")
    with pytest.raises(session.Interrupted):
        sft.fit(config, Listener(step_2=lambda: os.kill(os.getpid(), signal.SIGINT)))
    stopped = list_runs(config.file.parent / "runs")[-1]
    stopped.rows.write_text(stopped.rows.read_text() + '{"source": "train.jsonl:1", "loss": 1.0, "trained_tokens": 3, "step": 3}\n{"sou')
    run = sft.fit(config, resume=stopped)
    assert [(row["source"], row["step"]) for row in rows_of(run)] == [(row["source"], row["step"]) for row in straight]
    assert rows_of(run) == straight


def test_a_loss_that_is_no_number_is_null(tmp_path: Path, write: Write) -> None:
    from luthier.records import Source, TokenizedExample

    run = RunFolder(tmp_path)
    run.add_rows(3, [TokenizedExample([1, 2], [False, True], Source("é.jsonl", 7))], [float("nan")])
    assert rows_of(run) == [{"source": "é.jsonl:7", "loss": None, "trained_tokens": 1, "step": 3}]


@pytest.mark.parametrize("name", ["sdpa", "eager"])
def test_another_attention_runs_plainly_and_says_so(write: Write, name: str) -> None:
    config = write(ROWS, f"training.attn_implementation={name}")
    listener = Listener()
    run = sft.fit(config, listener)
    assert f"the plain path is used, one row at a time: attn_implementation: {name} was asked for" in listener.lines
    fast = sft.fit(write(ROWS, name="fast"))
    losses, expected = ([row["loss"] for row in one.read_metrics("train")] for one in (run, fast))
    assert losses == pytest.approx(expected, rel=1e-3)


def test_the_attention_that_is_asked_for_is_the_models(write: Write) -> None:
    from luthier.models import load

    config = write(ROWS, "training.attn_implementation=eager", "training.gradient_checkpointing=off", "training.micro_batch_tokens=4096")
    engine = opening.start(config, config.settings, Path(config.settings.model), load.load_tokenizer(Path(config.settings.model)))
    assert engine.plain_reason == "attn_implementation: eager was asked for"
    assert engine.model.get_base_model().config._attn_implementation == "eager"


def test_flash_attention_that_cannot_run_here_is_refused_before_anything_else(write: Write) -> None:
    config = write(["no row"], "training.attn_implementation=flash_attention_2")
    with pytest.raises(ConfigError) as caught:
        sft.fit(config)
    assert caught.value.where == "training.attn_implementation"
    assert caught.value.problem == "flash_attention_2 runs on CUDA only"
    assert caught.value.next_step == "training.attn_implementation: auto"


def test_stored_layers_leave_the_run_as_it_is(write: Write) -> None:
    settings = ["lora.layers_to_transform=[1]", *FOUR]
    plain = sft.fit(write(ROWS, *settings, name="plain"))
    run = sft.fit(write(ROWS, *settings, "training.cache_frozen_layers=true", name="stored"))
    losses, expected = ([row["loss"] for row in one.read_metrics("train")] for one in (run, plain))
    assert losses == pytest.approx(expected, rel=1e-5)
    assert expected[-1] < expected[0]
    log = run.log.read_text()
    assert "the lowest 1 of 2 layers are frozen and run once" in log
    assert re.search(r"[\d,]+ tokens were spared the lowest 1 of 2 layers", log)
    assert not list(run.path.rglob("frozen*"))


def test_only_the_layers_that_are_asked_for_get_an_adapter(write: Write) -> None:
    run = sft.fit(write(ROWS, "lora.layers_to_transform=[1]"))
    adapter = json.loads((run.adapter / "adapter_config.json").read_text())
    assert adapter["layers_to_transform"] == [1]
    from safetensors.torch import load_file

    assert {name.split(".layers.")[1].split(".")[0] for name in load_file(run.adapter / "adapter_model.safetensors")} == {"1"}
    with pytest.raises(ConfigError, match=r"lora.layers_to_transform: layer 2 is not there: this model has 2\n  Try: numbers from 0 to 1"):
        sft.fit(write(ROWS, "lora.layers_to_transform=[1, 2]"))


def test_the_worst_update_is_tried_once_and_changes_nothing(write: Write, luthier_home: Path) -> None:
    first, second = Listener(), Listener()
    runs = [sft.fit(write(ROWS), listener) for listener in (first, second)]
    said = [[line for line in listener.lines if line.startswith("worst update: 4 rows with ")] for listener in (first, second)]
    assert said[0] == said[1] != []
    assert len(list((luthier_home / "trials").iterdir())) == 1
    assert runs[0].read_metrics("train")[-1]["loss"] == runs[1].read_metrics("train")[-1]["loss"]
    said_in_log = r"took [\d.]+ GB \([\d.]+ GB predicted for the run\)(, with \d+ held-out rows measured)?, and [\d.]+ s \([\d.]+ s predicted\)"
    assert re.search(said_in_log, runs[0].log.read_text())
    measured, planned = (json.loads(runs[0].plan.read_text())[name] for name in ("measured", "memory_bytes"))
    assert measured["predicted_bytes"] == sum(planned.values())
    assert measured["evaluation_peak_bytes"] >= measured["peak_bytes"] > 0
    assert measured["seconds"] > 0 < measured["predicted_seconds"]


def test_the_log_says_when_the_first_update_began(write: Write) -> None:
    log = sft.fit(write(ROWS), Silent()).log.read_text()
    seconds = re.findall(r"the first update began ([\d.]+) s after the start of the program", log)
    assert len(seconds) == 1
    assert float(seconds[0]) > 0.5


@pytest.mark.parametrize("setting", ["lora.target_modules=[zz]", "training.learning_rates={zz: 2.0}", "lora.rank_pattern={zz: 2}"])
def test_settings_that_the_model_refuses_leave_no_run(write: Write, tmp_path: Path, setting: str) -> None:
    config = write(ROWS, *FOUR, setting)
    with pytest.raises(ConfigError):
        sft.fit(config)
    assert list(Path(config.beside(config.settings.output_dir)).iterdir()) == []


def test_an_update_that_takes_more_than_max_memory_is_not_begun(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("luthier.plan.memory.PROCESS_BYTES", 0)  # a plan that is far too low
    with pytest.raises(RunError, match=r"one update took [\d.]+ GB, and max_memory is 100MB"):
        sft.fit(write(ROWS, *FOUR, "max_memory=100MB"))
