"""Those who are told of each update: they say it, save, and measure the held-out rows."""

import itertools
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

from luthier.config.settings import Settings
from luthier.data.prepare import Prepared
from luthier.data.read.source import SourceFile
from luthier.data.tokenize import prompt_ids
from luthier.engine import Engine
from luthier.plan.machine import process_seconds
from luthier.records import Source, StepReport, named
from luthier.reporting import Bar, Reporter
from luthier.run_folder import RunFolder
from luthier.train.loop import Watcher

# What the held-out rows give: their loss, and the objective's own numbers.
HeldOut = tuple[float, dict[str, float]]
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


def teller(bar: Bar, reporter: Reporter, updates: int, every: int) -> Watcher:
    """Moves the bar at every update and prints a line now and then."""
    seen = {"updates": 0, "tokens": 0, "seconds": 0.0}

    def tell(report: StepReport) -> None:
        seen["updates"] += 1
        seen["tokens"] += report.logical_tokens
        seen["seconds"] += report.seconds
        rate = seen["tokens"] / seen["seconds"]
        bar.advance(report.step, f"loss {report.loss:.3f}  {rate:,.0f} tokens/s")
        if report.step % every == 0 or report.step == updates:
            left = (updates - report.step) * seen["seconds"] / seen["updates"]
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
    measure: Callable[[], HeldOut],
    settings: Settings,
    updates: int,
    reporter: Reporter,
    on_measured: Callable[[int, float, dict[str, float]], None],
) -> Watcher:
    """Measures the held-out rows every so often and at the end, tells `on_measured`, and shows a few answers where that is asked for."""
    due, held = evaluates_at(settings, updates), prepared.held_out
    # A plain text asks nothing, and of a chat that was split the whole may be too long to be asked.
    asking = ((row, prompt_ids(row.prompt, engine.tokenizer, row.tools)) for row in prepared.rows.held_out if row.prompt)
    shown = list(itertools.islice(((row, ids) for row, ids in asking if engine.has_room(ids)), settings.evaluation.sample_answers))

    def watch(report: StepReport) -> None:
        if not prepared.held_out or not due(report.step):
            return
        loss, metrics = measure()
        on_measured(report.step, loss, metrics)
        if not math.isfinite(loss):
            rows = [row.source for row, value in zip(held, engine.log_probabilities(held), strict=True) if not math.isfinite(value)]
            run.add_evaluation(report.step, loss, metrics, rows)
            tell(run, reporter, f"step {report.step}/{updates}  the held-out loss is {loss} ({len(rows)} of {len(held)} rows: {named(rows)})")
            return
        run.add_evaluation(report.step, loss, metrics)
        reporter.say(f"step {report.step}/{updates}  held-out loss {loss:.4f}{told(metrics)}")
        if shown:
            answers = engine.answer([ids for _, ids in shown], max_new_tokens=int(settings.evaluation.max_new_tokens))
            for (row, _), answer in zip(shown, answers, strict=True):
                reporter.say(f"  {_on_a_line(row.prompt[-1].content)}  ->  {_on_a_line(answer)}")

    return watch


def told(metrics: Mapping[str, float]) -> str:
    """What a line says of an objective's own numbers beside the loss."""
    return "".join(f"  {word} {metrics[name]:.3f}" for name, word in TOLD.items() if name in metrics)


def _on_a_line(text: str) -> str:
    """Text of a row or a model as part of a line: short, and without characters that move a terminal's cursor."""
    shown = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
    return shown if len(shown) <= 100 else f"{shown[:97]}..."
