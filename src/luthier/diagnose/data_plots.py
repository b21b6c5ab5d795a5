"""The charts of a check as PNG files, for slides and papers. Needs matplotlib, which the extra `data` brings."""

import io
from pathlib import Path
from typing import Any

from luthier import files
from luthier.diagnose.bars import Chart, labeled, shortened

COLORS = {"main": "#2f6f62", "second": "#b4622d", "faint": "#bcd5cf", "bad": "#a8322f"}
WIDTH_INCHES, HEIGHT_INCHES, ROW_INCHES = 7.0, 3.6, 0.32
DOTS_PER_INCH = 150


def write_plots(charts: list[Chart], folder: Path) -> list[Path]:
    """One PNG a chart, in `folder`. Raises ModuleNotFoundError where matplotlib is not installed."""
    import matplotlib.figure  # noqa: F401  before any folder is made

    files.make_folder(folder)
    written = []
    for chart in charts:
        path = folder / f"{chart.name}.png"
        files.write_bytes(path, _png(chart))
        written.append(path)
    return written


def _png(chart: Chart) -> bytes:
    from matplotlib.figure import Figure

    tall = HEIGHT_INCHES if chart.kind == "columns" else 1.4 + ROW_INCHES * len(chart.bars)
    figure: Any = Figure(figsize=(WIDTH_INCHES, tall), dpi=DOTS_PER_INCH, layout="constrained")
    axes = figure.add_subplot()
    # Names are the rows' own: a $ in them is no formula.
    axes.set_title(chart.title.replace("$", r"\$"), fontsize=10, loc="left", wrap=True)
    (_draw_columns if chart.kind == "columns" else _draw_rows)(axes, chart)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def _draw_columns(axes: Any, chart: Chart) -> None:
    places = [place + 0.5 for place in range(len(chart.bars))]
    axes.bar(places, [bar.value for bar in chart.bars], width=0.94, color=[COLORS[bar.style] for bar in chart.bars])
    shown = list(labeled(len(chart.bars)))
    axes.set_xticks(shown, [chart.bars[place].name for place in shown])
    axes.set_xlabel(chart.x_label, fontsize=9)
    if chart.limit is not None:
        axes.axvline(chart.limit, color=COLORS["bad"], linestyle="--", label=chart.limit_name)
        axes.legend(frameon=False, fontsize=8)


def _draw_rows(axes: Any, chart: Chart) -> None:
    names = [shortened(bar.name).replace("$", r"\$") for bar in chart.bars]
    drawn = axes.barh(range(len(names)), [bar.value for bar in chart.bars], color=[COLORS[bar.style] for bar in chart.bars])
    axes.bar_label(drawn, [f"{bar.value:,.6g}" for bar in chart.bars], padding=3, fontsize=8)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.margins(x=0.12)
