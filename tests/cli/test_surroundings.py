"""Processes that find their streams, their locale, their home or their terminal otherwise than expected: words and exit codes, no traceback."""

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import pytest

from luthier import files
from luthier.errors import RunError

ROWS = [{"prompt": f"Où est le n° {number} ?", "completion": f"Rue São João {number} 🚲"} for number in range(6)]
LUTHIER = [sys.executable, "-m", "luthier"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder whose name, rows and settings no ASCII can write."""
    folder = tmp_path / "données – 東京"
    folder.mkdir()
    (folder / "réponses.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS), encoding="utf-8")
    (folder / "luthier.yaml").write_text("model: smollm2-135m-instruct\ndata: {train: réponses.jsonl}\n", encoding="utf-8")
    return folder


def luthier(folder: Path, *arguments: str, shell: str = "", **environment: str | None) -> subprocess.CompletedProcess[str]:
    """`luthier ARGUMENTS`, with what a shell writes after it; an environment variable that is None is taken out."""
    known = {**os.environ, "LUTHIER_HOME": str(folder / "cache"), **environment}
    kept = {name: value for name, value in known.items() if value is not None}
    line = [*LUTHIER, *arguments] if not shell else ["bash", "-o", "pipefail", "-c", f'"$@" {shell}', "bash", *LUTHIER, *arguments]
    return subprocess.run(line, cwd=folder, env=kept, capture_output=True, text=True, encoding="utf-8", timeout=60)


def quiet(ended: subprocess.CompletedProcess[str]) -> None:
    """There is no word of Python's about it."""
    for words in ("Traceback", "Exception ignored", "a fault of ours", "BrokenPipe", "Error:"):
        assert words not in ended.stdout + ended.stderr


def test_output_that_nobody_reads_ends_with_0(folder: Path) -> None:
    for arguments in (["models", "list"], ["models", "list", "--json"]):
        ended = luthier(folder, *arguments, shell="| true")
        quiet(ended)
        assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize("closed", [">&-", "<&- >&- 2>&-"])
def test_closed_streams_change_no_exit_code_and_spoil_no_file(closed: str, folder: Path) -> None:
    ended = luthier(folder, "data", "convert", "réponses.jsonl", "--to", "messages", "-o", "out.jsonl", shell=closed)
    quiet(ended)
    assert ended.returncode == 0
    assert [json.loads(line)["messages"][0]["content"] for line in (folder / "out.jsonl").read_text(encoding="utf-8").splitlines()] == [
        row["prompt"] for row in ROWS
    ]
    assert luthier(folder, "data", "check", "missing.jsonl", shell=closed).returncode == 1


def test_a_value_that_was_asked_for_and_cannot_be_written_is_an_error(folder: Path) -> None:
    ended = luthier(folder, "models", "list", "--json", shell="> /dev/full")
    quiet(ended)
    assert ended.returncode == 1
    assert ended.stderr == "luthier: standard output cannot be written (No space left on device); the work goes on, and what it says is lost\n"


@pytest.mark.parametrize("locale", [{"LC_ALL": "C", "PYTHONUTF8": "0"}, {"LANG": "C", "LC_ALL": None, "PYTHONCOERCECLOCALE": "0"}])
def test_a_locale_without_letters_changes_neither_paths_nor_rows(locale: dict[str, Any], folder: Path) -> None:
    ended = luthier(folder, "data", "clean", "réponses.jsonl", "--to", "réponses – 2.jsonl", **locale)
    quiet(ended)
    assert ended.returncode == 0, ended.stderr
    assert "réponses – 2.jsonl" in ended.stdout
    assert (folder / "réponses – 2.jsonl").read_text(encoding="utf-8") == (folder / "réponses.jsonl").read_text(encoding="utf-8")
    ended = luthier(folder, "data", "check", "luthier.yaml", "data.train=niño.jsonl", **locale)
    assert (ended.returncode, "niño.jsonl: there is no such file" in ended.stderr) == (1, True)


@pytest.mark.parametrize("options", [["-X", "utf8=0"], ["-I", "-X", "utf8=0"], ["-E"]], ids=" ".join)
def test_python_is_started_again_once_at_most(options: list[str], folder: Path) -> None:
    """Its options are obeyed before its environment: it must not be started again and again."""
    code = "import sys; from luthier.cli import surroundings; surroundings.settle(); print(sys.getfilesystemencoding(), sys.argv[1:])"
    begin = f"import sys; sys.path[:] = {sys.path!r}; {code}"
    known = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    ended = subprocess.run([sys.executable, *options, "-c", begin, "--version"], cwd=folder, env=known, capture_output=True, text=True, timeout=30)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "utf-8 ['--version']\n", "")


