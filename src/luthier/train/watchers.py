"""Those who are told of each update: they say it, save, and measure the held-out rows."""

import itertools
from collections.abc import Callable, Mapping
from typing import Any

from luthier.config.settings import Settings
from luthier.data.prepare import Prepared
from luthier.data.tokenize import prompt_ids
from luthier.engine import Engine
from luthier.plan.machine import process_seconds
from luthier.records import StepReport
from luthier.reporting import Bar, Reporter
from luthier.run_folder import RunFolder
from luthier.train.loop import Watcher

# What the held-out rows give: their loss, and the objective's own numbers.
HeldOut = tuple[float, dict[str, float]]
# Which of an objective's numbers a printed line has, and what it calls them.
TOLD = {"rewards/margins": "margin", "rewards/accuracies": "accuracy"}


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


def _saves_at(settings: Settings, rows: int, updates: int) -> Callable[[int], bool]:
    training = settings.training
    batch_size = int(training.batch_size)

    def due(step: int) -> bool:
        if training.save_strategy == "epoch":
            return step == updates or step * batch_size // rows > (step - 1) * batch_size // rows
        return training.save_strategy == "steps" and (step == updates or step % training.save_steps == 0)

    return due


def _evaluates_at(settings: Settings, updates: int) -> Callable[[int], bool]:
    every = settings.evaluation.every_steps
    return lambda step: step == updates or bool(every and step % every == 0)


def weights_seen_at(settings: Settings, rows: int, updates: int) -> Callable[[int], bool]:
    """The updates after which a watcher wants the weights as they are then."""
    saves, evaluates = _saves_at(settings, rows, updates), _evaluates_at(settings, updates)
    return lambda step: saves(step) or evaluates(step)


def saver(save: Any, settings: Settings, rows: int, updates: int) -> Watcher:
    due = _saves_at(settings, rows, updates)

    def watch(report: StepReport) -> None:
        if due(report.step):
            save(report.step)

    return watch


def evaluator(
    run: RunFolder, engine: Engine, prepared: Prepared, measure: Callable[[], HeldOut], settings: Settings, updates: int, reporter: Reporter
) -> Watcher:
    """Measures the held-out rows every so often and at the end, and shows a few answers where that is asked for."""
    due = _evaluates_at(settings, updates)
    # A plain text asks nothing, and of a chat that was split the whole may be too long to be asked.
    asking = ((row, prompt_ids(row.prompt, engine.tokenizer, row.tools)) for row in prepared.rows.held_out if row.prompt)
    shown = list(itertools.islice(((row, ids) for row, ids in asking if engine.has_room(ids)), settings.evaluation.sample_answers))

    def watch(report: StepReport) -> None:
        if not prepared.held_out or not due(report.step):
            return
        loss, metrics = measure()
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
