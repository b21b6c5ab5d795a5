"""What is known of a run: its folder, read once, and what the recipe measured with its model and its rows, where it did."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luthier import files
from luthier.config.load import load_config
from luthier.config.settings import Settings
from luthier.diagnose.rank import Update, updates_of
from luthier.errors import LuthierError
from luthier.models import facts
from luthier.models.facts import ModelFacts
from luthier.plan import hyperparameters
from luthier.records import Conversation, Scorecard, Source
from luthier.run_folder import RunFolder, read_scorecard

# Fewer updates make no curve.
LEAST_UPDATES = 20


@dataclass(frozen=True, slots=True)
class Answered:
    """A question, what should be answered, and what the tuned model says. `stopped`: it ended the answer itself, before the limit."""

    source: Source
    prompt: str  # the last message of the question
    expected: str
    answer: str
    stopped: bool


@dataclass(frozen=True, slots=True)
class Decoding:
    """How the same questions are answered with one way of drawing words: shares from 0 to 1."""

    sampling: dict[str, float]
    flawed: float  # answers that loop, do not end or are empty
    right: float  # answers that are the expected ones


@dataclass(frozen=True, slots=True)
class Noise:
    """Squared norms of the loss' gradient, by how many rows it was taken over (McCandlish 2018, arXiv:1812.06162, appendix A.1)."""

    small_rows: int
    small_squared: float
    big_rows: int
    big_squared: float

    @property
    def scale(self) -> float:
        """B_simple = trace of the gradient's covariance / |G|^2, in rows: well below it, the gradient of a batch is mostly noise. Infinite
        where no gradient stands out of the noise at all."""
        signal = (self.big_rows * self.big_squared - self.small_rows * self.small_squared) / (self.big_rows - self.small_rows)
        noise = (self.small_squared - self.big_squared) / (1 / self.small_rows - 1 / self.big_rows)
        return max(noise, 0.0) / signal if signal > 0 else float("inf")


@dataclass(frozen=True, slots=True)
class Probed:
    """What was measured with the trained model. Losses are means over the trained tokens, in nats."""

    answers: Sequence[Answered] = ()
    held_out: bool = True  # whether the questions are held-out rows, or rows that were trained
    grid: Sequence[Decoding] = ()
    end_of_turn: Sequence[float] = ()  # after each expected answer: the probability that the model ends it there
    base_loss: float | None = None  # of the questions' expected answers
    tuned_loss: float | None = None
    row_losses: Sequence[tuple[Source, float]] = ()  # of training rows
    noise: Noise | None = None
    template: Sequence[str] = ()  # in what the run's prompts are not what its model knows, a sentence each


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of the run, as they were read; `of_update` names those of an update (counted from 1)."""

    train: Sequence[Conversation]
    held_out: Sequence[Conversation]
    of_update: Callable[[int], list[str]] | None = None


@dataclass(frozen=True, slots=True)
class RowLosses:
    """The losses of one row in the order it was trained: (update, loss)."""

    source: str
    losses: Sequence[tuple[int, float]]

    @property
    def stays(self) -> float:
        """The lowest loss after the row was learned from once (of a row that was trained once: that loss)."""
        return min(loss for _, loss in self.losses[1:] or self.losses)


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that a check may look at. What was not recorded or not measured is empty or None."""

    run: RunFolder
    settings: Settings
    steps: Sequence[dict[str, Any]]
    evaluations: Sequence[dict[str, Any]]
    skipped: Sequence[dict[str, Any]]
    smaller_cuts: Sequence[dict[str, Any]]
    reading_seconds: float | None  # that the rows took to be read, of all updates
    ledger: dict[str, Any]
    plan: dict[str, Any]
    scorecard: Scorecard | None
    other_scorecards: dict[str, Scorecard]  # of further evaluations (a suite, another file), by their names
    updates: Sequence[Update]  # of a LoRA adapter
    usual_rate: float | None  # what the plan would choose for this model and method
    model: ModelFacts | None
    row_losses: Sequence[RowLosses] = ()
    rows: Rows | None = None
    probed: Probed = field(default_factory=Probed)
    damaged: Sequence[str] = ()  # files that could not be read, a line each

    @property
    def losses(self) -> list[float]:
        return [float(row["loss"]) for row in self.steps]

    @property
    def held_out_losses(self) -> list[tuple[int, float]]:
        """(update, loss) of each measurement whose loss was finite."""
        return [(row["step"], float(row["loss"])) for row in self.evaluations if row["loss"] is not None]

    def rows_of(self, step: int) -> list[str]:
        """The rows of an update, where they are known."""
        recorded = [one.source for one in self.row_losses if any(number == step for number, _ in one.losses)]
        if recorded or self.rows is None or self.rows.of_update is None:
            return recorded
        return self.rows.of_update(step)


def read(run: RunFolder, *, adapter: bool = True) -> Evidence:
    """What the folder of a run says, and its adapter's tensors where they are wanted (their products need memory).

    What is damaged or missing there is left out; raises LuthierError where its settings cannot be read.
    """
    settings = load_config(run.config).settings
    damaged: list[str] = []

    def known(path: Path, read: Callable[[], Any], otherwise: Any) -> Any:
        """What `read` gives, where `path` is there; a damaged file is named, and is evidence that is not there."""
        try:
            return read() if path.exists() else otherwise
        except (LuthierError, OSError, KeyError, TypeError, ValueError) as error:
            damaged.append(f"{path} cannot be used ({error.problem if isinstance(error, LuthierError) else repr(error)})")
            return otherwise

    def stored(path: Path) -> Any:
        return known(path, lambda: dict(files.read_json(path)), {})

    model = Path(str(stored(run.environment).get("model_folder", ""))) / "config.json"
    data = run.read_metrics("data")
    return Evidence(
        run=run,
        settings=settings,
        steps=[row for row in run.read_metrics("train") if row.get("loss") is not None],
        evaluations=run.read_metrics("eval"),
        skipped=[row for row in run.read_metrics("skipped") if not row.get("overflowed")],
        smaller_cuts=run.read_metrics("memory"),
        reading_seconds=sum(row["seconds"] for row in data) if data else None,
        ledger=stored(run.ledger),
        plan=stored(run.plan),
        scorecard=known(run.scorecard, run.read_scorecard, None),
        other_scorecards={
            path.parent.name: found
            for path in sorted(run.evals.glob("*/scorecard.json"))
            if (found := known(path, functools.partial(read_scorecard, path), None)) is not None
        },
        updates=known(run.adapter, lambda: updates_of(run.adapter), []) if adapter else [],
        usual_rate=known(model, lambda: _usual_rate(settings, model.parent), None),
        model=known(model, lambda: facts.from_folder(model.parent), None),
        row_losses=_losses_by_row(run),
        damaged=damaged,
    )


def _usual_rate(settings: Settings, folder: Path) -> float:
    chosen = hyperparameters.learning_rate(facts.from_folder(folder), settings.method, settings.training.optim, settings.objective)
    return float(str(chosen.value))


def _losses_by_row(run: RunFolder) -> list[RowLosses]:
    found: dict[str, list[tuple[int, float]]] = {}
    for row in run.read_row_losses():
        if row["loss"] is not None:
            found.setdefault(row["source"], []).append((row["step"], float(row["loss"])))
    return [RowLosses(source, losses) for source, losses in found.items()]
