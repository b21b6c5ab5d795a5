"""Real processes under torchrun: one is killed, hangs or gets a signal, and the run goes on, or ends, as if nothing were lost."""

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from forked_ranks import run_jobs
from safetensors.torch import load_file

from luthier.launch import lines
from luthier.plan.machine import store_machine
from luthier.records import Machine
from luthier.run_folder import RunFolder, list_runs

UPDATES = 14
SETTINGS = [
    *("training.precision=fp32", "training.learning_rate=1e-2", "training.batch_size=24", f"training.max_steps={UPDATES}", "lora.r=4"),
    *("training.save_steps=1", "training.rows_file=true", "devices=2"),
]
READY = {0: r"rank 0 is pid (\d+) on", 1: r"rank 1 of 2: ready on cpu \(pid (\d+) on"}


@dataclass(frozen=True, slots=True)
class Started:
    """Two ranks under torchrun, and their run."""

    process: "subprocess.Popen[bytes]"
    runs: Path
    said: Path

    @property
    def run(self) -> RunFolder:
        (run,) = list_runs(self.runs)
        return run

    def wait_for_step(self, step: int) -> None:
        """Wait until the run has done so many updates."""
        while self.process.poll() is None:
            if list_runs(self.runs) and step in [row["step"] for row in self.run.read_metrics("train")]:
                return
            time.sleep(0.002)
        raise AssertionError(self.said.read_text())

    def send(self, number: int, rank: int) -> None:
        """A signal for the process that this rank is now."""
        os.kill(int(re.findall(READY[rank], self.run.log.read_text())[-1]), number)

    def wait(self) -> int:
        return self.process.wait(timeout=300)


class Project:
    def __init__(self, folder: Path, model: Path) -> None:
        self.folder, self.home = folder, folder / "home"
        store_machine(self.home, Machine("cpu", "a small machine", 2, 8_000_000_000, 10.0, 40.0))
        rows = [{"prompt": f"{place} Pierce Rd, Elgin", "completion": f"{place} Pierce Rd; " * (1 + place % 5)} for place in range(60)]
        (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        text = f"model: {model}\ndata: {{train: train.jsonl, eval: null}}\nlora: {{lora_alpha: 8}}\ndevice: cpu\n"
        (folder / "luthier.yaml").write_text(text, encoding="utf-8")

    @contextlib.contextmanager
    def begin(self, name: str, *settings: str, restarts: int = 2) -> Iterator[Started]:
        asked = [str(self.folder / "luthier.yaml"), *SETTINGS, f"output_dir={self.folder / name}", *settings]
        line = lines.on_one_host(asked, 2, restarts=restarts, threads=1)
        environment = {**os.environ, **line.environment, "LUTHIER_HOME": str(self.home), "PYTHONWARNINGS": "ignore"}
        said = self.folder / f"{name}.txt"
        with said.open("wb") as file:
            process = subprocess.Popen(
                line.arguments, cwd=self.folder, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )
        try:
            yield Started(process, self.folder / name, said)
        finally:
            if process.poll() is None:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=40)
                process.kill()

    def straight(self) -> RunFolder:
        """The run that nothing happened to."""
        if not list_runs(self.folder / "straight"):
            asked = [*SETTINGS, f"output_dir={self.folder / 'straight'}"]
            run_jobs(self.folder, self.home, [{"ranks": 2, "cases": [{"config": str(self.folder / "luthier.yaml"), "overrides": asked}]}])
        (run,) = list_runs(self.folder / "straight")
        return run


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Project:
    return Project(tmp_path_factory.mktemp("worker"), tiny_model)


def losses_of(run: RunFolder) -> list[tuple[int, float]]:
    return [(row["step"], row["loss"]) for row in run.read_metrics("train")]


def rows_of(run: RunFolder) -> list[tuple[int, str]]:
    return [(row["step"], row["source"].split("/")[-1]) for row in run.read_row_losses()]


def require_same_end(run: RunFolder, straight: RunFolder) -> None:
    assert losses_of(run) == losses_of(straight)
    assert rows_of(run) == rows_of(straight), "a row was read twice, or not at all"
    one, other = (load_file(each.adapter / "adapter_model.safetensors") for each in (run, straight))
    assert all(bool((one[name] == other[name]).all()) for name in other)


@pytest.mark.slow
def test_each_rank_is_killed_once_and_the_run_ends_as_if_none_had_been(project: Project) -> None:
    with project.begin("killed") as started:
        for rank, step in ((1, 4), (0, 9)):
            started.wait_for_step(step)
            started.send(signal.SIGKILL, rank)
        assert started.wait() == 0, started.said.read_text()
    require_same_end(started.run, project.straight())
    log = started.run.log.read_text()
    assert "all were started again (restart 1)" in log
    assert "all were started again (restart 2)" in log


@pytest.mark.slow
def test_a_signal_to_one_rank_saves_on_all_at_the_same_step_and_the_run_goes_on_from_there(project: Project) -> None:
    with project.begin("told", "wrapping=fsdp", "training.save_steps=100", restarts=0) as started:
        started.wait_for_step(3)
        started.send(signal.SIGTERM, 1)
        started.wait()
    (saved,) = started.run.checkpoints.iterdir()
    step = int(saved.name.partition("-")[2])
    assert f"stopped by signal 15 after step {step}" in started.run.log.read_text()
    assert losses_of(started.run)[-1][0] == step, "the leader went on after the checkpoint, or it is of an earlier step"
    files_of_ranks = json.loads((saved / "manifest.json").read_text())["files"]
    assert {name for name in files_of_ranks if name.startswith("trained")} == {f"trained-{rank:05d}-of-00002.safetensors" for rank in (1, 2)}


@pytest.mark.nightly
@pytest.mark.parametrize(("rank", "named"), [(1, "rank 1 did not come to where the ranks meet"), (0, "rank 0 does not answer")])
def test_a_rank_that_hangs_is_named_within_the_time_limit(rank: int, named: str, project: Project) -> None:
    with project.begin(f"hung-{rank}", "launch.timeout_minutes=0.1") as started:
        started.wait_for_step(4)
        started.send(signal.SIGSTOP, rank)
        began = time.monotonic()
        while named not in started.said.read_text():
            assert time.monotonic() - began < 90, started.said.read_text()
            time.sleep(0.1)
        assert started.wait() == 0, started.said.read_text()
    require_same_end(started.run, project.straight())


@pytest.mark.nightly
@pytest.mark.parametrize("number", range(6))
def test_six_of_six_kills_are_recovered_from(number: int, project: Project) -> None:
    wrapping = ("ddp", "fsdp")[number % 2]
    with project.begin(f"killed-{number}", f"wrapping={wrapping}") as started:
        started.wait_for_step(2 + 2 * number)
        started.send(signal.SIGKILL, number // 3)
        assert started.wait() == 0, started.said.read_text()
    straight = project.straight()
    if wrapping == "ddp":
        require_same_end(started.run, straight)
    else:
        assert [loss for _, loss in losses_of(started.run)] == pytest.approx([loss for _, loss in losses_of(straight)], rel=1e-5)
    assert rows_of(started.run) == rows_of(straight)
