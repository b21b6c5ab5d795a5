"""What is measured while a run goes on: the held-out loss, answers that are counted, and the drift from the base on general rows."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from luthier import files
from luthier.config.data import DataSettings
from luthier.config.load import load_config
from luthier.config.settings import EvaluationSettings, Settings
from luthier.data import general, prepare
from luthier.data.tokenize import prompt_ids
from luthier.engine import Engine, drift, opening
from luthier.engine.drift import Base, Drift
from luthier.errors import LuthierError
from luthier.records import Conversation, TokenizedExample
from luthier.reporting import Reporter
from luthier.run_folder import RunFolder

# What the held-out rows give: their loss, and the objective's own numbers.
HeldOut = tuple[float, dict[str, float]]
# Counts answers to rows: a number by the name of each metric.
Score = Callable[[Sequence[Conversation], Sequence[str]], dict[str, float]]
# Before the names of what the base answered.
BASE = "base/"
# General rows are short; of a model with a long context no more is asked.
LONGEST_GENERAL = 2048
LARGEST_EXPONENT = 700.0


@dataclass(frozen=True, slots=True)
class Measurement:
    """One evaluation: the held-out loss, the objective's and the answers' numbers, the drift ({} where it is not measured), and answers."""

    loss: float
    metrics: dict[str, float]
    drift: Drift
    answers: list[tuple[Conversation, str]]  # the first rows that were asked, for people


class Gauge:
    """Measures a run; made when its engine stands where the run goes on from, at `step`, because what is kept of the base is kept then.

    `score` counts the answers to `rows`, those that are held out and ask something.
    """

    def __init__(
        self,
        run: RunFolder,
        engine: Engine,
        settings: Settings,
        rows: Sequence[Conversation],
        measure: Callable[[], HeldOut],
        score: Score | None,
        step: int,
        reporter: Reporter,
    ) -> None:
        self.run, self.engine, self.settings, self.step, self.reporter = run, engine, settings, step, reporter
        self._measure, self._score = measure, score
        asked = settings.evaluation
        most = max(asked.sample_answers, asked.in_loop_rows)
        # A plain text asks nothing, a bad answer (kto) is none to be reached, and of a chat that was split the whole may be too long to be asked.
        asking = ((row, prompt_ids(row.prompt, engine.tokenizer, row.tools)) for row in rows if row.prompt and row.label is not False)
        self._asked = list(islice(((row, ids) for row, ids in asking if engine.has_room(ids)), most)) if most else []
        self._base = self._base_scores() if rows else {}
        self._drift = self._meter() if rows and asked.general_rows else None

    @property
    def _counted(self) -> list[tuple[Conversation, list[int]]]:
        return self._asked[: self.settings.evaluation.in_loop_rows] if self._score else []

    def measure(self) -> Measurement:
        """Everything that is measured, of the model as it is now."""
        loss, metrics = self._measure()
        answers = self._answers(self.engine, self._asked)
        scored = self._scored(answers) | self._base if self._counted else {}
        moved = self._drift() if self._drift else {}
        shown = list(zip((row for row, _ in self._asked), answers, strict=True))[: self.settings.evaluation.sample_answers]
        return Measurement(loss, metrics | scored, moved, shown)

    def _answers(self, engine: Engine, asked: Sequence[tuple[Conversation, list[int]]]) -> list[str]:
        limit = int(self.settings.evaluation.max_new_tokens)
        return engine.answer([ids for _, ids in asked], max_new_tokens=limit) if asked else []

    def _scored(self, answers: Sequence[str]) -> dict[str, float]:
        assert self._score is not None
        counted = self._counted
        return self._score([row for row, _ in counted], answers[: len(counted)])

    def _base_scores(self) -> dict[str, float]:
        """What the base answers to the same rows: from the run's own lines where they have it, so that a run that goes on has the same."""
        counted = self._counted
        if not counted:
            return {}
        names = set(self._scored([""] * len(counted)))  # those that are counted here, of all that are asked for
        for row in reversed(self.run.read_metrics("base")):
            if row["rows"] == len(counted) and names == set(row["metrics"]):
                return {f"{BASE}{name}": value for name, value in row["metrics"].items()}
        self.reporter.say(f"asking the base {len(counted)} held-out rows")
        with self._as_base() as base:
            found = self._scored(self._answers(base, counted))
        self.run.add_base(len(counted), found)
        return {f"{BASE}{name}": value for name, value in found.items()}

    @contextmanager
    def _as_base(self) -> Iterator[Engine]:
        """The base: the adapter off; where every weight is trained, the model as it is before the first update, or loaded once more."""
        if not self.engine.adapted and self.step == 0 and not self.settings.init_from:
            yield self.engine
            return
        with opening.as_base(self.engine, self.run) as base:
            yield base

    def _meter(self) -> Callable[[], Drift] | None:
        """Measures the drift. Where every weight is trained, what the base made of the rows is kept in the run folder."""
        asked = load_config(self.run.config).settings.evaluation  # a run's own settings name files wherever one stands
        try:
            examples = general_examples(self.run, self.engine, asked)
        except LuthierError as error:
            if asked.general_rows != "auto":
                raise
            self.reporter.say(f"forgetting is not measured: {error.problem}")
            return None
        if self.engine.adapted:
            return lambda: drift.from_adapter(self.engine, examples)
        kept = self._kept_base(examples)
        return lambda: drift.from_base(self.engine, examples, kept)

    def _kept_base(self, examples: Sequence[TokenizedExample]) -> Base:
        key = sha256(repr([(one.token_ids, one.trained) for one in examples]).encode()).hexdigest()
        try:
            stored = load_file(self.run.general)
        except (FileNotFoundError, SafetensorError):
            stored = {}
        if f"key.{key}" not in stored:
            with self._as_base() as base:
                found = drift.base_of(base, examples)
            stored = {"words": found.words_NK, "logps": found.logps_NK, "right": found.logps_N, f"key.{key}": torch.zeros(1)}
            files.write_bytes(self.run.general, save(stored))
        return Base(stored["words"], stored["logps"], stored["right"])


def of_answers(engine: Engine, examples: Sequence[TokenizedExample]) -> HeldOut:
    """The mean loss over the trained tokens, in nats, and the perplexity, exp(loss): between so many equally likely words a token is chosen."""
    loss = engine.held_out_loss(examples)
    return loss, {"perplexity": math.exp(loss) if loss < LARGEST_EXPONENT else math.inf}


def general_settings(asked: EvaluationSettings) -> DataSettings:
    """How general rows are read: all of them, none of them held out; those that are too long are left out."""
    place = str(general.measured_rows()) if asked.general_rows == "auto" else str(asked.general_rows)
    return DataSettings(train=place, eval=None, too_long="drop")


def check_general(asked: EvaluationSettings, base: Path, seed: int) -> None:
    """Raises DataError where the user's own general rows cannot be read: before a model is loaded."""
    if asked.general_rows not in (None, "auto"):
        prepare.load_rows(general_settings(asked), base, seed)


def general_examples(run: RunFolder, engine: Engine, asked: EvaluationSettings) -> list[TokenizedExample]:
    """The general rows as this model's tokens. Raises DataError where none can be used."""
    settings = general_settings(asked)
    longest: Any = min(engine.context or LONGEST_GENERAL, LONGEST_GENERAL)
    return list(prepare.tokenize_rows(prepare.load_rows(settings, run.path, 0), engine.tokenizer, longest, settings).train)
