"""The generated sbatch on a real Slurm: two nodes run it, it is queued again, goes on where it was, and ends as one process does."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from two_nodes import slurm, what_is_missing

import luthier
from luthier.config.load import load_config
from luthier.launch import jobs
from luthier.run_folder import RunFolder

pytestmark = [pytest.mark.nightly, pytest.mark.skipif(bool(what_is_missing()), reason=what_is_missing() or "Slurm is here")]
UPDATES = 300


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[dict[str, str]]:
    with slurm(tmp_path / "slurm") as variables:
        yield variables


def wait_for(what: Callable[[], Any], seconds: float, why: str) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := what():
            return found
        time.sleep(1)
    raise AssertionError(f"{why} did not come within {seconds} s")


def test_a_job_of_two_nodes_is_queued_again_and_ends_as_one_process_does(cluster: dict[str, str], tiny_project: Path) -> None:
    settings = ["device=cpu", f"training.max_steps={UPDATES}", "training.save_steps=20"]
    alone = luthier.fit(tiny_project / "luthier.yaml", [*settings, "output_dir=alone"]).path
    config = load_config(tiny_project / "luthier.yaml", [*settings, "nodes=2"])
    job = jobs.write(config, [*settings, "nodes=2"], "slurm")
    source = Path(luthier.__file__).parents[1]
    # Luthier as it stands here, on nodes of one core.
    job.file.write_text(job.file.read_text().replace("export PATH=", f"export PYTHONPATH={source}\nexport PATH="))
    job.file.write_text(job.file.read_text().replace(" luthier train ", f" {sys.executable} -m luthier train "))
    variables = {**cluster, "OMP_NUM_THREADS": str(os.environ.get("OMP_NUM_THREADS", 1))}

    def ask(*command: str) -> str:
        return subprocess.run(command, env=variables, cwd=tiny_project, capture_output=True, text=True, check=True).stdout

    def state(number: str) -> dict[str, str]:
        return dict(word.split("=", 1) for word in ask("scontrol", "show", "job", number).split() if "=" in word)

    wait_for(lambda: ask("sinfo", "--noheader", "--format=%T").split() == ["idle"], 60, "two idle nodes")
    number = ask("sbatch", "--parsable", "--cpus-per-task=1", str(job.file)).strip()
    log = tiny_project / f"{jobs._name(config)}-{number}.log"
    wait_for(lambda: list(tiny_project.glob("runs/*/checkpoints/step-*")), 600, f"a checkpoint of {state(number)}")
    ask("scontrol", "requeue", number)
    wait_for(lambda: int(state(number)["Restarts"]) == 1, 240, "the second start")
    ended = wait_for(lambda: state(number)["JobState"] in ("COMPLETED", "FAILED") and state(number), 600, f"the end of {log}")
    assert ended["JobState"] == "COMPLETED", log.read_text()[-3000:]
    (run,) = (tiny_project / "runs").iterdir()
    assert "stopped after step" in log.read_text(), "it was told to end, and saved"
    steps, wanted = (RunFolder(path).read_metrics("train") for path in (run, alone))
    assert [one["step"] for one in steps] == list(range(1, UPDATES + 1)), "every update once"
    assert [one["loss"] for one in steps] == pytest.approx([one["loss"] for one in wanted], abs=1e-5)
