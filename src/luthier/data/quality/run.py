"""Run the checks: those of single rows all in one pass and on every core, the others one after the other."""

import difflib
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from itertools import islice
from pathlib import Path

from luthier.data.quality.check import Check, Finding, Given, Look, Note, Noted, RowCheck
from luthier.data.quality.limits import not_run
from luthier.data.quality.table import CHECKS
from luthier.errors import ConfigError
from luthier.records import Conversation

CHUNK = 1000  # rows that a process gets at once
POOL_FROM = 8000  # rows: below, processes take longer to start (1 to 2 s) than they save
PROCESSES = 8  # more wait for the one that hands out rows

# For each check, what it noted: (number of the row, note).
Notes = dict[str, list[tuple[int, Note]]]

# The looks of a worker process, made once when it starts.
_looks: dict[str, Look] = {}


def run_checks(rows: Sequence[Conversation], given: Given, on_progress: Callable[[int, str], None]) -> list[Finding]:
    """Every check that is on, in the order of the table. `on_progress` gets rows that are done and the name of what runs.

    Raises ConfigError where the settings name a check that there is not.
    """
    names = names_to_run(given)
    if given.tokenizer is not None and not given.special_tokens:
        given = replace(given, special_tokens=tuple(given.tokenizer.all_special_tokens))
    row_checks: dict[str, RowCheck] = {name: check for name in names if isinstance(check := CHECKS[name], RowCheck)}
    started = {name: check.start(given) for name, check in row_checks.items()}
    looks = {name: look for name, look in started.items() if not isinstance(look, str)}
    notes = _all_notes(rows, given, looks, on_progress)
    findings = []
    for name in names:
        check = CHECKS[name]
        if isinstance(check, Check):
            on_progress(len(rows), name)
            findings.append(check.run(rows, given))
        elif isinstance(why := started[name], str):
            findings.append(not_run(name, why))
        else:
            findings.append(check.conclude(Noted(name, rows, notes[name]), given))
    return findings


def names_to_run(given: Given) -> list[str]:
    """The checks that are on, by name."""
    for setting, names in (("off", given.settings.off), ("on", given.settings.on)):
        for name in names:
            if name not in CHECKS:
                near = difflib.get_close_matches(name, CHECKS, 1, 0.4)
                raise ConfigError(
                    f"there is no check {name!r}",
                    where=f"checks.{setting}",
                    next_step=f"{near[0]}" if near else "one of " + ", ".join(CHECKS),
                )
    return [name for name, check in CHECKS.items() if name not in given.settings.off and (check.default or name in given.settings.on)]


def _all_notes(rows: Sequence[Conversation], given: Given, looks: dict[str, Look], on_progress: Callable[[int, str], None]) -> Notes:
    processes = min(PROCESSES, cores(), len(rows) // CHUNK)
    if looks and len(rows) >= POOL_FROM and processes > 1 and _may_start_processes():
        try:
            return _in_processes(rows, given, looks, on_progress, processes)
        except (BrokenProcessPool, OSError):
            pass  # no process can be had (a sandbox, a limit): the work is done here
    notes: Notes = {name: [] for name in looks}
    for first, chunk in _chunks(rows):
        _add(notes, first, look_at(chunk, looks))
        on_progress(first + len(chunk), "rows")
    return notes


def _in_processes(
    rows: Sequence[Conversation], given: Given, looks: dict[str, Look], on_progress: Callable[[int, str], None], processes: int
) -> Notes:
    # What a worker needs is small: neither the evaluation rows nor the tokenizer go there.
    small = replace(given, held_out=(), token_counts=None, tokenizer=None)
    notes: Notes = {name: [] for name in looks}
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads can hang
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_start_worker, initargs=(list(looks), small)) as pool:
        waiting: list[tuple[int, int, Future[Notes]]] = []
        chunks = _chunks(rows)
        try:
            while True:
                for first, chunk in islice(chunks, 2 * processes - len(waiting)):
                    waiting.append((first, len(chunk), pool.submit(_work, chunk)))
                if not waiting:
                    return notes
                first, count, result = waiting.pop(0)
                _add(notes, first, result.result())
                on_progress(first + count, "rows")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _chunks(rows: Sequence[Conversation]) -> Iterator[tuple[int, list[Conversation]]]:
    for first in range(0, len(rows), CHUNK):
        yield first, [rows[place] for place in range(first, min(first + CHUNK, len(rows)))]


def look_at(rows: Sequence[Conversation], looks: dict[str, Look]) -> Notes:
    """What each look notes of these rows, numbered from 0."""
    return {name: [(place, note) for place, row in enumerate(rows) if (note := look(row)) is not None] for name, look in looks.items()}


def _add(notes: Notes, first: int, found: Notes) -> None:
    for name, of_chunk in found.items():
        notes[name].extend((first + place, note) for place, note in of_chunk)


def _start_worker(names: list[str], given: Given) -> None:
    for name in names:
        check = CHECKS[name]
        look = check.start(given) if isinstance(check, RowCheck) else ""
        if not isinstance(look, str):
            _looks[name] = look


def _work(rows: list[Conversation]) -> Notes:
    return look_at(rows, _looks)


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _may_start_processes() -> bool:
    """Whether a new process can be started without running the user's script again.

    A spawned process imports the main script. That is harmless where there is none, where it is a module run with -m, and where it
    asks for its __name__; another script would do all its work once more in each process.
    """
    if multiprocessing.current_process().daemon or multiprocessing.parent_process() is not None:
        return False
    main = sys.modules.get("__main__")
    spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    if file is None or (spec is not None and spec.name.endswith("__main__")):
        return True
    try:
        return "__name__" in Path(file).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
