"""Follow a run from its folder alone, from another terminal or another machine: nothing of it is written or locked, and no torch is needed."""

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from luthier import files, run_lock
from luthier.errors import RunError
from luthier.run_folder import RunFolder

# Of the newest updates: what the speed is counted over.
SPEED_UPDATES = 50


@dataclass(frozen=True, slots=True)
class State:
    """What is known of a run at a moment. `ended`: running, ended, stopped (it said so) or died (its process is gone without a word)."""

    name: str
    ended: str
    doing: str  # who works in it, or ""
    updates: int  # of the whole run; 0 where its plan is not written yet
    steps: tuple[dict[str, Any], ...] = ()
    evaluations: tuple[dict[str, Any], ...] = ()
    new: tuple[str, ...] = ()  # lines of metrics.jsonl that were not seen before, as they stand there
    last_said: str = ""  # the newest line of log.txt


@dataclass(slots=True)
class _Lines:
    """Reads a growing file of JSON lines. A last line without its end waits for the rest of it."""

    run: RunFolder
    offset: int = 0
    inode: int = 0
    newest: int = -1  # step of the newest line that was given out
    rows: list[dict[str, Any]] = field(default_factory=list)

    def read(self) -> list[str]:
        """The lines that came since. A file that was written anew (a run that goes on drops what came after its checkpoint) is read again, and
        lines that were given out before are not given out twice."""
        try:
            with open(self.run.metrics, "rb") as stream:
                status = os.fstat(stream.fileno())
                anew = status.st_ino != self.inode or status.st_size < self.offset
                if anew:
                    self.offset, self.inode, self.rows = 0, status.st_ino, []
                stream.seek(self.offset)
                whole = stream.read().rpartition(b"\n")[0]
        except FileNotFoundError:
            return []
        if not whole:
            return []
        self.offset += len(whole) + 1
        seen = self.newest if anew else -1
        return [line for line in whole.decode("utf-8", "replace").split("\n") if self._keep(line) > seen]

    def _keep(self, line: str) -> int:
        """The step of a line, which is kept; -1 where it is not whole."""
        try:
            row = json.loads(line)
            step = int(row["step"])
        except (ValueError, KeyError, TypeError):
            return -1
        self.rows.append(row)
        self.newest = max(self.newest, step)
        return step


def follow(run: RunFolder, every_s: float, *, sleep: Callable[[float], None] = time.sleep) -> Iterator[State]:
    """The run's state now, and again whenever something is new, until nobody works in it any more: the last state says how it ended."""
    lines, before = _Lines(run), None
    while True:
        # First who works in it, then what is there: what was written before the lock went is not missed.
        ended, doing = _at_work(run)
        state = _state(run, lines, ended, doing)
        if before is None or replace(state, new=()) != before or state.new:
            yield state
        before = replace(state, new=())
        if ended != "running":
            return
        sleep(every_s)


def said(run: RunFolder, newest: int, every_s: float | None, *, sleep: Callable[[float], None] = time.sleep) -> Iterator[str]:
    """The newest lines of log.txt; with `every_s`, those that come as well, looked for so often, until nobody works in the run any more."""
    offset, first = 0, True
    while True:
        over = every_s is None or _at_work(run)[0] != "running"  # before what is there is read: nothing of the end is missed
        lines, offset = _new_lines(run.log, offset)
        yield from lines[-newest:] if first else lines
        if over or every_s is None:
            return
        first = False
        sleep(every_s)


def _new_lines(path: Path, offset: int) -> tuple[list[str], int]:
    """The whole lines behind `offset`, and where they end. A file that became shorter is read from its beginning."""
    try:
        with open(path, "rb") as stream:
            stream.seek(offset if offset <= os.fstat(stream.fileno()).st_size else 0)
            start, found = stream.tell(), stream.read()
    except FileNotFoundError:
        return [], 0
    whole = found[: found.rfind(b"\n") + 1]
    return whole.decode("utf-8", "replace").splitlines(), start + len(whole)


def look(run: RunFolder) -> State:
    """The run's state now."""
    return next(follow(run, 0.0))


def require_ended_well(run: RunFolder, state: State) -> None:
    """Raises RunError for a run whose process is gone and which has not come to its end."""
    if state.ended == "died":
        step = state.steps[-1]["step"] if state.steps else 0
        raise RunError(
            f"its process is gone without a word, after step {step} of {state.updates or 'an unknown number'}",
            where=str(run.path),
            next_step=f"luthier train --resume {run.path}",
        )


def _at_work(run: RunFolder) -> tuple[str, str]:
    if holder := run_lock.holder(run.path):
        return "running", str(holder)
    if run.trained.is_dir():
        return "ended", ""
    return "died" if (run.path / run_lock.NAME).exists() else "stopped", ""


def _state(run: RunFolder, lines: _Lines, ended: str, doing: str) -> State:
    new = lines.read()
    steps, evaluations = (tuple(row for row in lines.rows if row.get("kind") == kind) for kind in ("train", "eval"))
    return State(run.name, ended, doing, _updates(run), steps, evaluations, tuple(new), _last_said(run))


def _updates(run: RunFolder) -> int:
    try:
        return int(files.read_json(run.plan)["updates"])
    except (RunError, OSError, KeyError, TypeError, ValueError):
        return 0


def _last_said(run: RunFolder) -> str:
    try:
        with open(run.log, "rb") as stream:
            stream.seek(max(0, run.log.stat().st_size - 4096))
            said = stream.read().decode("utf-8", "replace").rstrip("\n").rpartition("\n")[2]
    except OSError:
        return ""
    return said


def numbers_of(state: State) -> dict[str, str]:
    """What a screen shows of a run, by name."""
    found: dict[str, str] = {}
    if state.steps:
        last, newest = state.steps[-1], state.steps[-SPEED_UPDATES:]
        seconds = sum(row["seconds"] for row in newest) or 1.0
        rates = [sum(row[name] for row in newest) / seconds for name in ("logical_tokens", "executed_tokens")]
        left = max(0, state.updates - last["step"]) * seconds / len(newest)
        found = {
            "step": f"{last['step']} of {state.updates or '?'}",
            "loss": f"{last['loss']:.4f}",
            "tokens/s": f"{rates[0]:,.0f} of the rows, {rates[1]:,.0f} run",
            "memory": f"{last['peak_bytes'] / 1e9:.2f} GB at most",
            "learning rate": f"{last['learning_rate']:.2e}",
        }
        found |= {"time left": f"{left:,.0f} s"} if state.ended == "running" else {}
    return found | (_of_evaluation(state.evaluations[-1]) if state.evaluations else {})


def _of_evaluation(row: dict[str, Any]) -> dict[str, str]:
    metrics, moved = row["metrics"], row["drift"]
    found = {"held-out loss": f"{_number(row['loss'])} (step {row['step']})"}
    for name, value in metrics.items():
        if not name.startswith("base/"):
            beside = f" (base {_number(metrics[f'base/{name}'])})" if f"base/{name}" in metrics else ""
            found[name] = f"{_number(value)}{beside}"
    if moved:
        found["drift from the base"] = f"{_number(moved['kl'])} nats"
        found["loss on general rows"] = f"{_number(moved['general_loss'])} (base {_number(moved['base_general_loss'])})"
    return found


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"
