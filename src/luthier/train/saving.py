"""When a run's checkpoints are written, which are kept, and what happens where the disk does not take one."""

import dataclasses
import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from luthier import files, run_lock, sealed
from luthier.config.section import bytes_of
from luthier.config.settings import Settings
from luthier.engine import Engine
from luthier.errors import MachineError, RunError, RunInUse
from luthier.plan import machine
from luthier.records import StepReport
from luthier.run_folder import NO_DRIFT, RunFolder
from luthier.stopping import Stop
from luthier.train import best, checkpoint
from luthier.train.checkpoint import Measured, Place, State
from luthier.train.loop import Course, host_peak_bytes

# One failed save may be a moment's; after two in a row the run would only lose more.
MOST_FAILED = 2
# Of the state: what a save should find free (file systems keep some for themselves).
ROOM = 1.3
# Of environment.json, in a checkpoint's manifest: the run's id, hashes of rows and models, libraries, threads.
KEPT_OF_ENVIRONMENT = (*checkpoint.OF_RUN, "machine", "threads")


class Saver:
    """Told of each update, writes a checkpoint where one is due; with `async_save` the training goes on meanwhile.

    Used as a context: at its end the last save is waited for. A save that fails is told, and ends the run (MachineError) where the one
    before it failed too; what stands on the disk stays.
    """

    def __init__(
        self, run: RunFolder, engine: Engine, place: Place, settings: Settings, course: Course, rows: int, stop: Stop, say: Callable[[str], None]
    ) -> None:
        self.run, self.engine, self.place, self.course, self.stop, self.say = run, engine, place, course, stop, say
        self.training, self.max_memory = settings.training, settings.max_memory
        self._aim = best.aim_of(settings)
        self.saves_best = self.training.save_best or self.training.load_best_model_at_end
        self._due_at_step, self._about = due_at(settings, rows, course.updates), _about(run, settings)
        files.sweep(run.path, own=True)
        files.sweep(run.checkpoints, own=True)
        # The whole checkpoints of this run so far, found here or written by this process, with what was measured there.
        found = checkpoint.list_checkpoints(run, until=place.step)
        self._whole: dict[Path, Measured | None] = {path: checkpoint.measured_at(path) for path in found if not checkpoint.damage(path)}
        self.last_step = max((sealed.number(path) for path in self._whole), default=-1)
        self._measured: Measured | None = None
        self._measured_at, self._asked, self._save_at = -1, place.step, -1
        self._saved_at_s = time.monotonic()
        self._copies: bool | None = None
        self._failed_in_a_row = 0
        self._said: set[str] = set()
        self._writing: tuple[threading.Thread, _Written] | None = None
        self._look_for_room()

    def _look_for_room(self) -> None:
        """Before the first update: say where the disk will not hold all checkpoints that are kept. Raises MachineError where it holds not one."""
        training = self.training
        if training.save_strategy == "no" and training.save_minutes is None and not self.saves_best:
            return
        # One more than are kept: an old one goes when the new one stands.
        kept = training.save_total_limit + (training.keep_best if self.saves_best else 0) + 1
        to_come = max(1, kept - len(self._whole))
        one, free = ROOM * checkpoint.expected_bytes(self.engine), files.free_bytes(self.run.path)
        need = one * to_come
        room = f"about {need / 1e6:,.1f} MB for {to_come} of them, kept ones and the next, and {free / 1e6:,.1f} MB are free"
        if free < one:
            raise MachineError(
                f"the disk holds not one checkpoint: the run needs {room}",
                where=str(self.run.checkpoints),
                next_step=f"free some space, then luthier train --resume {self.run.path}; or training.save_strategy: no",
            )
        if free < need:
            self.say(f"little room for the run's checkpoints: it needs {room}")

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.join()
        elif self._writing and not issubclass(kind, KeyboardInterrupt):
            self._writing[0].join()  # told is what ended the run, and not what came of this save

    def wants(self, step: int) -> bool:
        """Whether the weights as they are after this update are to be saved. Decided when an update is asked for the first time."""
        if step > self._asked:
            skipped = 0 <= self._save_at <= self._asked  # it was due, and nobody was told of its update
            self._asked = step
            if skipped or self._due_at_step(step) or self.stop.save_now or self._minutes_are_over():
                self._save_at = step
        return self._save_at == step

    def _minutes_are_over(self) -> bool:
        minutes = self.training.save_minutes
        return minutes is not None and time.monotonic() - self._saved_at_s >= 60 * minutes

    def measured(self, step: int, loss: float, metrics: Mapping[str, float], drift: Mapping[str, float] = NO_DRIFT) -> None:
        """Told what the held-out rows gave, before `watch` is: one of the best is saved."""
        name, value = self._aim.name, self._aim.value(loss, metrics, drift)
        if math.isfinite(value):
            self._measured, self._measured_at = Measured(name, value), step
        if not self.saves_best:
            return
        if self._measured is None or self._measured_at != step:
            self._say_once(f"{name} was not measured: no checkpoint of such a step is the best")
            return
        self.join()  # which are the best is known when the last one is written
        as_good = [one for one in self._best().values() if self._rank(one) <= self._rank(self._measured)]
        if len(as_good) < self.training.keep_best:
            self._save_at = step

    def look(self, report: StepReport) -> None:
        """Told of an update before anything is written of it: raises RunInUse where another process has the run by now."""
        run_lock.require_not_taken(self.run.path)

    def watch(self, report: StepReport) -> None:
        """Save where that is due after this update."""
        if self._writing and not self._writing[0].is_alive():
            self.join()
        if self.wants(report.step):
            self.save(report.step)

    def save(self, step: int, *, wait: bool = False) -> None:
        """Save the state as it is now, after `step` updates; `wait` until it is written."""
        self.join()
        self._save_at, self.stop.save_now = -1, False
        run_lock.require_not_taken(self.run.path)
        if step == self.last_step:
            return
        self._saved_at_s = time.monotonic()
        # Ranks that share the weights write in step, and do nothing else meanwhile.
        shared = self.engine.crew is not None and self.engine.crew.sharding is not None
        copied = self.training.async_save and not wait and not shared and self._has_room_for_copy()
        measured = self._measured if self._measured_at == step else None
        place = dataclasses.replace(self.place, step=step)
        state = checkpoint.take(self.engine, place, copied=copied, measured=measured, course=dataclasses.asdict(self.course))
        self._warn_of_little_room(state)
        written = _Written(state, measured)
        # A daemon: whoever ends the process at once does not wait for a save, and nothing half of it counts.
        thread = threading.Thread(target=written.write, args=(self.run, self._about), name="checkpoint", daemon=True)
        self._writing = thread, written
        thread.start()
        if not copied:
            self.join()

    def join(self) -> None:
        """Wait for the save that is being written, and tell what came of it. Raises MachineError after MOST_FAILED in a row."""
        if self._writing is None:
            return
        thread, written = self._writing
        thread.join()
        self._writing = None
        if written.error is not None:
            self._failed(written.state, written.error)
            return
        self._failed_in_a_row = 0
        self.last_step = written.state.step
        self._whole[checkpoint.path_of(self.run, written.state.step)] = written.measured
        self._rotate()

    def _failed(self, state: State, error: Exception) -> None:
        if isinstance(error, RunInUse) or not isinstance(error, RunError | OSError):
            raise error
        self._failed_in_a_row += 1
        problem = error.problem if isinstance(error, RunError) else str(error)
        resumable = f"from step {self.last_step}" if self._whole else "from its beginning"
        room = f"it needs about {ROOM * state.size_bytes / 1e6:,.1f} MB, and {files.free_bytes(self.run.path) / 1e6:,.1f} MB are free"
        if self._failed_in_a_row == MOST_FAILED:
            raise MachineError(
                f"{MOST_FAILED} checkpoints in a row could not be written: {problem} ({room})",
                where=str(self.run.checkpoints),
                next_step=f"free some space, then luthier train --resume {self.run.path} goes on {resumable}",
            ) from error
        self.say(f"the checkpoint of step {state.step} could not be written: {problem}; {room}. Training goes on; resumable {resumable}")

    def _warn_of_little_room(self, state: State) -> None:
        free = files.free_bytes(self.run.path)
        if free < ROOM * state.size_bytes:
            self._say_once(f"little room for a checkpoint: it needs about {ROOM * state.size_bytes / 1e6:,.1f} MB, and {free / 1e6:,.1f} MB are free")

    def _has_room_for_copy(self) -> bool:
        if self._copies is None:
            size_bytes = checkpoint.copy_bytes(self.engine)
            limit = bytes_of(self.max_memory) if self.max_memory and self.engine.device.type == "cpu" else machine.memory_bytes()
            self._copies = host_peak_bytes() + size_bytes < limit
            if not self._copies:
                self._say_once(f"async_save: a copy of {size_bytes / 1e9:.2g} GB does not fit beside the run: training waits for each checkpoint")
        return self._copies

    def _say_once(self, line: str) -> None:
        if (what := line.partition(":")[0]) not in self._said:
            self._said.add(what)
            self.say(line)

    def _rotate(self) -> None:
        """Delete those that are neither among the newest nor among the best."""
        known = sorted(self._whole, key=sealed.number)
        kept = {*known[-self.training.save_total_limit :], *self._best()}
        for path in [path for path in known if path not in kept]:
            del self._whole[path]
            try:
                if not checkpoint.damage(path, sizes_only=True):  # what was damaged since is left for its owner to look at
                    files.remove_folder(path)
            except (RunError, OSError) as error:
                self.say(f"{path.name} could not be deleted: {error.problem if isinstance(error, RunError) else error}")

    def _rank(self, one: Measured) -> float:
        """Less is better."""
        return self._aim.rank(one.value)

    def _best(self) -> dict[Path, Measured]:
        """The best checkpoints that are there, as many as are kept, best first."""
        return dict(self._from_best_on()[: self.training.keep_best]) if self.saves_best else {}

    def _from_best_on(self) -> list[tuple[Path, Measured]]:
        """All checkpoints that were measured, the best first; of two that are alike the earlier."""
        measured = {path: one for path, one in self._whole.items() if one and one.name == self._aim.name}
        return sorted(measured.items(), key=lambda item: (self._rank(item[1]), sealed.number(item[0])))

    def load_best(self) -> None:
        """With load_best_model_at_end: put the best checkpoint that is whole into the engine, say so, and write to best.json which that is."""
        self.join()
        if not self.training.load_best_model_at_end:
            return
        run_lock.require_not_taken(self.run.path)
        for path, measured in self._from_best_on():
            if problem := checkpoint.damage(path):
                self.say(f"not used, though it was measured as {measured.name} {measured.value:.4f}: {path.name}: {problem}")
                continue
            checkpoint.load(path, self.engine)
            files.write_json(self.run.best, {"step": sealed.number(path), **dataclasses.asdict(measured)})
            self.say(f"the best is step {sealed.number(path)} ({measured.name} {measured.value:.4f}): it is what the run leaves")
            return
        self.say("load_best_model_at_end: no checkpoint that was measured is there whole; the run leaves its last weights")


