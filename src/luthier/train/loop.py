"""The training loop: the rows of each update, one update, and everyone who wants to know is told."""

import math
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from luthier.engine import Engine
from luthier.errors import NotFiniteError
from luthier.models.save import all_finite
from luthier.records import Judged, Source, StepReport, TokenizedExample, UpdateLoss, named
from luthier.stopping import Stop
from luthier.train import order, schedule

Watcher = Callable[[StepReport], None]
# Told at every update: its number, its examples and the mean loss of each of them (NaN too).
RowWatcher = Callable[[int, Any, list[float]], None]
# One bad row may pass; three updates in a row mean that the weights or the rate are wrong.
MOST_SKIPPED = 3
# Gives what came of an update; on a GPU it waits for that update.
Reading = Callable[[], tuple[UpdateLoss, float]]
# Loss and gradients of the rows of an update; told True, with the mean loss of each row.
ForwardBackward = Callable[[Any, bool], UpdateLoss]


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
    num_cycles: int = 1
    decay_steps: int = 0
    together: int = 1  # rows that follow each other and stay together when rows are shuffled

    def rows(self, examples: Sequence[Any], update: int) -> list[Any]:
        """The examples of one update, counted from 0."""
        rows = order.update_rows(len(examples), self.batch_size, self.seed, update, self.examples_seen, self.together)
        return [examples[row] for row in rows]


@dataclass(frozen=True, slots=True)
class Skipped:
    """An update whose loss or gradient was not finite: nothing of it was kept."""

    step: int
    loss: float
    grad_norm: float  # NaN where the loss was not finite already
    rows: list[Source]
    overflowed: bool = False  # fp16's loss scale was too high: the rows are not to blame

    def __str__(self) -> str:
        if self.overflowed:
            return f"step {self.step} is skipped: its gradients were too large for fp16; the loss scale is halved (usual in a run's first steps)"
        return f"step {self.step} is skipped: the loss is {self.loss} and the gradient norm {self.grad_norm} (rows {named(self.rows)})"


def fit(
    engine: Engine,
    examples: Sequence[TokenizedExample] | Sequence[Judged],
    course: Course,
    watchers: list[Watcher],
    stop: Stop,
    *,
    done: int = 0,
    skipped_in_a_row: int = 0,
    on_skip: Callable[[Skipped], None] = lambda skipped: None,
    on_rows: RowWatcher | None = None,
    on_smaller: Callable[[int, int, int], None] = lambda step, before, now: None,
    looks_at_weights: Callable[[int], bool] = lambda step: True,
    forward_backward: ForwardBackward | None = None,
) -> int:
    """Train from update `done` to the end of the course, or until `stop` says so. Returns the updates that are done.

    An update whose loss or gradient is not finite is skipped, and told to `on_skip` and `on_rows` only. Raises NotFiniteError
    after MOST_SKIPPED of them in a row (`skipped_in_a_row` came before `done`). `on_smaller` is told the update in which the memory
    was not enough, and the micro-batch tokens before and since. A GPU goes on while the update before is told; not so after a step of
    which `looks_at_weights` says that a watcher will find its weights in the engine. `forward_backward` is the engine's own where none
    is given.
    """
    engine.require_trained_parameters()
    teller = _Teller(engine, examples, course, watchers, on_skip, on_rows, skipped_in_a_row=skipped_in_a_row)
    budget = engine.micro_batch_tokens
    for update in range(done, course.updates):
        start = time.perf_counter()
        # Every draw of an update (dropout) comes from the seed and the update's number: a resumed run draws the same.
        torch.manual_seed(update_seed(course.seed, update))
        rows = course.rows(examples, update)
        rate = schedule.learning_rate(
            update,
            peak=course.learning_rate,
            shape=course.lr_scheduler_type,
            warmup=course.warmup_steps,
            updates=course.updates,
            cycles=course.num_cycles,
            decay=course.decay_steps,
        )
        sent = _Sent(update + 1, rows, rate, start, _run(engine, rows, rate, forward_backward, row_losses=on_rows is not None))
        teller.add(sent, at_once=not engine.reads_late or update + 1 == course.updates or looks_at_weights(update + 1))
        if engine.micro_batch_tokens != budget:
            on_smaller(update + 1, budget, engine.micro_batch_tokens)
            budget = engine.micro_batch_tokens
        if (stop.signal or stop.enough) and update + 1 < course.updates:
            teller.tell()
            if not stop.signal:
                teller.require_finite()
            return update + 1
    teller.require_finite()
    return course.updates


@dataclass(frozen=True, slots=True)
class _Sent:
    """An update that ran, or that a GPU is running."""

    step: int
    rows: list[Any]
    learning_rate: float
    start: float
    read: Reading


