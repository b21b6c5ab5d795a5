"""When checkpoints are written and which are kept; training goes on meanwhile, and where the disk does not take one."""

import dataclasses
import errno
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from faulty_disk import Failing, Intercepted, using
from killed_saves import FAST

from luthier import files, run_lock
from luthier.config.settings import Settings
from luthier.disk import Buffer, Disk
from luthier.engine import Engine
from luthier.errors import MachineError, RunInUse
from luthier.records import StepReport, TokenizedExample
from luthier.run_folder import RunFolder
from luthier.stopping import Stop
from luthier.train import checkpoint, loop, order, saving
from luthier.train.checkpoint import Place
from luthier.train.saving import Saver

PLACE = Place(step=0, data_sha256="d", seed=0, precision="fp32")


@dataclasses.dataclass
class Trained:
    """What came of a short training: what was said, and the updates that were told."""

    lines: list[str] = dataclasses.field(default_factory=list)
    told: list[int] = dataclasses.field(default_factory=list)
    saver: Saver | None = None


Train = Callable[..., Trained]


@pytest.fixture
def train(engine: Engine, examples: list[TokenizedExample], run: RunFolder) -> Train:
    """Train the ten rows by two: `updates` updates from `done`, with settings of `training`; `losses` are what the held-out rows give."""

    def train(
        updates: int = 6,
        *,
        done: int = 0,
        losses: dict[int, float] | None = None,
        at: Callable[[int, Stop], None] = lambda step, stop: None,
        load_best: bool = False,
        result: Trained | None = None,
        **training: Any,
    ) -> Trained:
        given = {
            "model": "m",
            "data": {"train": "rows.jsonl"},
            "training": {"batch_size": 2, "micro_batch_tokens": 4096, "save_steps": 2, **training},
        }
        course = loop.Course(updates, order.examples_of_run(10, 2, 9, updates), 2, 1e-2, "constant", 0, 0)
        found, stop = result or Trained(), Stop()
        place = dataclasses.replace(PLACE, step=done)
        with Saver(run, engine, place, Settings.model_validate(given), course, 10, stop, found.lines.append) as found.saver:
            saver = found.saver

            def watch(report: StepReport) -> None:
                found.told.append(report.step)
                at(report.step, stop)
                if losses and report.step in losses:
                    saver.measured(report.step, losses[report.step], {"rewards/margins": -losses[report.step]})
                saver.watch(report)

            loop.fit(engine, examples, course, [saver.look, watch], stop, done=done)
            if load_best:
                saver.load_best()
        return found

    return train


@pytest.fixture
def fast() -> Iterator[Path]:
    """A folder in memory, where there is one: a sync takes no time there."""
    with tempfile.TemporaryDirectory(dir=FAST if os.path.isdir(FAST) else None) as folder:
        yield Path(folder)


def steps(run: RunFolder) -> list[int]:
    """The checkpoints of a run; all must be whole, and nothing else may lie beside them."""
    found = checkpoint.list_checkpoints(run)
    assert sorted(run.checkpoints.iterdir()) == found
    assert [checkpoint.damage(path) for path in found] == [""] * len(found)
    return [int(path.name.removeprefix("step-")) for path in found]


@pytest.mark.parametrize(
    ("training", "expected"),
    [
        ({"save_steps": 4}, [4, 6]),
        ({"save_strategy": "epoch"}, [5, 6]),  # ten rows by two
        ({"save_strategy": "no"}, []),
        ({"save_strategy": "no", "save_minutes": 1e-9}, [1, 2, 3, 4, 5, 6]),
        ({"save_strategy": "no", "save_minutes": 600.0}, []),
        ({"save_steps": 1, "save_total_limit": 2}, [5, 6]),
    ],
    ids=str,
)
@pytest.mark.parametrize("async_save", [True, False])
def test_when_checkpoints_are_written(async_save: bool, training: dict[str, Any], expected: list[int], train: Train, run: RunFolder) -> None:
    train(**{"save_total_limit": 9, "async_save": async_save, **training})
    assert steps(run) == expected


