"""Signals, closed terminals and full disks while real processes work: a defined exit code, no traceback, nothing half, and a way on."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from warm import Call, Ended, Warm

from luthier import files
from luthier.plan.machine import store_machine
from luthier.records import Machine
from luthier.run_folder import RunFolder, list_runs

UPDATES = 40
TRAIN = (
    *("train", "luthier.yaml", f"training.max_steps={UPDATES}", "training.batch_size=4", "training.precision=fp32"),
    *("training.learning_rate=1e-2", "training.save_steps=1000", "training.logging_steps=1", "data.eval=null"),
)
HALF_WRITTEN = re.compile(r"\..*\.(tmp|staging|trash|old)")
ENDING = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@dataclass(frozen=True, slots=True)
class Project:
    """A folder with settings and rows, a cache of its own, and calls of the command line in it."""

    folder: Path
    home: Path
    warm: Warm

    def begin(self, *arguments: object, stdout: Path | None = None, ignored: int = 0) -> Call:
        return self.warm.begin(self.folder, self.home, *arguments, stdout=stdout, ignored=ignored)

    @property
    def run(self) -> RunFolder:
        return list_runs(self.folder / "runs")[-1]

    @property
    def weights(self) -> str:
        return files.sha256(self.run.adapter / "adapter_model.safetensors")

    def steps(self) -> list[int]:
        return [row["step"] for row in self.run.read_metrics("train")]

    def leftovers(self) -> list[str]:
        roots = (self.folder, self.home)
        return [str(path) for root in roots for path in root.rglob(".*") if HALF_WRITTEN.fullmatch(path.name)]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, warm: Warm) -> Project:
    """A project whose run was not disturbed."""
    folder = tmp_path_factory.mktemp("straight")
    home = tmp_path_factory.mktemp("home")
    store_machine(home, Machine("cpu", "a small machine", 2, 8_000_000_000, 10.0, 40.0))
    rows = [{"prompt": f"{number} Pierce Rd, São Paulo ->", "completion": f" Itasca {number}"} for number in range(48)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    (folder / "luthier.yaml").write_text(f"model: {tiny_model}\ndata: {{train: rows.jsonl}}\ndevice: cpu\n", encoding="utf-8")
    project = Project(folder, home, warm)
    ended = project.begin(*TRAIN).wait()
    assert ended.code == 0, ended.said
    return project


@pytest.fixture
def project(straight: Project, tmp_path: Path) -> Project:
    """The same settings and rows without a run."""
    for name in ("rows.jsonl", "luthier.yaml"):
        shutil.copy(straight.folder / name, tmp_path)
    return Project(tmp_path, straight.home, straight.warm)


@pytest.fixture
def load() -> Iterator[None]:
    """Two processes that take all they can get."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    yield
    for process in busy:
        process.kill()
        process.wait()


def goes_on(project: Project, straight: Project) -> None:
    """--resume leads to the weights and the metrics of the undisturbed run."""
    resumed = project.begin("train", "--resume", "last").wait()
    assert resumed.code == 0, resumed.said
    assert project.weights == straight.weights
    assert project.steps() == list(range(1, UPDATES + 1))
    assert project.leftovers() == []


def stopped_as_it_should(ended: Ended, number: int) -> None:
    assert ended.code == 128 + number, ended.said
    assert "Traceback" not in ended.said
    assert "Exception ignored" not in ended.said


def stopped_at_a_random_step(project: Project, straight: Project, number: int, seed: int) -> None:
    draw = random.Random(seed)
    training = project.begin(*TRAIN)
    assert training.wait_for(f"step {draw.randrange(1, UPDATES - 8)}/")
    time.sleep(draw.uniform(0, 0.02))
    training.kill(number)
    at = time.monotonic()
    ended = training.wait()
    stopped_as_it_should(ended, number)
    assert time.monotonic() - at < 10
    done = project.steps()[-1]
    assert f"stopped after step {done}; a checkpoint is written" in ended.said
    assert f"Try: luthier train --resume {os.path.join('runs', project.run.name)}" in ended.said
    goes_on(project, straight)


@pytest.mark.slow
@pytest.mark.parametrize("number", ENDING, ids=lambda number: signal.Signals(number).name)
@pytest.mark.parametrize("seed", range(2))
def test_a_signal_finishes_the_update_saves_and_ends(seed: int, number: int, project: Project, straight: Project, load: None) -> None:
    stopped_at_a_random_step(project, straight, number, seed)


@pytest.mark.nightly
@pytest.mark.parametrize("number", ENDING, ids=lambda number: signal.Signals(number).name)
@pytest.mark.parametrize("seed", range(100, 110))
def test_thirty_signals_at_random_steps(seed: int, number: int, project: Project, straight: Project, load: None) -> None:
    stopped_at_a_random_step(project, straight, number, seed)


