"""`luthier train` in a terminal of its own: the bar with its numbers, and a Ctrl-C that is typed."""

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import termios
import time
from pathlib import Path

import pytest
from warm import Call, Warm

from luthier.plan.machine import store_machine
from luthier.records import Machine
from luthier.run_folder import list_runs

ROWS, COLUMNS = 40, 110
HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"
COMMANDS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Screen:
    """The far end of a terminal: what a program wrote to it, and the keys that are typed."""

    def __init__(self) -> None:
        self.keys, self._program = pty.openpty()
        self.name = Path(os.ttyname(self._program))
        fcntl.ioctl(self._program, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        self.written = ""

    def read(self, seconds: float) -> None:
        while select.select([self.keys], [], [], seconds)[0]:
            self.written += os.read(self.keys, 65536).decode("utf-8", "replace")
            seconds = 0

    def reads_until(self, pattern: str, call: Call, seconds: float = 40) -> None:
        end = time.monotonic() + seconds
        while not re.search(pattern, self.text):
            waits = time.monotonic() < end and call.lives()
            assert waits, f"{pattern!r} did not come: {self.text}\n{call.said()}"
            self.read(0.2)

    @property
    def text(self) -> str:
        """All that was written, frame after frame, without the terminal's own commands."""
        return COMMANDS.sub("", self.written)

    def close(self) -> None:
        os.close(self.keys)
        os.close(self._program)


@pytest.fixture
def project(tmp_path: Path, tiny_model: Path) -> Path:
    store_machine(tmp_path / "home", Machine("cpu", "a small machine", 2, 8_000_000_000, 10.0, 40.0))
    rows = [{"prompt": f"{number} Pierce Rd ->", "completion": f" Itasca {number}"} for number in range(48)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    settings = f"model: {tiny_model}\ndata: {{train: rows.jsonl, eval: 8%}}\ndevice: cpu\n"
    settings += "training: {max_steps: 100000, batch_size: 4, learning_rate: 1e-3, precision: fp32, logging_steps: 50}\n"
    settings += "evaluation: {every_steps: 20, in_loop_rows: 2, sample_answers: 0, general: null, metrics: [exact_match], max_new_tokens: 4}\n"
    (tmp_path / "luthier.yaml").write_text(settings, encoding="utf-8")
    return tmp_path


def test_the_live_view_has_the_numbers_and_ends_clean_on_ctrl_c(project: Path, warm: Warm) -> None:
    screen = Screen()
    terminal = {"TERM": "xterm-256color", "COLUMNS": str(COLUMNS), "LINES": str(ROWS), "LANG": "C.UTF-8"}
    training = warm.begin(project, project / "home", "train", "luthier.yaml", stdout=screen.name, **terminal)
    try:
        screen.reads_until(r"training ━.* \d+/100000", training)
        screen.reads_until(r"loss +\d\.\d{4}\s", training)
        screen.reads_until(r"tokens/s +[\d,]+ ", training)
        screen.reads_until(r"step 20/100000  held-out loss \d\.\d{4}", training)
        screen.reads_until(r"held-out loss +\d\.\d{4} \(step \d+\)", training)
        screen.reads_until(r"exact_match +\d\S* \(base \d", training)
        os.write(screen.keys, b"\x03")
        end = time.monotonic() + 40
        while training.lives() and time.monotonic() < end:
            screen.read(0.1)
        if training.lives():  # a terminal that nobody reads any more would keep it for ever
            training.kill(signal.SIGKILL)
        ended = training.wait()
        screen.read(0.1)
    finally:
        training.kill(signal.SIGKILL)
        screen.close()
    assert ended.code == 130
    assert "Traceback" not in ended.said + screen.text
    assert "a checkpoint is written" in ended.said + screen.text
    # The cursor is shown again, and nothing of the bar is drawn after that.
    assert screen.written.rindex(SHOW) > screen.written.rindex(HIDE)
    assert "━" not in screen.written[screen.written.rindex(SHOW) :]
    (run,) = list_runs(project / "runs")
    assert json.loads(run.metrics.read_text(encoding="utf-8").splitlines()[-1])["step"] >= 20
