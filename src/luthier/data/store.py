"""Rows and tokens on the disk: written once, in order, and read by number without being held in memory.

Both are Arrow files of batches that are small enough to be held. Rows are compressed and read batch by batch; tokens are not, and are mapped
into memory.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
import pyarrow as pa

from luthier.records import Conversation, Source, TokenizedExample, Turn

T = TypeVar("T")
Places = np.ndarray[Any, np.dtype[np.int64]]
# A batch ends at either: rows of whole books are as large as thousands of questions.
BATCH_ROWS, BATCH_ITEMS = 512, 8 << 20
DIGEST = pa.binary(16)
ROW_SCHEMA = pa.schema(
    [
        ("line", pa.int64()),
        ("rows", pa.int32()),  # how many rows as read this one was made of
        ("conversation", pa.string()),
        ("raw", pa.string()),
        ("exact", DIGEST),  # of all that is trained, to the letter
        ("alike", DIGEST),  # of its text but for case and white space
        ("group", DIGEST),  # of what is asked, but for case and white space
    ]
)
TOKEN_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("token_ids", pa.list_(pa.int32())),
        ("trained", pa.list_(pa.bool_())),
        ("trained_tokens", pa.int32()),
        # Of the whole row, on its first example:
        ("read", pa.int64()),
        ("cut", pa.int64()),
        ("repeated", pa.int64()),
    ]
)


def to_json(conversation: Conversation) -> str:
    """A conversation as one line of JSON, without its source. What equals its default is left out."""
    value: dict[str, Any] = {"turns": [_turn_value(turn) for turn in conversation.turns]}
    if conversation.rejected:
        value["rejected"] = [_turn_value(turn) for turn in conversation.rejected]
    for name, default in (("templated", True), ("tools", ""), ("label", None), ("category", "")):
        if (given := getattr(conversation, name)) != default:
            value[name] = given
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def from_json(text: str, source: Source) -> Conversation:
    """The inverse of `to_json`."""
    value = json.loads(text)
    value["turns"] = tuple(Turn(*turn) for turn in value["turns"])
    value["rejected"] = tuple(Turn(*turn) for turn in value.get("rejected", ()))
    return Conversation(source=source, **value)


def _turn_value(turn: Turn) -> list[Any]:
    if turn.extra:
        return [turn.role, turn.content, turn.trained, turn.extra]
    return [turn.role, turn.content] if turn.trained is None else [turn.role, turn.content, turn.trained]


def digest(text: str) -> bytes:
    """16 bytes that stand for a text: two texts with the same do not occur."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


class Writer:
    """Appends entries to an Arrow file, a batch at a time. The file is whole only after `close`."""

    def __init__(self, path: Path, schema: Any, *, compressed: bool) -> None:
        self.written = 0
        self._schema = schema
        self._file = pa.OSFile(str(path), "wb")
        self._writer = pa.ipc.new_file(self._file, schema, options=pa.ipc.IpcWriteOptions(compression="zstd" if compressed else None))
        self._pending: list[tuple[Any, ...]] = []
        self._items = 0  # characters and tokens of the pending entries

    def add(self, *entry: Any) -> None:
        self._pending.append(entry)
        self.written += 1
        self._items += sum(len(value) for value in entry if isinstance(value, str | list))
        if len(self._pending) == BATCH_ROWS or self._items >= BATCH_ITEMS:
            self._flush()

    def close(self) -> None:
        if self._pending:
            self._flush()
        self._writer.close()
        self._file.close()

    def _flush(self) -> None:
        columns = zip(*self._pending, strict=True)
        arrays = [pa.array(column, type=field.type) for column, field in zip(columns, self._schema, strict=True)]
        self._writer.write_batch(pa.record_batch(arrays, schema=self._schema))
        self._pending, self._items = [], 0


def _array(column: Any) -> Any:
    """The numbers of an Arrow array without nulls. Its own to_numpy imports pandas where that is installed, which takes 0.3 s."""
    kind = np.dtype(str(column.type))
    return np.frombuffer(column.buffers()[1] or b"", kind, len(column), column.offset * kind.itemsize)


class RowFile(Sequence[Conversation]):
    """The conversations of one source. One batch is held at a time: reading in order is cheap, a jump costs a batch."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        self._reader = pa.ipc.open_file(pa.OSFile(str(path), "rb"))
        self._held = -1
        self._columns: dict[str, Any] = {}
        lines = [_array(batch).astype(np.int32) for batch in self._batches("line")]
        self._starts = np.cumsum([0, *map(len, lines)])  # of each batch
        self.lines = np.concatenate([np.zeros(0, np.int32), *lines])

    def __len__(self) -> int:
        return int(self._starts[-1])

    @overload
    def __getitem__(self, place: int) -> Conversation: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Conversation]: ...
    def __getitem__(self, place: int | slice) -> Conversation | Sequence[Conversation]:
        if isinstance(place, slice):
            return [self[index] for index in range(*place.indices(len(self)))]
        return from_json(str(self._value("conversation", place)), self.source(place))

    def source(self, place: int) -> Source:
        return Source(self.name, int(self.lines[place]))

    def raw(self, place: int) -> str:
        """The row's text as it was read."""
        return str(self._value("raw", place))

    def column(self, name: str) -> Any:
        """A whole column: int64 numbers, or digests as (rows, 2) uint64."""
        digests = ROW_SCHEMA.field(name).type == DIGEST
        # Filled batch by batch: of millions of rows there is one copy.
        whole = np.empty((len(self), 2), np.uint64) if digests else np.empty(len(self), np.int64)
        for start, batch in zip(self._starts, self._batches(name), strict=False):
            found = np.frombuffer(batch.buffers()[1], dtype=np.uint64, count=2 * len(batch)).reshape(-1, 2) if digests else _array(batch)
            whole[start : start + len(batch)] = found
        return whole

    def _batches(self, name: str) -> Iterator[Any]:
        reader = pa.ipc.open_file(pa.OSFile(str(self.path), "rb"), options=pa.ipc.IpcReadOptions(included_fields=[ROW_SCHEMA.get_field_index(name)]))
        return (reader.get_batch(number).column(0) for number in range(reader.num_record_batches))

    def _value(self, name: str, place: int) -> Any:
        if not -len(self) <= place < len(self):
            raise IndexError(place)
        place %= len(self)
        batch = int(np.searchsorted(self._starts, place, side="right")) - 1
        if batch != self._held:
            found = self._reader.get_batch(batch)
            self._columns = {name: found.column(name) for name in ("conversation", "raw")}
            self._held = batch
        return self._columns[name][place - int(self._starts[batch])].as_py()


