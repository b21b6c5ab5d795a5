"""The command line as a user has it: a folder, a settings file and a call."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from luthier.cli.app import main

CONTROL = {chr(code) for code in range(32)} - {"\n"}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a call left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def problem(self) -> str:
        """The one line about what went wrong, after checking that a next step follows it and that there is no traceback."""
        line, step, *rest = [line for line in self.err.splitlines() if line.startswith(("luthier: ", "  Try: "))]
        assert line.startswith("luthier: ")
        assert step.startswith("  Try: ")
        assert len(step) > len("  Try: ...")
        assert not rest
        assert "Traceback" not in self.err + self.out
        assert "a fault of ours" not in line
        return line


Call = Callable[..., Outcome]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """call("runs", "list") runs `luthier runs list` in an empty folder, with its output piped."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr("sys.argv", ["luthier", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        assert not set(printed.out + printed.err) & CONTROL
        return Outcome(int(ended.value.code or 0), printed.out, printed.err)

    return run


@pytest.fixture
def settings_file(tmp_path: Path, tiny_model: Path) -> Path:
    """luthier.yaml of a run of two updates on the tiny model, with its rows beside it."""
    write_rows(tmp_path / "rows.jsonl")
    text = f"model: {tiny_model}\ndata: {{train: rows.jsonl, eval: null}}\ntraining: {{max_steps: 2, batch_size: 2, precision: fp32}}\ndevice: cpu\n"
    (tmp_path / "luthier.yaml").write_text(text, encoding="utf-8")
    return tmp_path / "luthier.yaml"


def write_rows(path: Path, count: int = 6) -> Path:
    rows = [{"prompt": f"{number} Pierce Rd ->", "completion": f" Itasca {number}"} for number in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
