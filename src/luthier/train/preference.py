"""Rows that judge, as the training takes them: pairs or labeled answers, with what the model made of them before the training."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from hashlib import sha256
from typing import Any, overload

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from luthier import files
from luthier.config.methods import METHODS
from luthier.config.preference import REFERENCED
from luthier.config.settings import Settings
from luthier.data.prepare import Prepared
from luthier.data.store import Places
from luthier.engine import Engine, orders
from luthier.records import Judged, TokenizedExample, UpdateLoss
from luthier.reporting import Reporter
from luthier.run_folder import RunFolder
from luthier.train.measuring import Score
from luthier.train.objectives import Update, weights_of
from luthier.train.session import Task
from luthier.train.watchers import tell

Values = np.ndarray[Any, np.dtype[np.float64]]
# Rows between two moves of the bar while the reference is computed.
REFERENCE_ROWS = 32
# The reference's parts in its file, and for people.
KEPT, SAID = ("train", "held_out"), ("training", "held-out")


@dataclass(frozen=True)
class JudgedRows(Sequence[Judged]):
    """The examples of judged rows, a row after the other: two of a pair (`good` is None), or one, which is good or bad.

    `longest` is the most tokens that a mismatched row may have. `reference`, where it is known, has for each row the log-probabilities that
    a `Judged` holds.
    """

    examples: Sequence[TokenizedExample]
    good: Sequence[bool] | None
    longest: int
    reference: Values | None = None

    def __len__(self) -> int:
        return len(self.examples) // self.per_row

    @overload
    def __getitem__(self, place: int) -> Judged: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Judged]: ...
    def __getitem__(self, place: int | slice) -> Judged | Sequence[Judged]:
        if isinstance(place, slice):
            return [self[index] for index in range(*place.indices(len(self)))]
        if not 0 <= place < len(self):
            raise IndexError(place)
        reference = () if self.reference is None else tuple(self.reference[place].tolist())
        if self.good is None:
            return Judged(self.examples[2 * place], self.examples[2 * place + 1], reference=reference)
        example, good = self.examples[place], self.good[place]
        other = None if self.others is None else _mismatched(example, self.examples[int(self.others[place])], self.longest)
        return Judged(example if good else None, None if good else example, other, reference)

    @cached_property
    def others(self) -> Places | None:
        """For each single row the nearest before it (round the end) that has another prompt; None where there is none.

        TRL takes the row before. That one often has the same prompt: a pair that was cut into two rows, or a row that counts several times.
        """
        prompts = (_prompt(example) for example in self.examples)
        before: list[int] = []
        last, seen = -1, None
        for place, prompt in enumerate(prompts):
            if seen is not None and prompt != seen:
                last = place - 1
            before.append(last)
            seen = prompt
        if last < 0:
            return None
        # The first rows, which nothing else stands before, go on from the end, whose rows are of their prompt or of another.
        first = len(before) - 1 if seen != _prompt(self.examples[0]) else last
        return np.asarray([first if place < 0 else place for place in before], np.int64)

    @property
    def per_row(self) -> int:
        """The examples of a row."""
        return 2 if self.good is None else 1

    def lengths(self, of_examples: Places) -> Places:
        """The tokens of each row, of those of each example."""
        return np.asarray(of_examples.reshape(-1, self.per_row).sum(axis=1), np.int64)


def _mismatched(asked: TokenizedExample, answered: TokenizedExample, longest: int) -> TokenizedExample:
    """The prompt of one row with the answer of another, which is cut where both are longer than a row may be."""
    prompt = _prompt(asked)
    end = len(answered.trained) - answered.trained[::-1].index(True)
    answer = answered.token_ids[answered.trained.index(True) : end][: longest - len(prompt)]
    return TokenizedExample(prompt + answer, [False] * len(prompt) + [True] * len(answer), asked.source)


def _prompt(example: TokenizedExample) -> list[int]:
    return example.token_ids[: example.trained.index(True)]


def judged_rows(prepared: Prepared, objective: str) -> tuple[JudgedRows, JudgedRows]:
    """The rows to train on and those held out."""
    longest = int(prepared.ledger["max_length"])

    def of(examples: Sequence[TokenizedExample], rows: Sequence[Any]) -> JudgedRows:
        return JudgedRows(examples, [bool(row.label) for row in rows] if objective == "kto" else None, longest)

    return of(prepared.train, prepared.rows.train), of(prepared.held_out, prepared.rows.held_out)


def task(settings: Settings, engine: Engine, prepared: Prepared, run: RunFolder, reporter: Reporter, score: Score | None = None) -> Task:
    """What the training learns of judged rows. The reference is computed, or read where the run has it already."""
    rows, held_out = judged_rows(prepared, settings.objective)
    for note in _notes(rows, held_out):
        tell(run, reporter, note)
    if settings.objective in REFERENCED:
        rows, held_out = _with_reference(settings, engine, prepared, (rows, held_out), run, reporter)
    weights = weights_of(settings.preference, settings.objective)

    def update_of(some: Sequence[Judged]) -> Update:
        return Update(some, settings.objective, weights, _drift(engine, some) if settings.objective == "kto" else 0.0)

    def forward_backward(some: Sequence[Judged], row_losses: bool) -> UpdateLoss:
        update = update_of(some)
        if engine.crew:
            told = {"rows": orders.of_judged(some), "objective": settings.objective, "weights": asdict(weights), "drift": update.drift}
            engine.crew.order_update("judge", **told)
        measured = engine.forward_backward_judged(update.examples, update.together, update.loss)
        return replace(measured, metrics=update.metrics, row_losses=update.row_losses if row_losses else None)

    def measure() -> tuple[float, dict[str, float]]:
        update = update_of(held_out[:])
        logps = torch.tensor(engine.log_probabilities(update.examples), dtype=torch.float64)
        return float(update.loss(list(range(len(logps))), logps)), update.metrics

    return Task(rows, rows.lengths(prepared.lengths), measure, score, forward_backward)


def _notes(rows: JudgedRows, held_out: JudgedRows) -> Iterator[str]:
    """What labeled rows are too alike for."""
    if rows.good is None:
        return
    if len(set(rows.good)) == 1:
        one, other = ("good", "bad") if rows.good[0] else ("bad", "good")
        yield f"note: every training row is labeled {one}; kto learns from {other} answers too"
    for some, what in zip((rows, held_out), SAID, strict=True):
        if len(some) and some.others is None:
            yield f"note: all {what} rows have one prompt, so that kto's drift cannot be measured on another's answers; it is 0 there"


def _drift(engine: Engine, rows: Sequence[Judged]) -> float:
    """KTO's z0: the mean log-ratio of answers to other prompts, at least 0 (Ethayarajh 2024, arXiv:2402.01306, section 4.2)."""
    mismatched = [row.mismatched for row in rows if row.mismatched]
    if not mismatched:
        return 0.0
    now = engine.log_probabilities(mismatched)
    return max(0.0, sum(value - row.reference[-1] for value, row in zip(now, rows, strict=True)) / len(rows))


