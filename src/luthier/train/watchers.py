"""Those who are told of each update: they say it, save, and measure the held-out rows."""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

from luthier.config.settings import Settings
from luthier.data.prepare import Prepared
from luthier.data.read.source import SourceFile
from luthier.engine import Engine
from luthier.plan.machine import process_seconds
from luthier.records import Source, StepReport, named
from luthier.reporting import Bar, Reporter
from luthier.run_folder import RunFolder
from luthier.stopping import Stop
from luthier.train.best import Patience
from luthier.train.loop import Skipped, Watcher
from luthier.train.measuring import BASE, Gauge, Measurement

# Which of an objective's numbers a printed line has, and what it calls them.
TOLD = {"rewards/margins": "margin", "rewards/accuracies": "accuracy"}

# A loss is told that is so many times the median of so many updates before it, and so many nats above it.
SPIKE, SPIKE_UPDATES, SPIKE_NATS = 10.0, 20, 1.0
# The files of rows are looked at this often.
LOOK_SECONDS = 10.0


def tell(run: RunFolder, reporter: Reporter, line: str) -> None:
    """Say a line, and keep it in the run's log."""
    run.say(line)
    reporter.say(line)


def first_update_teller(run: RunFolder, engine: Engine, reporter: Reporter) -> Watcher:
    """Says what the rows of the first update shared, and logs how long the process took until it began."""
    said = False

    def watch(report: StepReport) -> None:
        nonlocal said
        if not said:
            tell(run, reporter, f"shared beginnings in the first update: {engine.sharing}")
            run.say(f"the first update began {process_seconds() - report.seconds:.1f} s after the start of the program")
        said = True

    return watch


def teller(bar: Bar, reporter: Reporter, updates: int, every: int, measured: Mapping[str, str]) -> Watcher:
    """Moves the bar at every update, with its numbers and those last `measured`, and prints a line now and then."""
    seen = {"updates": 0, "tokens": 0, "executed": 0, "seconds": 0.0}

    def tell(report: StepReport) -> None:
        seen["updates"] += 1
        seen["tokens"] += report.logical_tokens
        seen["executed"] += report.executed_tokens
        seen["seconds"] += report.seconds
        rate, left = seen["tokens"] / seen["seconds"], (updates - report.step) * seen["seconds"] / seen["updates"]
        numbers = {
            "loss": f"{report.loss:.4f}",
            "tokens/s": f"{rate:,.0f} of the rows, {seen['executed'] / seen['seconds']:,.0f} run",
            "memory": f"{report.peak_bytes / 1e9:.2f} GB at most",
            "learning rate": f"{report.learning_rate:.2e}",
            "time left": f"{left:,.0f} s",
        }
        bar.advance(report.step, f"loss {report.loss:.3f}  {rate:,.0f} tokens/s", numbers | dict(measured))
        if report.step % every == 0 or report.step == updates:
            place = f"step {report.step}/{updates}  loss {report.loss:.4f}{told(report.metrics)}"
            reporter.say(f"{place}  rate {report.learning_rate:.2e}  {rate:,.0f} tokens/s  about {left:.0f} s left")

    return tell


def changed_files_teller(run: RunFolder, files: Sequence[SourceFile], reporter: Reporter) -> Watcher:
    """Says once of each file of rows that it is no longer as it was read: the training has its rows, and goes on with them."""
    unchanged, looked_s = list(files), -math.inf

    def watch(report: StepReport) -> None:
        nonlocal looked_s
        if time.monotonic() - looked_s < LOOK_SECONDS:
            return
        looked_s = time.monotonic()
        for file in unchanged.copy():
            if problem := _change(file):
                unchanged.remove(file)
                tell(run, reporter, f"{file.name} {problem} since it was read; training goes on with the rows as they were then")

    return watch


def _change(file: SourceFile) -> str:
    try:
        found = file.place.stat()
    except OSError:
        return "was deleted or moved"
    return "" if (found.st_size, found.st_mtime_ns) == (file.size_bytes, file.modified_ns) else "has changed"


def skip_teller(run: RunFolder, reporter: Reporter) -> Callable[[Skipped], None]:
    """Keeps and says which update was skipped, and its rows."""

    def skip(skipped: Skipped) -> None:
        run.add_skipped(skipped.step, skipped.rows, overflowed=skipped.overflowed)
        tell(run, reporter, str(skipped))

    return skip


