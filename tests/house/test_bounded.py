"""A bounded run of tests: the longest first, each file its turn, and what was not run is named."""

from pathlib import Path

import pytest
from bounded import in_order

pytest_plugins = ["pytester"]
NAMES = ["test_a.py", "test_b.py", "test_demo.py", "test_c.py"]


def test_the_longest_files_are_first_and_the_others_move_on_each_day() -> None:
    files = [Path(name) for name in NAMES for _ in range(2)]
    orders = [[path.name for path in in_order(files, day)] for day in (300, 301, 302)]
    assert [order[0] for order in orders] == ["test_demo.py"] * 3
    assert sorted(order[1] for order in orders) == ["test_a.py", "test_b.py", "test_c.py"]
    assert all(sorted(order) == sorted(NAMES) for order in orders)


def test_what_begins_too_late_is_skipped_and_named(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    pytester.makepyfile(test_one="def test_it(): pass\n")
    late, in_time = (pytester.runpytest_subprocess("-p", "bounded", "--begin-within", minutes) for minutes in ("0.000001", "9"))
    late.stdout.fnmatch_lines(["*1 tests were not run*", "test_one.py::test_it"])
    late.assert_outcomes(skipped=1)
    in_time.assert_outcomes(passed=1)
