"""The charts as PNG files."""

import pytest

from luthier.diagnose.bars import Bar, Chart
from luthier.diagnose.data_plots import write_plots

pytest.importorskip("matplotlib")


def test_each_chart_becomes_a_picture(tmp_path):
    charts = [
        Chart("lengths", "Length", "columns", (Bar("0", 3), Bar("100", 9, "bad")), "tokens", 1.5, "max_length 150"),
        Chart("roles", "Costs $5 and $\\frac{", "rows", (Bar("$x^2", 3), Bar("b", 1))),
        Chart("tokens", "Tokens", "parts", (Bar("trained", 3), Bar("masked", 1, "faint"))),
    ]
    written = write_plots(charts, tmp_path / "plots")
    assert [path.name for path in written] == ["lengths.png", "roles.png", "tokens.png"]
    for path in written:
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.stat().st_size > 5_000
