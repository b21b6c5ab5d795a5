"""docs/methods.md says of each method what the table of methods says."""

from pathlib import Path

import pytest

from luthier.config.methods import METHODS, Method

GUIDE = Path(__file__).parents[2] / "docs" / "methods.md"


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_the_guide_has_the_row_of_each_method(method: Method) -> None:
    answers = ["yes" if value else "no" for value in (method.begins_as_base, method.merges, method.per_request)]
    sections = ", ".join(f"`{block}:`" for block in method.blocks)
    row = " | ".join([f"`{method.name}`", method.what, *answers, ", ".join(method.engines) or "-", sections])
    assert f"| {row} |" in GUIDE.read_text(encoding="utf-8")
