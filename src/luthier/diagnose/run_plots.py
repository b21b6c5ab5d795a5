"""The curves of runs as PNG files."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from luthier.diagnose import plots
from luthier.diagnose.plots import COLORS, Plot, plain
from luthier.diagnose.run_charts import Figure
from luthier.errors import RunError

FEW_POINTS = 12


def write_plots(figures: Sequence[Figure], folder: Path) -> list[Path]:
    """One PNG a figure, in `folder`. Raises RunError where matplotlib is not installed."""
    try:
        return plots.write([Plot(figure.name, figure.caption, partial(_draw, figure)) for figure in figures], folder)
    except ModuleNotFoundError as error:
        raise RunError("matplotlib is not installed, and plots need it", where=str(folder), next_step='pip install "luthier[data]"') from error


def _draw(figure: Figure, axes: Any) -> None:
    for one in figure.drawn:
        x, y = zip(*one.points, strict=True)
        axes.plot(
            x,
            y,
            color=COLORS.get(one.style, COLORS["main"]),
            linewidth=0.8 if one.style == "faint" else 1.8,
            marker="o" if len(one.points) <= FEW_POINTS else None,
            markersize=3.5,
            label=plain(one.name),
        )
    axes.set_xlabel(figure.x_label, fontsize=9)
    axes.grid(axis="y", color="#e2e0da", linewidth=0.8)
    axes.set_axisbelow(True)
    if len(figure.drawn) > 1:
        axes.legend(frameon=False, fontsize=8)
