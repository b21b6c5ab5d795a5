"""The training loop: the rows of each update, one update, and everyone who wants to know is told."""

import math
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from luthier.engine import Engine
from luthier.errors import RunError
from luthier.records import Source, StepReport, TokenizedExample
from luthier.stopping import Stop
from luthier.train import order, schedule

Watcher = Callable[[StepReport], None]
# One bad row may pass; three updates in a row mean that the weights or the rate are wrong.
MOST_SKIPPED = 3
ROWS_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Course:
    """How a run goes: numbers only, all resolved."""

    updates: int
    examples_seen: int
    batch_size: int
    learning_rate: float
    lr_scheduler_type: str
    warmup_steps: int
    seed: int


@dataclass(frozen=True, slots=True)
class Skipped:
    """An update whose loss or gradient was not finite: nothing of it was kept."""

    step: int
    loss: float
    grad_norm: float  # NaN where the loss was not finite already
    rows: list[Source]

    def __str__(self) -> str:
        more = f" and {len(self.rows) - ROWS_SHOWN} more" if len(self.rows) > ROWS_SHOWN else ""
        rows = ", ".join(str(row) for row in self.rows[:ROWS_SHOWN]) + more
        return f"step {self.step} is skipped: the loss is {self.loss} and the gradient norm {self.grad_norm} (rows {rows})"


def fit(
    engine: Engine,
    examples: Sequence[TokenizedExample],
    course: Course,
    watchers: list[Watcher],
    stop: Stop,
    *,
    done: int = 0,
    on_skip: Callable[[Skipped], None] = lambda skipped: None,
) -> int:
    """Train from update `done` to the end of the course, or until `stop` says so. Returns the updates that are done.

    An update whose loss or gradient is not finite is skipped, and told to `on_skip` only. Raises RunError after MOST_SKIPPED of them in a row.
    """
    engine.require_trained_parameters()
    skipped_in_a_row = 0
    for update in range(done, course.updates):
        start = time.perf_counter()
        # Every draw of an update (dropout) comes from the seed and the update's number: a resumed run draws the same.
        torch.manual_seed(update_seed(course.seed, update))
        rows = [examples[row] for row in order.update_rows(len(examples), course.batch_size, course.seed, update, course.examples_seen)]
        rate = schedule.learning_rate(
            update, peak=course.learning_rate, shape=course.lr_scheduler_type, warmup=course.warmup_steps, updates=course.updates
        )
        measured = engine.forward_backward(rows)
        grad_norm = engine.optimizer_step(rate) if math.isfinite(measured.loss) else engine.forget_gradients()
        if not (math.isfinite(measured.loss) and math.isfinite(grad_norm)):
            skipped = Skipped(update + 1, measured.loss, grad_norm, [row.source for row in rows])
            on_skip(skipped)
            skipped_in_a_row += 1
            if skipped_in_a_row == MOST_SKIPPED:
                raise not_finite(skipped)
            if stop.signal:
                return update + 1
            continue
        skipped_in_a_row = 0
        report = StepReport(
            step=update + 1,
            epoch=round(min((update + 1) * course.batch_size, course.examples_seen) / len(examples), 4),
            loss=measured.loss,
            grad_norm=grad_norm,
            learning_rate=rate,
            logical_tokens=measured.logical_tokens,
            executed_tokens=measured.executed_tokens,
            trained_tokens=measured.trained_tokens,
            seconds=round(time.perf_counter() - start, 4),
            peak_bytes=peak_bytes(),
        )
        for watcher in watchers:
            watcher(report)
        if stop.signal:
            return update + 1
    return course.updates


def not_finite(last: Skipped) -> RunError:
    return RunError(
        f"the loss is {last.loss} and the gradient norm {last.grad_norm}: {MOST_SKIPPED} updates in a row, of which nothing was kept",
        where=f"step {last.step} (rows {', '.join(str(row) for row in last.rows[:ROWS_SHOWN])})",
        next_step="look at these rows; then begin anew with a lower training.learning_rate or training.precision: fp32",
    )


def update_seed(seed: int, update: int) -> int:
    """A seed for one update, from the run's seed and the update's number."""
    return int(np.random.SeedSequence([seed, update]).generate_state(1, np.uint64)[0] >> 1)


def peak_bytes() -> int:
    """The most memory this process has held so far: the GPU's where one is used, else main memory."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return int(torch.cuda.max_memory_allocated())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
