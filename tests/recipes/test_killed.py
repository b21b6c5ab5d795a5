"""Real `kill -9` of real processes at random moments: afterwards the same command, or --resume, gives what an undisturbed run gives.

The moments are drawn from a seed. Each command line runs in a process of its own (warm.py), on the tiny model.
"""

import json
import random
import re
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest_runs import MACHINE, chat_row, make_config
from warm import Call, Ended, Warm

from luthier import files
from luthier.plan.machine import store_machine
from luthier.run_folder import RunFolder, list_runs

UPDATES = 12
SETTINGS = [
    *("training.precision=fp32", "training.learning_rate=1e-2", "training.batch_size=4", f"training.max_steps={UPDATES}", "training.rows_file=true"),
    *("training.save_steps=1", "data.eval=8%", "evaluation.every_steps=4", "evaluation.sample_answers=0", "evaluation.max_new_tokens=4"),
]
MEASURED = ("seconds", "peak_bytes")
# What is half-written has a name that begins with a dot and ends so; a killed process leaves it, and the next one takes it away.
HALF_WRITTEN = re.compile(r"\..*\.(tmp|staging|trash)")


@dataclass(frozen=True, slots=True)
class Project:
    """A folder with settings and rows, and a cache of its own."""

    folder: Path
    home: Path
    warm: Warm

    def begin(self, *arguments: object) -> Call:
        return self.warm.begin(self.folder, self.home, *arguments)

    def again(self) -> Ended:
        """What a user types after a crash: --resume where there is a run, else the same command."""
        if list_runs(self.folder / "runs"):
            return self.begin("train", "--resume", "last").wait()
        return self.begin("train", "luthier.yaml", *SETTINGS).wait()

    @property
    def run(self) -> RunFolder:
        (run,) = list_runs(self.folder / "runs")
        return run

    def leftovers(self) -> list[str]:
        return [str(path) for root in (self.folder / "runs", self.home) for path in root.rglob(".*") if HALF_WRITTEN.fullmatch(path.name)]


@dataclass(frozen=True, slots=True)
class Straight:
    """The undisturbed run: what it left, and how long its commands took."""

    project: Project
    weights: str
    metrics: list[str]
    rows: list[str]
    scorecard: bytes
    merged: str
    seconds: dict[str, float]


@pytest.fixture(scope="module")
def new_project(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, warm: Warm) -> Callable[[], Project]:
    def new() -> Project:
        folder = tmp_path_factory.mktemp("killed")
        store_machine(folder / "home", MACHINE)
        make_config(folder / "project", tiny_model, [chat_row(place) for place in range(48)])
        return Project(folder / "project", folder / "home", warm)

    return new


@pytest.fixture(scope="module")
def straight(new_project: Callable[[], Project]) -> Straight:
    project = new_project()
    seconds = {}
    for verb, arguments in {"train": ("luthier.yaml", *SETTINGS), "eval": ("last",), "export": ("last",)}.items():
        ended = project.begin(verb, *arguments).wait()
        assert ended.code == 0, ended.said
        seconds[verb] = ended.seconds
    assert project.leftovers() == []
    run = project.run
    return Straight(project, weights_of(run), metrics_of(run), rows_of(run), run.scorecard.read_bytes(), merged_of(run), seconds)


def weights_of(run: RunFolder) -> str:
    return files.sha256(run.adapter / "adapter_model.safetensors")


def merged_of(run: RunFolder) -> str:
    return files.sha256(run.path / "merged" / "model.safetensors")


def metrics_of(run: RunFolder) -> list[str]:
    """The lines of metrics.jsonl less what a clock or a memory gauge says."""
    rows = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
    return [json.dumps({key: value for key, value in row.items() if key not in MEASURED}) for row in rows]


def rows_of(run: RunFolder) -> list[str]:
    """The lines of rows.jsonl; a run that goes on names its files by their whole path."""
    return [re.sub(r'"source": "[^"]*/', '"source": "', line) for line in run.rows.read_text(encoding="utf-8").splitlines()]


# --- moments: each waits until it has come, or until the process has ended ---


def any_time(call: Call, project: Project, draw: random.Random, seconds: float) -> None:
    time.sleep(max(0.0, draw.uniform(0, seconds) - (time.monotonic() - call.began)))


def _once(seen: Callable[[], bool], call: Call, seconds: float) -> None:
    while not seen() and time.monotonic() - call.began < 2 * seconds:
        time.sleep(0.0002)


def while_data_are_prepared(call: Call, project: Project, draw: random.Random, seconds: float) -> None:
    _once((project.home / "data").is_dir, call, seconds)
    time.sleep(draw.uniform(0, 0.1))


