"""Rows to conversations: find the format, say what was found, and make the conversations of each row, or say why there are none.

Row by row, in constant memory; the formats with one message a row (openassistant, message_log) hold the file's rows in memory until its end.
"""

import difflib
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from luthier.data.formats.book import Book
from luthier.data.formats.said import Draft
from luthier.data.formats.table import CATEGORIES, FORMATS, Gather, Read, always, detect
from luthier.data.formats.unfit import Unfit, Value, near, shown
from luthier.errors import DataError
from luthier.records import Conversation, Rejected, Row

# So many rows at the beginning may be broken or of no known form before the file is given up.
PEEKED_ROWS = 1000
LONGEST_CATEGORY = 64
HEAD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class How:
    """How rows are read: the format's name or "auto", and our name of a column -> theirs."""

    format: str
    columns: Mapping[str, str]
    strict: bool
    tree_paths: Literal["best", "all"]


@dataclass(frozen=True, slots=True)
class Built:
    """A conversation, the text it was read from, and how many rows as read it accounts for.

    `rows` is 1; 0 for the second and further conversations of one tree; n where n rows are one conversation (`raw` is their lines).
    """

    conversation: Conversation
    raw: str
    rows: int


@dataclass(frozen=True, slots=True)
class Formatted:
    """A file's conversations: the format's name, what it was known by, and the rows. `notes` is complete once `built` is at its end.

    Over all of `built`, the rows of each Built and one for each Rejected sum up to the rows read.
    """

    name: str
    evidence: str
    built: Iterator[Built | Rejected]
    notes: Callable[[], list[str]]


def build(rows: Iterable[Row | Rejected], how: How, file: str) -> Formatted:
    """The rows as conversations. Raises DataError where no format fits, a setting names what does not exist, or (from `built`) the format changes."""
    if how.format != "auto" and how.format not in FORMATS:
        step = f"write one of {', '.join(FORMATS)}, or auto{near(how.format, FORMATS)}"
        raise DataError(f"{shown(how.format)} is no format", where="data.format", next_step=step)
    _check_columns(how)
    reader = iter(rows)
    peeked, first = _peek(reader, how)
    name = how.format if how.format != "auto" else _detected(peeked, first, how, file)
    book = Book(how.strict, how.tree_paths)
    stream = _sorted(itertools.chain(peeked, reader), name, how, book)
    format = FORMATS[name]
    built = _gathered(stream, format.gather, how, book) if format.gather else _each(stream, format.read, how, book)
    return Formatted(name, _evidence(name, first, how), built, book.notes)


def _check_columns(how: How) -> None:
    formats = FORMATS.values() if how.format == "auto" else [FORMATS[how.format]]
    known = sorted(frozenset(CATEGORIES).union(*(format.columns for format in formats)))
    for ours in how.columns:
        if ours not in known:
            of = "of any format" if how.format == "auto" else f"of {how.format}"
            step = f"data.columns is our name: theirs; ours are {', '.join(known)}{near(ours, known)}"
            raise DataError(f"{shown(ours)} is no column {of}", where="data.columns", next_step=step)


def _peek(reader: Iterator[Row | Rejected], how: How) -> tuple[list[Row | Rejected], Row | None]:
    """The rows up to the first that shows the format, and that one; the first readable one where none does."""
    peeked: list[Row | Rejected] = []
    readable: Row | None = None
    for row in itertools.islice(reader, PEEKED_ROWS):
        peeked.append(row)
        if isinstance(row, Row):
            readable = readable or row
            if how.format != "auto" or detect(_renamed(row.value, how.columns)):
                return peeked, row
    return peeked, readable