def test_a_name_that_is_no_text_is_shown_with_its_bytes(folder: Path) -> None:
    ended = subprocess.run([*LUTHIER, "data", "check", b"\xff.jsonl"], cwd=folder, capture_output=True, timeout=60)
    assert ended.returncode == 1
    assert b"Traceback" not in ended.stderr
    assert b"ff.jsonl: the file's name is not UTF-8" in ended.stderr


@pytest.mark.parametrize("home", [None, "/dev/null", "/proc/nowhere"])
def test_without_a_home_the_cache_is_named(home: str | None, folder: Path) -> None:
    ended = luthier(folder, "data", "check", "réponses.jsonl", HOME=home or "/dev/null", LUTHIER_HOME=None, XDG_CACHE_HOME=None)
    quiet(ended)
    assert ended.returncode == 1
    assert "LUTHIER_HOME" in ended.stderr
    assert luthier(folder, "models", "list", HOME=home, LUTHIER_HOME=None).returncode == 0


def test_a_user_without_a_name_or_a_home_is_told_of_luthier_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("LUTHIER_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", unknown)
    with pytest.raises(RunError, match=r"no home folder is known for this user\n  Try: export LUTHIER_HOME=FOLDER"):
        files.home()


def test_a_folder_for_temporary_files_that_cannot_be_used_is_told(folder: Path) -> None:
    limited = "import os, resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)); from luthier.cli import main; main()"
    ended = subprocess.run(
        [sys.executable, "-c", limited, "data", "convert", "réponses.jsonl", "--to", "messages", "-o", "out.jsonl"],
        cwd=folder, env={**os.environ, "LUTHIER_HOME": str(folder / "cache"), "TMPDIR": str(folder)}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    quiet(ended)
    assert ended.returncode == 1
    assert "Try: " in ended.stderr
    assert not (folder / "out.jsonl").exists()


def in_a_terminal(folder: Path, columns: int, *arguments: str, **environment: str) -> tuple[int, str]:
    """The exit code, and all that a terminal of so many columns was sent."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 20, columns, 0, 0))
    kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    known = {**kept, "LUTHIER_HOME": str(folder / "cache"), **environment}
    with subprocess.Popen([*LUTHIER, *arguments], cwd=folder, env=known, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        try:
            while piece := os.read(ours, 65536):
                shown += piece
        except OSError:  # a terminal whose last process has gone
            pass
        os.close(ours)
    return process.returncode, shown.decode("utf-8")


def test_a_narrow_terminal_gets_tables_that_fit(folder: Path) -> None:
    code, shown = in_a_terminal(folder, 40, "runs", "list")
    assert (code, "Traceback" in shown) == (0, False)
    code, shown = in_a_terminal(folder, 40, "models", "list", TERM="xterm")
    assert (code, "Traceback" in shown) == (0, False)
    frames = [line for line in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown).splitlines() if line.startswith(("│", "┃", "┏", "└"))]
    assert frames
    assert all(len(line) <= 40 for line in frames)


def test_a_dumb_terminal_gets_no_commands(folder: Path) -> None:
    code, shown = in_a_terminal(folder, 80, "data", "clean", "réponses.jsonl", "--to", "clean.jsonl", TERM="dumb")
    assert code == 0
    assert "\x1b" not in shown
    assert "réponses.jsonl" in shown


def test_ctrl_c_while_modules_are_imported_is_no_traceback(folder: Path) -> None:
    code = "import os, signal; from luthier.cli import surroundings; surroundings.settle(); os.kill(os.getpid(), signal.SIGINT); print('went on')"
    ended = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=30)
    assert (ended.returncode, ended.stdout, ended.stderr) == (-signal.SIGINT, "", "")