def _run(engine: Engine, rows: list[Any], learning_rate: float, forward_backward: ForwardBackward | None, *, row_losses: bool) -> Reading:
    if forward_backward is None and engine.reads_late and not row_losses:
        return engine.send_update(rows, learning_rate)
    measured = forward_backward(rows, row_losses) if forward_backward else engine.forward_backward(rows, row_losses=row_losses)
    grad_norm = engine.optimizer_step(learning_rate) if math.isfinite(measured.loss) else engine.forget_gradients()
    return lambda: (measured, grad_norm)


@dataclass(slots=True)
class _Teller:
    """Tells what came of each update: at once, or when the next one is on its way."""

    engine: Engine
    examples: Sequence[TokenizedExample] | Sequence[Judged]
    course: Course
    watchers: list[Watcher]
    on_skip: Callable[[Skipped], None]
    on_rows: RowWatcher | None
    waiting: _Sent | None = None
    recent: list[_Sent] = field(default_factory=list)
    skipped_in_a_row: int = 0
    last_read: float = 0.0

    def add(self, sent: _Sent, *, at_once: bool) -> None:
        self.tell()
        self.waiting = sent
        if at_once:
            self.tell()

    def tell(self) -> None:
        """Tell of the update that waits for it, if there is one. Raises NotFiniteError after MOST_SKIPPED in a row."""
        if self.waiting is None:
            return
        sent, self.waiting = self.waiting, None
        measured, grad_norm = sent.read()
        # A GPU began this update when the one before it was done.
        began, self.last_read = max(sent.start, self.last_read), time.perf_counter()
        if self.on_rows and measured.row_losses is not None:
            self.on_rows(sent.step, sent.rows, measured.row_losses)
        if not (math.isfinite(measured.loss) and math.isfinite(grad_norm)):
            self._skip(Skipped(sent.step, measured.loss, grad_norm, [row.source for row in sent.rows], self.engine.overflowed))
            return
        self.skipped_in_a_row = 0
        report = StepReport(
            step=sent.step,
            epoch=round(min(sent.step * self.course.batch_size, self.course.examples_seen) / len(self.examples), 4),
            loss=measured.loss,
            grad_norm=grad_norm,
            learning_rate=sent.learning_rate,
            logical_tokens=measured.logical_tokens,
            executed_tokens=measured.executed_tokens,
            trained_tokens=measured.trained_tokens,
            seconds=round(self.last_read - began, 4),
            peak_bytes=peak_bytes(),
            metrics=measured.metrics,
        )
        self.recent = [*self.recent[1 - MOST_SKIPPED :], sent]
        try:
            for watcher in self.watchers:
                watcher(report)
        except NotFiniteError as error:
            raise self._with_rows(error) from error

    def require_finite(self) -> None:
        """Raises NotFiniteError where a weight that the run would leave is not finite."""
        for name, weight in self.engine.masters.weights.items():
            if not all_finite(weight.detach()):
                problem = f"{name} holds values that are not finite, and nothing of it is saved"
                next_step = "go on from the last checkpoint with a lower training.learning_rate, or look at these rows"
                raise self._with_rows(NotFiniteError(problem, where=f"step {self.course.updates}", next_step=next_step))

    def _with_rows(self, error: NotFiniteError) -> NotFiniteError:
        """The same, with the rows of the last updates, which made the weights (or what the optimizer keeps) what they are."""
        rows = "; ".join(f"step {sent.step}: {named([row.source for row in sent.rows])}" for sent in self.recent)
        return NotFiniteError(error.problem, where=f"{error.where} (the last updates: {rows})", next_step=error.next_step)

    def _skip(self, skipped: Skipped) -> None:
        self.on_skip(skipped)
        self.skipped_in_a_row += not skipped.overflowed
        if self.skipped_in_a_row == MOST_SKIPPED:
            raise not_finite(skipped)


def not_finite(last: Skipped) -> NotFiniteError:
    return NotFiniteError(
        f"the loss is {last.loss} and the gradient norm {last.grad_norm}: {MOST_SKIPPED} updates in a row, of which nothing was kept",
        where=f"step {last.step} (rows {named(last.rows)})",
        next_step="look at these rows; then begin anew with a lower training.learning_rate or training.precision: fp32",
    )


def update_seed(seed: int, update: int) -> int:
    """A seed for one update, from the run's seed and the update's number."""
    return int(np.random.SeedSequence([seed, update]).generate_state(1, np.uint64)[0] >> 1)


def peak_bytes() -> int:
    """The most memory this process has held so far: the GPU's where one is used, else main memory."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return int(torch.cuda.max_memory_allocated())
    return host_peak_bytes()


def host_peak_bytes() -> int:
    """The most main memory this process has held so far."""
    status = Path("/proc/self/status")
    if status.is_file():
        # Not ru_maxrss: a process inherits it from the one that started it.
        return next(int(line.split()[1]) * 1024 for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
