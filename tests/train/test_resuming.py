"""With which settings a run goes on: those of its file where they changed, and its own where nobody changed them."""

import json
from pathlib import Path

import pytest

from luthier.config.load import Config, load_config
from luthier.run_folder import RunFolder
from luthier.train import resuming

LEAST = "model: m\ndata: {train: rows.jsonl}\n"


@pytest.fixture
def older(tmp_path: Path) -> RunFolder:
    """A run that began when warmup_ratio was 0.03 by default, and not auto."""
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    run.config.write_text(f"{LEAST}training: {{warmup_ratio: 0.03, learning_rate: 1.0e-3}}\n", encoding="utf-8")
    asked = config(tmp_path).settings.model_dump(mode="json")
    asked["training"]["warmup_ratio"] = 0.03
    began = {"schema": 1, "asked": {"file": str(tmp_path / "luthier.yaml"), "settings": asked}, "settings": {}, "machine": {}, "contents": {}}
    run.environment.write_text(json.dumps(began), encoding="utf-8")
    return run


def config(folder: Path, *overrides: str) -> Config:
    (folder / "luthier.yaml").write_text(LEAST, encoding="utf-8")
    return load_config(folder / "luthier.yaml", list(overrides))


@pytest.mark.parametrize(("overrides", "ratio"), [([], 0.03), (["training.warmup_ratio=0.1"], 0.1), (["training.warmup_ratio=auto"], "auto")])
def test_a_default_that_became_auto_is_no_change(overrides: list[str], ratio: object, older: RunFolder, tmp_path: Path) -> None:
    wanted = resuming._goes_on_as(older, config(tmp_path, *overrides))
    assert wanted.settings.training.warmup_ratio == ratio
    assert wanted.settings.training.learning_rate == 1e-3
