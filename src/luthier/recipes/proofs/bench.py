"""What the checks work on: a slice of the rows, the run's own settings, and the model as a run trains it, in a scratch folder."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from luthier.config.load import Config
from luthier.config.section import Section
from luthier.engine import Engine, opening, probe
from luthier.models import facts, find
from luthier.plan import choose, shape
from luthier.plan.choose import Plan
from luthier.plan.cost import DataShape
from luthier.records import Judged, Proof, TokenizedExample
from luthier.reporting import Reporter, Silent
from luthier.run_folder import RunFolder
from luthier.serve import contract
from luthier.train import loop, preference, session
from luthier.train.session import Ready, Task

PASSED, FAILED, NOT_HERE = "passed", "failed", "not_for_this_config"
# The slice: as many rows as have about so many tokens together.
SLICE_TOKENS, FEWEST_ROWS, MOST_ROWS = 20_000, 16, 200
# One update that is measured again and again: at least three rows, so that it can be cut in three.
UPDATE_TOKENS, UPDATE_ROWS, FEWEST_UPDATE_ROWS = 1_000, 6, 3
# Updates before gradients are looked at: a fresh adapter hides half of the mistakes, as one of its halves is zero.
WARM_UPDATES = 1
# Where a run measures its held-out rows on the way, a run of four updates does so after two.
EVALUATED_EVERY = 2
# Longest answer that is generated for a comparison.
ANSWER_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far two ways of computing one update may be apart (relative): its loss, and any one tensor of its gradient."""

    loss: float
    gradient: float
    why: str


TOLERANCES = {
    # number format   loss, gradient
    "fp32": Tolerance(1e-5, 1e-4, "fp32 has 7 digits, and a gradient is a sum of thousands of products whose order differs"),
    "bf16": Tolerance(2e-2, 1e-1, "bf16 has 3 digits, and each of some hundred layers rounds"),
    "fp16": Tolerance(5e-3, 5e-2, "fp16 has 4 digits, and each of some hundred layers rounds"),
}


class NotHere(Exception):
    """A check that has nothing to look at with these settings, and why."""


@dataclass(slots=True)
class Bench:
    """The slice, prepared as a run prepares its rows, and what is made of it when a check first asks for it."""

    config: Config  # of the slice: every `auto` filled by the plan of the real run, output_dir the scratch folder
    asked: Config
    plan: Plan
    ready: Ready
    exact: Plan  # the same in fp32, where that fits: what is a mistake and what is rounding can then be told apart
    scratch: Path
    reporter: Reporter
    run: RunFolder
    reads: set[tuple[str, str]]
    _engine: Engine | None = None
    _task: Task | None = None
    _reloaded: Engine | None = None
    _saved: bool = False
    _opened: Plan | None = None
    learned: dict[str, Any] = field(default_factory=dict)

    @property
    def engine(self) -> Engine:
        """The model as a run trains it, a few updates after its start."""
        if self._engine is None:
            self._opened = self._opened or self.plan
            self._engine = session.start(self.run, self._opened, self.ready, Silent(), resume=False)
            self._task = self._make_task(self._engine)
            self.move(WARM_UPDATES)
        return self._engine

    def use(self, plan: Plan) -> None:
        """What follows runs as `plan` says: `exact`, or the run's own."""
        if self._opened is not plan:
            self.drop_engine()
            self._opened = plan

    @property
    def task(self) -> Task:
        """What is learned, as the recipe of the objective says."""
        _ = self.engine
        assert self._task is not None
        return self._task

    def _make_task(self, engine: Engine) -> Task:
        prepared, settings = self.ready.prepared, self.plan.settings
        if settings.objective == "sft":
            return Task(prepared.train, prepared.lengths, lambda: (engine.held_out_loss(prepared.held_out), {}))
        return preference.task(settings, engine, prepared, self.run, Silent())

    @property
    def precision(self) -> str:
        """The number format of the engine at hand."""
        return str((self._opened or self.plan).settings.training.precision)

    @property
    def tolerance(self) -> Tolerance:
        return TOLERANCES[self.precision]

    @property
    def shortest(self) -> list[Any]:
        """The rows of the slice, the shortest first: they say the same in less time, and share what all rows share."""
        return sorted(self.task.rows, key=lambda row: row.tokens)

    @property
    def update(self) -> list[Any]:
        """The rows of the update that is measured in several ways."""
        rows = self.shortest
        chosen = rows[:FEWEST_UPDATE_ROWS]
        for row in rows[FEWEST_UPDATE_ROWS:UPDATE_ROWS]:
            if sum(one.tokens for one in chosen) + row.tokens <= UPDATE_TOKENS:
                chosen.append(row)
        return chosen

    @property
    def others(self) -> list[Any]:
        """As many other rows, to move the weights with: of a row that is known by heart the loss is all rounding."""
        size = len(self.update)
        return self.shortest[size : 2 * size] or self.update

    def measure(self, rows: Sequence[TokenizedExample | Judged], update: int = 0) -> float:
        """The loss of an update as the training loop computes it; its gradients are left in the engine. `update` seeds its draws."""
        torch.manual_seed(loop.update_seed(self.plan.settings.seed, update))
        if self.task.forward_backward:
            return self.task.forward_backward(rows, False).loss
        return self.engine.forward_backward(list(rows)).loss  # type: ignore[arg-type]

    def move(self, updates: int) -> None:
        """So many updates at the run's own rate."""
        for number in range(updates):
            self.measure(self.others, number)
            self.engine.optimizer_step(float(self.plan.settings.training.learning_rate))

    def drop_engine(self) -> None:
        """The next check that needs the model gets it anew: it was changed, or its memory is needed."""
        self._engine = self._task = self._opened = None
        self._reloaded, self._saved = None, False
        self.learned.clear()

    def save(self) -> RunFolder:
        """The model as it is now as an ended run: as a recipe leaves it."""
        settings, run = self.plan.settings, self.run
        if not self._saved:
            contract.write(run, self.ready.tokenizer, self.engine.stop_ids, self.ready.prepared.rows.train)
            self.engine.save_state(run.model if settings.method == "full" else run.adapter, base_name=settings.model)
            self._saved = True
        return run

    @property
    def reloaded(self) -> Engine:
        """The same, opened from what was saved, as luthier chat does."""
        if self._reloaded is None:
            self._reloaded = opening.open_trained(self.save(), Silent())
        return self._reloaded


