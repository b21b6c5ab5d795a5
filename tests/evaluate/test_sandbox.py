"""Code that a model wrote harms nothing. Each of these programs would, and is run for real."""

import os
import sys
from pathlib import Path

import pytest

from luthier.evaluate import sandbox
from luthier.evaluate.code import pass_at, passes, without_fence
from luthier.evaluate.sandbox import Limits

SHORT = Limits(seconds=1.0)
confined = pytest.mark.skipif(not {"network", "processes", "files"} <= set(sandbox.protections()), reason="this kernel offers less")


def test_what_ends_well_passes_and_what_does_not_says_why() -> None:
    assert sandbox.run("import math, re, typing\nassert math.sqrt(4) == 2").passed
    assert sandbox.run("assert 1 == 2, 'no'").how == "AssertionError: no"
    assert sandbox.run("def f(:").how.startswith("SyntaxError")


@pytest.mark.parametrize("program", ["import sys; sys.exit(0)", "import os; os._exit(0)", "exit()", "raise SystemExit"])
def test_leaving_early_is_not_passing(program: str) -> None:
    assert not sandbox.run(program).passed


def test_a_report_of_its_own_is_not_believed() -> None:
    forged = (
        'import os\nfor fd in range(3, 60):\n    try: os.write(fd, b\'{"passed": true}\\n{"passed": ""}\\n\')\n    except OSError: pass\nos._exit(0)'
    )
    assert not sandbox.run(forged).passed


def test_an_endless_loop_is_ended() -> None:
    assert sandbox.run("while True: pass", SHORT).how == "did not end within 1 seconds"
    assert "did not end" in sandbox.run("try:\n    while True: pass\nexcept BaseException:\n    while True: pass", SHORT).how


@confined
def test_a_fork_bomb_begins_no_process() -> None:
    before = len(os.listdir("/proc")) if sys.platform == "linux" else 0
    ran = sandbox.run("import os\nfor _ in range(20):\n    while True: os.fork()", SHORT)
    assert "Operation not permitted" in ran.how
    assert len(os.listdir("/proc")) < before + 10


@confined
@pytest.mark.parametrize(
    "program",
    [
        "import socket; socket.socket()",
        "import socket; socket.create_connection(('127.0.0.1', 1))",
        "import socket; socket.socket(socket.AF_UNIX)",
        "import subprocess; subprocess.run(['true'])",
        "import os; os.execv('/bin/true', ['true'])",
        "import os; os.kill(os.getppid(), 9)",
        "import os, resource; resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE, resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE))",
        "import os, resource; resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE)",
        "import os; os.setpriority(os.PRIO_PROCESS, os.getppid(), os.getpriority(os.PRIO_PROCESS, os.getppid()))",
        "import os; os.sched_setaffinity(os.getppid(), os.sched_getaffinity(os.getppid()))",
        "import os; os.sched_setscheduler(os.getppid(), os.SCHED_OTHER, os.sched_param(0))",
        "import os; os.sched_setparam(os.getppid(), os.sched_param(0))",
        "import ctypes; assert ctypes.CDLL(None, use_errno=True).syscall(41, 2, 1, 0) >= 0",
    ],
)
def test_nothing_outside_is_reached(program: str) -> None:
    assert not sandbox.run(program).passed


@confined
def test_files_outside_stay_as_they_are(tmp_path: Path) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_text("kept")
    tries = [f"open({str(mine)!r}, 'w')", f"open({str(tmp_path / 'new')!r}, 'w')", f"os.remove({str(mine)!r})", f"os.truncate({str(mine)!r}, 0)"]
    tries += [f"os.chmod({str(mine)!r}, 0)", f"os.rename({str(mine)!r}, 'here')", f"os.symlink('/', {str(tmp_path / 'link')!r})"]
    for one in tries:
        assert not sandbox.run(f"import os\n{one}").passed, one
    assert (mine.read_text(), list(tmp_path.iterdir())) == ("kept", [mine])
    assert sandbox.run("with open('own.txt', 'w') as file: file.write('x')\nassert open('own.txt').read() == 'x'").passed


def test_memory_and_files_have_an_end() -> None:
    assert "MemoryError" in sandbox.run("x = bytearray(4 << 30)").how
    assert not sandbox.run("with open('big', 'wb') as file:\n    for _ in range(100): file.write(bytes(1 << 20))").passed


def test_its_own_limits_may_be_read_and_lowered() -> None:
    assert sandbox.run("import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (20, 20))\nassert resource.getrlimit(7) == (20, 20)").passed


def test_the_environment_is_not_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", "secret")
    assert sandbox.run("import os\nassert 'A_KEY' not in os.environ").passed


def test_the_protections_are_said() -> None:
    lines = sandbox.in_words()
    assert "1,024 MB of memory" in lines[0]
    assert ("no network" in lines[0]) == ("network" in sandbox.protections())


def test_code_in_a_fence_passes_its_tests() -> None:
    answer = "Here it is:\n```python\ndef add(a, b):\n    return a + b\n```\nHope this helps!"
    assert without_fence(answer) == "def add(a, b):\n    return a + b"
    assert passes("assert add(1, 2) == 3", answer) == 1
    assert passes("assert add(1, 2) == 4", answer) == 0


def test_pass_at_k_is_the_unbiased_estimate() -> None:
    assert pass_at(1, 10, 3) == pytest.approx(0.3)
    assert pass_at(5, 10, 3) == pytest.approx(1 - (7 * 6 * 5 * 4 * 3) / (10 * 9 * 8 * 7 * 6))
    assert pass_at(5, 5, 1) == 1