def test_a_wish_to_save_now_is_met_once_and_the_training_goes_on(train: Train, run: RunFolder) -> None:
    def wish(step: int, stop: Stop) -> None:
        stop.save_now = stop.save_now or step == 3

    assert train(save_strategy="no", at=wish).told == [1, 2, 3, 4, 5, 6]
    assert steps(run) == [3]


class Waiting(Disk):
    """Waits at its first write until the test lets it go on."""

    def __init__(self) -> None:
        self.go_on = threading.Event()

    def write(self, descriptor: int, data: Buffer) -> int:
        assert self.go_on.wait(60)
        return super().write(descriptor, data)


def test_training_goes_on_while_the_state_of_then_is_written(train: Train, run: RunFolder, engine: Engine) -> None:
    disk = Waiting()
    then: dict[str, torch.Tensor] = {}

    def watch(step: int, stop: Stop) -> None:
        if step == 2:
            then.update({name: weight.detach().clone() for name, weight in engine.masters.weights.items()})
        if step == 3:  # the save of step 2 stands at its first write
            assert list(run.checkpoints.glob("step-*")) == []
            assert any(not torch.equal(weight, then[name]) for name, weight in engine.masters.weights.items())
            disk.go_on.set()

    with using(disk):
        train(3, at=watch)
    assert steps(run) == [2, 3]
    checkpoint.load(run.checkpoints / "step-000002", engine)
    assert all(torch.equal(weight, then[name]) for name, weight in engine.masters.weights.items())


def test_what_is_written_meanwhile_is_what_is_written_while_training_waits(train: Train, run: RunFolder, engine: Engine, tmp_path: Path) -> None:
    state = {name: weight.detach().clone() for name, weight in engine.masters.weights.items()}
    train(4, save_steps=4, async_save=False)
    shutil.move(run.checkpoints, tmp_path / "waited")
    engine.masters.load(state)
    engine._optimizer = None
    train(4, save_steps=4, async_save=True)
    for path in sorted((tmp_path / "waited").rglob("*")):
        if path.is_file():
            assert (run.checkpoints / path.relative_to(tmp_path / "waited")).read_bytes() == path.read_bytes()


def test_the_copy_is_not_made_where_the_memory_does_not_hold_it(train: Train, run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "host_peak_bytes", lambda: 10**18)
    assert [line for line in train().lines if line.startswith("async_save: a copy of ")] != []
    assert steps(run) == [4, 6]


class Full(Intercepted):
    """A disk that is full while `is_full`."""

    is_full = True

    def meet(self, name: str, method: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        if self.is_full and name == "write":
            raise OSError(errno.ENOSPC, "No space left on device")
        return method(*arguments)


@pytest.mark.parametrize("async_save", [True, False])
def test_a_full_disk_is_told_and_the_next_save_is_made_when_there_is_room(async_save: bool, train: Train, run: RunFolder) -> None:
    disk = Full()

    def free(step: int, stop: Stop) -> None:
        disk.is_full = step in (3, 4)

    disk.is_full = False
    with using(disk):
        found = train(at=free, async_save=async_save)
    assert found.told == [1, 2, 3, 4, 5, 6]
    failed = [line for line in found.lines if "could not be written" in line]
    assert len(failed) == 1
    assert failed[0].startswith("the checkpoint of step 4 could not be written: the disk is full")
    assert " MB, and " in failed[0]
    assert failed[0].endswith("Training goes on; resumable from step 2")
    assert steps(run) == [2, 6]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO], ids=errno.errorcode.get)
def test_two_failed_saves_in_a_row_end_the_run(number: int, train: Train, run: RunFolder) -> None:
    disk = Failing(10**9, number)

    def break_it(step: int, stop: Stop) -> None:
        if step == 3:
            disk.at = len(disk.calls)

    found = Trained()
    with (
        using(disk),
        pytest.raises(MachineError, match=r"(?s)2 checkpoints in a row could not be written: .* MB are free.* goes on from step 2") as caught,
    ):
        train(at=break_it, async_save=False, result=found)
    assert caught.value.exit_code == 5
    assert found.told == [1, 2, 3, 4, 5, 6]
    assert steps(run) == [2]


