"""Measure the checks of single rows: what they find of their planted sets, and how long they take.

python benchmarks/quality.py                  recall and precision, as the table of docs/data-quality.md
python benchmarks/quality.py --rows 100000    seconds and memory on that many short rows, for each check and for all of them together
"""

import argparse
import random
import resource
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "data" / "quality"))

import planted  # type: ignore[import-not-found]

from luthier.config.checks import CheckSettings
from luthier.data.quality.check import Given, RowCheck
from luthier.data.quality.run import cores, look_at, run_checks
from luthier.data.quality.table import CHECKS
from luthier.records import Conversation

ROW_CHECKS = [name for name, check in CHECKS.items() if isinstance(check, RowCheck)]


def show_planted() -> None:
    print("| check | rows | planted | look-alikes | recall | precision |\n| --- | --- | --- | --- | --- | --- |")
    for name in planted.SETS:
        measured = planted.measure(name)
        print(f"| {name} | {measured.rows} | {measured.planted} | {measured.look_alikes} | {measured.recall:.3f} | {measured.precision:.3f} |")


def short_rows(count: int) -> list[Conversation]:
    """Rows of about 300 characters: the ordinary rows of the planted sets."""
    draw = random.Random(0)
    made: list[Conversation] = []
    while len(made) < count:
        prompt, answer = planted.ordinary(draw)
        while len(prompt) + len(answer) < 300:
            answer += " " + draw.choice(planted.FACTS)
        made.append(planted.row(prompt, answer, len(made) + 1))
    return made


def show_speed(count: int) -> None:
    rows = short_rows(count)
    print(f"{count:,} rows of {sum(len(turn.content) for row in rows[:1000] for turn in row.turns) / 1000:.0f} characters, {cores()} cores")
    given, some = Given(CheckSettings()), rows[:2000]
    for name in ROW_CHECKS:
        check = CHECKS[name]
        assert isinstance(check, RowCheck)
        if isinstance(look := check.start(given), str):
            continue
        began = time.process_time()
        look_at(some, {name: look})
        print(f"  {name:22} {1e6 * (time.process_time() - began) / len(some):6.1f} us of a core a row")
    others = [name for name in CHECKS if name not in (*ROW_CHECKS, "length")]
    before = peak_mib(resource.RUSAGE_SELF)
    began, used = time.perf_counter(), seconds_used(resource.RUSAGE_SELF) + seconds_used(resource.RUSAGE_CHILDREN)
    run_checks(rows, Given(CheckSettings(off=others)), lambda done, what: None)
    used = seconds_used(resource.RUSAGE_SELF) + seconds_used(resource.RUSAGE_CHILDREN) - used
    print(f"all of them, and length: {time.perf_counter() - began:.1f} s, {used:.1f} core seconds")
    here, worker = peak_mib(resource.RUSAGE_SELF), peak_mib(resource.RUSAGE_CHILDREN)
    print(f"peak memory: {here:.0f} MiB here ({before:.0f} before, with the rows), {worker:.0f} MiB in the largest worker")


def seconds_used(whose: int) -> float:
    used = resource.getrusage(whose)
    return used.ru_utime + used.ru_stime


def peak_mib(whose: int) -> float:
    return resource.getrusage(whose).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, help="time the checks on this many rows instead")
    asked = parser.parse_args()
    show_speed(asked.rows) if asked.rows else show_planted()


if __name__ == "__main__":
    main()
