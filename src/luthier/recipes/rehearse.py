"""Start small: the whole way of a config on the smallest model that will do and a few rows, before the real run takes its hours."""

import importlib.util
import json
import math
import re
import time
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from luthier.config.load import Config
from luthier.config.methods import METHODS
from luthier.config.settings import Settings
from luthier.errors import LuthierError, ModelError, RunError
from luthier.models import cache, catalog, find
from luthier.models.catalog import ModelCard
from luthier.recipes import conversation, evaluation, handover, planning, serving, training
from luthier.recipes.proofs.bench import with_values
from luthier.reporting import Reporter, Silent
from luthier.run_folder import RunFolder
from luthier.train.session import Interrupted

ROWS = 100
DEFAULT = "smollm2-135m-instruct"
# Below output_dir, in a folder of their own: `last` is the newest run and never a rehearsal.
FOLDER = "rehearsals"
LONGEST_ANSWER, ANSWER_S = 64, 120.0
QUESTION = "Hello"
ASKED_ROWS = 8
# A size in a name, which is rounded: what is to be smaller than a model of that name has less than this share of it.
SIZE, SMALLER = r"[0-9.]+[mb]\b", 0.9
# A model without instructions; a name that says nothing is rather one with them.
BASE = re.compile(r"[-_](base|pt)\b")
# In the name of a weight or an expression for some: a number that is no part of a word (layers.7, but not fc1 or [0-9]).
LAYER_NUMBER = re.compile(r"(?<![A-Za-z0-9_\-\[{,])[0-9]")


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
    """Train, evaluate, export, chat and serve as `config` says, on a small sibling of its model and `rows` rows.

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
    exported = stage("export", lambda: _exported(run, small, reporter))
    stage("chat", lambda: _asked(run))
    stage("serve", lambda: _served(run, small, exported))
    return Rehearsal(run, small.settings.model, stages, _real(config))


def rehearsed(config: Config, rows: int, reporter: Reporter) -> tuple[Config, list[str]]:
    """The config of the rehearsal, and what it has otherwise."""
    settings = config.settings
    card = sibling(settings.model, reporter)
    folder = f"{config.beside(settings.output_dir)}/{FOLDER}"
    values: dict[str, Any] = {"model": card.name, "data.max_rows": rows, "output_dir": str(Path(folder).resolve()), "resume": "never"}
    notes = [f"rehearsal: {card.name} in place of {settings.model}, {rows} rows, 1 epoch, in {folder}"]
    asked = settings.training.num_train_epochs
    epochs = 1.0 if asked == "auto" else min(1.0, asked)
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
    for name, value in _without_layer_numbers(settings).items():
        values[name] = value
        notes.append(f"{name}: {value}: {card.name} has other layers than {settings.model}")
    if settings.training.max_steps:
        plan = planning.make_plan(with_values(config, values))
        epoch = math.ceil(plan.rows.train_rows / int(plan.settings.training.batch_size))
        values["training.max_steps"] = min(settings.training.max_steps, epoch)
    return with_values(config, values), notes


def _without_layer_numbers(settings: Settings) -> dict[str, Any]:
    """What the settings have by the numbers of layers, by its dotted name, without these: another model may have fewer layers."""
    lora, without = settings.lora, dict[str, Any]()
    if lora.layers_to_transform:
        without["lora.layers_to_transform"] = []
    if settings.freeze.layers is not None:
        without["freeze.layers"] = None
    peft = {name: value for name, value in settings.peft.items() if name not in ("layers_to_transform", "layers_pattern")}
    if len(peft) < len(settings.peft):
        without["peft"] = peft
    targets = [lora.target_modules] if isinstance(lora.target_modules, str) else lora.target_modules
    if any(LAYER_NUMBER.search(target) for target in targets):
        without["lora.target_modules"] = "all-linear"
    by_layer: dict[str, dict[str, Any]] = {
        "lora.rank_pattern": lora.rank_pattern,
        "lora.alpha_pattern": lora.alpha_pattern,
        "training.learning_rates": settings.training.learning_rates,
    }
    for name, pattern in by_layer.items():
        kept = {key: value for key, value in pattern.items() if not LAYER_NUMBER.search(key)}
        if len(kept) < len(pattern):
            without[name] = kept
    return without


def sibling(model: str, reporter: Reporter) -> ModelCard:
    """The smallest model of the same family and kind in the catalog that can be had, those on this disk first; else the default one, as
    where none of them is smaller than `model` itself."""
    here = {kept.name for kept in cache.cached()}
    known = find.of_catalog(model)
    name = known.name if known else Path(model).name.lower()
    kind = known.kind if known else "base" if BASE.search(name) else "instruct"
    most = known.facts.parameters if known else SMALLER * _size(name)
    own = [card for card in catalog.cards() if _family(card.name) == _family(name) and card.kind == kind and card.facts.parameters < most]
    own.sort(key=lambda card: (not {card.name, card.hub} & here, card.facts.parameters))
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
    return re.split(rf"[-_](?={SIZE})", name.lower())[0]


def _size(name: str) -> float:
    """The parameters that a name tells of: 135e6 of smollm2-135m-instruct; infinite where it tells of none."""
    found = re.search(rf"[-_]({SIZE})", name.lower())
    return float(found[1][:-1]) * (1e6 if found[1].endswith("m") else 1e9) if found else math.inf


def _trained(config: Config, reporter: Reporter) -> tuple[RunFolder, str]:
    run = training.fit(config, reporter)
    steps = run.read_metrics("train")
    return run, f"{len(steps)} updates, loss {steps[0]['loss']:.3f} -> {steps[-1]['loss']:.3f}"


def _evaluated(run: RunFolder, reporter: Reporter) -> tuple[None, str]:
    if not run.held_out.exists() or not run.held_out.stat().st_size:
        return None, "no rows are held out"
    scores = evaluation.evaluate(run, reporter).models["tuned"]
    return None, ", ".join(f"{name} {metric.value:.0%} of {metric.n}" for name, metric in scores.items())


def _exported(run: RunFolder, config: Config, reporter: Reporter) -> tuple[Path, str]:
    method = METHODS[config.settings.method]
    to = "merged" if method.merges or method.leaves == "model" else "adapter"
    # So few updates change weights by less than bf16 can hold.
    path, parity = handover.export(run, to, reporter, precision="fp32" if to == "merged" else None)
    if not parity.passed:
        raise RunError(
            "what was exported does not answer as the trained model does", where=str(path), next_step="luthier verify shows which step differs"
        )
    return path, f"{to}: mean KL {parity.mean_kl:.1e} nats a token"


def _asked(run: RunFolder) -> tuple[None, str]:
    talk = conversation.open_talk(run, Silent(), max_new_tokens=LONGEST_ANSWER)
    answer = "".join(talk.ask(QUESTION))
    return None, f"{QUESTION!r} -> {answer[:60]!r}"


def _served(run: RunFolder, config: Config, exported: Path) -> tuple[None, str]:
    """One chat over HTTP. What cannot be chosen for each request is served as it was exported."""
    if missing := [name for name in ("fastapi", "uvicorn", "prometheus_client") if importlib.util.find_spec(name) is None]:
        return None, f"left out: it needs {missing[0]} ({serving.INSTALL})"
    method = METHODS[config.settings.method]
    served = run.path if method.per_request or method.leaves == "model" else exported
    asked = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": LONGEST_ANSWER, "temperature": 0}
    with serving.running(serving.Wanted([str(served)], slots=1)) as (url, name):
        body = json.dumps({"model": name, **asked}).encode()
        request = urllib.request.Request(f"{url}/v1/chat/completions", body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=ANSWER_S) as response:
                answer = json.load(response)["choices"][0]["message"]["content"]
        except OSError as error:  # also an answer that is no 200
            raise RunError(f"the server did not answer ({error})", where=str(served), next_step=f"luthier serve {served} shows its log") from error
    return None, f"{QUESTION!r} -> {answer[:60]!r}, over HTTP"


def _real(config: Config) -> list[str]:
    """What the real run would take, by plan; why not, where that cannot be told."""
    try:
        return planning.make_plan(config).lines()
    except LuthierError as error:
        return [f"cannot be planned: {error.problem}"]