def test_a_disk_that_fails_once_at_any_call_costs_at_most_that_save(engine: Engine, examples: list[TokenizedExample], fast: Path) -> None:
    """Of saving and of taking the old one away, with one checkpoint kept: it goes only when the next one stands."""
    run = RunFolder(files.make_folder(fast / "run"))
    engine.forward_backward(examples)
    engine.optimizer_step(1e-2)
    saver = Saver(
        run, engine, PLACE, Settings.model_validate({"model": "m", "data": {"train": "r"}, "training": {"batch_size": 2, "save_total_limit": 1}}),
        loop.Course(9, 18, 2, 1e-2, "constant", 0, 0), 10, Stop(), lambda line: None,
    )  # fmt: skip
    saver.save(1)
    counted = Intercepted()
    with using(counted):
        saver.save(2, wait=True)
    step = 2
    for at in range(len(counted.calls)):
        step += 1
        with using(Failing(at, errno.EIO, count=1)):
            saver.save(step, wait=True)
        whole = [path for path in checkpoint.list_checkpoints(run) if not checkpoint.damage(path)]
        assert whole, f"nothing is left after call {at}, {counted.calls[at]}"
        saver.save(step := step + 1, wait=True)
        assert [path.name for path in checkpoint.list_checkpoints(run)][-1] == f"step-{step:06d}"
        assert not [path for path in run.checkpoints.iterdir() if path.name.startswith(".")]


def test_little_room_is_told_before_the_disk_is_full(train: Train, run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "free_bytes", lambda path: 5_000)

    def wish(step: int, stop: Stop) -> None:
        stop.save_now = stop.save_now or step == 3

    [line] = train(save_strategy="no", at=wish).lines
    assert line.startswith("little room for a checkpoint: it needs about ")
    assert line.endswith(" MB, and 0.0 MB are free")


