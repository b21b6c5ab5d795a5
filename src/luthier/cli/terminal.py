"""What a person sees: lines and progress bars in a terminal, plain lines when piped, nothing but JSON with --json."""

import dataclasses
import json
import sys
import time
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from luthier.records import Metric, Scorecard
from luthier.reporting import Bar

# A piped bar says how far it is this often.
QUIET_SECONDS = 30


class _RichBar:
    def __init__(self, progress: Progress, task: Any) -> None:
        self._progress, self._task = progress, task

    def advance(self, done: int, text: str = "") -> None:
        self._progress.update(self._task, completed=done, detail=text)


class _PlainBar:
    def __init__(self, terminal: "Terminal", title: str, total: int) -> None:
        self._terminal, self._title, self._total = terminal, title, total
        self._said = time.monotonic()

    def advance(self, done: int, text: str = "") -> None:
        if time.monotonic() - self._said > QUIET_SECONDS:
            self._said = time.monotonic()
            self._terminal.say(f"{self._title}: {done}/{self._total}  {text}".rstrip())


class Terminal:
    """A Reporter that writes to the screen. With `quiet` (for --json) lines go to standard error, so that output stays JSON."""

    def __init__(self, quiet: bool = False) -> None:
        # Rows and answers are shown as they are: no [markup], no :emoji:.
        self.console = Console(stderr=quiet, highlight=False, soft_wrap=True, markup=False, emoji=False)

    def say(self, line: str) -> None:
        self.console.print(line)

    @contextmanager
    def bar(self, title: str, total: int) -> Iterator[Bar]:
        if not self.console.is_terminal:
            self.say(f"{title} ...")
            yield _PlainBar(self, title, total)
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[detail]}"))
        with Progress(*columns, console=self.console, transient=True) as progress:
            yield _RichBar(progress, progress.add_task(title, total=total, detail=""))

    def table(self, columns: list[str], rows: list[list[str]], title: str = "") -> None:
        if not self.console.is_terminal:
            self._plain_table(columns, rows, title)
            return
        table = Table(title=title or None, title_justify="left")
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*row)
        self.console.print(table)

    def _plain_table(self, columns: list[str], rows: list[list[str]], title: str) -> None:
        """One line a row, for grep and awk: nothing is folded and nothing is drawn."""
        if title:
            self.say(title)
        widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
        for row in [columns, *rows]:
            self.say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())

    def scorecard(self, scorecard: Scorecard) -> None:
        names = list(next(iter(scorecard.models.values())))
        rows = [
            [model, *(_in_words(metrics[name]) for name in names), str(next(iter(metrics.values())).n)] for model, metrics in scorecard.models.items()
        ]
        self.table(["model", *names, "rows"], rows, title="mean over held-out rows (95 % interval)")


def _in_words(metric: Metric) -> str:
    return f"{metric.value:.1%} ({100 * metric.low:.0f}-{100 * metric.high:.0f})"


def print_json(value: Any) -> None:
    """One JSON value on standard output."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, default=dataclasses.asdict) + "\n")


def harmless(text: str) -> str:
    """What a model says, without characters that command a terminal (a model may have learned them)."""
    return "".join(letter if letter in "\n\t" or unicodedata.category(letter) != "Cc" else repr(letter)[1:-1] for letter in text)


def short(path: Path) -> Path:
    """A path as one would type it here."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
