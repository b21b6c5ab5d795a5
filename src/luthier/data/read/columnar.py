"""Parquet and Arrow (IPC files, Feather 2 and streams), a batch at a time. A row's line is its number in the file."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from luthier.data.read.strict_json import Flaw, number_flaw, surrogate_flaw
from luthier.errors import DataError
from luthier.records import Rejected, Row, Source

BATCH_ROWS = 512


def rows(name: str, kind: str, file: IO[bytes], unpacked: Iterator[bytes] | None) -> Iterator[Row | Rejected]:
    """The rows as Python values; null stays None. `unpacked` gives the bytes where the file itself is packed.

    Dates, times and decimals become text. Raises DataError where the file is damaged or a column holds bytes.
    """
    with _seekable(file, unpacked) as whole:
        number = 0
        for batch in _batches(name, kind, whole):
            for value in batch:
                number += 1
                yield _row(value, Source(name, number))


@contextmanager
def _seekable(file: IO[bytes], unpacked: Iterator[bytes] | None) -> Iterator[IO[bytes]]:
    """These formats have their index at the end: what is packed once more is unpacked to the disk first."""
    if unpacked is None:
        yield file
        return
    with tempfile.TemporaryFile() as whole:
        for piece in unpacked:
            whole.write(piece)
        whole.seek(0)
        yield whole


def _batches(name: str, kind: str, file: IO[bytes]) -> Iterator[list[dict[str, Any]]]:
    import pyarrow as pa

    read_rows = 0
    try:
        schema, batches = _open(kind, file)
        _check_columns(name, schema)
        for batch in batches:
            # Offsets that lead outside of the data would be followed.
            batch.validate(full=True)
            values = batch.to_pylist()
            read_rows += len(values)
            yield values
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        problem = f"the {kind} data are damaged after row {read_rows:,} ({str(error).strip().splitlines()[0][:200]})"
        raise DataError(problem, where=name, next_step="fetch or write the file again") from error


def _open(kind: str, file: IO[bytes]) -> tuple[Any, Iterator[Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if kind == "parquet":
        parquet = pq.ParquetFile(file)
        return parquet.schema_arrow, parquet.iter_batches(batch_size=BATCH_ROWS)
    is_file = file.read(6) == b"ARROW1"
    file.seek(0)
    if is_file:
        table = pa.ipc.open_file(file)
        batches = (table.get_batch(number) for number in range(table.num_record_batches))
    else:
        table = pa.ipc.open_stream(file)
        batches = iter(table)
    return table.schema, (batch.slice(start, BATCH_ROWS) for batch in batches for start in range(0, batch.num_rows, BATCH_ROWS))


def _check_columns(name: str, schema: Any) -> None:
    twice = next((column for column in schema.names if schema.names.count(column) > 1), None)
    if twice is not None:
        raise DataError(f'two columns are named "{twice}"', where=name, next_step="give each column a name of its own")
    for column in schema:
        if _holds_bytes(column.type):
            raise DataError(
                f'the column "{column.name}" holds bytes ({column.type}): pictures, sound or pickled objects are not read',
                where=name,
                next_step=f"write the file again without {column.name} (or as text, where it is text)",
            )


def _holds_bytes(kind: Any) -> bool:
    """Whether a type is bytes or of another library's making, or has such a part inside."""
    import pyarrow as pa

    types = pa.types
    if isinstance(kind, pa.BaseExtensionType):
        return True
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind) or types.is_binary_view(kind):
        return True
    if types.is_dictionary(kind):
        return _holds_bytes(kind.value_type)
    return any(_holds_bytes(kind.field(number).type) for number in range(kind.num_fields))


def _row(value: dict[str, Any], source: Source) -> Row | Rejected:
    flaw: Flaw | None = None
    try:
        raw = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except TypeError:
        raw = json.dumps(value, ensure_ascii=False, default=str)
        value = json.loads(raw)
        flaw = number_flaw(value)
    except ValueError:
        raw = json.dumps(value, ensure_ascii=False, default=str)
        flaw = number_flaw(value)
    flaw = flaw or surrogate_flaw(value)
    return Rejected(flaw.reason, flaw.detail, source, raw) if flaw else Row(value, raw, source)