def open_bench(asked: Config, scratch: Path, reads: set[tuple[str, str]], reporter: Reporter, rows: int | None = None) -> Bench:
    """Plan the real run, draw the slice (`rows` of it, or by token count), and prepare it. Raises LuthierError as luthier train would."""
    config, all_rows = session.read(asked, reporter)
    settings = config.settings
    folder = find.find(settings.model, reporter, config.file.parent)
    machine = probe.known_machine(opening.device_of(settings))
    real_shape = shape.of_text(all_rows.train, settings.objective, len(all_rows.held_out))
    real = choose.resolve(settings, facts.from_folder(folder), machine, real_shape)
    count = min(len(all_rows.train), rows or slice_rows(real_shape.train_tokens / real_shape.train_rows))
    earlier = {"init_from": str((opening.earlier_adapter(config) or opening.earlier_run(config).path).resolve())} if settings.init_from else {}
    config = with_values(replace(config, settings=real.settings), {**sliced(real, count, scratch), **earlier})
    config, drawn = session.read(config, Silent())
    ready = session.tokenize(config, drawn, Silent())
    plan = session.resolve(config.settings, ready, _shape(config, ready), Silent())
    run = session.begin(config, plan, ready, len(ready.prepared.train), "verify")
    return Bench(config, asked, plan, ready, _exact(config, plan, ready), scratch, reporter, run, reads)


def _exact(config: Config, plan: Plan, ready: Ready) -> Plan:
    """The plan in fp32; the run's own where that does not fit, or the base is in 8 bits."""
    training = plan.settings.training
    if training.precision == "fp32" or training.frozen_base == "fp8":
        return plan
    settings = with_values(replace(config, settings=plan.settings), {"training.precision": "fp32"}).settings
    exact = choose.resolve(settings, ready.facts, plan.machine, _shape(config, ready))
    return exact if exact.fits else plan


def _shape(config: Config, ready: Ready) -> DataShape:
    prepared = ready.prepared
    if config.settings.objective == "sft":
        return shape.of_tokens(prepared.lengths, prepared.trained_tokens, prepared.shared_prefix_tokens)
    judged, held_out = preference.judged_rows(prepared, config.settings.objective)
    return shape.of_judged(prepared.lengths, prepared.trained_tokens, prepared.shared_prefix_tokens, judged.per_row, len(held_out))


def slice_rows(mean_tokens: float) -> int:
    """How many rows of this mean length make the slice."""
    return max(FEWEST_ROWS, min(MOST_ROWS, math.ceil(SLICE_TOKENS / mean_tokens)))


def sliced(real: Plan, rows: int, scratch: Path) -> dict[str, Any]:
    """What the slice's settings have otherwise than the run's: how much is done, and where it is written."""
    settings = real.settings
    return {
        "data.max_rows": rows,
        # Of all rows 1 % may be too long; of a few rows none might be.
        "data.too_long": "drop" if settings.data.too_long == "error" else settings.data.too_long,
        "training.batch_size": min(int(settings.training.batch_size), rows),
        "evaluation.max_new_tokens": min(int(settings.evaluation.max_new_tokens), ANSWER_TOKENS),
        "evaluation.sample_answers": 0,
        "evaluation.every_steps": settings.evaluation.every_steps and EVALUATED_EVERY,
        "evaluation.max_rows": 4,
        "output_dir": str(scratch),
        "report_to": [],
        "resume": "never",
    }


def with_values(config: Config, values: dict[str, Any]) -> Config:
    """The same with other values, by their dotted names."""
    settings = config.settings
    for name, value in values.items():
        section, _, key = name.rpartition(".")
        inner: Section = settings if not section else getattr(settings, section).model_copy(update={key: value})
        settings = settings.model_copy(update={section or key: inner if section else value})
    return replace(config, settings=settings)


Check = Callable[[Bench], Proof]


def passed(evidence: str, **numbers: object) -> Proof:
    return Proof("", PASSED, evidence, numbers=numbers)


def failed(evidence: str, next_step: str, **numbers: object) -> Proof:
    return Proof("", FAILED, evidence, next_step, numbers)
