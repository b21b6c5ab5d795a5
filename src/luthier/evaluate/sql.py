"""SQL answers are run beside the expected ones, on the user's own sqlite file, which is opened for reading only."""

import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any

from luthier.errors import ConfigError, DataError
from luthier.evaluate.code import without_fence

MOST_SECONDS = 5.0
MOST_ROWS = 10_000
LONGEST_VALUE_BYTES = 1_000_000
# Steps of sqlite's virtual machine between two looks at the clock.
STEPS = 10_000
READING = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}


def gives_the_same(file: str, beside: Path) -> Callable[[str, str], float]:
    """1 where the answer's query gives the same rows as the expected one on the database `file` (in any order, unless that one orders them).

    A query that writes, attaches, takes longer than 5 seconds or gives more than 10,000 rows is wrong. Raises ConfigError where the file
    cannot be read, and (from what it gives) DataError where an expected query cannot be run.
    """
    path = beside / file
    where = f"sql_match={path}"
    try:
        with path.open("rb") as opened:
            known = opened.read(16) in (b"", b"SQLite format 3\0")
    except OSError as error:
        raise ConfigError(f"cannot be read ({error.strerror})", where=where, next_step="name a sqlite database") from error
    if not known:
        raise ConfigError("is no sqlite database", where=where, next_step="name a sqlite database")

    @cache
    def wanted(query: str) -> list[tuple[Any, ...]]:
        try:
            return rows_of(path, query)
        except sqlite3.Error as error:
            raise DataError(f"an expected query cannot be run ({error}): {query[:80]!r}", where=where, next_step="mend the row") from error

    def same(expected: str, answer: str) -> float:
        right = wanted(expected)
        try:
            given = rows_of(path, without_fence(answer))
        except (sqlite3.Error, ValueError):
            return 0.0
        return float(given == right if "order by" in expected.lower() else Counter(given) == Counter(right))

    return same


def rows_of(path: Path, query: str) -> list[tuple[Any, ...]]:
    """What one query gives. Raises sqlite3.Error for one that is wrong, that does more than read, or that goes on for too long."""
    end = time.monotonic() + MOST_SECONDS
    with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
        database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LONGEST_VALUE_BYTES)
        database.set_authorizer(lambda action, *names: sqlite3.SQLITE_OK if action in READING else sqlite3.SQLITE_DENY)
        database.set_progress_handler(lambda: time.monotonic() > end, STEPS)
        cursor = database.execute(query)
        if cursor.description is None:
            raise sqlite3.ProgrammingError("no query")  # nothing, or a comment: no rows, which must not pass for an empty result
        found = cursor.fetchmany(MOST_ROWS + 1)
        if len(found) > MOST_ROWS:
            raise sqlite3.DataError(f"more than {MOST_ROWS:,} rows")
        return found