def test_the_room_that_all_checkpoints_need_is_looked_at_before_the_first_update(
    train: Train, run: RunFolder, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = checkpoint.expected_bytes(engine)
    for free, kept in ((3.8, 3), (5.1, 4)):  # 1.3 of each, and one that is written beside those that are kept
        with monkeypatch.context() as patch:
            patch.setattr(files, "free_bytes", lambda path, free=free: round(free * one))
            [line] = train(2, save_steps=2, save_best=kept == 4).lines
        assert line.startswith(f"little room for the run's checkpoints: it needs about {1.3 * kept * one / 1e6:,.1f} MB for {kept} of them")
        assert line.endswith(f", and {free * one / 1e6:,.1f} MB are free")
        shutil.rmtree(run.checkpoints)
    monkeypatch.setattr(files, "free_bytes", lambda path: round(1.2 * one))
    found = Trained()
    with pytest.raises(MachineError, match=rf"the disk holds not one checkpoint.*\n  Try: free some space, then luthier train --resume {run.path}"):
        train(result=found)
    assert found.told == []


def test_what_a_checkpoint_will_take_is_known_before_the_first_update(train: Train, run: RunFolder, engine: Engine) -> None:
    expected = checkpoint.expected_bytes(engine)
    train(2)
    size = sum(path.stat().st_size for path in (run.checkpoints / "step-000002").glob("*.safetensors"))
    assert expected == pytest.approx(size, rel=0.25)  # the tiny model's files are headers in good part
    assert checkpoint.expected_bytes(engine) == pytest.approx(expected, rel=0.02)


def take_away(run: RunFolder) -> None:
    """Another process has the run from now on."""
    thief = dataclasses.replace(run_lock._this_process("train"), host="elsewhere", pid=7, started="1")
    (run.path / run_lock.NAME).write_text(json.dumps(dataclasses.asdict(thief)))


LOST = "this process no longer has the run, which is held by pid 7 on elsewhere"


def test_a_process_that_lost_the_run_trains_and_writes_no_more(train: Train, run: RunFolder) -> None:
    def lose(step: int, stop: Stop) -> None:
        if step == 3:
            take_away(run)

    found = Trained()
    with pytest.raises(RunInUse, match=LOST):
        train(at=lose, result=found, save_steps=100)
    assert found.told == [1, 2, 3]
    assert steps(run) == []


@pytest.mark.parametrize("async_save", [True, False])
def test_a_run_that_is_lost_while_a_checkpoint_is_written_does_not_get_it(async_save: bool, train: Train, run: RunFolder) -> None:
    class Late(Intercepted):
        def meet(self, name: str, method: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
            if name == "write":
                take_away(run)
            return method(*arguments)

    with using(Late()), pytest.raises(RunInUse, match=LOST):
        train(2, async_save=async_save)
    assert steps(run) == []


def test_the_old_one_goes_when_the_new_one_stands(train: Train, run: RunFolder) -> None:
    counted = Intercepted()
    with using(counted):
        train(4, save_total_limit=1, async_save=False)
    done = [(name, *(path.name for path in arguments if isinstance(path, Path))) for name, arguments in counted.calls]
    renamed = next(place for place, call in enumerate(done) if call[0] == "rename" and call[2] == "step-000004")
    synced = next(place for place, call in enumerate(done) if place > renamed and call[0] == "sync")
    taken = next(place for place, call in enumerate(done) if call[0] == "rename" and call[1] == "step-000002")
    assert renamed < synced < taken
    assert steps(run) == [4]


LOSSES = {1: 3.0, 2: 2.0, 3: 2.5, 4: 1.0, 5: 1.5, 6: 2.9}


def test_the_best_are_saved_and_kept_beside_the_newest(train: Train, run: RunFolder) -> None:
    train(losses=LOSSES, save_best=True, save_steps=6, save_total_limit=1)
    assert steps(run) == [4, 6]
    shutil.rmtree(run.checkpoints)


def test_several_of_the_best_are_kept(train: Train, run: RunFolder) -> None:
    train(losses=LOSSES, save_best=True, keep_best=2, save_strategy="no", save_total_limit=1)
    # 5 was the second best when it came; 6 was not among them.
    assert steps(run) == [4, 5]


def test_the_best_may_be_the_greatest_and_be_another_number(train: Train, run: RunFolder) -> None:
    train(losses=LOSSES, save_best=True, save_strategy="no", save_total_limit=1, greater_is_better=True)
    assert steps(run) == [1]
    train(losses=LOSSES, save_best=True, save_strategy="no", save_total_limit=1, metric_for_best_model="rewards/margins", done=1)
    assert 4 in steps(run)


def test_a_number_that_is_not_measured_is_said_once(train: Train, run: RunFolder) -> None:
    lines = train(losses={2: 1.0, 4: 2.0}, save_best=True, save_strategy="no", metric_for_best_model="kl").lines
    assert lines == ["kl was not measured: no checkpoint of such a step is the best"]
    assert steps(run) == []


def test_a_loss_that_is_not_finite_is_never_the_best(train: Train, run: RunFolder) -> None:
    train(losses={2: float("nan"), 4: 2.0}, save_best=True, save_strategy="no")
    assert steps(run) == [4]


def test_a_run_that_goes_on_knows_which_was_the_best(train: Train, run: RunFolder) -> None:
    train(4, losses=LOSSES, save_best=True, save_strategy="no", save_total_limit=1)
    train(6, losses=LOSSES, save_best=True, save_strategy="no", save_total_limit=1, done=4)
    assert steps(run) == [4]


def test_the_best_is_what_the_run_leaves(train: Train, run: RunFolder, engine: Engine) -> None:
    found = train(losses=LOSSES, load_best_model_at_end=True, load_best=True)
    left = {name: weight.detach().clone() for name, weight in engine.masters.weights.items()}
    checkpoint.load(run.checkpoints / "step-000004", engine)
    assert all(torch.equal(weight, left[name]) for name, weight in engine.masters.weights.items())
    assert json.loads(run.best.read_text()) == {"step": 4, "name": "loss", "value": 1.0}
    assert "the best is step 4 (loss 1.0000): it is what the run leaves" in found.lines


@pytest.mark.parametrize("damaged", [[4], [2, 4, 6]])
def test_a_best_one_that_is_damaged_is_named_and_the_next_best_is_taken(
    damaged: list[int], train: Train, run: RunFolder, engine: Engine, tmp_path: Path
) -> None:
    def damage(step: int, stop: Stop) -> None:
        if step == 8:
            for number in damaged:
                (run.checkpoints / f"step-{number:06d}" / "trained.safetensors").write_bytes(b"damaged")

    losses = {2: 2.0, 4: 1.0, 6: 1.5}
    found = train(8, losses=losses, at=damage, load_best_model_at_end=True, load_best=True, save_total_limit=9, async_save=False)
    left = {name: weight.detach().clone() for name, weight in engine.masters.weights.items()}
    named = [line for line in found.lines if line.startswith("not used, though it was measured as loss ")]
    assert [f"step-{step:06d}: trained.safetensors has" in line for step, line in zip([4, 6, 2], named, strict=False)] == [True] * len(damaged)
    best = 6 if damaged == [4] else 8
    checkpoint.load(run.checkpoints / f"step-{best:06d}", engine)
    assert all(torch.equal(weight, left[name]) for name, weight in engine.masters.weights.items())
    if best == 6:
        assert json.loads(run.best.read_text())["step"] == 6
    else:
        assert found.lines[-1] == "load_best_model_at_end: no checkpoint that was measured is there whole; the run leaves its last weights"
        assert not run.best.exists()


def test_the_last_is_what_the_run_leaves_where_nothing_else_is_asked_for(train: Train, run: RunFolder, engine: Engine) -> None:
    train(losses=LOSSES, save_best=True, load_best=True)
    left = {name: weight.detach().clone() for name, weight in engine.masters.weights.items()}
    checkpoint.load(run.checkpoints / "step-000006", engine)
    assert all(torch.equal(weight, left[name]) for name, weight in engine.masters.weights.items())
    assert not run.best.exists()


def test_a_damaged_one_is_neither_counted_nor_deleted(train: Train, run: RunFolder) -> None:
    train(4)
    (run.checkpoints / "step-000004" / "state.json").write_text("{}")
    train(8, done=4)
    assert [path.name for path in checkpoint.list_checkpoints(run)] == ["step-000004", "step-000006", "step-000008"]
    assert (run.checkpoints / "step-000004" / "state.json").read_text() == "{}"


def test_one_that_was_damaged_and_is_written_again_is_set_aside(train: Train, run: RunFolder) -> None:
    train(4)
    (run.checkpoints / "step-000004" / "state.json").write_text("{}")
    train(4, done=2)
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["step-000002", "step-000004", "step-000004.aside-1"]
    assert checkpoint.newest_whole(run)[0].name == "step-000004"


def test_a_rank_in_the_environment_switches_no_checkpoint_off(train: Train, run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    train()
    assert steps(run) == [4, 6]


def test_the_manifest_says_what_the_run_is_made_of(train: Train, run: RunFolder) -> None:
    known = {"contents": {"data": "d", "base": "b"}, "machine": {"torch": "2.13"}, "threads": 1, "settings": {}}
    files.write_json(run.environment, known)
    files.write_text(run.config, "model: m\n")
    train(2)
    manifest = json.loads((run.checkpoints / "step-000002" / "manifest.json").read_text())
    del known["settings"]
    assert manifest["run"] == known | {"config": files.sha256(run.config), "precision": "auto", "micro_batch_tokens": 4096}
    state = json.loads((run.checkpoints / "step-000002" / "state.json").read_text())
    assert state["course"]["learning_rate"] == 1e-2
    assert state["place"]["step"] == 2
