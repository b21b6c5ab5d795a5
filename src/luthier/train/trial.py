"""One real step on the worst update before the first: what it needs is measured, and told beside what was predicted.

Nothing is learned from it. What was measured is kept in the cache folder, so that the same run on the same machine starts at once.
"""

import dataclasses
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from luthier import files
from luthier.engine import Engine
from luthier.errors import RunError
from luthier.records import Judged, TokenizedExample
from luthier.train.loop import ForwardBackward, peak_bytes
from luthier.version import VERSION


@dataclass(frozen=True, slots=True)
class Trial:
    """What the worst update needed: the most memory of the process (of the GPU, where one is used) until then, and its time."""

    rows: int
    tokens: int
    peak_bytes: int
    seconds: float

    def line(self, predicted_bytes: int) -> str:
        """The trial for people."""
        size = f"{self.peak_bytes / 1e9:.3g} GB ({predicted_bytes / 1e9:.3g} GB predicted for the run)"
        return f"worst update: {self.rows} rows with {self.tokens:,} tokens took {size} and {self.seconds:.1f} s"


def worst_rows(lengths: Any, batch_size: int) -> list[int]:
    """Places of the rows that would make the largest update: the longest of `lengths`, an array of tokens a row."""
    return [int(place) for place in np.argsort(-lengths, kind="stable")[:batch_size]]


def trial_file(home: Path, what_matters: dict[str, object], worst: Sequence[TokenizedExample | Judged]) -> Path:
    """Where the result is kept: named by the settings that matter, the machine, the worst rows' sizes and the versions."""
    sizes = [(example.tokens, example.trained_tokens) for example in worst]
    key = json.dumps([what_matters, sizes, VERSION, torch.__version__], sort_keys=True, default=str)
    return home / "trials" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"


def measure(engine: Engine, worst: Sequence[TokenizedExample | Judged], path: Path, forward_backward: ForwardBackward | None = None) -> Trial:
    """The trial stored in `path`, or a new one, which is stored there. The gradients are forgotten and no weight changes.

    Where the memory is not enough the engine goes on with smaller micro-batches, and the trial is not stored: they must be found again.
    """
    if stored := _read(path):
        return stored
    start, budget = time.perf_counter(), engine.micro_batch_tokens
    try:
        forward_backward(worst, False) if forward_backward else engine.forward_backward(list(worst))  # type: ignore[arg-type]
    finally:
        engine.forget_gradients()
    trial = Trial(len(worst), _tokens(worst), peak_bytes(), round(time.perf_counter() - start, 3))
    if engine.micro_batch_tokens == budget:
        files.make_folder(path.parent)
        files.write_json(path, dataclasses.asdict(trial))
    return trial


def _tokens(rows: Sequence[TokenizedExample | Judged]) -> int:
    return sum(row.tokens for row in rows)


def _read(path: Path) -> Trial | None:
    """What was measured; None where nothing was, or where the file is not whole (it is then written again)."""
    try:
        return Trial(**files.read_json(path))
    except (RunError, TypeError):
        return None