@pytest.mark.slow
def test_a_second_ctrl_c_ends_at_once_in_the_midst_of_a_save_and_loses_nothing_that_was_saved(project: Project, straight: Project) -> None:
    training = project.begin(*TRAIN, "training.save_steps=1")
    assert training.wait_for("step 5/")
    while not any(project.folder.glob("runs/*/checkpoints/.step-*")):
        time.sleep(0.0002)
    training.kill(signal.SIGINT)
    time.sleep(0.002)
    training.kill(signal.SIGINT)
    stopped_as_it_should(training.wait(), signal.SIGINT)
    done = project.steps()[-1]
    resumed = project.begin("train", "--resume", "last").wait()
    assert resumed.code == 0, resumed.said
    match = re.search(r"resumed from \S+step-(\d+)", resumed.said)
    assert match
    assert done - int(match[1]) <= 2  # the save that was under way, and the update that was done beside it
    assert project.weights == straight.weights
    assert project.leftovers() == []


@pytest.mark.slow
def test_the_signal_of_a_closed_terminal_or_of_timeout_may_come_twice(project: Project, straight: Project) -> None:
    training = project.begin(*TRAIN)
    assert training.wait_for("step 3/")
    training.kill(signal.SIGHUP)
    time.sleep(0.05)
    training.kill(signal.SIGHUP)
    ended = training.wait()
    stopped_as_it_should(ended, signal.SIGHUP)
    assert "a checkpoint is written" in ended.said
    goes_on(project, straight)


@pytest.mark.slow
def test_with_nohup_a_closed_terminal_ends_nothing(project: Project, straight: Project) -> None:
    training = project.begin(*TRAIN, ignored=signal.SIGHUP)
    assert training.wait_for("step 3/")
    training.kill(signal.SIGHUP)
    assert training.wait().code == 0
    assert project.weights == straight.weights


@pytest.mark.slow
def test_sigusr1_saves_now_and_goes_on(project: Project, straight: Project) -> None:
    training = project.begin(*TRAIN)
    assert training.wait_for("trained:")
    training.kill(signal.SIGUSR1)  # before the first update there is nothing to save, and nothing ends
    assert training.wait_for("step 5/")
    training.kill(signal.SIGUSR1)
    ended = training.wait()
    assert ended.code == 0, ended.said
    saved = [int(path.name.removeprefix("step-")) for path in project.run.checkpoints.iterdir()]
    assert sorted(saved)[-1] == UPDATES
    assert len(saved) == 2
    assert 5 <= min(saved) < UPDATES
    assert project.weights == straight.weights


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["train", "eval", "export", "data clean"])
@pytest.mark.parametrize("number", ENDING, ids=lambda number: signal.Signals(number).name)
def test_a_signal_at_any_moment_of_other_work_leaves_nothing_half(number: int, verb: str, straight: Project, tmp_path: Path) -> None:
    project = Project(tmp_path / "project", tmp_path / "home", straight.warm)
    shutil.copytree(straight.folder, project.folder)
    shutil.copytree(straight.home, project.home)
    shutil.rmtree(project.home / "data")
    said = {"train": "reading rows.jsonl", "eval": "asking tuned", "export": "comparing m", "data clean": "checking"}[verb]
    asked = {
        "train": (*TRAIN, "training.max_steps=2"),
        "eval": ("eval", "last", "--data", "rows.jsonl"),
        "export": ("export", "last"),
        "data clean": ("data", "clean", "rows.jsonl", "--to", "clean.jsonl"),
    }[verb]
    call = project.begin(*asked)
    assert call.wait_for(said), call.said()
    time.sleep(random.Random(f"{number} {verb}").uniform(0, 0.2))
    call.kill(number)
    ended = call.wait()
    if ended.code != 0:  # it may have been faster
        stopped_as_it_should(ended, number)
        assert f"luthier: ended by {signal.Signals(number).name}" in ended.said or "a checkpoint is written" in ended.said
    assert project.leftovers() == []
    if (project.folder / "clean.jsonl").exists():
        assert (project.folder / "clean.jsonl").read_text(encoding="utf-8") == (project.folder / "rows.jsonl").read_text(encoding="utf-8")
        return
    again = project.begin(*asked).wait()
    assert again.code == 0, again.said


@pytest.mark.slow
def test_training_goes_on_when_nobody_reads_what_it_says(project: Project, straight: Project) -> None:
    os.mkfifo(project.folder / "pipe")
    training = project.begin(*TRAIN, stdout=project.folder / "pipe")
    with open(project.folder / "pipe", encoding="utf-8") as reader:  # `| head -1`
        reader.readline()
    ended = training.wait()
    assert (ended.code, ended.said) == (0, "")
    assert project.weights == straight.weights
    assert project.steps() == list(range(1, UPDATES + 1))


@pytest.mark.slow
def test_training_goes_on_when_the_disk_of_its_output_is_full(project: Project, straight: Project) -> None:
    ended = project.begin(*TRAIN, stdout=Path("/dev/full")).wait()
    assert ended.code == 0
    assert ended.said.count("luthier: standard output cannot be written (No space left on device)") == 1
    assert "Traceback" not in ended.said
    assert project.weights == straight.weights
