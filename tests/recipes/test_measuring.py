"""What a run measures while it trains: answers beside the base's, drift, early stopping; and that a run that goes on has the same."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest_runs import Listener, Write, chat_row, write_rows

from luthier import files
from luthier.config.load import Config, load_config
from luthier.engine import Engine, opening
from luthier.errors import DataError
from luthier.evaluate import in_loop
from luthier.recipes import sft
from luthier.records import Conversation, Source, Turn
from luthier.reporting import Silent
from luthier.run_folder import RunFolder
from luthier.train import watchers
from luthier.train.measuring import Gauge

ROWS = [chat_row(place) for place in range(16)]
OUT = [chat_row(place) for place in range(40, 46)]
MEASURES = ["data.eval=eval.jsonl", "evaluation.every_steps=2", "evaluation.sample_answers=0", "evaluation.max_new_tokens=6"]
COUNTS = ["evaluation.in_loop_rows=3", "evaluation.metrics=[exact_match, valid_json]"]


def config_of(write: Write, *overrides: str, name: str = "project", method: str = "lora") -> Config:
    config = write(ROWS, name=name)
    write_rows(config.file.parent / "eval.jsonl", OUT)
    text = config.file.read_text(encoding="utf-8")
    config.file.write_text(text if method == "lora" else re.sub("lora: {.*}", "method: full", text), encoding="utf-8")
    numbers = ["training.precision=fp32", "training.learning_rate=1e-2", "training.batch_size=4", "training.num_train_epochs=1"]
    return load_config(config.file, [*numbers, *MEASURES, *overrides])


def lines_of(run: RunFolder) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
    kinds = ("base", "train", "eval")
    return [{name: value for name, value in row.items() if name not in ("seconds", "peak_bytes")} for row in rows if row["kind"] in kinds]


def cut_off(config: Config, at: str) -> RunFolder:
    """The run of `config`, ended as by Ctrl-C as soon as a line with `at` is said."""

    def end() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sft.fit(config, Listener(**{at: end}))
    (run,) = (config.file.parent / "runs").iterdir()
    return RunFolder(run)


@pytest.mark.parametrize("method", ["lora", pytest.param("full", marks=pytest.mark.slow)])
def test_a_run_that_goes_on_measures_what_the_straight_one_does(write: Write, method: str) -> None:
    straight = sft.fit(config_of(write, *COUNTS, "training.save_steps=1", method=method))
    base, *_ = lines_of(straight)
    assert {name: base[name] for name in ("kind", "step", "rows")} == {"kind": "base", "step": 0, "rows": 3}
    evaluations = straight.read_metrics("eval")
    for row in evaluations:
        assert set(row["metrics"]) == {"perplexity", "exact_match", "valid_json", "base/exact_match", "base/valid_json"}
        assert {name: row["metrics"][f"base/{name}"] for name in base["metrics"]} == base["metrics"]
        assert row["drift"]["base_general_loss"] == evaluations[0]["drift"]["base_general_loss"]
    kls = [row["drift"]["kl"] for row in evaluations]
    assert 0 < kls[0] < kls[-1]
    assert straight.general.is_file() is (method == "full")

    run = cut_off(config_of(write, *COUNTS, "training.save_steps=1", name="cut", method=method), "step_4/4__loss")
    said = Listener()
    assert lines_of(sft.fit(load_config(run.config), said, resume=run)) == lines_of(straight)
    assert not [line for line in said.lines if "asking the base" in line], "it is not asked again"


def test_the_answers_that_are_counted_are_those_of_the_model_and_of_its_base(copied: RunFolder) -> None:
    """Asked rows that the run knows by heart: tuned 1, base 0."""
    asked = ["evaluation.in_loop_rows=2", "evaluation.max_new_tokens=60"]
    engine, config = opening.open_trained(copied, Silent()), load_config(copied.config, asked)
    turns = [[Turn(**message) for message in chat_row(place)["messages"]] for place in range(2)]
    rows = [Conversation(tuple(some), Source("rows.jsonl", line)) for line, some in enumerate(turns, start=1)]
    gauge = Gauge(copied, engine, config.settings, rows, lambda: (1.0, {}), in_loop.means(["exact_match"]), 5, Silent())
    found = gauge.measure()
    assert found.metrics == {"exact_match": 1.0, "base/exact_match": 0.0}
    assert [row for row, _ in found.answers] == rows
    assert watchers.numbers_of(found, 5) == {"held-out loss": "1.0000 (step 5)", "exact_match": "1.000 (base 0.000)"}


def test_a_run_that_gains_nothing_more_ends_and_is_whole(write: Write) -> None:
    ends = [
        "evaluation.early_stopping_patience=1",
        "evaluation.early_stopping_threshold=100",
        "training.num_train_epochs=4",
        "evaluation.general=null",
    ]
    listener = Listener()
    run = sft.fit(config_of(write, *ends, "training.load_best_model_at_end=true"), listener)
    assert [row["step"] for row in run.read_metrics("eval")] == [2, 4]
    assert max(row["step"] for row in run.read_metrics("train")) == 4
    (line,) = [line for line in listener.lines if "the training ends" in line]
    assert line.startswith("step 4: loss got no better in 1 evaluations in a row (the best is ")
    assert run.adapter.is_dir()
    assert run.report.is_file()
    assert (run.checkpoints / "step-000004").is_dir()
    assert files.read_json(run.best)["step"] == 4
    # The process was ended after its last checkpoint, before it could write what it leaves.
    trained = (run.adapter / "adapter_model.safetensors").read_bytes()
    files.remove_folder(run.adapter)
    again = sft.fit(load_config(run.config), resume=run)
    assert (again.adapter / "adapter_model.safetensors").read_bytes() == trained
    assert max(row["step"] for row in again.read_metrics("train")) == 4


@pytest.mark.slow
def test_patience_is_counted_on_by_a_run_that_goes_on(write: Write) -> None:
    """Two evaluations before the stop, one after it: the third ends the run, as it ends the straight one."""
    ends = [
        *("evaluation.early_stopping_patience=2", "evaluation.early_stopping_threshold=100", "evaluation.every_steps=1", "evaluation.general=null"),
        "training.save_steps=1",
    ]
    straight = sft.fit(config_of(write, *ends))
    assert [row["step"] for row in straight.read_metrics("eval")] == [1, 2, 3]
    run = cut_off(config_of(write, *ends, name="cut"), "step_3/4__held")
    assert lines_of(sft.fit(load_config(run.config), resume=run)) == lines_of(straight)


@pytest.mark.slow
def test_the_best_may_be_the_one_that_drifted_least(write: Write) -> None:
    best = ["training.load_best_model_at_end=true", "training.metric_for_best_model=loss", "training.save_strategy=no"]
    free = sft.fit(config_of(write, *best))
    held = sft.fit(config_of(write, *best, "evaluation.drift_weight=100", name="held"))
    assert [row["drift"]["kl"] for row in held.read_metrics("eval")] == [row["drift"]["kl"] for row in free.read_metrics("eval")]
    assert (files.read_json(free.best)["step"], files.read_json(held.best)["step"]) == (4, 2)
    assert files.read_json(held.best)["name"] == "loss + 100 drift/kl"


def test_forgetting_is_measured_on_a_file_of_ones_own(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    own = config_of(write, "evaluation.general=general.jsonl")
    write_rows(own.file.parent / "general.jsonl", ROWS[:2])
    measured: list[Sequence[Any]] = []
    honest = Engine.in_batches

    def listen(engine: Engine, work: Any, examples: Sequence[Any]) -> Any:
        measured.append(examples)
        return honest(engine, work, examples)

    monkeypatch.setattr(Engine, "in_batches", listen)
    run = sft.fit(own)
    assert {str(one.source) for examples in measured for one in examples} == {f"{own.file.parent}/general.jsonl:{line}" for line in (1, 2)}
    assert load_config(run.config).settings.evaluation.general == str(own.file.parent / "general.jsonl")
    assert run.read_metrics("eval")[-1]["drift"]["kl"] > 0


def test_a_general_file_that_cannot_be_read_is_told_before_the_model_is_loaded(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = config_of(write, "evaluation.general=general.jsonl")
    monkeypatch.setattr(opening, "start", None)
    with pytest.raises(DataError, match=r"general\.jsonl"):
        sft.fit(broken)
    write_rows(broken.file.parent / "general.jsonl", ["{"])
    with pytest.raises(DataError, match=r"general\.jsonl:1"):
        sft.fit(broken)


def test_rows_that_are_replayed_are_trained_and_have_books_of_their_own(write: Write, tmp_path: Path) -> None:
    run = sft.fit(config_of(write, "data.replay=50%", "evaluation.every_steps=null", "training.rows_file=true"))
    ledger = files.read_json(run.ledger)
    own, general, held_out = ledger["sources"]
    assert (own["used"], general["replay"], general["rows"], held_out["used"]) == (16, True, 70, 6)
    assert 4 <= general["used"] <= 12
    assert general["rejected"] == {"not_drawn": 70 - general["used"]}
    assert ledger["tokens"]["trained"] == sum(row["trained_tokens"] for row in run.read_metrics("train"))
    sources = {json.loads(line)["source"] for line in run.rows.read_text(encoding="utf-8").splitlines()}
    assert len([source for source in sources if "replayed.jsonl" in source]) == general["used"]
