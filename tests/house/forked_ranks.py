"""Runs of several ranks without the seconds of the imports: one process imports torch and its companions, and forks for each rank.

Run as a program with a file of jobs (JSON): [{"ranks": 2, "cases": [{"config": FILE, "overrides": [...], "stop_at": 0}]}]. The ranks of a job
run its cases one after the other, in one group. Beside each run `sent.json` tells what its leader put into sums.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

LIMIT_S = 120.0


def run_jobs(folder: Path, home: Path, jobs: list[dict[str, Any]]) -> None:
    """Run jobs in `folder`, with LUTHIER_HOME at `home`. Raises AssertionError with what was said where a rank failed."""
    (folder / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "LUTHIER_HOME": str(home)}
    command = [sys.executable, __file__, str(folder / "jobs.json")]
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def _run_job(job: dict[str, Any]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = job["ranks"]
    of_group = {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(job.get("of_host", world)), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    children = []
    for rank in range(world):
        if (pid := os.fork()) == 0:
            _be_rank(rank, of_group, job)
        children.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    if any(codes):
        sys.exit(f"the ranks ended with {codes}")


def _be_rank(rank: int, of_group: dict[str, str], job: dict[str, Any]) -> None:
    import traceback

    from luthier.engine import ranks
    from luthier.train import following

    code = 1
    try:
        os.environ.update(of_group, RANK=str(rank), LOCAL_RANK=str(rank))
        ranks.join(LIMIT_S)
        for case in job["cases"]:
            if ranks.leads():
                _lead(case)
                ranks.say({"do": "end"})
            else:
                following.follow()
        ranks.leave()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _lead(case: dict[str, Any]) -> None:
    from luthier import run_folder
    from luthier.config.load import load_config
    from luthier.engine import ranks
    from luthier.recipes import training
    from luthier.train.session import Interrupted

    config = load_config(case["config"], case["overrides"])
    output_dir = Path(config.beside(config.settings.output_dir))
    earlier = run_folder.list_runs(output_dir)
    sent: list[int] = []

    def watch(run: Any, stop: Any) -> Any:
        def told(report: Any) -> None:
            sent.append(ranks.summed_bytes())
            if report.step == case.get("stop_at"):
                stop.signal = 15

        return told

    try:
        run = training.fit(config, resume=earlier[-1] if earlier else None, watch=watch)
        (run.path / "sent.json").write_text(json.dumps(sent))
    except Interrupted as stopped:
        print(stopped)


def _serve(jobs: list[dict[str, Any]]) -> None:
    import torch

    from luthier.recipes import training  # noqa: F401
    from luthier.train import following  # noqa: F401

    torch.set_num_threads(1)
    for job in jobs:
        _run_job(job)


if __name__ == "__main__":
    _serve(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
