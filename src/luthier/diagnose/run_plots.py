"""The curves of runs as PNG files, for slides and papers. Needs matplotlib, which the extra `data` brings."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from luthier import files
from luthier.diagnose.run_charts import Figure
from luthier.errors import RunError

# What the page's style has for the same classes, by day.
COLORS = {"main": "#2f6f62", "second": "#b4622d", "faint": "#a9c8c1"}
COLORS |= {"line0": "#2f6f62", "line1": "#b4622d", "line2": "#5b6bb0", "line3": "#a8327a", "line4": "#7a7a2a", "line5": "#4b8fb3"}
WIDTH_INCHES, HEIGHT_INCHES = 7.0, 3.6
DOTS_PER_INCH = 150
FEW_POINTS = 12


def write_plots(figures: Sequence[Figure], folder: Path) -> list[Path]:
    """One PNG a figure, in `folder`. Raises RunError where matplotlib is not installed."""
    try:
        import matplotlib.figure  # noqa: F401  before any folder is made
    except ModuleNotFoundError as error:
        raise RunError("matplotlib is not installed, and plots need it", where=str(folder), next_step='pip install "luthier[data]"') from error
    files.make_folder(folder)
    written = []
    for figure in figures:
        path = folder / f"{figure.name}.png"
        files.write_bytes(path, _png(figure))
        written.append(path)
    return written


def _png(figure: Figure) -> bytes:
    from matplotlib.figure import Figure as Drawing

    drawing: Any = Drawing(figsize=(WIDTH_INCHES, HEIGHT_INCHES), dpi=DOTS_PER_INCH, layout="constrained")
    axes = drawing.add_subplot()
    # Names are a user's own: a $ in them is no formula.
    axes.set_title(figure.caption.replace("$", r"\$"), fontsize=10, loc="left", wrap=True)
    for one in figure.drawn:
        x, y = zip(*one.points, strict=True)
        thin = one.style == "faint"
        axes.plot(
            x,
            y,
            color=COLORS.get(one.style, COLORS["main"]),
            linewidth=0.8 if thin else 1.8,
            marker="o" if len(one.points) <= FEW_POINTS else None,
            markersize=3.5,
            label=one.name.replace("$", r"\$"),
        )
    axes.set_xlabel(figure.x_label, fontsize=9)
    axes.grid(axis="y", color="#e2e0da", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if len(figure.drawn) > 1:
        axes.legend(frameon=False, fontsize=8)
    content = io.BytesIO()
    drawing.savefig(content, format="png")
    return content.getvalue()
