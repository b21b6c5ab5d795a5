"""The tested matrix says what constraints.txt and pyproject.toml say, and versions are compared by their numbers."""

import re
import tomllib
from pathlib import Path

import pytest

from luthier.plan import tested

ROOT = Path(__file__).parents[2]


def canonical(name: str) -> str:
    return name.lower().replace("_", "-")


def test_the_matrix_is_that_of_constraints_txt():
    lines = (line.partition("==") for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if "==" in line)
    pinned = {canonical(name): version for name, _, version in lines}
    assert {one.name: one.tested for one in tested.libraries()} == {one.name: pinned[canonical(one.name)] for one in tested.libraries()}


def test_the_least_versions_and_extras_are_those_of_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {"": project["dependencies"], **project["optional-dependencies"]}
    for one in tested.libraries():
        asked = [re.split(r">=|;", line)[:2] for line in extras[one.extra]]
        least = {canonical(line[0]): line[1].strip() for line in asked if len(line) == 2}
        assert least[canonical(one.name)] == one.least, one.name
    assert set(tested.python_versions()[:1]) == {project["requires-python"].removeprefix(">=")}


def test_every_library_that_training_needs_is_in_the_matrix():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = {re.split(r"[>=;\[]", line)[0] for line in project["optional-dependencies"]["train"]}
    assert wanted == {one.name for one in tested.libraries() if one.extra == "train"}


def test_the_pins_are_of_the_core_and_of_the_extras_that_are_asked_for():
    assert "torch==2.13.0" in tested.pins("train")
    assert not any(pin.startswith(("torch==", "bitsandbytes")) for pin in tested.pins())
    assert any(pin.startswith("bitsandbytes==") for pin in tested.pins("train", "quant"))
    assert any(pin.startswith("pyarrow==") for pin in tested.pins())


@pytest.mark.parametrize(
    ("version", "other", "older"),
    [
        ("2.9", "2.10", True),
        ("2.10", "2.9", False),
        ("2.13.0+cpu", "2.13.0", False),
        ("2.13", "2.13.0", False),
        ("0.2.36", "0.3", True),
        ("5.23.0.dev0", "5.23.0", False),
        ("580.95.05", "580", False),
        ("", "1", True),
    ],
)
def test_versions_are_compared_by_their_numbers(version: str, other: str, older: bool):
    assert tested.is_older(version, other) is older
