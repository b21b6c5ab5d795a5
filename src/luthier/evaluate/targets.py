"""What can be evaluated, by the name that a user gives it: a run, one of its checkpoints, a model by itself, or an adapter's folder."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from luthier import files, sealed
from luthier.config.load import load_config
from luthier.engine import Engine, opening
from luthier.errors import CallError, RunError
from luthier.models import adapters, find, weights
from luthier.reporting import Reporter, Silent
from luthier.run_folder import RunFolder, open_run

RUNS = Path("runs")
# What the columns of a run that is named first are called.
FIRST = re.compile(r"base(_\d+shot)?|tuned(@.*)?")


@dataclass(frozen=True, slots=True)
class Target:
    """`name` is what its column is called. A run, a checkpoint of it, or neither: then `name` is a model's, and `folder` where that lies, if
    it was named so."""

    name: str
    run: RunFolder | None = None
    checkpoint: Path | None = None
    folder: Path | None = None

    @property
    def whole_run(self) -> bool:
        return self.run is not None and self.checkpoint is None

    @property
    def whole_name(self) -> str:
        """What no other target is called: the whole path of what lies here."""
        if self.run is None:
            return str(self.folder.resolve()) if self.folder else self.name
        return f"{self.run.path.resolve()}{f'@{self.checkpoint.name}' if self.checkpoint else ''}"


def target_of(name: str, output_dir: Path = RUNS) -> Target:
    """What a name stands for: RUN, RUN@step-000100 (or @100), a checkpoint's folder, else a model's name, hub id or folder, or an adapter's.

    Raises RunError for a checkpoint that is not there.
    """
    run, at, step = name.rpartition("@")
    if at and (found := _run_of(run, output_dir)):
        return _checkpoint(found, step if step.startswith("step-") else f"step-{int(step):06d}" if step.isdecimal() else step)
    place = Path(name)
    if place.parent.name == "checkpoints" and (found := _run_of(str(place.parents[1]), output_dir)):
        return _checkpoint(found, place.name)
    if found := _run_of(name, output_dir):
        return Target(found.name, found)
    folder = find.folder_of(name)
    return Target(name.rstrip("/").rpartition("/")[2], folder=folder) if folder else Target(name)


def told_apart(found: Sequence[Target]) -> list[Target]:
    """The targets, each with a name for its column that no other has: where two are called alike, their whole paths.

    Raises CallError where one is named twice.
    """
    first, others = ([found[0]], found[1:]) if found[0].run else ([], found)
    names = [one.name for one in others]
    told = [replace(one, name=one.whole_name) if names.count(one.name) > 1 or (first and FIRST.fullmatch(one.name)) else one for one in others]
    for place, one in enumerate(told):
        if one.name in {other.name for other in told[:place]}:
            raise CallError("is named twice", where=f"luthier eval ... {one.name}", next_step="name it once")
    return [*first, *told]


def _run_of(name: str, output_dir: Path) -> RunFolder | None:
    try:
        return open_run(name, output_dir)
    except RunError:
        if name == "last":
            raise
        return None


def _checkpoint(run: RunFolder, name: str) -> Target:
    path = run.checkpoints / name
    if not path.is_dir():
        there = ", ".join(sorted(one.name for one in run.checkpoints.glob("step-*"))) or "none"
        raise RunError(f"has no checkpoint {name} (there are: {there})", where=str(run.path), next_step=f"luthier eval {run.path}@step-...")
    if problem := sealed.damage(path):
        raise RunError(problem, where=str(path), next_step="name another checkpoint")
    return Target(f"{run.name}@{name}", run, path)


def open_target(target: Target, name: str, reporter: Reporter) -> Engine:
    """The model of a target, ready to answer; `name` is what the user called it."""
    if target.run is None:
        return opening.open_model(name, reporter, _precision())
    if target.checkpoint is None:
        return opening.open_trained(target.run, reporter)
    return _at(target.run, target.checkpoint, reporter)


def _at(run: RunFolder, checkpoint: Path, reporter: Reporter) -> Engine:
    """The model of a run as it was at a checkpoint."""
    config = load_config(run.config)
    folder = find.find(config.settings.model, reporter, config.file.parent)
    tokenizer = opening.tokenizer_of(config, folder, Silent())
    engine = opening.start(config, config.settings, folder, tokenizer, kept=run.start if run.start.is_dir() else None)
    stored: dict[str, Tensor] = {}
    for path in sorted(checkpoint.glob("*.safetensors")):
        if not path.name.startswith("optimizer"):
            stored |= load_file(path)
    engine.masters.load(stored)
    engine.model.requires_grad_(False)
    return engine


def _precision() -> str:
    """The number format in which a model by itself is asked: the faster one of this machine."""
    from luthier.engine import probe

    return probe.known_machine(probe.best_device()).faster_precision


def identity(target: Target, engine: Engine) -> str:
    """What tells this model's answers from another's: hashes of its weights, and the number format."""
    dtype = str(next(engine.model.parameters()).dtype)
    if target.run is None:
        folder = target.folder
        own = f"{files.sha256(folder / adapters.WEIGHTS)} " if folder and find.holds_adapter(folder) else ""
        return f"{own}{adapters.base_sha256(engine.model)} {dtype}"
    place = target.checkpoint or target.run.trained
    digest = hashlib.sha256()
    for path in sorted(place.glob("*.safetensors")):
        if not path.name.startswith("optimizer"):
            digest.update(files.sha256(path).encode())
    return f"{digest.hexdigest()} {base_identity(target.run)} {dtype}"


def base_identity(run: RunFolder) -> str:
    """The same of the model that a run began with."""
    config = load_config(run.config)
    settings = config.settings
    return f"{weights.fingerprint(find.find(settings.model, Silent(), config.file.parent))} {settings.method} {settings.training.precision}"