def _detected(peeked: Sequence[Row | Rejected], first: Row | None, how: How, file: str) -> str:
    if first is None:
        broken = next((row for row in peeked if isinstance(row, Rejected)), None)
        if broken is None:
            raise DataError("there are no rows", where=file, next_step="put rows into it")
        problem = f"none of the first {len(peeked):,} rows can be read; the first: {broken.detail}"
        raise DataError(problem, where=str(broken.source), next_step="mend the file, or check that it is the right one")
    if name := detect(_renamed(first.value, how.columns)):
        return name
    raise explain_unknown(first, how.columns)


def explain_unknown(row: Row, columns: Mapping[str, str]) -> DataError:
    """The error for a row that no format fits: its columns, the nearest format, and the line to write into the settings."""
    found = list(row.value)
    said = f"the columns {', '.join(found[:20]) or '(none)'} are of no known format"
    lost = [theirs for theirs in columns.values() if theirs not in found]
    if lost:
        names = ", ".join(f"{shown(theirs)}{near(theirs, found)}" for theirs in lost)
        return DataError(f"{said}; data.columns names {names}, which the row does not have", where=str(row.source), next_step="mend data.columns")
    name, marks, matches = _nearest(list(_renamed(row.value, columns)))
    mapping = ", ".join(f"{ours}: {theirs}" for ours, theirs in {**columns, **matches}.items())
    if matches:
        step = f"data.columns: {{{mapping}}} reads it as {name} ({', '.join(marks)}); or rename the columns"
    else:
        known = "; ".join(f"{name}: {', '.join(format.marks[0])}" for name, format in FORMATS.items())
        other = "question" if "answer" in columns else "answer"
        mapping = mapping or f"question: {found[0] if found else 'Q'}"
        step = f"say which column is which, such as data.columns: {{{mapping}, {other}: ...}}. The formats are {known}"
        if inside := [column for column, held in row.value.items() if _is_rows(held)]:
            step = f"if the rows are the list under {inside[0]}: data.train: [{{path: FILE, split: {inside[0]}}}]; else {step}"
    return DataError(said, where=str(row.source), next_step=step)


def _is_rows(value: object) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(isinstance(row, dict) for row in value)


def _nearest(found: Sequence[str]) -> tuple[str, tuple[str, ...], dict[str, str]]:
    """The format whose columns are nearest to those found: its name, its columns, and which of them is probably which."""
    best: tuple[float, str, tuple[str, ...], dict[str, str]] = (0.0, "", (), {})
    for name, format in FORMATS.items():
        for marks in format.marks:
            pairs = {mark: theirs for mark in marks if (theirs := _like(mark, found))}
            renamed = {mark: theirs for mark, theirs in pairs.items() if mark != theirs}
            score = len(pairs) / len(marks)
            if renamed and score == 1 and score * len(marks) > best[0]:
                best = (score * len(marks), name, marks, renamed)
    return best[1:]


def _like(mark: str, found: Sequence[str]) -> str:
    if mark in found:
        return mark
    same = [theirs for theirs in found if theirs.casefold() == mark]
    return same[0] if same else next(iter(difflib.get_close_matches(mark, found, n=1, cutoff=0.8)), "")


def _renamed(value: Value, columns: Mapping[str, str]) -> Value:
    """The row under our names. What already has one of our names gives way to the column that the settings name."""
    given = {ours: theirs for ours, theirs in columns.items() if theirs in value and ours != theirs}
    if not given:
        return value
    taken = {*given, *given.values()}
    return {**{key: found for key, found in value.items() if key not in taken}, **{ours: value[theirs] for ours, theirs in given.items()}}


