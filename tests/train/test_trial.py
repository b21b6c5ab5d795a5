"""The worst update is tried before the first: measured, kept, and nothing is learned from it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from luthier.engine import Engine
from luthier.errors import RunError
from luthier.records import TokenizedExample
from luthier.train import trial

SMALLER = "training.micro_batch_tokens: 2048"


def test_the_longest_rows_are_the_worst() -> None:
    assert trial.worst_rows(np.array([5, 9, 7, 9]), 2) == [1, 3]
    assert trial.worst_rows(np.array([5, 9]), 8) == [1, 0]


def test_it_is_measured_and_changes_nothing(engine: Engine, examples: list[TokenizedExample], tmp_path: Path) -> None:
    before = [parameter.detach().clone() for parameter in engine.trained_parameters]
    measured = trial.measure(engine, examples[:4], tmp_path / "trials" / "one.json", SMALLER)
    assert (measured.rows, measured.tokens) == (4, sum(len(example.token_ids) for example in examples[:4]))
    assert measured.peak_bytes > 10_000_000
    assert measured.seconds > 0
    assert all(parameter.grad is None for parameter in engine.trained_parameters)
    assert all(torch.equal(now, then) for now, then in zip(engine.trained_parameters, before, strict=True))


def test_what_was_measured_is_not_measured_again(
    engine: Engine, examples: list[TokenizedExample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "one.json"
    first = trial.measure(engine, examples[:2], path, SMALLER)
    monkeypatch.setattr(engine, "forward_backward", None)
    assert trial.measure(engine, examples[:2], path, SMALLER) == first


@pytest.mark.parametrize("content", ["{", "{}", '{"rows": 1}', "[1]"])
def test_a_file_that_is_not_whole_is_measured_and_written_again(
    engine: Engine, examples: list[TokenizedExample], tmp_path: Path, content: str
) -> None:
    path = tmp_path / "one.json"
    path.write_text(content)
    measured = trial.measure(engine, examples[:2], path, SMALLER)
    assert trial.measure(engine, examples[:2], path, SMALLER) == measured


def test_another_setting_machine_or_row_has_a_trial_of_its_own(examples: list[TokenizedExample], tmp_path: Path) -> None:
    def name(matters: object, rows: list[TokenizedExample]) -> Path:
        return trial.trial_file(tmp_path, {"training": matters}, rows)

    assert name({"batch_size": 4}, examples[:2]) == name({"batch_size": 4}, examples[:2])
    assert len({name({"batch_size": 4}, examples[:2]), name({"batch_size": 8}, examples[:2]), name({"batch_size": 4}, examples[:3])}) == 3


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_too_little_memory_leads_to_a_smaller_update(
    engine: Engine, examples: list[TokenizedExample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: RuntimeError
) -> None:
    def fail(rows: list[TokenizedExample]) -> None:
        raise error

    monkeypatch.setattr(engine, "forward_backward", fail)
    with pytest.raises(RunError) as caught:
        trial.measure(engine, examples[:2], tmp_path / "one.json", SMALLER)
    assert "the memory is not enough for an update of 2 rows" in caught.value.problem
    assert caught.value.next_step == SMALLER
    assert not (tmp_path / "one.json").exists()


def test_another_error_stays_what_it_is(engine: Engine, examples: list[TokenizedExample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(rows: list[TokenizedExample]) -> None:
        raise RuntimeError("mat1 and mat2")

    monkeypatch.setattr(engine, "forward_backward", fail)
    with pytest.raises(RuntimeError, match="mat1"):
        trial.measure(engine, examples[:2], tmp_path / "one.json", SMALLER)
