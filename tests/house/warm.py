"""The command line in processes that begin in a moment: one process imports torch and its companions once and forks for each call.

Each call is a real process with its own streams, signals and exit code, to be killed like any other; what it lacks is the seconds of the
imports. Run as a program it is that one process, and reads a job (one JSON value) a line.
"""

import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import termios
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# A call that has not ended by then is ended, and its test fails with what it said.
LONGEST_S = 240.0


@dataclass(frozen=True, slots=True)
class Ended:
    """How a call ended: its exit code (negative: by that signal), how long it took, and what it said."""

    code: int
    seconds: float
    said: str


class Warm:
    """Begins calls of the command line, one at a time."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        # Without buffers: whether there is something to read is asked of the system.
        self._server = subprocess.Popen(
            [sys.executable, str(Path(__file__))], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, env=environment
        )
        self._running: Call | None = None
        self.read()

    def close(self) -> None:
        assert self._server.stdin
        self._server.stdin.close()
        self._server.wait(timeout=60)

    def begin(self, folder: Path, home: Path, *arguments: object, stdout: Path | None = None, ignored: int = 0, **environment: str) -> "Call":
        """Run `luthier ARGUMENTS` in `folder`, with LUTHIER_HOME at `home`, ignoring a signal as `nohup` makes it.

        What it says goes to a file; standard output to `stdout`, where that is given.
        """
        if self._running:  # a test that failed has left it
            self._running.kill(signal.SIGKILL)
            self._running.wait()
        said = folder / f"said-{time.monotonic_ns()}.txt"
        job = {"folder": str(folder), "arguments": [str(argument) for argument in arguments], "said": str(said), "ignored": ignored}
        job["stdout"] = str(stdout or said)
        assert self._server.stdin
        asked = json.dumps(job | {"environment": {"LUTHIER_HOME": str(home), **environment}}) + "\n"
        self._server.stdin.write(asked.encode("utf-8"))
        self._running = Call(self, self.read()["pid"], said, time.monotonic())
        return self._running

    def run(self, folder: Path, home: Path, *arguments: object, **environment: str) -> Ended:
        return self.begin(folder, home, *arguments, **environment).wait()

    def ended(self, call: "Call", seconds: float) -> int:
        """The exit code of the call, when it has ended."""
        self._running = None
        in_time = self._says_something(seconds)
        if not in_time:
            call.kill(signal.SIGKILL)
        code = int(self.read()["code"])
        assert in_time, f"it had not ended after {seconds:.0f} seconds: {call.said()}"
        return code

    def _says_something(self, seconds: float = LONGEST_S) -> bool:
        return bool(select.select([self._server.stdout], [], [], seconds)[0])

    def read(self) -> Any:
        assert self._server.stdout
        assert self._says_something(), "the process that begins the calls does not answer"
        return json.loads(self._server.stdout.readline())


@dataclass(frozen=True, slots=True)
class Call:
    """A call that is running."""

    warm: Warm
    pid: int
    file: Path
    began: float

    def kill(self, number: int) -> None:
        """Send it a signal; one that has ended gets none."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def lives(self) -> bool:
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        return True

    def said(self) -> str:
        return self.file.read_text(encoding="utf-8", errors="backslashreplace") if self.file.exists() else ""

    def wait_for(self, words: str, seconds: float = 30) -> bool:
        """Wait until it has said `words`; False where it ended without, or did not in so many seconds."""
        while words not in self.said():
            if not self.lives() or time.monotonic() - self.began > seconds:
                return words in self.said()
            time.sleep(0.002)
        return True

    def wait(self, seconds: float = LONGEST_S) -> Ended:
        code = self.warm.ended(self, seconds)
        return Ended(code, time.monotonic() - self.began, self.said())


def _serve() -> None:
    import torch

    from luthier.cli import app  # noqa: F401
    from luthier.recipes import evaluation, handover, training  # noqa: F401

    torch.set_num_threads(1)
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _call(job)
        print(json.dumps({"pid": pid}), flush=True)
        _, status = os.waitpid(pid, 0)
        print(json.dumps({"code": os.waitstatus_to_exitcode(status)}), flush=True)


def _call(job: dict[str, Any]) -> None:
    """In the child: what a shell does before it starts a program, then the program."""
    from luthier.cli import main

    code = 70
    try:
        os.setsid()
        os.chdir(job["folder"])
        os.environ.update(job["environment"])
        said = os.open(job["said"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(said, 2)
        # A terminal that can be read becomes the session's own: a Ctrl-C that is typed there ends the call.
        reads = os.O_RDWR if Path(job["stdout"]).is_char_device() else os.O_WRONLY
        os.dup2(os.open(job["stdout"], reads | os.O_APPEND), 1)
        if os.isatty(1):
            fcntl.ioctl(1, termios.TIOCSCTTY, 0)
        if job["ignored"]:
            signal.signal(job["ignored"], signal.SIG_IGN)
        sys.argv = ["luthier", *job["arguments"]]
        main()
        code = 0
    except SystemExit as ended:
        code = int(ended.code or 0)
    finally:
        os._exit(code)


if __name__ == "__main__":
    _serve()
