"""Two hosts as network namespaces of this machine: what they train together is what one process trains, and one may go and come back."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import luthier
from luthier.run_folder import RunFolder

pytestmark = pytest.mark.nightly
ADDRESSES = {"a": "10.77.0.1", "b": "10.77.0.2"}


@pytest.fixture
def hosts() -> Iterator[dict[str, str]]:
    """The names of two namespaces that reach each other over a virtual cable, by letter."""
    names = {letter: f"luthier-{os.getpid()}-{letter}" for letter in ADDRESSES}
    cards = {letter: f"l{os.getpid()}{letter}" for letter in ADDRESSES}
    commands = [f"ip netns add {name}" for name in names.values()]
    commands.append(f"ip link add {cards['a']} type veth peer name {cards['b']}")
    for letter, name in names.items():
        commands += [
            f"ip link set {cards[letter]} netns {name} name eth0",
            f"ip -n {name} addr add {ADDRESSES[letter]}/24 dev eth0",
            f"ip -n {name} link set lo up",
            f"ip -n {name} link set eth0 up",
        ]
    try:
        for command in commands:
            try:
                subprocess.run(command.split(), check=True, capture_output=True, text=True)
            except (FileNotFoundError, subprocess.CalledProcessError) as error:
                pytest.skip(f"this system allows no network namespaces: {command}: {getattr(error, 'stderr', error)}")
        yield names
    finally:
        for name in names.values():
            end(name)
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def end(name: str) -> None:
    """Every process of a host ends at once, as if its cable and its power were cut."""
    for pid in subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True).stdout.split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)


def train(project: Path, name: str, letter: str, number: int, *settings: str) -> "subprocess.Popen[bytes]":
    call = [sys.executable, "-m", "luthier", "train", "luthier.yaml", "device=cpu", f"launch.head={ADDRESSES['a']}", *settings]
    where = ["--host", str(number), "--address", ADDRESSES[letter]]
    with open(project / f"{letter}.log", "ab") as log:
        return subprocess.Popen(["ip", "netns", "exec", name, *call, *where], cwd=project, stdout=log, stderr=subprocess.STDOUT)


def wait_for(what: Callable[[], object], seconds: float, why: str) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, f"{why} did not come within {seconds} s"
        time.sleep(0.2)


def losses(run: Path) -> list[tuple[int, float]]:
    return [(row["step"], row["loss"]) for row in RunFolder(run).read_metrics("train")]


def the_run(project: Path) -> Path:
    (run,) = (project / "runs").iterdir()
    return run


def said(project: Path) -> str:
    return "\n".join(f"{file.name}:\n{file.read_text()[-3000:]}" for file in sorted(project.glob("*.log")))


def test_two_hosts_train_what_one_process_trains(hosts: dict[str, str], tiny_project: Path) -> None:
    alone = luthier.fit(tiny_project / "luthier.yaml", ["device=cpu", "output_dir=alone"]).path
    both = [train(tiny_project, hosts[letter], letter, number, "nodes=2") for number, letter in enumerate(ADDRESSES)]
    assert [process.wait(600) for process in both] == [0, 0], said(tiny_project)
    found, wanted = losses(the_run(tiny_project)), losses(alone)
    assert [step for step, _ in found] == [step for step, _ in wanted]
    assert [loss for _, loss in found] == pytest.approx([loss for _, loss in wanted], abs=1e-5)


def test_a_host_that_is_lost_and_comes_back_costs_no_update(hosts: dict[str, str], tiny_project: Path) -> None:
    updates = 400
    settings = [f"training.max_steps={updates}", "training.save_steps=20"]
    alone = luthier.fit(tiny_project / "luthier.yaml", ["device=cpu", "output_dir=alone", *settings]).path
    a = train(tiny_project, hosts["a"], "a", 0, "nodes=1:2", *settings)
    train(tiny_project, hosts["b"], "b", 1, "nodes=1:2", *settings)
    wait_for(lambda: list(tiny_project.glob("runs/*/checkpoints/step-*")), 600, "a checkpoint of two hosts")
    end(hosts["b"])
    before = len(losses(the_run(tiny_project)))
    wait_for(lambda: len(losses(the_run(tiny_project))) > before + 20, 300, f"updates of one host behind {before}")
    back = train(tiny_project, hosts["b"], "b", 1, "nodes=1:2", *settings)
    assert a.wait(900) == 0, said(tiny_project)
    assert back.wait(120) == 0, said(tiny_project)
    found, wanted = losses(the_run(tiny_project)), losses(alone)
    assert [step for step, _ in found] == list(range(1, updates + 1)), "every update once"
    assert [loss for _, loss in found] == pytest.approx([loss for _, loss in wanted], abs=1e-5)
    log = (tiny_project / "a.log").read_text()
    assert log.count("2 ranks train together") >= 2, "with the other, and with the other again"
