"""Runs code that a model wrote, so that it can harm nothing: a process of its own that gives up its rights before the code begins.

What it gives up stands in sandbox_inside.py; which of that this machine offers, `protections` says.
"""

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from luthier.errors import MachineError
from luthier.evaluate import sandbox_inside

# What the process must give up before it can be said to harm nothing, and what that is called.
NEEDED = {"network": "no network", "processes": "no further processes, no signals to others", "files": "no writing outside its own folder"}
LARGEST_REPORT_BYTES = 10_000


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a program may take: seconds of the clock, bytes of memory, bytes of a file."""

    seconds: float = 10.0
    memory_bytes: int = 1 << 30
    file_bytes: int = 16 << 20


@dataclass(frozen=True, slots=True)
class Ran:
    """How a program ended. `passed`: it ran to its last line; else `how` says what stopped it. `kept`: the protections that were on."""

    passed: bool
    how: str
    kept: tuple[str, ...] = ()


def run(program: str, limits: Limits | None = None) -> Ran:
    """Run a Python program in a process without rights. It passes where its last line is reached: leaving early does not count.

    That is no proof against code that means to cheat: it shares its process with what reports, and can find there how a pass is reported.
    """
    limits = limits or Limits()
    with tempfile.TemporaryDirectory(prefix="luthier-sandbox-", ignore_cleanup_errors=True) as folder:
        told, tells = os.pipe()
        # A line that was written by accident, or without a look at what runs it, does not hold this word.
        word = secrets.token_hex(16)
        with open(told, "rb") as report:
            try:
                process = _begin(program, limits, folder, tells, word)
            finally:
                os.close(tells)
            try:
                process.wait(limits.seconds)
                ended = ""
            except subprocess.TimeoutExpired:
                ended = f"did not end within {limits.seconds:g} seconds"
            finally:
                _end(process)
            # What is left of its processes may still hold the pipe: only what is there already is read.
            os.set_blocking(report.fileno(), False)
            found = _read(report.read(LARGEST_REPORT_BYTES) or b"")
    how = ended or str(found.get("how", "ended before its last line"))
    return Ran(not ended and found.get("passed") == word, how, tuple(found.get("kept", ())))


def _begin(program: str, limits: Limits, folder: str, tells: int, word: str) -> subprocess.Popen[bytes]:
    source = Path(folder) / "program.txt"
    source.write_text(program, encoding="utf-8", errors="replace")
    work = Path(folder) / "work"
    work.mkdir()
    asked = {"program": str(source), "work": str(work), "report": tells, "word": word, "seconds": int(limits.seconds) + 1}
    asked |= {"memory_bytes": limits.memory_bytes, "file_bytes": limits.file_bytes}
    process = subprocess.Popen(
        # -I: neither the environment nor this folder gives it anything to import.
        [sys.executable, "-I", "-S", "-B", sandbox_inside.__file__],
        cwd=work,
        env={"PATH": "/nonexistent", "HOME": str(work), "TMPDIR": str(work), "LC_ALL": "C.UTF-8"},
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=(tells,),
        start_new_session=True,
    )
    assert process.stdin
    with process.stdin as request:
        request.write(json.dumps(asked).encode())
    return process


def _end(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _read(report: bytes) -> dict[str, Any]:
    """The last whole line of a report: what was kept comes first, how it ended second."""
    found: dict[str, Any] = {}
    for line in report.split(b"\n"):
        with suppress(ValueError, TypeError):
            found |= json.loads(line)
    return found


@cache
def protections() -> tuple[str, ...]:
    """What a program gives up here, by the names in NEEDED. Raises MachineError where not even its own limits can be set."""
    ran = run("", Limits(seconds=30.0))
    if not ran.passed:
        raise MachineError(f"no program can be run apart here: {ran.how}", where="--run-code", next_step="run it on Linux, or leave pass@k out")
    return ran.kept


def in_words() -> list[str]:
    """Which protections are on, and which are not, in a line each."""
    kept = protections()
    on = [words for name, words in NEEDED.items() if name in kept]
    off = [words for name, words in NEEDED.items() if name not in kept]
    limits = Limits()
    fixed = f"a process of its own, {limits.seconds:g} seconds, {limits.memory_bytes >> 20:,} MB of memory, {limits.file_bytes >> 20} MB a file"
    lines = [f"code is run apart: {'; '.join([fixed, *on])}"]
    if off:
        lines.append(f"not on this machine: {'; '.join(off)}. What a model writes can do there what you can: run it in a container")
    return lines