def _sorted(rows: Iterator[Row | Rejected], name: str, how: How, book: Book) -> Iterator[Row | Rejected]:
    """The rows under our names, with what is not read of each noted. Raises DataError where a row is of another format."""
    known = FORMATS[name].columns
    unseen = dict(how.columns)
    last: Value = {}
    for row in rows:
        if isinstance(row, Rejected):
            yield row
            continue
        last = row.value
        if unseen:
            unseen = {ours: theirs for ours, theirs in unseen.items() if theirs not in last}
        value = _renamed(row.value, how.columns)
        book.at = row.source
        if how.format == "auto" and (found := _other(value, name)):
            raise DataError(
                f"the rows before this one are {name}, this one is {found}",
                where=str(row.source),
                next_step="keep one format in a file (data.train takes a list of files), or set data.format, which sets the other rows aside",
            )
        for column in value.keys() - known:
            if column not in CATEGORIES or not isinstance(value[column], str):
                book.ignored(str(column))
        for ours, theirs in how.columns.items():
            if ours != theirs and ours in row.value and theirs in row.value and ours not in how.columns.values():
                book.ignored(f"{ours} (data.columns reads {theirs} in its place)")
        yield row if value is row.value else replace(row, value=value)
    book.unmatched += [f"data.columns names {shown(theirs)} for {ours}, and no row has it{near(theirs, last)}" for ours, theirs in unseen.items()]


def _other(value: Value, name: str) -> str | None:
    """The format that the row has in place of the file's; None where it is the file's, or none at all."""
    found = detect(value)
    # A verdict that is none (null, a list) does not make the row one of another format: it is a flaw of this one.
    flawed = FORMATS[name].fits is not always and FORMATS[name].has_marks(value)
    return None if found == name or flawed else found


def _each(rows: Iterator[Row | Rejected], read: Read, how: How, book: Book) -> Iterator[Built | Rejected]:
    for row in rows:
        if isinstance(row, Rejected):
            yield row
            continue
        try:
            drafts = read(row.value, book)
        except Unfit as unfit:
            yield _rejected(unfit, row, how)
            continue
        yield from _built(drafts, [row], row.raw)


def _gathered(rows: Iterator[Row | Rejected], gather: Gather, how: How, book: Book) -> Iterator[Built | Rejected]:
    """Groups of rows, after the rows that could not be read. Where a group makes no conversation, each of its rows is set aside."""
    held: list[Row] = []
    for row in rows:
        if isinstance(row, Rejected):
            yield row
        else:
            held.append(row)
    for group in gather(held, book):
        book.at = group.rows[0].source
        try:
            drafts = group.make()
        except Unfit as unfit:
            yield from (_rejected(unfit, row, how) for row in group.rows)
            continue
        yield from _built(drafts, group.rows, "\n".join(row.raw for row in group.rows))


def _built(drafts: Sequence[Draft], rows: Sequence[Row], raw: str) -> Iterator[Built]:
    category = _category(rows[0].value)
    for number, draft in enumerate(drafts):
        conversation = Conversation(
            draft.turns, rows[0].source, draft.templated, tools=draft.tools, rejected=draft.rejected, label=draft.label, category=category
        )
        yield Built(conversation, raw, 0 if number else len(rows))


def _category(value: Value) -> str:
    found = next((value[column] for column in CATEGORIES if isinstance(value.get(column), str)), "")
    return found.strip() if len(found) <= LONGEST_CATEGORY else ""


def _rejected(unfit: Unfit, row: Row, how: How) -> Rejected:
    """The row with its reason; a field is named as the file names it."""
    head = HEAD.match(unfit.path)
    theirs = how.columns.get(head[0]) if head else None
    if head and theirs is not None:
        unfit.path = theirs + unfit.path[head.end() :]
    return Rejected(unfit.reason, unfit.detail, row.source, row.raw)


def _evidence(name: str, first: Row | None, how: How) -> str:
    known = FORMATS[name].columns
    there = first.value if first else {}
    used = [column for column in _renamed(there, how.columns) if column in known]
    named = [f"{ours} = {shown(theirs)}" if (theirs := how.columns.get(ours, ours)) != ours and theirs in there else ours for ours in used]
    columns = f"column{'s' if len(named) > 1 else ''} {', '.join(named)}" if named else "none of its columns is in the first row"
    return f"{name} ({columns}{'' if how.format == 'auto' else '; data.format says so'})"