class AllRows(Sequence[Conversation]):
    """The rows of several sources, one after the other: row `i` of the whole is row `i - starts[f]` of source f."""

    def __init__(self, parts: Sequence[RowFile]) -> None:
        self.parts = parts
        self.starts: Places = np.cumsum([0, *(len(part) for part in parts)]).astype(np.int64)

    def __len__(self) -> int:
        return int(self.starts[-1])

    @overload
    def __getitem__(self, place: int) -> Conversation: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Conversation]: ...
    def __getitem__(self, place: int | slice) -> Conversation | Sequence[Conversation]:
        if isinstance(place, slice):
            return [self[index] for index in range(*place.indices(len(self)))]
        part, index = self._of(place)
        return part[index]

    def source(self, place: int) -> Source:
        part, index = self._of(place)
        return part.source(index)

    def raw(self, place: int) -> str:
        part, index = self._of(place)
        return part.raw(index)

    def column(self, name: str) -> Any:
        """A column of all rows, one source after the other."""
        return self.parts[0].column(name) if len(self.parts) == 1 else np.concatenate([part.column(name) for part in self.parts])

    @cached_property
    def sizes(self) -> "np.ndarray[Any, np.dtype[np.int32]]":
        """How many rows as read each row was made of."""
        return np.asarray(self.column("rows"), dtype=np.int32)

    def part_of(self, places: Places) -> Places:
        """The number of the source of each row."""
        return (np.searchsorted(self.starts, places, side="right") - 1).astype(np.int64)

    def _of(self, place: int) -> tuple[RowFile, int]:
        part = int(self.part_of(np.asarray([place]))[0])
        if not 0 <= part < len(self.parts):
            raise IndexError(place)
        return self.parts[part], place - int(self.starts[part])


class Picked(Sequence[T]):
    """Some entries of a sequence, by their numbers (repeats allowed)."""

    def __init__(self, whole: Sequence[T], places: Places) -> None:
        self.whole, self.places = whole, places

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, place: int) -> T: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[T]: ...
    def __getitem__(self, place: int | slice) -> T | Sequence[T]:
        if isinstance(place, slice):
            return Picked(self.whole, self.places[place])
        return self.whole[int(self.places[place])]

    def __iter__(self) -> Iterator[T]:
        return (self.whole[int(place)] for place in self.places)


class TokenStore(Sequence[TokenizedExample]):
    """The tokenized examples of several sources, mapped into memory.

    `rows[i]` is the number (among all rows) of the row that example i was made of; `lengths`, `trained_tokens`, `read`, `cut` and `repeated` count
    tokens.
    """

    def __init__(self, parts: Sequence[tuple[Path, int]], rows: AllRows) -> None:
        """`parts`: token files in order, each with the number of its source's first row."""
        self._all_rows = rows
        self._batches: list[Any] = []
        numbers: list[Places] = []
        for path, first_row in parts:
            reader = pa.ipc.open_file(pa.memory_map(str(path)))
            found = [reader.get_batch(number) for number in range(reader.num_record_batches)]
            self._batches += found
            numbers += [_array(batch.column("row")) + first_row for batch in found]
        self._starts = np.cumsum([0, *(batch.num_rows for batch in self._batches)])
        self.rows: Places = np.concatenate(numbers) if numbers else np.zeros(0, np.int64)
        self.lengths = self._numbers(lambda batch: _array(batch.column("token_ids").value_lengths()))
        self.trained_tokens = self._numbers(lambda batch: _array(batch.column("trained_tokens")))
        self.read = self._numbers(lambda batch: _array(batch.column("read")))
        self.cut = self._numbers(lambda batch: _array(batch.column("cut")))
        self.repeated = self._numbers(lambda batch: _array(batch.column("repeated")))

    def _numbers(self, of_batch: Callable[[Any], Any]) -> Places:
        return np.concatenate([of_batch(batch) for batch in self._batches]).astype(np.int64) if self._batches else np.zeros(0, np.int64)

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, place: int) -> TokenizedExample: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[TokenizedExample]: ...
    def __getitem__(self, place: int | slice) -> TokenizedExample | Sequence[TokenizedExample]:
        if isinstance(place, slice):
            return [self[index] for index in range(*place.indices(len(self)))]
        if not 0 <= place < len(self):
            raise IndexError(place)
        number = int(np.searchsorted(self._starts, place, side="right")) - 1
        batch, index = self._batches[number], place - int(self._starts[number])
        token_ids, trained = batch.column("token_ids")[index].as_py(), batch.column("trained")[index].as_py()
        return TokenizedExample(token_ids, trained, self._all_rows.source(int(self.rows[place])))
