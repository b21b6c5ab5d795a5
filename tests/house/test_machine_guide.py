"""docs/machine.md: its commands run, its table of files is what is written, and its figures are those of the tables."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from luthier.cli.app import _build
from luthier.plan import cuda

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "machine.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", GUIDE, re.DOTALL)


def test_the_environments_are_written_as_the_table_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "folder"
    here.mkdir()
    monkeypatch.chdir(here)
    for line in BLOCKS[1].strip().splitlines():
        outcome = CliRunner().invoke(_build(), shlex.split(line)[1:])
        assert outcome.exit_code == 0, outcome.output
    written = {str(path.relative_to(here)) for path in here.rglob("*") if path.is_file()}
    rows = re.findall(r"^\| `(?:conda|docker|uv|colab)` \| (.*?) \|", GUIDE, re.MULTILINE)
    named = {name.replace("FOLDER", "folder") for row in rows for name in re.findall(r"`(.*?)`", row)}
    assert len(rows) == 4
    assert written == named | {"my-project/pyproject.toml", "my-project/.python-version"}


def test_the_lines_of_the_doctor_are_calls_that_it_takes() -> None:
    for line in BLOCKS[0].strip().splitlines():
        words = [word for word in shlex.split(line)[1:] if word != "luthier.yaml"]
        assert CliRunner().invoke(_build(), [*words, "--help"]).exit_code == 0


def test_the_figures_are_those_of_the_tables() -> None:
    table = tomllib.loads((ROOT / "src" / "luthier" / "plan" / "cuda.toml").read_text(encoding="utf-8"))
    drivers = table["drivers"]
    assert (drivers["13"], drivers["12"], drivers["11"]) == ("580", "525", "450")
    can = table["capabilities"]
    assert f"bf16 ({can['bf16']}), fp8 ({can['fp8']}), flash attention ({can['flash_attention']})" in GUIDE
    wheels = table["flash_attention"]
    said = f"CUDA {wheels['cuda'][0]}, torch {wheels['torch'][0]} to {wheels['torch'][-1]}, Python {wheels['python'][0]} to {wheels['python'][-1]}"
    assert said in " ".join(GUIDE.split())
    assert cuda.newest_cuda("580.1") == "13"
