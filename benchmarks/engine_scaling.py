"""How Luthier's speed goes with the size of a micro-batch, the length of the rows and the adapter's rank, beside what the arithmetic says."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine_table import Shape, flops, visible_pairs

from luthier.records import TokenizedExample

TOKENS = 2048  # of one update, but where a micro-batch or a row is longer
MICRO_BATCHES = (256, 512, 1024, 2048, 4096, 8192)
LENGTHS = (128, 256, 512, 1024, 2048, 4096, 8192, 16384)
RANKS = (4, 8, 16, 32, 64, 128, 256)
ROW_TOKENS = 512  # of the rows where length is not what changes


@dataclass(frozen=True, slots=True)
class Point:
    """One measurement to make: rows of `length` tokens, and what is special about it."""

    axis: str
    value: int
    length: int
    rank: int
    setting: dict[str, Any]


def points(quick: bool, precision: str = "bf16") -> list[Point]:
    """Every point of the three plots; `quick` leaves out the dear ones."""
    micro_batches, lengths, ranks = (MICRO_BATCHES[::2], LENGTHS[:5:2], RANKS[::3]) if quick else (MICRO_BATCHES, LENGTHS, RANKS)
    plain = {"precision": precision, "share_prefixes": False}
    found = [Point("micro_batch_tokens", size, ROW_TOKENS, 16, {**plain, "micro_batch_tokens": size}) for size in micro_batches]
    found += [Point("row_tokens", length, length, 16, plain) for length in lengths]
    return found + [Point("rank", rank, ROW_TOKENS, rank, plain) for rank in ranks]


def rows_of(ids: Sequence[int], point: Point, updates: int) -> tuple[list[TokenizedExample], int]:
    """Rows of one length for so many updates, and how many make one update."""
    from luthier.records import Source

    length = point.length
    batch = max(1, max(TOKENS, point.setting.get("micro_batch_tokens", 0)) // length)
    needed = batch * updates
    pieces = [list(ids[start : start + length]) for start in range(0, len(ids) - length + 1, length)]
    mask = [False] + [True] * (length - 1)
    return [TokenizedExample(pieces[place % len(pieces)], mask, Source("rows", place + 1)) for place in range(needed)], batch


def measure(
    point: Point, ids: Sequence[int], run: Callable[[Point, list[TokenizedExample], int], dict[str, Any]], config: dict[str, Any]
) -> dict[str, Any]:
    """Tokens a second of one point, and the work of one token."""
    rows, batch = rows_of(ids, point, updates=3)
    updates = run(point, rows, batch)["updates"][1:]
    executed, trained = updates[0]["executed"], updates[0]["trained"]
    work = flops(Shape.of(config, point.rank), "lora", executed, trained, visible_pairs(rows[:batch]))
    seconds = statistics.median(update["seconds"] for update in updates)
    return {
        "axis": point.axis,
        "value": point.value,
        "tokens_per_second": executed / seconds,
        "microseconds_per_token": seconds / executed * 1e6,
        "gflop_per_token": work / executed / 1e9,
        "gflops": work / seconds / 1e9,
    }


TITLES = {
    "micro_batch_tokens": "tokens of a micro-batch",
    "row_tokens": "tokens of a row",
    "rank": "rank of the adapter",
}


def plot(found: Sequence[dict[str, Any]], gflops: float, title: str, path: Path) -> None:
    """Measured tokens a second, and the limit: the arithmetic at the matrix-product rate of the same run. Needs matplotlib (luthier[data])."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    for place, (axis, label) in enumerate(TITLES.items(), start=1):
        one = [point for point in found if point["axis"] == axis]
        panel = figure.add_subplot(1, 3, place)
        panel.plot([point["value"] for point in one], [point["tokens_per_second"] for point in one], "o-", label="measured")
        panel.plot([point["value"] for point in one], [gflops / point["gflop_per_token"] for point in one], "--", label="limit of the arithmetic")
        panel.set_xscale("log", base=2)
        panel.set_xticks([point["value"] for point in one], [f"{point['value']:,}" for point in one], fontsize=7)
        panel.set_ylim(bottom=0)
        panel.set_xlabel(label)
        panel.set_ylabel("tokens a second")
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
