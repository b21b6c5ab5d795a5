"""tests/README.md says where each class of bad input is tested: the files it names are there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_tests_that_are_named_exist() -> None:
    text = (ROOT / "tests" / "README.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/\S+\.py)`", text)
    assert len(named) > 20
    assert [name for name in named if not (ROOT / name).is_file()] == []
    assert {int(number) for number in re.findall(r"^\| (\d+) ", text, re.MULTILINE)} >= {*range(32, 36), *range(37, 44)}
