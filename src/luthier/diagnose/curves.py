"""Line charts as inline SVG: no script, no font, no file beside them. Colors are classes that the page's style fills in."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

Point = tuple[float, float]

# The drawing's own units; the page scales it to the width it has.
WIDTH, HEIGHT = 480, 250
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 34
# More points than this are finer than a screen.
MOST_POINTS = 400
BLOCKS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True, slots=True)
class Series:
    """One line. `style` names its class in the page's style: main, second, faint."""

    name: str
    points: list[Point]
    style: str


def smooth(points: Sequence[Point], weight: float = 0.9) -> list[Point]:
    """The running average s = (w * s_before + (1 - w) * y) / (1 - w^k), which starts at the first value (as Adam's moments do)."""
    average, smoothed = 0.0, []
    for count, (x, y) in enumerate(points, start=1):
        average = weight * average + (1 - weight) * y
        smoothed.append((x, average / (1 - weight**count)))
    return smoothed


def blocks(columns: Sequence[Sequence[float]], low: float, high: float) -> str:
    """A curve for a terminal: the mean of each column as a block between `low` and `high`, and a space where a column is empty."""
    spread = (high - low) or 1.0
    return "".join(BLOCKS[round((sum(values) / len(values) - low) / spread * (len(BLOCKS) - 1))] if values else " " for values in columns)


def line_chart(title: str, description: str, series: Sequence[Series], x_label: str) -> str:
    """An SVG of the lines over x. Values that are not finite are left out and break no line; "" where nothing is left to draw."""
    drawn = [Series(one.name, thin(finite(one.points)), one.style) for one in series]
    points = [point for one in drawn for point in one.points]
    if not points:
        return ""
    x_low, x_high = _span([x for x, _ in points])
    y_ticks = ticks(*_span([y for _, y in points] + ([0.0] if min(y for _, y in points) >= 0 else [])))
    x_ticks = [tick for tick in ticks(x_low, x_high) if x_low <= tick <= x_high]
    scale = _Scale(x_low, x_high, y_ticks[0], y_ticks[-1])
    body = "".join([_grid(scale, x_ticks, y_ticks, x_label), *(_line(scale, one) for one in drawn if one.points)])
    words = f"<title>{escape(title)}</title><desc>{escape(description)}</desc>"
    return f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{words}{body}</svg>'


def finite(points: Sequence[Point]) -> list[Point]:
    """The points that can be drawn."""
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]


def thin(points: list[Point]) -> list[Point]:
    """At most about MOST_POINTS points: the lowest and the highest of each stretch, so that no spike is lost."""
    if len(points) <= MOST_POINTS:
        return points
    stretch = math.ceil(2 * len(points) / MOST_POINTS)
    kept: list[Point] = []
    for start in range(0, len(points), stretch):
        part = points[start : start + stretch]
        ends = {min(part, key=lambda point: point[1]), max(part, key=lambda point: point[1])}
        kept += sorted(ends)
    return kept


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten) that enclose low .. high."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


@dataclass(frozen=True, slots=True)
class _Scale:
    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def x(self, value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (value - self.x_low) / (self.x_high - self.x_low)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - self.y_low) / (self.y_high - self.y_low)


def _span(values: Sequence[float]) -> tuple[float, float]:
    """The lowest and the highest value, apart enough to draw between."""
    low, high = min(values), max(values)
    if high - low > 1e-12 * max(abs(low), abs(high), 1.0):
        return low, high
    margin = max(abs(high) / 2, 1e-6) if high else 0.5
    return low - margin, high + margin


def _grid(scale: _Scale, x_ticks: list[float], y_ticks: list[float], x_label: str) -> str:
    parts = []
    for tick in y_ticks:
        y = scale.y(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{tick:.6g}</text>')
    for tick in x_ticks:
        parts.append(f'<text class="tick" x="{scale.x(tick):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{tick:.6g}</text>')
    parts.append(f'<text class="tick" x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 3}" text-anchor="middle">{escape(x_label)}</text>')
    return "".join(parts)


def _line(scale: _Scale, series: Series) -> str:
    places = [(scale.x(x), scale.y(y)) for x, y in series.points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dots = "".join(f'<circle class="dot {series.style}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in places) if len(places) <= 12 else ""
    return f'<polyline class="line {series.style}" points="{path}"/>{dots}'
