"""The torchrun line of a host: what it says, what the environment gets, and what is refused before anything starts."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from luthier.config.launch import bounds_of
from luthier.config.settings import Settings
from luthier.errors import CallError
from luthier.launch import lines, starting
from luthier.launch.starting import Here


def settings(**asked: Any) -> Settings:
    return Settings.model_validate({"model": "m", "data": {"train": "rows.jsonl"}, "device": "cpu", **asked})


def test_one_device_needs_no_line() -> None:
    assert starting.line_of(settings(), ["luthier.yaml"], Here()) is None
    assert starting.line_of(settings(devices="auto"), ["luthier.yaml"], Here()) is None, "a CPU is one device"


def test_devices_of_one_host_meet_by_themselves() -> None:
    line = starting.line_of(settings(devices=3, launch={"max_restarts": 7}), ["luthier.yaml", "seed=1", "data.train=a b"], Here())
    assert line is not None
    assert line.environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"
    assert line.environment["OMP_NUM_THREADS"].isdecimal()
    given = list(line.arguments)
    assert {"--standalone", "--nproc-per-node=3", "--max-restarts=7"} <= set(given)
    assert given[given.index("luthier.launch.worker") - 1 :] == ["-m", "luthier.launch.worker", "luthier.yaml", "seed=1", "data.train=a b"]
    assert str(line).endswith("luthier.yaml seed=1 'data.train=a b'"), "as a shell takes it"


def test_hosts_are_told_where_to_meet_and_which_one_is_the_head() -> None:
    asked = settings(devices=2, nodes="1:4", launch={"head": "127.0.0.1", "port": 29411})
    head = starting.line_of(asked, ["l.yaml"], Here(address="127.0.0.1"))
    other = starting.line_of(asked, ["l.yaml"], Here(number=1, port=29412))
    assert head is not None
    assert other is not None
    assert {"--nnodes=1:4", "--rdzv-endpoint=127.0.0.1:29411", "--local-addr=127.0.0.1", "--nproc-per-node=2"} <= set(head.arguments)
    assert "--rdzv-endpoint=127.0.0.1:29412" in other.arguments
    assert [next(one for one in line.arguments if "is_host" in one).split(",")[0] for line in (head, other)] == [
        "--rdzv-conf=is_host=1",
        "--rdzv-conf=is_host=0",
    ]
    assert "last_call_timeout" in " ".join(head.arguments), "hosts may come later"
    fixed = starting.line_of(settings(nodes=2, launch={"head": "198.51.100.1"}), ["l.yaml"], Here())
    assert fixed is not None
    assert "is_host=0" in " ".join(fixed.arguments), "an address of another host"
    assert "last_call_timeout" not in " ".join(fixed.arguments)
    assert "--nnodes=2" in fixed.arguments


def test_the_card_of_an_address_carries_the_group() -> None:
    line = lines.on_each_host(["l.yaml"], 1, (2, 2), lines.Meeting("10.0.0.1", 29400, False), restarts=0, threads=1, interface="eth7")
    assert line.environment["GLOO_SOCKET_IFNAME"] == "eth7"
    assert starting.card_of("127.0.0.1") in ("lo", "")
    assert starting.card_of("198.51.100.1") == ""


def test_hosts_that_do_not_know_where_to_meet_are_not_started() -> None:
    with pytest.raises(CallError, match=r"launch\.head: nodes is 2, and the hosts do not know where to meet"):
        starting.line_of(settings(nodes=2), ["l.yaml"], Here())


def test_a_port_that_is_taken_is_named_with_a_free_one() -> None:
    with socket.socket() as holder:
        holder.bind(("", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(CallError, match=rf"port {port} is in use") as caught:
            starting.line_of(settings(nodes=2, launch={"head": "127.0.0.1", "port": port}), ["l.yaml"], Here(number=0))
        assert caught.value.exit_code == 2
        free = int(caught.value.next_step.split()[1])
        assert free > port
        starting.line_of(settings(nodes=2, launch={"head": "127.0.0.1", "port": port}), ["l.yaml"], Here(number=0, port=free))
        assert starting.line_of(settings(nodes=2, launch={"head": "127.0.0.1", "port": port}), ["l.yaml"], Here(number=1)) is not None


def test_bounds_of_hosts() -> None:
    assert (bounds_of(3), bounds_of("1:4")) == ((3, 3), (1, 4))
    for wrong in ("4:1", "0:2", "2", "a:b", "1:"):
        with pytest.raises(ValueError, match="MIN:MAX"):
            bounds_of(wrong)


PROGRAM = """
import os, pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
pathlib.Path(os.environ["LUTHIER_EXIT_CODE_FILE"]).write_text("{code}") if {code} else None
print("ready", flush=True)
time.sleep({seconds})
sys.exit({ended})
"""


@pytest.mark.parametrize(("code", "ended", "exit_code"), [(6, 0, 6), (0, 1, 1)])
def test_the_exit_code_is_what_a_worker_said_before_torchruns_own(code: int, ended: int, exit_code: int) -> None:

    program = PROGRAM.format(code=code, ended=ended, seconds=0)
    with pytest.raises(starting.WorkersEnded) as caught:
        starting.run(lines.Line((sys.executable, "-c", program), {}))
    assert caught.value.exit_code == exit_code


def test_a_signal_reaches_the_processes_and_is_the_exit_code() -> None:

    threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM)).start()
    with pytest.raises(starting.WorkersEnded) as caught:
        starting.run(lines.Line((sys.executable, "-c", PROGRAM.format(code=0, ended=0, seconds=60)), {}))
    assert caught.value.exit_code == 128 + signal.SIGTERM


LEADER = """
import os, pathlib
pathlib.Path(os.environ["LUTHIER_RUN_FILE"]).write_text("/runs/one")
print("a line of a worker")
"""


def test_the_run_of_the_leader_is_told_and_json_keeps_stdout_for_itself(capfd: pytest.CaptureFixture[str]) -> None:
    assert starting.run(lines.Line((sys.executable, "-c", LEADER), {})) == Path("/runs/one")
    assert capfd.readouterr().out == "a line of a worker\n"
    assert starting.run(lines.Line((sys.executable, "-c", "print('a line of a worker')"), {}), quiet=True) is None, "its leader is elsewhere"
    assert capfd.readouterr().out == ""


def test_a_run_may_be_started_from_another_thread() -> None:
    """Python takes handlers of signals in its main thread only; processes that were started before that was seen would be left behind."""
    found: list[Path | None] = []
    thread = threading.Thread(target=lambda: found.append(starting.run(lines.Line((sys.executable, "-c", LEADER), {}))))
    thread.start()
    thread.join(60)
    assert found == [Path("/runs/one")]


STARTER = """
import sys
from luthier.launch import lines, starting
starting.run(lines.Line((sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(60)"), {}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell a process that the one before it is gone")
def test_processes_of_a_call_that_was_killed_are_not_left_behind() -> None:
    with subprocess.Popen([sys.executable, "-c", STARTER], stdout=subprocess.PIPE, text=True) as caller:
        assert caller.stdout is not None
        pid = int(caller.stdout.readline())
        caller.kill()
        until = time.monotonic() + 20
        while _lives(pid):
            assert time.monotonic() < until, f"process {pid} goes on"
            time.sleep(0.05)


def _lives(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
