"""Job files: what they ask for, that nothing a user edited is written over, and that a broken one is refused by the tool's own reader."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from luthier.config.load import load_config
from luthier.errors import CallError, ConfigError, LuthierError
from luthier.launch import checks, jobs

# A Python with SkyPilot, dstack and Kubeflow's models in it (docs/scaling.md): 600 MB that nothing else here needs.
CLUSTERS = os.environ.get("LUTHIER_TEST_CLUSTERS")
ODD = "training.learning_rates={q_proj: 0.5}"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "My project"
    folder.mkdir()
    (folder / "luthier.yaml").write_text("model: m\ndata: {train: rows.jsonl}\n")
    return folder / "luthier.yaml"


def written(file: Path, on: str, *overrides: str, **how: Any) -> str:
    return jobs.write(load_config(file, list(overrides)), overrides, on, **how).file.read_text()


@pytest.mark.parametrize("on", jobs.TOOLS)
def test_a_job_asks_for_what_the_settings_say_and_calls_luthier(project: Path, on: str) -> None:
    hosts = ["one", "two"] if on == "ssh" else []
    text = written(project, on, "devices=4", "nodes=2", ODD, hosts=hosts)
    assert "{{" not in text
    assert "resume=auto" in text, "what is started again goes on"
    assert "4" in text
    assert "luthier.launch.worker" in text if on == "kubeflow" else "luthier" in text
    assert ODD in text
    if on not in ("kubeflow", "ray"):
        assert "launch.head=$" in text
        assert "launch.head" not in written(project, on, "devices=4", hosts=hosts[:1], to=project.parent / "alone"), "one host has nobody to meet"
    gpu = {"slurm": "gpus-per-node", "sky": "accelerators", "kubeflow": "nvidia.com/gpu", "dstack": "gpu:", "ray": '"GPU":', "ssh": "no such word"}[
        on
    ]
    assert (gpu in text) == (on != "ssh")
    assert gpu not in written(project, on, "device=cpu", hosts=hosts[:1], to=project.parent / "cpu")


@pytest.mark.parametrize("on", ["sky", "ray", "ssh"])
def test_the_hosts_meet_on_the_port_of_the_settings(project: Path, on: str) -> None:
    hosts = ["one", "two"] if on == "ssh" else []
    assert re.search(r"port ?= ?29555$", written(project, on, "nodes=2", "launch.port=29555", hosts=hosts).lower(), re.MULTILINE)


def test_ray_is_not_sent_the_runs(project: Path) -> None:
    command = jobs.write(load_config(project, ["output_dir=done"]), ["output_dir=done"], "ray").command
    assert json.loads(command[command.index("--runtime-env-json") + 1]) == {"excludes": ["/done/"]}


@pytest.mark.parametrize("on", ["sky", "dstack"])
def test_runs_outlive_the_hosts_unless_the_call_names_another_place(project: Path, on: str) -> None:
    assert "output_dir=/runs" in written(project, on)
    other = written(project, on, "output_dir=/elsewhere", to=project.parent / "other")
    assert "output_dir=/elsewhere" in other
    assert "output_dir=/runs" not in other


def test_slurms_own_lines_stand_before_any_command(project: Path) -> None:
    lines = written(project, "slurm", "nodes=1:3").splitlines()
    first_command = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    asked = [line for line in lines[:first_command] if line.startswith("#SBATCH")]
    assert {"#SBATCH --nodes=1-3", "#SBATCH --requeue", "#SBATCH --open-mode=append", "#SBATCH --signal=TERM@120"} <= set(asked)
    assert not [line for line in lines[first_command:] if line.startswith("#SBATCH")], "Slurm would not read them"


def test_the_shell_hands_every_setting_on_as_it_is(project: Path, tmp_path: Path) -> None:
    """The script is run with programs that only say what they were called with."""
    tools = tmp_path / "bin"
    tools.mkdir()
    # In one piece: two hosts say it at once.
    says = 'said=$(printf "%s\\n" "$@"); echo "$said"'
    for name, does in {"luthier": says, "srun": 'shift 2; "$@"', "scontrol": "echo NodeAddr=10.0.0.1", "squeue": "true"}.items():
        (tools / name).write_text(f"#!/bin/bash\n{does}\n")
        (tools / name).chmod(0o755)
    (tools / "ssh").write_text('#!/bin/bash\n[ "$1" = -tt ] && shift\nshift\n[ "$1" = hostname ] && echo 10.0.0.9 || bash -c "$*"\n')
    (tools / "ssh").chmod(0o755)
    variables = {"PATH": f"{tools}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_PROCID": "1", "SLURM_JOB_NODELIST": "n[1-2]"}
    for on, hosts in (("slurm", []), ("ssh", ["one", "two"])):
        job = jobs.write(load_config(project, ["nodes=2", ODD]), ["nodes=2", ODD], on, hosts)
        job.file.write_text(job.file.read_text().replace(f"environment={shlex.quote(sys.prefix)}", "environment=/nowhere"))
        ended = subprocess.run(["bash", str(job.file)], env=variables, capture_output=True, text=True, cwd=tmp_path)
        said = ended.stdout.splitlines()
        assert said[:5] == ["train", "luthier.yaml", "nodes=2", ODD, "resume=auto"], ended.stderr
        assert {"--port", "--host", "launch.head=10.0.0.1" if on == "slurm" else "launch.head=10.0.0.9"} <= set(said)


def test_a_file_that_was_edited_is_used_as_it_is(project: Path) -> None:
    config = load_config(project)
    job = jobs.write(config, [], "slurm")
    assert not job.was_there
    job.file.write_text(job.file.read_text().replace("24:00:00", "01:00:00"))
    again = jobs.write(config, ["seed=3"], "slurm")
    assert again.was_there
    assert "01:00:00" in again.file.read_text()
    assert "sbatch" in str(again)


def test_a_broken_file_is_refused(project: Path) -> None:
    config = load_config(project)
    for on, break_ in (("slurm", 'if [ "$code"'), ("ray", "def main() -> None:")):
        job = jobs.write(config, [], on)
        job.file.write_text(job.file.read_text().replace(break_, f"({break_}"))
        with pytest.raises(LuthierError, match="refuses it"):
            jobs.write(config, [], on)


def test_what_a_job_cannot_be_is_refused(project: Path) -> None:
    with pytest.raises(ConfigError, match="a job asks for a number"):
        written(project, "slurm", "devices=auto")
    with pytest.raises(CallError, match="2 hosts are named, and nodes is 3"):
        written(project, "ssh", "nodes=3", hosts=["a", "b"])
    with pytest.raises(CallError, match="chooses its hosts itself"):
        written(project, "slurm", hosts=["a"])
    with pytest.raises(ConfigError, match="has a fixed number of hosts"):
        written(project, "sky", "nodes=1:2")


def test_submitting_where_the_tool_is_missing_names_the_command(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = jobs.write(load_config(project), [], "dstack")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(LuthierError, match="dstack is not installed here"):
        job.submit()


def asked_of_its_tool(on: str, file: Path) -> subprocess.CompletedProcess[str]:
    program = f"from pathlib import Path; from luthier.launch import checks; print(checks.check({on!r}, Path({str(file)!r})))"
    variables = {**os.environ, "PYTHONPATH": str(Path(checks.__file__).parents[2])}
    return subprocess.run([str(CLUSTERS), "-c", program], env=variables, capture_output=True, text=True)


BROKEN = {"sky": ("num_nodes:", "num_nodez:"), "dstack": ("nodes:", "nodez:"), "kubeflow": ("numNodes: 2", "numNodes: two")}


@pytest.mark.slow
@pytest.mark.skipif(CLUSTERS is None, reason="LUTHIER_TEST_CLUSTERS names no Python with SkyPilot, dstack and Kubeflow's models")
@pytest.mark.parametrize("on", BROKEN)
def test_the_tools_own_models_read_the_file_and_refuse_a_broken_one(project: Path, on: str) -> None:
    job = jobs.write(load_config(project, ["devices=4", "nodes=2", ODD]), ["devices=4", "nodes=2", ODD], on)
    read = asked_of_its_tool(on, job.file)
    assert read.returncode == 0, read.stderr[-2000:]
    assert "reads it" in read.stdout or "read it" in read.stdout
    job.file.write_text(job.file.read_text().replace(*BROKEN[on]))
    refused = asked_of_its_tool(on, job.file)
    assert refused.returncode
    assert "refuses it" in refused.stderr
    if on == "kubeflow":  # its models leave out what they do not know
        job.file.write_text(job.file.read_text().replace("numNodes: two", "nodes: 2"))
        assert "it knows no spec.trainer.nodes" in asked_of_its_tool(on, job.file).stderr