@dataclass(slots=True)
class _Written:
    """A checkpoint that is being written by a thread, and what kept it from that."""

    state: State
    measured: Measured | None
    error: Exception | None = None

    def write(self, run: RunFolder, about: Mapping[str, Any]) -> None:
        try:
            checkpoint.write(run, self.state, about)
        except Exception as error:
            self.error = error


def due_at(settings: Settings, rows: int, updates: int) -> Callable[[int], bool]:
    """The updates after which save_strategy wants a checkpoint."""
    training = settings.training
    batch_size = int(training.batch_size)

    def due(step: int) -> bool:
        if training.save_strategy == "epoch":
            return step == updates or step * batch_size // rows > (step - 1) * batch_size // rows
        return training.save_strategy == "steps" and (step == updates or step % training.save_steps == 0)

    return due


def _about(run: RunFolder, settings: Settings) -> dict[str, Any]:
    """What the run's checkpoints say of it: hashes of its settings, rows and models, the machine and the libraries, and what was chosen."""
    environment = files.read_json(run.environment) if run.environment.is_file() else {}
    return {
        "config": files.sha256(run.config) if run.config.is_file() else None,
        **{name: environment[name] for name in KEPT_OF_ENVIRONMENT if name in environment},
        "precision": settings.training.precision,
        "micro_batch_tokens": settings.training.micro_batch_tokens,
    }
