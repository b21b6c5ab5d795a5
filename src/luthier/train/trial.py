"""One real step on the worst update, and the worst evaluation, before the first: what they need is measured, and told beside what was predicted.

Nothing is learned from it. What was measured is kept in the cache folder, so that the same run on the same machine starts at once.
"""

import dataclasses
import hashlib
import heapq
import json
import time
from collections.abc import Iterable, Sequence
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

# Held-out rows whose loss is measured, as many as go through the engine at once, and the tokens of each answer to the longest prompts: with
# them all prompts are kept, and what the rest of the answers adds is known (memory.measuring_bytes).
HELD_OUT_ROWS = 32
ANSWER_TOKENS = 4


@dataclass(frozen=True, slots=True)
class Trial:
    """What the worst update and the worst evaluation needed: the most memory of the process (of the GPU, where one is used) until each had
    ended, and their times. Without held-out rows there is no evaluation, and its numbers are those of the update, and 0 s."""

    rows: int
    tokens: int
    peak_bytes: int
    seconds: float
    held_out_rows: int
    evaluation_peak_bytes: int
    evaluation_seconds: float

    def line(self, predicted_bytes: int, predicted_seconds: float) -> str:
        """The trial for people."""
        size = f"{self.evaluation_peak_bytes / 1e9:.3g} GB ({predicted_bytes / 1e9:.3g} GB predicted for the run)"
        took = f"{self.seconds:.1f} s ({predicted_seconds:.1f} s predicted)"
        beside = f", with {self.held_out_rows} held-out rows measured" if self.held_out_rows else ""
        return f"worst update: {self.rows} rows with {self.tokens:,} tokens took {size}{beside}, and {took}"

    def as_json(self, predicted_bytes: int, predicted_seconds: float) -> dict[str, Any]:
        """The trial as plan.json holds it, beside what was predicted: for the run, and for this update."""
        return {**dataclasses.asdict(self), "predicted_bytes": predicted_bytes, "predicted_seconds": round(predicted_seconds, 3)}


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The worst evaluation of a run: the held-out rows that are longest, and how many of their prompts are answered at once."""

    rows: Sequence[TokenizedExample]
    answers: int


NOTHING = Evaluation((), 0)


def worst_evaluation(held_out: Iterable[TokenizedExample], answers: int) -> Evaluation:
    """The longest of the rows that are held out, the longest first."""
    return Evaluation(heapq.nlargest(max(HELD_OUT_ROWS, answers), held_out, key=lambda row: row.tokens), answers)


def worst_rows(lengths: Any, batch_size: int) -> list[int]:
    """Places of the rows that would make the largest update: the longest of `lengths`, an array of tokens a row."""
    return [int(place) for place in np.argsort(-lengths, kind="stable")[:batch_size]]


def trial_file(home: Path, what_matters: dict[str, object], worst: Sequence[TokenizedExample | Judged], evaluation: Evaluation = NOTHING) -> Path:
    """Where the result is kept: named by the settings that matter, the machine, the worst rows' sizes and the versions."""
    sizes = [(example.tokens, example.trained_tokens) for example in [*worst, *evaluation.rows]]
    key = json.dumps([what_matters, sizes, len(worst), evaluation.answers, VERSION, torch.__version__], sort_keys=True, default=str)
    return home / "trials" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"


def measure(
    engine: Engine,
    worst: Sequence[TokenizedExample | Judged],
    path: Path,
    forward_backward: ForwardBackward | None = None,
    evaluation: Evaluation = NOTHING,
) -> Trial:
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
    update_peak, update_end = peak_bytes(), time.perf_counter()
    _evaluate(engine, evaluation)
    trial = Trial(
        rows=len(worst),
        tokens=_tokens(worst),
        peak_bytes=update_peak,
        seconds=round(update_end - start, 3),
        held_out_rows=len(evaluation.rows),
        evaluation_peak_bytes=peak_bytes(),
        evaluation_seconds=round(time.perf_counter() - update_end, 3) if evaluation.rows else 0.0,
    )
    if engine.micro_batch_tokens == budget:
        files.make_folder(path.parent)
        files.write_json(path, dataclasses.asdict(trial))
    return trial


def _evaluate(engine: Engine, evaluation: Evaluation) -> None:
    """The loss of the rows, and the first tokens of answers to the prompts among them that leave room for one."""
    if not evaluation.rows:
        return
    engine.held_out_loss(evaluation.rows[:HELD_OUT_ROWS])
    prompts = [row.token_ids[: row.trained.index(True)] for row in evaluation.rows[: evaluation.answers]]
    asked = [prompt for prompt in prompts if prompt and engine.has_room(prompt)]
    if asked:
        engine.answer(asked, max_new_tokens=ANSWER_TOKENS)


def _tokens(rows: Sequence[TokenizedExample | Judged]) -> int:
    return sum(row.tokens for row in rows)


def _read(path: Path) -> Trial | None:
    """What was measured; None where nothing was, or where the file is not whole (it is then written again)."""
    try:
        return Trial(**files.read_json(path))
    except (RunError, TypeError):
        return None
