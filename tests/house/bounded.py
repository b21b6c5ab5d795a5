"""A run of tests that ends in time by itself (`--begin-within MINUTES`): what would begin later is skipped, counted and named.

The longest files begin first, so that none of them begins just before the time is up. The others follow in an order that moves on each day:
where the time is not enough for all, each has its turn.
"""

import datetime
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

# Minutes each.
LONGEST = ("test_demo.py", "test_examples.py", "test_memory_limit.py", "test_overfit.py", "test_suites.py", "test_llama_cpp.py", "test_ranks.py")
NO_TIME = "no time was left for it"
_STARTED = time.monotonic()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--begin-within", type=float, metavar="MINUTES", help="skip the tests that would begin later, and name them at the end")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--begin-within"):
        files = in_order([item.path for item in items], datetime.date.today().toordinal())
        place = {path: number for number, path in enumerate(files)}
        items.sort(key=lambda item: place[item.path])


def in_order(files: Sequence[Path], day: int) -> list[Path]:
    """Each file once: the longest, then the others from another one on each day."""
    every = list(dict.fromkeys(files))
    first = sorted((file for file in every if file.name in LONGEST), key=lambda file: LONGEST.index(file.name))
    others = [file for file in every if file.name not in LONGEST]
    turned = day % len(others) if others else 0
    return [*first, *others[turned:], *others[:turned]]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    minutes = item.config.getoption("--begin-within")
    if minutes and time.monotonic() - _STARTED > minutes * 60:
        pytest.skip(NO_TIME)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    late = [report.nodeid for report in terminalreporter.stats.get("skipped", []) if NO_TIME in str(report.longrepr)]
    if late:
        minutes = config.getoption("--begin-within")
        terminalreporter.section(f"{len(late)} tests were not run: {minutes:.0f} minutes were over", red=True, bold=True)
        terminalreporter.write_line("\n".join(late))
