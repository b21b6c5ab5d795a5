"""What a person sees: lines and progress bars in a terminal, plain lines when piped, nothing but JSON with --json."""

import dataclasses
import json
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from luthier.records import Metric, Scorecard
from luthier.reporting import NO_NUMBERS, Bar

# A piped bar says how far it is this often.
QUIET_SECONDS = 30


class _RichBar:
    """A bar, and below it the numbers that were told last, which take the place of the words beside it."""

    def __init__(self, progress: Progress, task: Any) -> None:
        self._progress, self._task = progress, task
        self._numbers: Mapping[str, str] = NO_NUMBERS

    def advance(self, done: int, text: str = "", numbers: Mapping[str, str] = NO_NUMBERS) -> None:
        self._numbers = numbers
        self._progress.update(self._task, completed=done, detail="" if numbers else text)

    def view(self) -> Group:
        return Group(self._progress.get_renderable(), *([numbers_table(self._numbers)] if self._numbers else []))


def numbers_table(numbers: Mapping[str, str]) -> Table:
    """Names and numbers, a line each, without a frame."""
    table = Table.grid(padding=(0, 2))
    for name, number in numbers.items():
        table.add_row(Text(f"  {name}"), Text(number))
    return table


class _PlainBar:
    def __init__(self, terminal: "Terminal", title: str, total: int) -> None:
        self._terminal, self._title, self._total = terminal, title, total
        self._said = time.monotonic()

    def advance(self, done: int, text: str = "", numbers: Mapping[str, str] = NO_NUMBERS) -> None:
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
        progress = Progress(*columns, console=self.console)
        bar = _RichBar(progress, progress.add_task(title, total=total, detail=""))
        with Live(console=self.console, transient=True, get_renderable=bar.view):
            yield bar

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
        from luthier.config import metric_names
        from luthier.evaluate.metrics import difference_in_words, in_words

        names = list(dict.fromkeys(name for metrics in scorecard.models.values() for name in metrics))

        def cells(metrics: dict[str, Metric], words: Callable[[str, Metric], str] = in_words) -> list[str]:
            return [words(name, metrics[name]) if name in metrics else "" for name in names]

        rows = [
            [model, *cells(metrics), str(max((metric.n for metric in metrics.values()), default=0))] for model, metrics in scorecard.models.items()
        ]
        titles = [metric_names.shown(name) for name in names]
        self.table(["model", *titles, "rows"], rows, title="mean over held-out rows (95 % interval)")
        if scorecard.differences:
            first = next(iter(scorecard.models))
            rows = [[model, *cells(metrics, difference_in_words)] for model, metrics in scorecard.differences.items()]
            self.table(["model", *titles], rows, title=f"less {first}, row by row (95 % interval; points of percent where it is a share)")
        shown = {model: cost for model, cost in scorecard.costs.items() if cost["price_per_answer"] is not None or len(scorecard.costs) > 3}
        for model, cost in shown.items():
            price = "" if cost["price_per_answer"] is None else f", price {cost['price_per_answer']:.3g}"
            self.say(f"{model}: {cost['seconds_per_answer']:.2f} s and {cost['tokens_per_answer']:.0f} tokens an answer{price}")


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
