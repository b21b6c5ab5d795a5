"""What stands on the disk while checkpoints come and go: never less than before, and each is that of its own update."""

import errno
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from luthier.config.settings import Settings
from luthier.engine import Engine
from luthier.errors import MachineError
from luthier.run_folder import RunFolder
from luthier.stopping import Stop
from luthier.train import checkpoint
from luthier.train.checkpoint import Place, State
from luthier.train.loop import Course
from luthier.train.saving import Saver

COURSE = Course(updates=9, examples_seen=36, batch_size=4, learning_rate=1e-2, lr_scheduler_type="constant", warmup_steps=0, seed=0)


def saver_of(run: RunFolder, engine: Engine, said: list[str], **training: object) -> Saver:
    asked = {"batch_size": 4, "save_strategy": "no", "save_total_limit": 1, **training}
    settings = Settings.model_validate({"model": "tiny", "data": {"train": "rows.jsonl"}, "training": asked})
    return Saver(run, engine, Place(0, "d", 0, "fp32"), settings, COURSE, 10, Stop(), said.append)


def there(run: RunFolder) -> list[str]:
    return [path.name for path in checkpoint.list_checkpoints(run) if not checkpoint.damage(path)]


def test_a_checkpoint_that_is_written_meanwhile_holds_the_weights_of_its_own_update(
    engine: Engine, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, go_on = checkpoint.write, threading.Event()

    def slow(run: RunFolder, state: State, about: Mapping[str, Any] | None = None) -> Path:
        assert go_on.wait(30)
        return honest(run, state, about)

    monkeypatch.setattr(checkpoint, "write", slow)
    before = {name: weight.detach().clone() for name, weight in engine.masters.weights.items()}
    with saver_of(run, engine, []) as saver:
        saver.save(1)
        with torch.no_grad():
            for weight in engine.masters.weights.values():
                weight.add_(1.0)
        go_on.set()
    (path,) = checkpoint.list_checkpoints(run)
    stored = load_file(path / checkpoint.TRAINED)
    assert all(torch.equal(stored[name], weight) for name, weight in before.items())


@pytest.mark.parametrize("async_save", [True, False])
def test_a_save_that_fails_costs_no_older_one_and_the_second_in_a_row_ends_the_run(
    async_save: bool, engine: Engine, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    saver = saver_of(run, engine, said, async_save=async_save)
    saver.save(1)
    saver.join()
    honest = checkpoint.write

    def full(run: RunFolder, state: State, about: Mapping[str, Any] | None = None) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device")

    def saved(step: int) -> None:
        saver.save(step)
        saver.join()

    monkeypatch.setattr(checkpoint, "write", full)
    saved(2)
    assert there(run) == ["step-000001"]
    assert "the checkpoint of step 2 could not be written" in said[-1]
    assert "resumable from step 1" in said[-1]
    monkeypatch.setattr(checkpoint, "write", honest)
    saved(3)
    assert there(run) == ["step-000003"]
    monkeypatch.setattr(checkpoint, "write", full)
    saved(4)
    with pytest.raises(MachineError, match="2 checkpoints in a row could not be written") as caught:
        saved(5)
    assert caught.value.exit_code == 5
    assert there(run) == ["step-000003"]


def test_the_newest_are_kept(engine: Engine, run: RunFolder) -> None:
    saver = saver_of(run, engine, [], save_total_limit=2)
    for step in (1, 2, 3, 999_999, 1_000_000):
        saver.save(step, wait=True)
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["step-1000000", "step-999999"]


def test_the_best_is_kept_beside_the_newest(engine: Engine, run: RunFolder) -> None:
    saver = saver_of(run, engine, [], save_best=True)
    for step, loss in enumerate((1.0, 0.5, 0.8, 0.7), start=1):
        saver.measured(step, loss, {})
        saver.save(step)
    saver.join()
    assert there(run) == ["step-000002", "step-000004"]
