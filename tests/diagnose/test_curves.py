import math
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.diagnose.curves import HEIGHT, MOST_POINTS, WIDTH, Series, line_chart, smooth, thin, ticks

NUMBER = st.floats(min_value=-1e9, max_value=1e9, allow_nan=False) | st.just(math.nan) | st.just(math.inf)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10_000).map(float), NUMBER), max_size=30))
def test_any_numbers_give_a_whole_drawing_inside_its_frame(points):
    svg = line_chart("loss", "d", [Series("loss", points, "main")], "update")
    if not any(math.isfinite(y) for _, y in points):
        assert svg == ""
        return
    root = ElementTree.fromstring(svg)
    drawn = [float(number) for line in root.iter("polyline") for number in line.get("points").replace(",", " ").split()]
    assert len(drawn) == 2 * sum(math.isfinite(y) for _, y in points)
    assert all(0 <= x <= WIDTH for x in drawn[::2])
    assert all(0 <= y <= HEIGHT for y in drawn[1::2])


def test_a_falling_loss_falls_on_the_screen():
    root = ElementTree.fromstring(line_chart("t", "d", [Series("loss", [(1.0, 2.0), (2.0, 1.0), (3.0, 0.5)], "main")], "update"))
    heights = [float(pair.split(",")[1]) for pair in root.find("polyline").get("points").split()]
    assert heights == sorted(heights), "in SVG a larger y is lower"


def test_a_chart_has_words_for_those_who_cannot_see_it():
    root = ElementTree.fromstring(line_chart("Loss & rate", "falls from <2>", [Series("s", [(1.0, 1.0)], "main")], "update"))
    assert (root.find("title").text, root.find("desc").text) == ("Loss & rate", "falls from <2>")
    assert root.get("role") == "img"


def test_thinning_keeps_the_spike():
    points = [(float(x), 1.0) for x in range(5_000)]
    points[3_210] = (3_210.0, 90.0)
    kept = thin(points)
    assert len(kept) <= MOST_POINTS + 2
    assert (3_210.0, 90.0) in kept
    assert [x for x, _ in kept] == sorted(x for x, _ in kept)


def test_smoothing_starts_where_the_line_starts_and_leaves_a_constant_alone():
    assert smooth([(1.0, 3.0)])[0][1] == pytest.approx(3.0)
    assert [y for _, y in smooth([(float(x), 2.0) for x in range(9)])] == pytest.approx([2.0] * 9)
    zigzag = [(float(x), float(x % 2)) for x in range(100)]
    assert all(0.4 < y < 0.6 for _, y in smooth(zigzag)[60:])


@pytest.mark.parametrize(("low", "high", "expected"), [(0.0, 1.0, [0, 0.2, 0.4, 0.6, 0.8, 1]), (0.0, 593.0, [0, 200, 400, 600]), (0.0, 0.001, None)])
def test_ticks_are_round_and_enclose(low, high, expected):
    marks = ticks(low, high)
    assert marks[0] <= low
    assert marks[-1] >= high
    assert 3 <= len(marks) <= 8
    if expected:
        assert marks == pytest.approx(expected)
