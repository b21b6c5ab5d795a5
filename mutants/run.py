"""The mutation gate: each patch in this folder plants one bug in a copy of the tree, and a test must notice it.

    python mutants/run.py                      every mutant (`make mutants`)
    python mutants/run.py --third              a third of them, another one each day (a part of `make test-slow`)
    python mutants/run.py double_bos eos_masked    some, by name

The checkout is only read. Ends with 1 where a bug is noticed by no test, a patch no longer applies, or its tests do not run.
docs/mutants.md says how a mutant is written.
"""

import argparse
import contextlib
import datetime
import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = Path(__file__).resolve().parent
# Tests read documents and benchmarks too.
COPIED = ("src", "tests", "docs", "benchmarks", "mutants", "*.md", "Makefile", "pyproject.toml")
CACHES = shutil.ignore_patterns("__pycache__", ".*_cache", ".hypothesis")
HEADER = re.compile(r"Breaks: (?P<breaks>.+)\nKilled by: (?P<tests>.+)\n")
CHANGED = re.compile(r"^\+\+\+ b/(.+)$", re.MULTILINE)
FAILED = re.compile(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", re.MULTILINE)
# Imported once for all mutants.
HEAVY = ("torch", "transformers", "transformers.models.auto.modeling_auto", "transformers.models.llama.modeling_llama", "peft", "pyarrow.ipc")
# Named tests take seconds; a bug may also make one hang.
NAMED_TIMEOUT_S, WIDER_TIMEOUT_S = 300, 900
NOT_HERE = "not slow and not nightly and not cuda and not real_model"


@dataclass(frozen=True, slots=True)
class Mutant:
    """A planted bug: what it breaks in words, the tests that should notice (pytest's names), and the files that it changes."""

    name: str
    breaks: str
    tests: list[str]
    patch: Path
    changed: list[str]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a mutant: `killed_by` is the first test that failed, "" where none did; `fault` says why it could not be tried."""

    mutant: Mutant
    killed_by: str
    seconds: float
    fault: str = ""

    @property
    def line(self) -> str:
        """The outcome for people."""
        state = "killed" if self.killed_by else "NOT TRIED" if self.fault else "SURVIVED"
        return f"{state:<9}  {self.mutant.name:<36} {self.seconds:5.0f} s  {self.killed_by or self.fault or self.mutant.breaks}"


@dataclass(frozen=True, slots=True)
class Tried:
    """How pytest ended: its exit code (None where it was stopped for its time), and what it printed."""

    code: int | None
    printed: str

    @property
    def first_failed(self) -> str:
        found = FAILED.search(self.printed)
        return found[1] if found else ""


def read(patch: Path) -> Mutant:
    """A mutant from its file. Raises ValueError where its two first lines are not those that docs/mutants.md asks for."""
    text = patch.read_text(encoding="utf-8")
    header, changed = HEADER.match(text), CHANGED.findall(text)
    if header is None or not changed:
        raise ValueError(f"{patch.name}: it begins with 'Breaks: ...' and 'Killed by: tests/...', and a unified diff follows")
    return Mutant(patch.stem, header["breaks"], header["tests"].split(), patch, changed)


def third_of(mutants: Sequence[Mutant], day: int) -> list[Mutant]:
    """Every third mutant: another third the next day, all of them in three days."""
    return list(mutants[day % 3 :: 3])


def copy_tree(root: Path, to: Path) -> Path:
    """A copy of what the tests need, with the files' times, so that Python's own caches stay right."""
    to.mkdir(parents=True)
    for source in (path for name in COPIED for path in root.glob(name)):
        shutil.copytree(source, to / source.name, ignore=CACHES) if source.is_dir() else shutil.copy2(source, to / source.name)
    return to


def plant(mutant: Mutant, copy: Path, *, check_only: bool = False) -> str:
    """Apply the patch to the copy, or only look whether it would. Gives "", or why it does not apply."""
    environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(copy.parent)}  # no repository above the copy is asked
    command = ["git", "apply", "-C1", "--whitespace=nowarn", *(["--check"] if check_only else []), str(mutant.patch)]
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return ""
    reason = done.stderr.strip().splitlines()[0]
    return f"the patch no longer applies ({reason}): make its change in the new code, and put what `git diff -U1` says into {mutant.patch.name}"


def restore(mutant: Mutant, root: Path, copy: Path) -> None:
    for name in mutant.changed:
        shutil.copy2(root / name, copy / name)


class Bench:
    """A copy of the tree, and a process that runs its tests on the copy's own modules (forking.py)."""

    def __init__(self, root: Path, folder: Path, heavy: Sequence[str]) -> None:
        self.root, self.copy = root, copy_tree(root, folder)
        # Where CI is set, pytest works out whole differences, which can take minutes and which nobody reads here.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_") and name not in ("CI", "BUILD_NUMBER")}
        environment |= {"PYTHONPATH": str(self.copy / "src"), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        command = [sys.executable, str(FOLDER / "forking.py"), *heavy]
        self.process = subprocess.Popen(
            command, cwd=self.copy, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def run(self, tests: Sequence[str], timeout_s: float, *, only: str = "") -> Tried:
        """Run some tests until the first one fails. `only` is pytest's -m."""
        marks = ["-m", only] if only else []
        with tempfile.NamedTemporaryFile("w+", encoding="utf-8", errors="replace") as printed:
            arguments = ["-x", "-q", "-rfE", "--tb=line", "-p", "no:cacheprovider", *marks, *tests]
            assert self.process.stdin is not None
            print(json.dumps({"arguments": arguments, "printed": printed.name}), file=self.process.stdin, flush=True)
            session = int(self._answer())
            stop = threading.Timer(timeout_s, _end, [session])
            stop.start()
            code = int(self._answer())
            in_time = stop.is_alive()
            stop.cancel()
            _end(session)  # what the tests started and left
            return Tried(code if in_time else None, printed.read())

    def _answer(self) -> str:
        assert self.process.stdout is not None
        if not (line := self.process.stdout.readline()):
            raise RuntimeError(f"{FOLDER / 'forking.py'} ended: run it by hand to see why")
        return line

    def close(self) -> None:
        self.process.communicate()


def _end(session: int) -> None:
    """End the processes of a session that are left."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(session, signal.SIGKILL)


def attempt(mutant: Mutant, bench: Bench) -> Outcome:
    """Plant the bug, run the tests named for it and then, where none of them fails, all fast tests of the rooms that it changes."""
    start = time.monotonic()
    if fault := plant(mutant, bench.copy):
        return Outcome(mutant, "", 0.0, fault)
    wider = False
    try:
        tried = bench.run(mutant.tests, NAMED_TIMEOUT_S)
        if tried.code == 0 and (rooms := _rooms(mutant, bench.copy)):
            tried, wider = bench.run(rooms, WIDER_TIMEOUT_S, only=NOT_HERE), True
    finally:
        restore(mutant, bench.root, bench.copy)
    killed_by = tried.first_failed if tried.code == 1 else ""
    fault = "" if tried.code in (0, 1) else _fault(tried)
    if killed_by and wider and bench.run([killed_by], NAMED_TIMEOUT_S).code != 0:
        killed_by, fault = "", f"{killed_by} fails, but without any bug too"
    return Outcome(mutant, killed_by, time.monotonic() - start, fault)


def _rooms(mutant: Mutant, copy: Path) -> list[str]:
    """The tests that mirror the files that a mutant changes: a folder for a room, and the files beside them for a module of the ground floor."""
    found: set[Path] = set()
    for name in mutant.changed:
        _, _, room, *inside = Path(name).parts  # src/luthier/...
        found |= {copy / "tests" / room} if inside else set((copy / "tests").glob("test_*.py"))
    return sorted(str(path.relative_to(copy)) for path in found if path.exists())


def _fault(tried: Tried) -> str:
    if tried.code is None:
        return "its tests did not end in time"
    last = next((line for line in reversed(tried.printed.splitlines()) if line.strip()), "nothing printed")
    return f"pytest ended with {tried.code}: {last}"


def check_copy(copy: Path) -> str:
    """Gives "", or what is wrong: Python must import the copy, and not the checkout that is installed."""
    code = "import luthier; print(luthier.__file__)"
    environment = {**os.environ, "PYTHONPATH": str(copy / "src")}
    found = subprocess.run([sys.executable, "-c", code], cwd=copy, env=environment, capture_output=True, text=True, check=False)
    return "" if Path(found.stdout.strip()).is_relative_to(copy) else f"the tests would run on {found.stdout.strip() or found.stderr.strip()}"


def check_unchanged(bench: Bench, mutants: Sequence[Mutant]) -> str:
    """Gives "", or what is wrong: every named test must pass as long as nothing is planted, or its failure would say nothing."""
    tests = sorted({test for mutant in mutants for test in mutant.tests})
    tried = bench.run(tests, NAMED_TIMEOUT_S * len(mutants))
    return "" if tried.code == 0 else f"without any bug: {tried.first_failed or _fault(tried)} fails"


def gate(mutants: Sequence[Mutant], jobs: int, root: Path = ROOT, heavy: Sequence[str] = HEAVY) -> tuple[list[Outcome], str]:
    """Try all mutants, `jobs` at a time. Gives their outcomes in order, and what is wrong with the tests themselves ("" where nothing is)."""
    benches: queue.SimpleQueue[Bench] = queue.SimpleQueue()

    def one(mutant: Mutant | None) -> Outcome | str:
        bench = benches.get()
        try:
            if mutant is None:
                return check_unchanged(bench, mutants)
            outcome = attempt(mutant, bench)
        finally:
            benches.put(bench)
        print(outcome.line, file=sys.stderr, flush=True)
        return outcome

    with contextlib.ExitStack() as stack:
        # A resolved path: on some systems the folder for temporary files is a link.
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="luthier-mutants-"))).resolve()
        clean = copy_tree(root, home / "clean")  # the checkout may change meanwhile
        for number in range(jobs):
            bench = Bench(clean, home / str(number), heavy)
            stack.callback(bench.close)
            benches.put(bench)
        if wrong := check_copy(home / "0"):
            return [], wrong
        with ThreadPoolExecutor(jobs) as pool:
            found = list(pool.map(one, [None, *mutants]))
    return [outcome for outcome in found if isinstance(outcome, Outcome)], str(found[0])


def table(outcomes: Sequence[Outcome]) -> str:
    """The outcomes as a table in Markdown, as docs/mutants.md has it."""
    # A test's parameters may hold anything, a column's end too.
    killers = [one.killed_by.partition("[")[0].removeprefix("tests/") or "**none**" for one in outcomes]
    rows = [f"| {one.mutant.name} | {one.mutant.breaks} | {killer} |" for one, killer in zip(outcomes, killers, strict=True)]
    return "\n".join(["| mutant | what it breaks | killed by tests/... |", "|---|---|---|", *rows])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Plant each bug of this folder in a copy of the tree and show which test notices it.")
    parser.add_argument("names", nargs="*", help="mutants by name; none: all")
    parser.add_argument("--third", action="store_true", help="a third of them, another one each day")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="copies that are tested at the same time")
    asked = parser.parse_args(arguments)
    mutants = [read(patch) for patch in sorted(FOLDER.glob("*.patch"))]
    if unknown := set(asked.names) - {mutant.name for mutant in mutants}:
        parser.error(f"no such mutant: {', '.join(sorted(unknown))}")
    mutants = [mutant for mutant in mutants if not asked.names or mutant.name in asked.names]
    mutants = third_of(mutants, datetime.date.today().toordinal()) if asked.third else mutants
    start = time.monotonic()
    outcomes, wrong = gate(mutants, max(1, asked.jobs))
    killed = sum(bool(one.killed_by) for one in outcomes)
    print(table(outcomes))
    print(f"\n{killed} of {len(mutants)} mutants killed in {time.monotonic() - start:.0f} s ({asked.jobs} at a time)")
    if wrong:
        print(wrong)
    return int(bool(wrong) or killed < len(mutants))


if __name__ == "__main__":
    sys.exit(main())
