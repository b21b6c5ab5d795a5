"""Start small: the whole way of a config on the smallest model that will do and a few rows, before the real run takes its hours."""

import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from luthier.config.load import Config
from luthier.config.methods import METHODS
from luthier.errors import LuthierError, ModelError, RunError
from luthier.models import cache, catalog, find
from luthier.models.catalog import ModelCard
from luthier.recipes import conversation, evaluation, handover, planning, training
from luthier.recipes.proofs.bench import with_values
from luthier.reporting import Reporter, Silent
from luthier.run_folder import RunFolder
from luthier.train.session import Interrupted

ROWS = 100
DEFAULT = "smollm2-135m-instruct"
# Below output_dir, in a folder of their own: `last` is the newest run and never a rehearsal.
FOLDER = "rehearsals"
LONGEST_ANSWER = 64
ASKED_ROWS = 8


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of the way: how long it took, and what came of it."""

    name: str
    seconds: float
    said: str


@dataclass(slots=True)
class Rehearsal:
    """What was run, on which model, and what the real run would take (lines of its plan)."""

    run: RunFolder
    model: str
    stages: list[Stage]
    real: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return {"run": str(self.run.path), "model": self.model, "stages": [asdict(stage) for stage in self.stages], "real_run": self.real}


def rehearse(config: Config, reporter: Reporter | None = None, *, rows: int = ROWS) -> Rehearsal:
    """Train, evaluate, export and chat as `config` says, on a small sibling of its model and `rows` rows.

    It stays in output_dir/rehearsals and is not `last`. Raises LuthierError where a stage fails, which names the stage.
    """
    reporter = reporter or Silent()
    small, notes = rehearsed(config, rows, reporter)
    for note in notes:
        reporter.say(note)
    stages: list[Stage] = []

    def stage(name: str, work: Callable[[], tuple[Any, str]]) -> Any:
        start = time.perf_counter()
        try:
            result, said = work()
        except Interrupted:
            raise
        except LuthierError as error:
            failure = LuthierError(f"the rehearsal stops at {name}: {error.problem}", where=error.where, next_step=error.next_step)
            failure.exit_code = error.exit_code
            raise failure from error
        stages.append(Stage(name, round(time.perf_counter() - start, 1), said))
        return result

    run = stage("train", lambda: _trained(small, reporter))
    stage("evaluate", lambda: _evaluated(run, reporter))
    stage("export", lambda: _exported(run, small, reporter))
    stage("chat", lambda: _asked(run, small))
    stages.append(Stage("serve", 0.0, "there is no server in this version"))
    return Rehearsal(run, small.settings.model, stages, _real(config))


def rehearsed(config: Config, rows: int, reporter: Reporter) -> tuple[Config, list[str]]:
    """The config of the rehearsal, and what it has otherwise."""
    settings = config.settings
    card = sibling(settings.model, reporter)
    folder = f"{config.beside(settings.output_dir)}/{FOLDER}"
    values: dict[str, Any] = {"model": card.name, "data.max_rows": rows, "output_dir": str(Path(folder).resolve()), "resume": "never"}
    notes = [f"rehearsal: {card.name} in place of {settings.model}, {rows} rows, 1 epoch, in {folder}"]
    epochs = min(1.0, settings.training.num_train_epochs)
    values |= {"report_to": [], "training.num_train_epochs": epochs, "evaluation.max_rows": ASKED_ROWS, "evaluation.base_rows": ASKED_ROWS}
    if settings.evaluation.max_new_tokens == "auto" or int(settings.evaluation.max_new_tokens) > LONGEST_ANSWER:
        values["evaluation.max_new_tokens"] = LONGEST_ANSWER
    if settings.data.too_long == "error":
        values["data.too_long"] = "drop"  # of a hundred rows, one is 1 %
    if settings.data.max_length != "auto" and int(settings.data.max_length) > card.facts.context - settings.virtual_tokens:
        values["data.max_length"] = card.facts.context - settings.virtual_tokens
        notes.append(f"data.max_length: {values['data.max_length']}, the context of {card.name}")
    if settings.init_from:
        values["init_from"] = None
        notes.append("init_from is left out: it holds what was trained beside another model")
    return with_values(config, values), notes


def sibling(model: str, reporter: Reporter) -> ModelCard:
    """The smallest model of the same family in the catalog that can be had, those on this disk first; else the default one."""
    here = {kept.name for kept in cache.cached()}
    own = sorted((card for card in catalog.cards() if _family(card.name) == _family(Path(model).name)), key=lambda card: card.facts.parameters)
    own.sort(key=lambda card: not {card.name, card.hub} & here)
    for card in own:
        try:
            find.find(card.name, reporter)
        except ModelError as error:
            reporter.say(f"{card.name} cannot be had here: {error.problem}")
        else:
            return card
    return next(card for card in catalog.cards() if card.name == DEFAULT)


def _family(name: str) -> str:
    """What stands before the size: smollm2 of smollm2-135m-instruct."""
    return re.split(r"[-_](?=[0-9.]+[mb]\b)", name.lower())[0]


def _trained(config: Config, reporter: Reporter) -> tuple[RunFolder, str]:
    run = training.fit(config, reporter)
    steps = run.read_metrics("train")
    return run, f"{len(steps)} updates, loss {steps[0]['loss']:.3f} -> {steps[-1]['loss']:.3f}"


def _evaluated(run: RunFolder, reporter: Reporter) -> tuple[None, str]:
    if not run.held_out.exists() or not run.held_out.stat().st_size:
        return None, "no rows are held out"
    scores = evaluation.evaluate(run, reporter).models["tuned"]
    return None, ", ".join(f"{name} {metric.value:.0%} of {metric.n}" for name, metric in scores.items())


def _exported(run: RunFolder, config: Config, reporter: Reporter) -> tuple[None, str]:
    method = METHODS[config.settings.method]
    to = "merged" if method.merges or method.leaves == "model" else "adapter"
    path, parity = handover.export(run, to, reporter)
    if not parity.passed:
        raise RunError(
            "what was exported does not answer as the trained model does", where=str(path), next_step="luthier verify shows which step differs"
        )
    return None, f"{to}: mean KL {parity.mean_kl:.1e} nats a token"


def _asked(run: RunFolder, config: Config) -> tuple[None, str]:
    talk = conversation.open_talk(run, Silent(), max_new_tokens=LONGEST_ANSWER)
    answer = "".join(talk.ask("Hello"))
    return None, f"'Hello' -> {answer[:60]!r}"


def _real(config: Config) -> list[str]:
    """What the real run would take, by plan; why not, where that cannot be told."""
    try:
        return planning.make_plan(config).lines()
    except LuthierError as error:
        return [f"cannot be planned: {error.problem}"]
