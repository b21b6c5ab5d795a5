"""Charts and curves as PNG files, for slides and papers. Needs matplotlib, which the extra `data` brings."""

import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier import files

# What the page's style has for the same classes, by day.
COLORS = {"main": "#2f6f62", "second": "#b4622d", "faint": "#a9c8c1", "bad": "#a8322f"}
COLORS |= {"line0": "#2f6f62", "line1": "#b4622d", "line2": "#5b6bb0", "line3": "#a8327a", "line4": "#7a7a2a", "line5": "#4b8fb3"}
WIDTH_INCHES, HEIGHT_INCHES = 7.0, 3.6
DOTS_PER_INCH = 150


@dataclass(frozen=True, slots=True)
class Plot:
    """One picture: NAME.png with a title above what `draw` puts on matplotlib's axes."""

    name: str
    title: str
    draw: Callable[[Any], None]
    height_inches: float = HEIGHT_INCHES


def write(plots: Iterable[Plot], folder: Path) -> list[Path]:
    """One PNG a plot, in `folder`. Raises ModuleNotFoundError where matplotlib is not installed."""
    import matplotlib.figure  # noqa: F401  before any folder is made

    files.make_folder(folder)
    written = []
    for plot in plots:
        path = folder / f"{plot.name}.png"
        files.write_bytes(path, _png(plot))
        written.append(path)
    return written


def plain(text: str) -> str:
    """A user's own words: a $ in them is no formula."""
    return text.replace("$", r"\$")


def _png(plot: Plot) -> bytes:
    from matplotlib.figure import Figure

    figure: Any = Figure(figsize=(WIDTH_INCHES, plot.height_inches), dpi=DOTS_PER_INCH, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(plain(plot.title), fontsize=10, loc="left", wrap=True)
    plot.draw(axes)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()
