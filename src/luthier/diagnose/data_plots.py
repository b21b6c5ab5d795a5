"""The charts of a check as PNG files."""

from functools import partial
from pathlib import Path
from typing import Any

from luthier.diagnose import plots
from luthier.diagnose.bars import Chart, labeled, shortened
from luthier.diagnose.plots import COLORS, Plot, plain

ROW_INCHES = 0.32


def write_plots(charts: list[Chart], folder: Path) -> list[Path]:
    """One PNG a chart, in `folder`. Raises ModuleNotFoundError where matplotlib is not installed."""
    return plots.write([_plot(chart) for chart in charts], folder)


def _plot(chart: Chart) -> Plot:
    if chart.kind == "columns":
        return Plot(chart.name, chart.title, partial(_draw_columns, chart))
    return Plot(chart.name, chart.title, partial(_draw_rows, chart), height_inches=1.4 + ROW_INCHES * len(chart.bars))


def _draw_columns(chart: Chart, axes: Any) -> None:
    places = [place + 0.5 for place in range(len(chart.bars))]
    axes.bar(places, [bar.value for bar in chart.bars], width=0.94, color=[COLORS[bar.style] for bar in chart.bars])
    shown = list(labeled(len(chart.bars)))
    axes.set_xticks(shown, [chart.bars[place].name for place in shown])
    axes.set_xlabel(chart.x_label, fontsize=9)
    if chart.limit is not None:
        axes.axvline(chart.limit, color=COLORS["bad"], linestyle="--", label=chart.limit_name)
        axes.legend(frameon=False, fontsize=8)


def _draw_rows(chart: Chart, axes: Any) -> None:
    names = [plain(shortened(bar.name)) for bar in chart.bars]
    drawn = axes.barh(range(len(names)), [bar.value for bar in chart.bars], color=[COLORS[bar.style] for bar in chart.bars])
    axes.bar_label(drawn, [f"{bar.value:,.6g}" for bar in chart.bars], padding=3, fontsize=8)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.margins(x=0.12)