def while_it_saves(call: Call, project: Project, draw: random.Random, seconds: float) -> None:
    steps = draw.randrange(1, UPDATES)
    _once(lambda: any(project.folder.glob(f"runs/*/checkpoints/.step-{steps:06d}*")), call, seconds)
    time.sleep(draw.uniform(0, 0.01))


def while_it_rotates(call: Call, project: Project, draw: random.Random, seconds: float) -> None:
    steps = draw.randrange(3, UPDATES)
    _once(lambda: any(project.folder.glob(f"runs/*/checkpoints/step-{steps:06d}")), call, seconds)
    time.sleep(draw.uniform(0, 0.003))


def while_it_evaluates(call: Call, project: Project, draw: random.Random, seconds: float) -> None:
    _once(
        lambda: any(f'"step": {draw.choice((4, 8, 12))}' in path.read_text() for path in project.folder.glob("runs/*/metrics.jsonl")), call, seconds
    )
    time.sleep(draw.uniform(0, 0.03))


def while_it_ends(call: Call, project: Project, draw: random.Random, seconds: float) -> None:
    _once(lambda: any(project.folder.glob(f"runs/*/checkpoints/step-{UPDATES:06d}")), call, seconds)
    time.sleep(draw.uniform(0, 0.3))


MOMENTS = [any_time, while_data_are_prepared, while_it_saves, while_it_rotates, while_it_evaluates, while_it_ends]


def killed_training(seed: int, project: Project, straight: Straight) -> None:
    draw = random.Random(seed)
    moment = MOMENTS[seed % len(MOMENTS)]
    call = project.begin("train", "luthier.yaml", *SETTINGS)
    moment(call, project, draw, straight.seconds["train"])
    call.kill(signal.SIGKILL)
    killed = call.wait()
    where = f"seed {seed}, {moment.__name__}"
    if killed.code == 0 or any((run.path / "report.html").exists() for run in list_runs(project.folder / "runs")):
        assert weights_of(project.run) == straight.weights, where  # it was faster: a run that has ended is whole
        return
    assert killed.code == -signal.SIGKILL, f"{where}: {killed}"
    done = max((row["step"] for run in list_runs(project.folder / "runs") for row in run.read_metrics("train")), default=0)
    again = project.again()
    assert again.code == 0, f"{where}: {again.said}"
    resumed = re.search(r"resumed from \S*step-(\d+)", again.said)
    had_ended = "trained to its end already" in again.said  # what it lacked was its report
    assert had_ended or done - (int(resumed[1]) if resumed else 0) <= 1, f"{where}: more than one save interval is lost: {again.said}"
    assert weights_of(project.run) == straight.weights, where
    assert metrics_of(project.run) == straight.metrics, where
    assert rows_of(project.run) == straight.rows, where
    assert project.leftovers() == [], where


def killed_afterwards(seed: int, verb: str, straight: Straight) -> None:
    draw = random.Random(seed)
    project = straight.project
    shutil.rmtree(project.run.path / "merged")
    project.run.scorecard.unlink()
    call = project.begin(verb, "last")
    any_time(call, project, draw, straight.seconds[verb])
    call.kill(signal.SIGKILL)
    call.wait()
    for verb in ("eval", "export"):
        again = project.begin(verb, "last").wait()
        assert again.code == 0, f"seed {seed}, {verb}: {again.said}"
    assert project.run.scorecard.read_bytes() == straight.scorecard
    assert merged_of(project.run) == straight.merged
    assert weights_of(project.run) == straight.weights
    assert project.leftovers() == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(18))
def test_a_killed_training_goes_on_to_the_same_end(seed: int, new_project: Callable[[], Project], straight: Straight) -> None:
    killed_training(seed, new_project(), straight)


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["eval", "export"])
@pytest.mark.parametrize("seed", range(4))
def test_a_killed_evaluation_or_export_leaves_nothing_half(seed: int, verb: str, straight: Straight) -> None:
    killed_afterwards(seed, verb, straight)


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(1000, 1160))
def test_160_killed_trainings_go_on_to_the_same_end(seed: int, new_project: Callable[[], Project], straight: Straight) -> None:
    killed_training(seed, new_project(), straight)


@pytest.mark.nightly
@pytest.mark.parametrize("verb", ["eval", "export"])
@pytest.mark.parametrize("seed", range(1000, 1020))
def test_40_killed_evaluations_and_exports_leave_nothing_half(seed: int, verb: str, straight: Straight) -> None:
    killed_afterwards(seed, verb, straight)
