"""Finding by meaning: vectors as one file that is mapped into memory, or as a LanceDB table. The same interface for both."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from luthier.errors import CallError

# Up to here comparing with every vector takes milliseconds; above, LanceDB looks at a part of them.
MOST_PLAIN = 100_000
ROWS_AT_ONCE = 65_536
Matrix = NDArray[np.float32]


@runtime_checkable
class Vectors(Protocol):
    """The vectors of all passages, in their order."""

    def nearest(self, question: Matrix, most: int) -> tuple[NDArray[np.int64], Matrix]:
        """The rows whose vectors are nearest to a question's (`dimensions`), best first, with their cosines."""

    def rows(self, start: int, stop: int) -> Matrix:
        """The vectors of some passages, `rows x dimensions`."""


@dataclass(frozen=True, slots=True)
class Plain:
    """One .npy file; every vector is compared."""

    matrix: Matrix

    def nearest(self, question: Matrix, most: int) -> tuple[NDArray[np.int64], Matrix]:
        """The nearest rows, exactly."""
        cosines = np.asarray(self.matrix @ question)
        rows = best(cosines, most)
        return rows, cosines[rows]

    def rows(self, start: int, stop: int) -> Matrix:
        """Vectors from the file."""
        return np.asarray(self.matrix[start:stop])


@dataclass(frozen=True, slots=True)
class Lance:
    """A LanceDB table with an index of clusters (IVF); the nearest `probes` of them are compared."""

    table: Any
    probes: int

    def nearest(self, question: Matrix, most: int) -> tuple[NDArray[np.int64], Matrix]:
        """The nearest rows, nearly exactly."""
        found = self.table.search(question).distance_type("cosine").nprobes(self.probes).refine_factor(4).limit(most).to_arrow()
        return found["row"].to_numpy().astype(np.int64), (1 - found["_distance"].to_numpy()).astype(np.float32)

    def rows(self, start: int, stop: int) -> Matrix:
        """Vectors from the table."""
        found = self.table.search().where(f"row >= {start} AND row < {stop}").limit(stop - start).to_arrow().sort_by("row")
        matrix: Matrix = found["vector"].combine_chunks().flatten().to_numpy().astype(np.float32).reshape(stop - start, -1)
        return matrix


def best(scores: Matrix, most: int) -> NDArray[np.int64]:
    """The rows with the largest scores above 0, best first; of equal ones the first row first."""
    most = min(most, len(scores))
    some = np.argpartition(-scores, most - 1)[:most] if most else np.zeros(0, np.int64)
    if most and most < len(scores):  # which of several equal ones at the edge came in is nobody's choice: take the first rows
        edge = scores[some].min()
        above = np.flatnonzero(scores > edge)
        some = np.concatenate([above, np.flatnonzero(scores == edge)[: most - len(above)]])
    some = some[scores[some] > 0]
    return some[np.lexsort((some, -scores[some]))]


def write_plain(folder: Path, count: int, dimensions: int, pieces: Callable[[], Iterator[Matrix]]) -> None:
    """Write vectors piece by piece, so that memory holds one piece."""
    matrix = np.lib.format.open_memmap(folder / "vectors.npy", mode="w+", dtype=np.float32, shape=(count, dimensions))
    start = 0
    for piece in pieces():
        matrix[start : start + len(piece)] = piece
        start += len(piece)
    matrix.flush()


def open_plain(folder: Path) -> Vectors:
    """The file that `write_plain` wrote."""
    return Plain(np.lib.format.open_memmap(folder / "vectors.npy", mode="r"))


def write_lance(folder: Path, count: int, dimensions: int, pieces: Callable[[], Iterator[Matrix]]) -> None:
    """Write vectors as a table with an index. Raises CallError where the package is missing."""
    lancedb = _lancedb()
    import pyarrow as pa

    kind = pa.list_(pa.float32(), dimensions)
    schema = pa.schema([("row", pa.int64()), ("vector", kind)])

    def batches() -> Iterator[Any]:
        start = 0
        for piece in pieces():
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(piece).reshape(-1)), dimensions)
            yield pa.record_batch([pa.array(range(start, start + len(piece)), pa.int64()), vectors], schema=schema)
            start += len(piece)

    table = lancedb.connect(str(folder / "vectors.lance")).create_table("vectors", pa.RecordBatchReader.from_batches(schema, batches()))
    if count > MOST_PLAIN:  # fewer are compared one by one in no time
        from lancedb.index import IvfFlat

        table.create_index("vector", config=IvfFlat(distance_type="cosine", num_partitions=_clusters(count)))


def open_lance(folder: Path) -> Vectors:
    """The table that `write_lance` wrote. Raises CallError where the package is missing."""
    table = _lancedb().connect(str(folder / "vectors.lance")).open_table("vectors")
    return Lance(table, -(-_clusters(table.count_rows()) // 2))


def _clusters(count: int) -> int:
    return max(1, int(count**0.5))


def _lancedb() -> Any:
    try:
        import lancedb
    except ImportError as error:
        raise CallError("needs the package lancedb", where="--store lancedb", next_step='pip install "luthier[lancedb]"') from error
    return lancedb


Write = Callable[[Path, int, int, Callable[[], Iterator[Matrix]]], None]
STORES: dict[str, tuple[Write, Callable[[Path], Vectors]]] = {
    # name      written by    opened by
    "plain":   (write_plain,  open_plain),
    "lancedb": (write_lance,  open_lance),
}  # fmt: skip