def _with_reference(
    settings: Settings, engine: Engine, prepared: Prepared, both: tuple[JudgedRows, JudgedRows], run: RunFolder, reporter: Reporter
) -> tuple[JudgedRows, JudgedRows]:
    """The same rows with what the model made of them before the training, from the run's file where it belongs to them."""
    others = b"".join(rows.others.tobytes() for rows in both if rows.good is not None and rows.others is not None)
    key = sha256(prepared.sha256.encode() + prepared.held_out.places.tobytes() + others).hexdigest()
    kept = _read(run, key)
    for name, what, rows in zip(KEPT, SAID, both, strict=True):
        if name not in kept:
            with _before_training(engine, settings):
                kept[name] = _reference_of(engine, rows, what, reporter)
            # Each part when it is whole, so that a run that is stopped here keeps the long one.
            files.write_bytes(run.reference, save({**kept, f"key.{key}": np.zeros(1)}))
    return replace(both[0], reference=kept["train"]), replace(both[1], reference=kept["held_out"])


def _read(run: RunFolder, key: str) -> dict[str, Values]:
    """The parts that were kept for the rows that `key` stands for; none where the file is not whole (it is then written again)."""
    try:
        kept = load_file(run.reference)
    except (FileNotFoundError, SafetensorError):
        return {}
    return {name: kept[name] for name in KEPT if name in kept} if f"key.{key}" in kept else {}


def _reference_of(engine: Engine, rows: JudgedRows, what: str, reporter: Reporter) -> Values:
    """Two numbers a row: of both answers, or of the answer and the mismatched one (one number where there is none)."""
    found: list[list[float]] = []
    if not len(rows):
        return np.zeros((0, 2))
    with reporter.bar(f"log-probabilities of the {what} rows before the training", len(rows)) as bar:
        for start in range(0, len(rows), REFERENCE_ROWS):
            some = rows[start : start + REFERENCE_ROWS]
            examples = [(*row.examples, *([row.mismatched] if row.mismatched else [])) for row in some]
            values = engine.log_probabilities([example for of_row in examples for example in of_row])
            size = len(examples[0])
            found += [values[place : place + size] for place in range(0, len(values), size)]
            bar.advance(len(found))
    return np.asarray(found, np.float64)


@contextmanager
def _before_training(engine: Engine, settings: Settings) -> Iterator[None]:
    """The model as it is before the first update. An adapter that does not begin as the base is switched off, unless it is an earlier run's."""
    if engine.adapted and not METHODS[settings.method].begins_as_base and not settings.init_from:
        with engine.model.disable_adapter():
            yield
    else:
        yield
