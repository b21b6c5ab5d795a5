"""`luthier launch`, `logs`, `train --dry-run` and `plan --devices`, as a user calls them."""

import json
from pathlib import Path
from typing import Any

import pytest

from luthier import run_lock
from luthier.launch import starting
from luthier.recipes import watching
from luthier.run_folder import RunFolder


@pytest.fixture
def project(tmp_path: Path, tiny_model: Path) -> Path:
    rows = [{"instruction": f"Say {number}", "output": f"it is {number}"} for number in range(32)]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (tmp_path / "luthier.yaml").write_text(f"model: {tiny_model}\ndevice: cpu\ndata: {{train: rows.jsonl, eval: null}}\n")
    return tmp_path


def test_a_job_file_is_written_checked_and_not_submitted(project: Path, call: Any) -> None:
    ended = call("launch", "luthier.yaml", "--on", "ssh", "--hosts", "one,two", "nodes=2")
    assert ended.code == 0, ended.err
    file = project / "luthier.ssh.sh"
    assert "one two" in file.read_text()
    assert "checked: its shell is sound (bash -n)" in ended.out
    assert f"submit it with: bash {file}" in ended.out
    again = call("launch", "luthier.yaml", "--on", "ssh", "--hosts", "one,two", "nodes=2", "--json").json
    assert (again["file"], again["was_there"], again["command"]) == (str(file), True, ["bash", str(file)])


def test_what_a_job_cannot_be_is_a_line_with_a_way_out(project: Path, call: Any) -> None:
    assert "2 hosts are named, and nodes is 3" in call("launch", "luthier.yaml", "--on", "ssh", "--hosts", "a,b", "nodes=3").problem
    assert not list(project.glob("*.sh"))


def test_submitting_runs_the_tool(project: Path, call: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "sbatch").write_text(f'#!/bin/bash\necho "$@" > {tmp_path}/submitted\n')
    (tools / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    assert call("launch", "luthier.yaml", "--on", "slurm", "--submit").code == 0
    assert (tmp_path / "submitted").read_text().split()[-1] == str(project / "luthier.slurm.sbatch")


def test_a_dry_run_prints_the_plan_and_the_line_and_starts_nothing(project: Path, call: Any) -> None:
    ended = call("train", "luthier.yaml", "--dry-run", "devices=2", "launch.max_restarts=1")
    assert ended.code == 0, ended.err
    last = ended.out.splitlines()[-1]
    assert last.startswith("starts: TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 OMP_NUM_THREADS=")
    assert last.endswith("--nproc-per-node=2 --max-restarts=1 -m luthier.launch.worker luthier.yaml devices=2 launch.max_restarts=1")
    assert "wrapping: ddp (the weights fit one device, and only what is trained is sent)" in ended.out
    assert "devices: 2 (ddp); each sends about" in ended.out
    alone = call("train", "luthier.yaml", "--dry-run")
    assert alone.out.splitlines()[-1] == "starts: one process, in this one"
    told = call("train", "luthier.yaml", "--dry-run", "--json", "devices=2").json
    assert "wrapping: ddp" in " ".join(told["plan"])
    assert "--nproc-per-node=2" in told["starts"]
    assert not (project / "runs").exists()


def test_a_run_of_several_processes_is_named_as_that_of_one_is(project: Path, call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFolder(project / "runs" / "one")
    run.adapter.mkdir(parents=True)
    asked: list[bool] = []
    monkeypatch.setattr(starting, "run", lambda line, quiet=False: asked.append(quiet) or run.path)
    told = call("train", "luthier.yaml", "devices=2", "--json").json
    assert told == {"run": str(run.path), "adapter": str(run.adapter), "report": str(run.report)}
    assert f"Next: luthier eval {run.path}" in call("train", "luthier.yaml", "devices=2").out
    assert asked == [True, False], "what workers say is no JSON"
    monkeypatch.setattr(starting, "run", lambda line, quiet=False: None)
    ended = call("train", "luthier.yaml", "devices=2")
    assert (ended.code, ended.out) == (0, ""), "the leader of the run is on another host, and says it there"


def test_hosts_without_a_place_to_meet_end_with_2(project: Path, call: Any) -> None:
    ended = call("train", "luthier.yaml", "nodes=2")
    assert ended.code == 2
    assert "do not know where to meet" in ended.problem


def test_more_devices_are_shown_with_what_is_assumed(project: Path, call: Any) -> None:
    ended = call("plan", "luthier.yaml", "--devices", "1,8,64", "--device", "h100")
    assert ended.code == 0, ended.err
    assert "the run on more devices like h100" in ended.out
    assert ended.out.count("assumed: ") == 4
    found = call("plan", "luthier.yaml", "--devices", "1,8", "--json").json
    assert [one["devices"] for one in found["devices"]] == [1, 8]
    assert "NVLink" in found["links"]
    assert call("plan", "luthier.yaml", "--devices", "many").problem.endswith("'many' is no list of numbers of devices")
    assert "no device has the name 'h1000'" in call("plan", "luthier.yaml", "--devices", "2", "--device", "h1000").problem


def test_logs_are_the_newest_lines_and_with_follow_those_that_come(tmp_path: Path, call: Any) -> None:
    run = RunFolder(tmp_path / "run")
    run.adapter.mkdir(parents=True)
    run.config.write_text("model: m\n")
    for number in range(5):
        run.say(f"line {number}")
    shown = call("logs", "run", "--lines", "2").out.splitlines()
    assert [line.rpartition(" ")[2] for line in shown] == ["3", "4"]
    with run_lock.held(run.path, "train"):
        followed = watching.said(run, 1, 0.0, sleep=lambda _: run.say("more"))
        assert [next(followed).rpartition(" ")[2] for _ in range(2)] == ["4", "more"]
    assert len(list(followed)) <= 1, "nobody works in it any more"
