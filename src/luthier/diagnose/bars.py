"""Bar charts as inline SVG: no script, no font, no file beside them. Colors are classes that the page's style fills in."""

from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import Literal

from luthier.diagnose.curves import ticks

# columns: side by side, a histogram. rows: one below the other, with their names. parts: of one whole, in one line.
Kind = Literal["columns", "rows", "parts"]

# The drawing's own units; the page scales it to the width it has.
WIDTH, HEIGHT = 480, 250
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 20, 34
ROW_HEIGHT, NAME_WIDTH, NUMBER_WIDTH = 24, 150, 62
LONGEST_NAME = 22
PART_HEIGHT = 28
COLUMN_LABELS = 7


@dataclass(frozen=True, slots=True)
class Bar:
    """One value with its name. `style` names its class in the page's style: main, second, faint, bad."""

    name: str
    value: float
    style: str = "main"


@dataclass(frozen=True, slots=True)
class Chart:
    """Bars that belong together. `limit` is where a marked line stands among columns: 2.5 is in the middle of the third."""

    name: str  # for a file's name
    title: str
    kind: Kind
    bars: tuple[Bar, ...]
    x_label: str = ""
    limit: float | None = None
    limit_name: str = ""


def svg(chart: Chart) -> str:
    """The chart as SVG, its values spelled out in its description; "" where there is nothing to draw."""
    if not any(bar.value > 0 for bar in chart.bars):
        return ""
    height, body = DRAWN[chart.kind](chart)
    values = "; ".join(f"{bar.name}: {bar.value:,.6g}" for bar in chart.bars)
    words = f"<title>{escape(chart.title)}</title><desc>{escape(values)}</desc>"
    return f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img">{words}{body}</svg>'


def shortened(name: str) -> str:
    """A name that fits beside its bar."""
    flat = " ".join(name.split())
    return flat if len(flat) <= LONGEST_NAME else f"{flat[: LONGEST_NAME - 3]}..."


def labeled(bars: int) -> range:
    """Which of many columns get a label below them: so many that they do not touch."""
    return range(0, bars, max(1, -(-bars // COLUMN_LABELS)))


def _columns(chart: Chart) -> tuple[int, str]:
    high = ticks(0, max(bar.value for bar in chart.bars))
    width = (WIDTH - LEFT - RIGHT) / len(chart.bars)
    parts = []
    for tick in high:
        y = _height(tick, high[-1])
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{tick:,.6g}</text>')
    for place, bar in enumerate(chart.bars):
        y = _height(bar.value, high[-1])
        # Even one row among many thousands should be seen.
        tall = max(HEIGHT - BOTTOM - y, 1.5) if bar.value else 0
        x = LEFT + place * width
        parts.append(f'<rect class="{bar.style}" x="{x + 0.5:.1f}" y="{HEIGHT - BOTTOM - tall:.1f}" width="{width - 1:.1f}" height="{tall:.1f}"/>')
    for place in labeled(len(chart.bars)):
        x = LEFT + place * width
        parts.append(f'<text class="tick" x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{escape(chart.bars[place].name)}</text>')
    if chart.limit is not None:
        x = LEFT + chart.limit * width
        anchor = "end" if x > WIDTH / 2 else "start"
        parts.append(f'<line class="limit" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 6}" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(
            f'<text class="tick" x="{x + (-5 if anchor == "end" else 5):.1f}" y="12" text-anchor="{anchor}">{escape(chart.limit_name)}</text>'
        )
    parts.append(f'<text class="tick" x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 3}" text-anchor="middle">{escape(chart.x_label)}</text>')
    return HEIGHT, "".join(parts)


def _height(value: float, high: float) -> float:
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / high


def _rows(chart: Chart) -> tuple[int, str]:
    room = WIDTH - NAME_WIDTH - NUMBER_WIDTH
    high = max(bar.value for bar in chart.bars)
    parts = []
    for place, bar in enumerate(chart.bars):
        y, length = place * ROW_HEIGHT, max(room * bar.value / high, 1.5) if bar.value else 0
        parts.append(f'<text class="tick" x="{NAME_WIDTH - 8}" y="{y + 16}" text-anchor="end">{escape(shortened(bar.name))}</text>')
        parts.append(f'<rect class="{bar.style}" x="{NAME_WIDTH}" y="{y + 4}" width="{length:.1f}" height="{ROW_HEIGHT - 8}" rx="2"/>')
        parts.append(f'<text class="tick" x="{NAME_WIDTH + length + 6:.1f}" y="{y + 16}">{bar.value:,.6g}</text>')
    return len(chart.bars) * ROW_HEIGHT + 4, "".join(parts)


def _parts(chart: Chart) -> tuple[int, str]:
    whole = sum(bar.value for bar in chart.bars)
    x, parts = 0.0, []
    for bar in chart.bars:
        length = WIDTH * bar.value / whole
        parts.append(f'<rect class="{bar.style}" x="{x:.1f}" y="0" width="{length:.1f}" height="{PART_HEIGHT}"/>')
        x += length
    for place, bar in enumerate(chart.bars):
        y = PART_HEIGHT + 12 + place * ROW_HEIGHT
        parts.append(f'<rect class="{bar.style}" x="0" y="{y}" width="12" height="12" rx="2"/>')
        parts.append(f'<text class="tick" x="20" y="{y + 11}">{escape(bar.name)}: {bar.value:,.0f} ({100 * bar.value / whole:.1f} %)</text>')
    return PART_HEIGHT + 8 + len(chart.bars) * ROW_HEIGHT, "".join(parts)


DRAWN: dict[Kind, Callable[[Chart], tuple[int, str]]] = {
    # kind     what draws it: (height, body)
    "columns": _columns,
    "rows": _rows,
    "parts": _parts,
}
