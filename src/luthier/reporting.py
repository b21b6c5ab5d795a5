"""How a recipe tells its user what happens, without knowing whether that user sits at a terminal, a page or nowhere."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from types import MappingProxyType
from typing import Protocol, runtime_checkable

NO_NUMBERS: Mapping[str, str] = MappingProxyType({})


@runtime_checkable
class Bar(Protocol):
    """A piece of long work: `advance(done, text)` says how much of the total is done now, and a few words beside it.

    `numbers` are shown below it by name, where there is a screen to show them on.
    """

    def advance(self, done: int, text: str = "", numbers: Mapping[str, str] = NO_NUMBERS) -> None: ...


@runtime_checkable
class Reporter(Protocol):
    """Where lines and progress go."""

    def say(self, line: str) -> None:
        """One line for the user."""

    def bar(self, title: str, total: int) -> AbstractContextManager[Bar]:
        """A progress bar for `total` pieces of work."""

    def table(self, columns: list[str], rows: list[list[str]], title: str = "") -> None:
        """Rows of as many cells as there are columns."""


class _NoBar:
    def advance(self, done: int, text: str = "", numbers: Mapping[str, str] = NO_NUMBERS) -> None:
        pass


class Silent:
    """Says nothing: the default of the Python API."""

    def say(self, line: str) -> None:
        pass

    @contextmanager
    def bar(self, title: str, total: int) -> Iterator[Bar]:
        yield _NoBar()

    def table(self, columns: list[str], rows: list[list[str]], title: str = "") -> None:
        pass
