"""Running the checks: which, in what order, in one process or several, with the same findings."""

import subprocess
import sys
from pathlib import Path

import planted
import pytest

from luthier.config.checks import CheckSettings
from luthier.data.quality import run
from luthier.data.quality.check import Given, RowCheck
from luthier.data.quality.table import CHECKS
from luthier.errors import ConfigError
from luthier.records import Conversation

ROWS = [planted.row(*pair, line) for line, pair in enumerate(planted.ordinary_pairs(300, 1), 1)]
ROWS[7] = planted.row("Sum?", "3 + 4 = 8 is the sum.", 8)
ROWS[250] = planted.row("Sum?", "This is it.<|im_end|>", 251)
SETS_OFF = CheckSettings(off=[name for name, check in CHECKS.items() if not isinstance(check, RowCheck)])


def found(rows: list[Conversation], settings: CheckSettings = SETS_OFF) -> dict[str, list[int]]:
    return {finding.check: list(finding.places) for finding in run.run_checks(rows, Given(settings), lambda done, what: None)}


def test_every_check_that_is_on_gives_one_finding() -> None:
    places = found(ROWS)
    assert list(places) == [name for name, check in CHECKS.items() if isinstance(check, RowCheck) and check.default]
    assert {name: of for name, of in places.items() if of} == {"arithmetic": [7], "special_tokens": [250]}


def test_several_processes_find_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = found(ROWS)
    monkeypatch.setattr(run, "POOL_FROM", 100)
    monkeypatch.setattr(run, "CHUNK", 60)
    monkeypatch.setattr(run, "cores", lambda: 2)
    seen: list[int] = []
    together = run.run_checks(ROWS, Given(SETS_OFF), lambda done, what: seen.append(done))
    assert {finding.check: list(finding.places) for finding in together} == alone
    assert seen[:5] == [60, 120, 180, 240, 300]


def test_without_processes_the_work_is_done_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*given: object, **named: object) -> None:
        raise PermissionError("no semaphores here")

    monkeypatch.setattr(run, "POOL_FROM", 100)
    monkeypatch.setattr(run, "CHUNK", 60)
    monkeypatch.setattr(run, "cores", lambda: 2)
    monkeypatch.setattr(run, "ProcessPoolExecutor", refused)
    assert found(ROWS)["arithmetic"] == [7]


SCRIPT = """
print("script runs")
from luthier.config.checks import CheckSettings
from luthier.data.quality import run
from luthier.data.quality.check import Given
from luthier.records import Conversation, Source, Turn
run.POOL_FROM, run.CHUNK = 10, 10
run.cores = lambda: 2
rows = [Conversation((Turn("user", "q"), Turn("assistant", "3 + 4 = 8")), Source("a", n)) for n in range(1, 41)]
off = [name for name in run.CHECKS if name not in ("arithmetic", "pii")]
(finding,) = [one for one in run.run_checks(rows, Given(CheckSettings(off=off)), print) if one.check == "arithmetic"]
print(finding.found)
"""


def test_a_script_without_a_guard_runs_once(tmp_path: Path) -> None:
    script = tmp_path / "job.py"
    script.write_text(SCRIPT)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.count("script runs") == 1
    assert done.stdout.endswith("40\n")
    assert done.stderr == ""


def test_an_unknown_check_is_an_error_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"checks\.off: there is no check 'langauge'\n  Try: language"):
        found(ROWS[:2], CheckSettings(off=["langauge"]))
    with pytest.raises(ConfigError, match=r"checks\.on: there is no check 'zzz'"):
        found(ROWS[:2], CheckSettings(on=["zzz"]))


def test_no_rows_are_no_fault() -> None:
    assert all(places == [] for places in found([]).values())
