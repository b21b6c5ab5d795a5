"""Small runs on the tiny model; the functions behind them are in conftest_runs.py, where tests import them from."""

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from conftest_runs import MACHINE, Write, chat_row, make_config, write_rows

from luthier.config.load import Config
from luthier.plan.machine import store_machine
from luthier.recipes import sft
from luthier.records import Machine
from luthier.run_folder import RunFolder


@pytest.fixture
def luthier_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder outside of tmp_path, for a machine that was measured already."""
    home = tmp_path_factory.mktemp("luthier-home")
    monkeypatch.setenv("LUTHIER_HOME", str(home))
    store_machine(home, MACHINE)
    return home


@pytest.fixture(autouse=True)
def known_machine(luthier_home: Path) -> Machine:
    """No test of a recipe times products, or sees the cache of whoever runs it."""
    return MACHINE


@pytest.fixture
def write(tmp_path: Path, tiny_model: Path) -> Write:
    """Write a project: write(rows, "section.name=value", ..., name="project") -> Config."""

    def write_project(rows: list[Any], *overrides: str, name: str = "project") -> Config:
        return make_config(tmp_path / name, tiny_model, rows, *overrides)

    return write_project


@pytest.fixture(scope="session")
def learned(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> RunFolder:
    """A run that knows its 6 rows by heart, with 2 of them as held-out rows. Tests read it only, or copy it."""
    folder = tmp_path_factory.mktemp("learned")
    write_rows(folder / "eval.jsonl", [chat_row(place, "Another system message.") for place in range(2)])
    settings = ["data.eval=eval.jsonl", "training.num_train_epochs=40", "lora.r=16", "evaluation.metrics=[exact_match, valid_json, field_f1]"]
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("LUTHIER_HOME", str(folder / "home"))
        store_machine(folder / "home", MACHINE)
        return sft.fit(make_config(folder, tiny_model, [chat_row(place) for place in range(6)], *settings))


@pytest.fixture
def copied(learned: RunFolder, tmp_path: Path) -> RunFolder:
    """A copy of the learned run, to be changed."""
    shutil.copytree(learned.path, tmp_path / "copied")
    return RunFolder(tmp_path / "copied")
