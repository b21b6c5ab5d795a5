"""vLLM in an environment of its own: the command line that fits a model and its adapters, and the process that runs it.

vLLM pins its own torch, so it is never imported here. Run as a program this file stands between us and vLLM: it ends vLLM, with all of its
processes, when whoever started it is gone, however that one ended.
"""

import json
import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luthier.errors import CallError, LuthierError, MachineError, ModelError
from luthier.serve.backends.last_words import LastWords

HOST = "127.0.0.1"
INSTALL = "python -m venv vllm && vllm/bin/pip install vllm, and --vllm-python vllm/bin/python (docs/serving.md has the line for CPUs)"
# What --max-lora-rank may be.
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
# It compiles, and reads a large model from a slow disk, before it answers.
START_S, END_S, LOOK_S = 1200.0, 30.0, 0.5
LOG = logging.getLogger("luthier.serve")
LAST_WORDS = 30
VERSION = "from importlib.metadata import version; print(version('vllm'))"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What vLLM is to run: a Transformers folder by a name, and PEFT's LoRA folders by theirs. `dtype` and `context` None: the model's own."""

    model: Path
    name: str
    adapters: Mapping[str, Path] = field(default_factory=dict)
    ranks: tuple[int, ...] = ()
    template: Path | None = None
    dtype: str | None = None
    context: int | None = None
    slots: int = 16


def command(wanted: Wanted, port: int, *, cpu: bool) -> list[str]:
    """The arguments of `vllm serve`. Raises CallError for a rank that it does not take."""
    line = ["serve", str(wanted.model), "--served-model-name", wanted.name, "--host", HOST, "--port", str(port)]
    line += ["--max-num-seqs", str(wanted.slots), "--disable-uvicorn-access-log", "--disable-log-stats"]
    line += ["--dtype", wanted.dtype] if wanted.dtype else []
    line += ["--max-model-len", str(wanted.context)] if wanted.context else []
    line += ["--chat-template", str(wanted.template)] if wanted.template else []
    line += ["--enforce-eager"] if cpu else []  # on CPUs its compiler costs a minute and a C++ compiler
    if wanted.adapters:
        # Its default lets one adapter into a batch, and the others wait. On CPUs a request to the base that shares a batch with others gets
        # the weights of the last place, which therefore stays empty (seen in 0.32.0: docs/serving.md).
        places = len(wanted.adapters) + 1 if cpu else min(len(wanted.adapters), wanted.slots)
        line += ["--enable-lora", "--max-loras", str(places), "--max-cpu-loras", str(max(len(wanted.adapters), places))]
        line += ["--max-lora-rank", str(_rank(max(wanted.ranks, default=1)))]
        line += ["--lora-modules", *(f"{name}={folder}" for name, folder in wanted.adapters.items())]
    return line


def _rank(largest: int) -> int:
    if largest > RANKS[-1]:
        problem = f"an adapter has rank {largest}, and vLLM takes {RANKS[-1]} at most"
        raise CallError(problem, where="luthier serve --engine vllm", next_step="export RUN --to merged, and serve that")
    return next(rank for rank in RANKS if rank >= largest)


def environment(base: Mapping[str, str], key: str, *, cpu: bool) -> dict[str, str]:
    """What vLLM finds in its environment: the caller's own, without our Python's paths; nothing is reported or fetched."""
    kept = {name: value for name, value in base.items() if name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    fixed = {"VLLM_API_KEY": key, "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
    of_cpu = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}  # GiB for keys and values; threads where they are
    return {**(of_cpu if cpu else {}), **kept, **fixed}


def python_of(given: Path | None) -> Path:
    """The Python that has vLLM: the one that is given, or the one beside `vllm` on the PATH. Raises CallError with the line that installs it."""
    found = shutil.which("vllm")
    python = given or (Path(found).parent / "python" if found else None)
    if python is None or not python.is_file():
        problem = "there is no vllm on the PATH" if given is None else "there is no such program"
        raise CallError(problem, where=f"--vllm-python {given}" if given else "luthier serve --engine vllm", next_step=INSTALL)
    return python


def version_of(python: Path) -> str:
    """The version of vLLM in that environment. Raises CallError where it has none."""
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    asked = subprocess.run([str(python), "-c", VERSION], capture_output=True, text=True, env=clean, check=False, timeout=120)
    if asked.returncode:
        raise CallError("this Python has no vLLM", where=f"--vllm-python {python}", next_step=INSTALL)
    return asked.stdout.strip()


class Vllm:
    """vLLM as it runs: `url` is its port on this machine, and `key` what it asks for, so that nobody passes our doors by."""

    def __init__(self, wanted: Wanted, python: Path, version: str) -> None:
        """Begin to start it; `wait` returns once it answers."""
        self.model = wanted.model
        self.key = secrets.token_urlsafe(24)
        port, cpu = _free_port(), "cpu" in version
        self.url = f"http://{HOST}:{port}"
        arguments = [str(python), "-m", "vllm.entrypoints.cli.main", *command(wanted, port, cpu=cpu)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", errors="replace",
        )  # fmt: skip
        # Not as an argument: everyone on this machine can read those, and here are keys.
        asked = {"arguments": arguments, "environment": environment(os.environ, self.key, cpu=cpu)}
        assert self._process.stdin
        assert self._process.stdout
        self._said = LastWords(self._process.stdout)
        with suppress(BrokenPipeError):  # it has died: `wait` says why
            self._process.stdin.write(json.dumps(asked) + "\n")
            self._process.stdin.flush()

    def wait(self, start_s: float = START_S) -> None:
        """Wait until it answers. Raises LuthierError with its own words where it ends before, or does not in time."""
        latest = time.monotonic() + start_s
        while not self._answers():
            if self._process.poll() is not None:
                raise self._failure()
            if time.monotonic() > latest:
                self.close()
                problem = f"vLLM does not answer within {start_s:.0f} s"
                raise MachineError(problem, where=str(self.model), next_step="see whether this machine is busy, and try again")
            time.sleep(LOOK_S)

    def _answers(self) -> bool:
        # Without a proxy: it is this very machine.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(f"{self.url}/health", timeout=5) as response:
                return bool(response.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def _failure(self) -> LuthierError:
        lines = self.last_words()
        LOG.error("vLLM ended. Its last words:\n%s", "\n".join(lines[-LAST_WORDS:]))
        # Its traceback ends with the cause; what follows says that a process died.
        causes = [line for line in lines if "Error" in line and "Engine core initialization failed" not in line]
        cause = (causes or lines or ["it said nothing"])[-1]
        cause = cause.partition(") ")[2] or cause  # who says it stands in brackets before
        if "memory" in cause.lower():
            return MachineError(f"vLLM cannot start: {cause[:300]}", where=str(self.model), next_step="fewer --slots, or a smaller --context")
        return ModelError(f"vLLM cannot start: {cause[:300]}", where=str(self.model), next_step="see its words above")

    def last_words(self) -> list[str]:
        """The newest lines that it said."""
        return self._said.lines()

    @property
    def running(self) -> bool:
        """Whether it is there; it may have died."""
        return self._process.poll() is None

    def close(self) -> None:
        """End it with all of its processes. Safe to call again."""
        if self._process.stdin is None or self._process.stdin.closed:
            return
        with suppress(BrokenPipeError):
            self._process.stdin.close()  # its guard's word to go
        try:
            self._process.wait(timeout=END_S + 10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _free_port() -> int:
    with socket.socket() as one:
        one.bind((HOST, 0))
        return int(one.getsockname()[1])


def _guard(asked: dict[str, Any]) -> int:
    """Run vLLM as long as the pipe from whoever started us is open; its exit code."""
    process = subprocess.Popen(asked["arguments"], env=asked["environment"], stdin=subprocess.DEVNULL, start_new_session=True)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # a Ctrl-C in the terminal reaches all; the one who answers says when to end
    os.set_blocking(0, False)
    while process.poll() is None:
        with suppress(BlockingIOError):
            if os.read(0, 1) == b"":
                _end(process)
        time.sleep(0.2)
    _signal(process, signal.SIGKILL)  # workers that outlived it
    return process.returncode


def _end(process: "subprocess.Popen[bytes]") -> None:
    _signal(process, signal.SIGTERM)
    try:
        process.wait(timeout=END_S)
    except subprocess.TimeoutExpired:
        _signal(process, signal.SIGKILL)
        process.wait()


def _signal(process: "subprocess.Popen[bytes]", number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


if __name__ == "__main__":
    if _line := sys.stdin.buffer.readline():  # none: whoever started us is gone already
        sys.exit(_guard(json.loads(_line)))
