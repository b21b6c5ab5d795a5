"""From the settings to rows that can be trained: read, build conversations, set aside what is unfit, split, tokenize, account.

Two doors: `load_rows` needs no tokenizer, so that broken data stops a run before any model is loaded; `tokenize_rows` does the rest.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from luthier.config.settings import DataSettings
from luthier.data import dedup, formats, ledger, quality
from luthier.data.read import FileRows, Row, read_files
from luthier.data.tokenize import tokenize
from luthier.errors import DataError
from luthier.records import Conversation, Rejected, Source, TokenizedExample
from luthier.run_folder import RunFolder

# Below this many rows a held-out share would be one or two rows, which measure nothing.
LEAST_ROWS_TO_SPLIT = 41
# A few broken rows are listed and set aside; more than both of these mean that the file itself is wrong.
MOST_MALFORMED_ROWS = 5
MOST_MALFORMED_SHARE = 0.10
MOST_TOO_LONG_SHARE = 0.01
# Set aside although nothing is wrong with the row itself.
HARMLESS = {"duplicate", "also_in_eval", "too_long"}
LISTED = 5


@dataclass(frozen=True, slots=True)
class Rows:
    """What was read: rows to train on, rows held out, rows set aside, and the notes that the user should see."""

    train: list[Conversation]
    held_out: list[Conversation]
    rejected: list[Rejected]
    read: int
    notes: list[str]
    sources: list[dict[str, Any]]  # a file each: name, rows, bytes, sha256, format
    raw: dict[Source, str]  # every used row verbatim, for those that are set aside later


@dataclass(frozen=True, slots=True)
class Prepared:
    """Rows as tokens, the rows they came from (less those that were set aside on the way), and the books."""

    train: list[TokenizedExample]
    held_out: list[TokenizedExample]
    rows: Rows
    ledger: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Pile:
    """The rows of some files, before they are split."""

    good: list[Conversation]
    rejected: list[Rejected]
    notes: list[str]
    sources: list[dict[str, Any]]
    raw: dict[Source, str]


def load_rows(settings: DataSettings, base: Path, seed: int) -> Rows:
    """Read and sort all rows. Relative paths start at `base`; the split depends on `seed` and the rows alone.

    Raises DataError where a file cannot be read, more than 10 % of the rows are malformed, or nothing is left to train on.
    """
    paths = [settings.train] if isinstance(settings.train, str) else settings.train
    pile = _read(paths, settings.format, base)
    distinct, repeated = dedup.without_duplicates(pile.good)
    rejected = pile.rejected + [_twin("duplicate", "is the same row as", *pair, pile.raw) for pair in repeated]
    notes, sources, raw = list(pile.notes), list(pile.sources), dict(pile.raw)
    if settings.eval is None or settings.eval.endswith("%"):
        train, held_out, said = split(distinct, float((settings.eval or "0%")[:-1]) / 100, seed)
        notes += said
    else:
        held = _read([settings.eval], settings.format, base)
        held_out = held.good
        if not held_out:
            raise _unusable(f"of {len(held.rejected):,} rows none can be used to evaluate", held.rejected)
        train, shared = dedup.without_held_out(distinct, held_out)
        rejected += [_twin("also_in_eval", "is held out too, at", *pair, pile.raw) for pair in shared] + held.rejected
        notes, sources, raw = notes + held.notes, sources + held.sources, raw | held.raw
    rows = Rows(train, held_out, rejected, sum(source["rows"] for source in sources), notes, sources, raw)
    _check_malformed(rows)
    _check_left(rows)
    return replace(rows, notes=rows.notes + _said_of(rows))


def split(rows: Sequence[Conversation], share: float, seed: int) -> tuple[list[Conversation], list[Conversation], list[str]]:
    """Rows to train on, rows held out, and what to say. `share` is 0 to 1; rows that ask the same stay on one side.

    Each group's place in the draw is a hash of the seed and its text, so that added rows do not shuffle the others.
    """
    if not share or not rows:
        return list(rows), [], []
    if len(rows) < LEAST_ROWS_TO_SPLIT:
        said = f"evaluation is off: {len(rows)} rows are too few to hold some out (from {LEAST_ROWS_TO_SPLIT} on; or set data.eval to a file)"
        return list(rows), [], [said]
    wanted = max(1, round(len(rows) * share))
    if wanted >= len(rows):
        raise DataError(f"{share:.0%} held out leaves no row to train on", where="data.eval", next_step="hold out less, such as data.eval=5%")
    sizes = Counter(dedup.group(row) for row in rows)
    chosen: set[str] = set()
    room = wanted
    for group in sorted(sizes, key=lambda text: hashlib.sha256(f"{seed}:{text}".encode()).digest()):
        if sizes[group] <= room:
            chosen.add(group)
            room -= sizes[group]
        if not room:
            break
    train = [row for row in rows if dedup.group(row) not in chosen]
    held_out = [row for row in rows if dedup.group(row) in chosen]
    if not held_out:
        return train, [], [f"evaluation is off: rows that ask the same stay together, and no group of them fits into {wanted} rows"]
    return train, held_out, []


def tokenize_rows(rows: Rows, tokenizer: Any, max_length: int, too_long: str) -> Prepared:
    """All rows as tokens. Rows over `max_length` tokens are set aside whole: nothing is ever cut.

    `too_long`: "error" allows 1 % of the rows to be set aside so; "drop" any number. Raises DataError above that, where more than
    10 % of the rows cannot be written with this model's template, or where nothing is left to train on.
    """
    if tokenizer.chat_template is None and any(row.templated for row in rows.train + rows.held_out):
        raise DataError(
            "the rows are conversations, and this model has no chat template to write them with",
            where=str(next(row.source for row in rows.train + rows.held_out if row.templated)),
            next_step="choose the instruct or chat variant of the model, or give rows of prompt and completion",
        )
    train, train_rejected = _tokenized(rows.train, tokenizer, max_length)
    held_out, held_rejected = _tokenized(rows.held_out, tokenizer, max_length)
    rejected = [replace(row, raw=rows.raw[row.source]) for row in train_rejected + held_rejected]
    left = replace(
        rows,
        train=_those_of(rows.train, train),
        held_out=_those_of(rows.held_out, held_out),
        rejected=rows.rejected + rejected,
        notes=rows.notes + _set_aside(rejected),
    )
    if too_long == "error":
        _check_too_long(rejected, len(rows.train) + len(rows.held_out), max_length)
    _check_malformed(left)
    _check_left(left)
    tokens_read = sum(len(example.token_ids) for example in train)
    books = ledger.close(left.read, left.rejected, train, held_out, tokens_read, left.sources)
    return Prepared(train, held_out, left, books)


def trained_rows(settings: DataSettings, base: Path, seed: int, tokenizer: Any) -> list[Conversation]:
    """The rows that a finished run was trained on, read again from its resolved settings (`max_length` is a number there)."""
    rows = load_rows(settings, base, seed)
    return tokenize_rows(rows, tokenizer, int(settings.max_length), settings.too_long).rows.train


def write_ledger(run: RunFolder, prepared: Prepared) -> None:
    """Keep the books, the rows that were set aside (verbatim) and the held-out rows in the run folder."""
    ledger.write(run, prepared.ledger, prepared.rows.rejected, prepared.rows.held_out)


def _read(paths: Sequence[str], format_name: str, base: Path) -> _Pile:
    pile = _Pile([], [], [], [], {})
    for path in paths:
        for file in read_files(path, base):
            _add_file(pile, file, format_name)
    return pile


def _add_file(pile: _Pile, file: FileRows, asked_format: str) -> None:
    """Sort one file's rows into the pile; the file's first row that has a known form decides the form of the file."""
    pile.notes.extend(file.notes)
    name = _format_of(file) if asked_format == "auto" else asked_format
    columns: set[str] = set()
    for row in file.rows:
        if isinstance(row, Row):
            columns |= set(row.value)
            _check_not_mixed(row, name, asked_format)
            judged = _judge(row, name)
            pile.raw[row.source] = row.raw
        else:
            judged = row
        (pile.rejected if isinstance(judged, Rejected) else pile.good).append(judged)  # type: ignore[arg-type]
    pile.sources.append({"file": file.name, "rows": len(file.rows), "bytes": file.size_bytes, "sha256": file.sha256, "format": name})
    pile.notes.append(_said_of_file(file, name, columns))


def _judge(row: Row, format_name: str) -> Conversation | Rejected:
    converted = formats.convert(format_name, row.value, row.source, row.raw)
    if isinstance(converted, Rejected):
        return converted
    flaw = quality.flaw(converted)
    return Rejected(*flaw, row.source, row.raw) if flaw else converted


def _format_of(file: FileRows) -> str:
    rows = [row for row in file.rows if isinstance(row, Row)]
    for row in rows:
        if found := formats.detect(row.value):
            return found
    if not rows:
        raise _unusable(f"none of {len(file.rows)} rows can be read", [row for row in file.rows if isinstance(row, Rejected)])
    raise DataError(
        formats.explain_unknown(rows[0].value),
        where=str(rows[0].source),
        next_step="rename the columns to those of one format, or set data.format",
    )


def _check_not_mixed(row: Row, name: str, asked_format: str) -> None:
    found = formats.detect(row.value)
    if asked_format != "auto" or found in (None, name) or set(formats.FORMATS[name].columns) <= set(row.value):
        return
    raise DataError(
        f"the rows before this one are {name}, this one is {found}",
        where=str(row.source),
        next_step="keep one format in a file (data.train takes a list of files, each of its own format)",
    )


def _said_of_file(file: FileRows, name: str, columns: set[str]) -> str:
    format = formats.FORMATS[name]
    read = f"column {format.columns[0]}" if len(format.columns) == 1 else f"columns {', '.join(format.columns)}"
    ignored = formats.ignored_columns(name, columns)
    tail = f"; not read: {', '.join(ignored)}" if ignored else ""
    return f"{file.name}: {name} ({read}), {len(file.rows):,} rows{tail}"


def _twin(reason: str, words: str, row: Conversation, other: Conversation, raw: dict[Source, str]) -> Rejected:
    return Rejected(reason, f"{words} {other.source}", row.source, raw[row.source])


def _tokenized(rows: Sequence[Conversation], tokenizer: Any, max_length: int) -> tuple[list[TokenizedExample], list[Rejected]]:
    examples, rejected = [], []
    for row in rows:
        result = tokenize(row, tokenizer)
        if isinstance(result, TokenizedExample) and len(result.token_ids) > max_length:
            result = Rejected("too_long", f"{len(result.token_ids)} tokens; max_length is {max_length}", row.source, "")
        if isinstance(result, Rejected):
            rejected.append(result)
        else:
            examples.append(result)
    return examples, rejected


def _those_of(rows: Sequence[Conversation], examples: Sequence[TokenizedExample]) -> list[Conversation]:
    used = {example.source for example in examples}
    return [row for row in rows if row.source in used]


def _check_too_long(rejected: Sequence[Rejected], rows: int, max_length: int) -> None:
    long = [row for row in rejected if row.reason == "too_long"]
    if len(long) <= math.floor(rows * MOST_TOO_LONG_SHARE):
        return
    longest = max(long, key=_length_tokens)
    raise DataError(
        f"{len(long):,} of {rows:,} rows are longer than max_length ({max_length:,} tokens); this is the longest, with {_length_tokens(longest):,}",
        where=str(longest.source),
        next_step=f"data.max_length={_length_tokens(longest)} keeps every row (if the model can hold it); data.too_long=drop sets them aside",
    )


def _length_tokens(row: Rejected) -> int:
    return int(row.detail.split()[0])


def _check_malformed(rows: Rows) -> None:
    malformed = [row for row in rows.rejected if row.reason not in HARMLESS]
    if len(malformed) > MOST_MALFORMED_ROWS and len(malformed) > rows.read * MOST_MALFORMED_SHARE:
        raise _unusable(f"{len(malformed):,} of {rows.read:,} rows cannot be used", malformed)


def _check_left(rows: Rows) -> None:
    if not rows.train:
        raise _unusable(f"of {rows.read:,} rows none is left to train on", rows.rejected)


def _unusable(problem: str, rejected: Sequence[Rejected]) -> DataError:
    first = "".join(f"\n  {row.source}: {row.reason}: {row.detail}" for row in rejected[:LISTED])
    more = f"\n  and {len(rejected) - LISTED:,} more" if len(rejected) > LISTED else ""
    where = str(rejected[0].source) if rejected else "data.eval"
    return DataError(problem + first + more, where=where, next_step="mend or remove these rows (luthier data check FILE lists all of them)")


def _said_of(rows: Rows) -> list[str]:
    few = [f"{len(rows.train)} rows to train on: expect the model to learn them by heart"] if len(rows.train) < 3 else []
    return few + _set_aside(rows.rejected)


def _set_aside(rejected: Sequence[Rejected]) -> list[str]:
    """Which rows are left out, and why; the first of each reason with its place."""
    counts = Counter(row.reason for row in rejected)
    first = {row.reason: row for row in reversed(rejected)}
    return [f"set aside: {count:,} {reason} (first: {first[reason].source}: {first[reason].detail})" for reason, count in sorted(counts.items())]
