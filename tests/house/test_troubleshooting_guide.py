"""docs/troubleshooting.md has a section for each finding, and names the cures that findings name."""

import re
from pathlib import Path

import pytest

from luthier.config.load import all_settings
from luthier.diagnose.table import CHECKS

GUIDE = (Path(__file__).parents[2] / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^### (\w+)\n(.*?)(?=^##|\Z)", GUIDE, re.MULTILINE | re.DOTALL))
CURES = {
    "overfitting": ["training.num_train_epochs", "0.05", "0.1", "lora.r", "more different", "early_stopping_patience"],
    "forgetting": ["method: lora", "lower rate", "data.replay", "shorter"],
    "repetition": ["temperature", "top-p", "data"],
    "no_stop": ["Train longer", "decoding"],
}


def test_each_finding_has_its_section_and_each_section_its_finding() -> None:
    assert set(SECTIONS) == set(CHECKS)


@pytest.mark.parametrize("name", CURES)
def test_the_cures_of_the_guides_are_named(name: str) -> None:
    assert [cure for cure in CURES[name] if cure not in SECTIONS[name]] == []


def test_every_setting_that_is_named_exists() -> None:
    named = set(re.findall(r"`((?:training|lora|data|evaluation|checks)\.\w+)", GUIDE))
    assert named - set(all_settings()) == set()
