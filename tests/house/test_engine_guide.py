"""docs/engine.md: its ten lines run, and the settings and files it names are there."""

import re
from pathlib import Path

import pytest

from luthier.config.load import all_settings

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "engine.md").read_text(encoding="utf-8")


def test_files_and_settings_that_are_named_exist() -> None:
    files = set(re.findall(r"`([a-z]+\.py)`", GUIDE))
    assert files
    assert [name for name in files if not (ROOT / "src" / "luthier" / "engine" / name).is_file()] == []
    named = set(re.findall(r"`(training\.[a-z_]+)", GUIDE))
    assert named
    assert named <= set(all_settings())


@pytest.mark.slow
@pytest.mark.real_model
def test_the_research_loop_learns_its_row(
    default_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LUTHIER_HOME", str(default_model.parents[1]))
    (loop,) = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
    exec(compile(loop, "docs/engine.md", "exec"), {})
    lines = capsys.readouterr().out.strip().split("\n")
    losses = [float(line.split()[1]) for line in lines[:12]]
    assert losses[-1] < 0.3 * losses[0]
    assert "instruments" in " ".join(lines[12:])
    assert (tmp_path / "my-adapter" / "adapter_model.safetensors").is_file()
