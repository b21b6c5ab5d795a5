"""The worst update is tried before the first: measured, kept, and nothing is learned from it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from luthier.engine import Engine, update
from luthier.engine.batches import Document
from luthier.engine.packed import Packed
from luthier.records import TokenizedExample
from luthier.train import trial


def test_the_longest_rows_are_the_worst() -> None:
    assert trial.worst_rows(np.array([5, 9, 7, 9]), 2) == [1, 3]
    assert trial.worst_rows(np.array([5, 9]), 8) == [1, 0]


def test_it_is_measured_and_changes_nothing(engine: Engine, examples: list[TokenizedExample], tmp_path: Path) -> None:
    before = [parameter.detach().clone() for parameter in engine.trained_parameters]
    measured = trial.measure(engine, examples[:4], tmp_path / "trials" / "one.json")
    assert (measured.rows, measured.tokens) == (4, sum(len(example.token_ids) for example in examples[:4]))
    assert measured.peak_bytes > 10_000_000
    assert measured.seconds > 0
    assert all(parameter.grad is None for parameter in engine.trained_parameters)
    assert all(torch.equal(now, then) for now, then in zip(engine.trained_parameters, before, strict=True))


def test_what_was_measured_is_not_measured_again(
    engine: Engine, examples: list[TokenizedExample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "one.json"
    first = trial.measure(engine, examples[:2], path)
    monkeypatch.setattr(engine, "forward_backward", None)
    assert trial.measure(engine, examples[:2], path) == first


@pytest.mark.parametrize("content", ["{", "{}", '{"rows": 1}', "[1]"])
def test_a_file_that_is_not_whole_is_measured_and_written_again(
    engine: Engine, examples: list[TokenizedExample], tmp_path: Path, content: str
) -> None:
    path = tmp_path / "one.json"
    path.write_text(content)
    measured = trial.measure(engine, examples[:2], path)
    assert trial.measure(engine, examples[:2], path) == measured


def test_another_setting_machine_or_row_has_a_trial_of_its_own(examples: list[TokenizedExample], tmp_path: Path) -> None:
    def name(matters: object, rows: list[TokenizedExample]) -> Path:
        return trial.trial_file(tmp_path, {"training": matters}, rows)

    assert name({"batch_size": 4}, examples[:2]) == name({"batch_size": 4}, examples[:2])
    assert len({name({"batch_size": 4}, examples[:2]), name({"batch_size": 8}, examples[:2]), name({"batch_size": 4}, examples[:3])}) == 3


def test_what_was_found_with_less_memory_is_looked_for_again(
    engine: Engine, examples: list[TokenizedExample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = update.run_packed

    def limited(model: Any, documents: list[Document], layout: Packed) -> torch.Tensor:
        if sum(len(one.inputs) for one in documents) > 30:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return honest(model, documents, layout)

    monkeypatch.setattr(update, "run_packed", limited)
    trial.measure(engine, examples[:8], tmp_path / "one.json")
    assert engine.micro_batch_tokens <= 30
    assert not (tmp_path / "one.json").exists()
    trial.measure(engine, examples[:8], tmp_path / "one.json")
    assert (tmp_path / "one.json").exists()


def test_another_error_stays_what_it_is(engine: Engine, examples: list[TokenizedExample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(rows: list[TokenizedExample]) -> None:
        raise RuntimeError("mat1 and mat2")

    monkeypatch.setattr(engine, "forward_backward", fail)
    with pytest.raises(RuntimeError, match="mat1"):
        trial.measure(engine, examples[:2], tmp_path / "one.json")


def test_the_worst_evaluation_is_tried_too(engine: Engine, examples: list[TokenizedExample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluation = trial.worst_evaluation(examples, answers=2)
    lengths = [row.tokens for row in evaluation.rows]
    assert lengths == sorted(lengths, reverse=True)
    assert len(lengths) == min(trial.HELD_OUT_ROWS, len(examples))
    asked: list[list[int]] = []
    answer = engine.answer
    monkeypatch.setattr(engine, "answer", lambda prompts, **more: asked.extend(prompts) or answer(prompts, **more))
    measured = trial.measure(engine, examples[:2], tmp_path / "one.json", None, evaluation)
    assert asked == [row.token_ids[: row.trained.index(True)] for row in evaluation.rows[:2]]
    assert measured.held_out_rows == len(lengths)
    assert measured.evaluation_seconds > 0
    assert measured.evaluation_peak_bytes >= measured.peak_bytes
    assert f"with {len(lengths)} held-out rows measured" in measured.line(2 * 10**9, 1.5)
    assert "(2 GB predicted for the run)" in measured.line(2 * 10**9, 1.5)
    assert "(1.5 s predicted)" in measured.line(2 * 10**9, 1.5)
    without = trial.measure(engine, examples[:2], tmp_path / "two.json")
    assert (without.held_out_rows, without.evaluation_seconds) == (0, 0.0)
    names = {trial.trial_file(tmp_path, {}, examples[:2], one) for one in (evaluation, trial.NOTHING, trial.worst_evaluation(examples, answers=1))}
    assert len(names) == 3