def spike_teller(run: RunFolder, reporter: Reporter, rows_of: Callable[[int], list[Source]]) -> Watcher:
    """Names the rows of an update whose loss is SPIKE times that of the updates before it: often a broken row, or too high a rate."""
    before: list[float] = [row["loss"] for row in run.read_metrics("train")[-SPIKE_UPDATES:]]

    def watch(report: StepReport) -> None:
        usual = statistics.median(before) if len(before) >= SPIKE_UPDATES // 4 else math.inf
        if report.loss > max(SPIKE * usual, usual + SPIKE_NATS):
            tell(run, reporter, f"step {report.step}: the loss is {report.loss:.3g}, and {usual:.3g} was usual (rows {named(rows_of(report.step))})")
        before.append(report.loss)
        del before[:-SPIKE_UPDATES]

    return watch


def evaluates_at(settings: Settings, updates: int) -> Callable[[int], bool]:
    """The updates after which the held-out rows are measured."""
    every = settings.evaluation.every_steps
    return lambda step: step == updates or bool(every and step % every == 0)


def evaluator(
    run: RunFolder,
    engine: Engine,
    prepared: Prepared,
    gauge: Gauge,
    settings: Settings,
    updates: int,
    reporter: Reporter,
    on_measured: Callable[[int, Measurement], None],
) -> Watcher:
    """Measures the held-out rows every so often and at the end, tells `on_measured`, and shows a few answers where that is asked for."""
    due, held = evaluates_at(settings, updates), prepared.held_out

    def watch(report: StepReport) -> None:
        if not held or not due(report.step):
            return
        found = gauge.measure()
        on_measured(report.step, found)
        if not math.isfinite(found.loss):
            rows = [row.source for row, value in zip(held, engine.log_probabilities(held), strict=True) if not math.isfinite(value)]
            run.add_evaluation(report.step, found.loss, found.metrics, rows, found.drift)
            tell(run, reporter, f"step {report.step}/{updates}  the held-out loss is {found.loss} ({len(rows)} of {len(held)} rows: {named(rows)})")
            return
        run.add_evaluation(report.step, found.loss, found.metrics, drift=found.drift)
        reporter.say(f"step {report.step}/{updates}  held-out loss {found.loss:.4f}{told(found.metrics)}{_of_answers(found)}{_of_drift(found)}")
        for row, answer in found.answers:
            reporter.say(f"  {_on_a_line(row.prompt[-1].content)}  ->  {_on_a_line(answer)}")

    return watch


def end_where_none_is_better(step: int, found: Measurement, patience: Patience, stop: Stop, say: Callable[[str], None]) -> None:
    """Take a measurement in; where the run has waited long enough for a better one, it ends."""
    patience.add(step, found.loss, found.metrics, found.drift)
    if patience.over and not stop.enough:
        stop.enough = True
        say(f"step {step}: {patience}: the training ends")


def _of_answers(found: Measurement) -> str:
    """The counted answers with the base's beside them."""
    pairs = ((name.removeprefix(BASE), value) for name, value in found.metrics.items() if name.startswith(BASE))
    return "".join(f"  {name} {found.metrics[name]:.3f} (base {base:.3f})" for name, base in pairs)


def _of_drift(found: Measurement) -> str:
    return f"  drift {found.drift['kl']:.4f}" if found.drift else ""


def numbers_of(found: Measurement, step: int) -> dict[str, str]:
    """A measurement as a screen shows it, by name."""
    bases = {name.removeprefix(BASE): value for name, value in found.metrics.items() if name.startswith(BASE)}
    answers = {name: f"{found.metrics[name]:.3f} (base {base:.3f})" for name, base in bases.items()}
    objective = {word: f"{found.metrics[name]:.3f}" for name, word in TOLD.items() if name in found.metrics}
    moved = found.drift
    forgetting = {
        "drift from the base": f"{moved['kl']:.4f} nats",
        "loss on general rows": f"{moved['general_loss']:.3f} (base {moved['base_general_loss']:.3f})",
    } if moved else {}  # fmt: skip
    return {"held-out loss": f"{found.loss:.4f} (step {step})", **objective, **answers, **forgetting}


def told(metrics: Mapping[str, float]) -> str:
    """What a line says of an objective's own numbers beside the loss."""
    return "".join(f"  {word} {metrics[name]:.3f}" for name, word in TOLD.items() if name in metrics)


def _on_a_line(text: str) -> str:
    """Text of a row or a model as part of a line: short, and without characters that move a terminal's cursor."""
    shown = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
    return shown if len(shown) <= 100 else f"{shown[:97]}..."
