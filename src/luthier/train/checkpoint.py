"""Checkpoints: what was trained, the optimizer's moments and the place in the data, in a folder that is whole or not there.

safetensors and JSON only. Ranks that share the weights write a file each, with the parts that they hold; the leader writes the manifest when
all are there. A part is named NAME@FIRST_ROW, or NAME@cFIRST_COLUMN, and put together on any number of ranks. What a run draws (order,
dropout, noise) comes from its seed, the update's number and the row, and its rate from the update's number: of them a checkpoint needs the
number alone.
"""

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from luthier import files, run_lock, sealed, tensor_file
from luthier.engine import Engine, optimizers, ranks, shards
from luthier.engine.precision import LossScale
from luthier.errors import NotFiniteError, RunError
from luthier.models import save as models
from luthier.models.save import stored
from luthier.models.weights import INDEX
from luthier.plan.memory import MOMENTS_BYTES
from luthier.run_folder import RunFolder
from luthier.tensor_file import Stored

# What tells a rank's part of a file from the file.
PART = r"-\d{5}-of-\d{5}"
# Before the number of a part's first column; before that of its first row stands nothing.
COLUMNS = "c"
TRAINED, OPTIMIZER, STATE = "trained.safetensors", "optimizer.safetensors", "state.json"
# Of environment.json and of a checkpoint's manifest: which run it is, and hashes of what that is made from.
OF_RUN = ("id", "contents")
DRAWS = "every draw is derived from (seed, update, example, layer): no generator has a state"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run stands: `step` updates are done, on the rows whose hash is `data_sha256`."""

    step: int
    data_sha256: str
    seed: int
    precision: str
    optim: str = "adamw"


@dataclass(frozen=True, slots=True)
class Measured:
    """A number of the held-out rows, by its name, after a checkpoint's last update."""

    name: str
    value: float


@dataclass(frozen=True, slots=True)
class State:
    """What a checkpoint will hold, by file name, and about how many bytes that are."""

    step: int
    parts: Mapping[str, sealed.Content]
    size_bytes: int
    others: sealed.Others = lambda staging: {}


def take(engine: Engine, place: Place, *, copied: bool = False, measured: Measured | None = None, course: Mapping[str, Any] | None = None) -> State:
    """The engine's state; with `copied` it stays as it is now while training goes on, else it is to be written before the next update.

    Raises NotFiniteError where a number of it is not finite. `course` says how the run goes (rates, order), for whoever reads the files.
    """

    def keep(tensor: Tensor) -> Tensor:
        return tensor.detach().to("cpu", copy=True) if copied else tensor.detach()

    weights, moments = ({name: keep(tensor) for name, tensor in tensors.items()} for tensors in _held(engine))
    shared = engine.crew and engine.crew.sharding
    for name, tensor in (weights | moments).items():
        _require_finite(name, tensor, place.step)
    state = {
        "place": dataclasses.asdict(place),
        "engine": {"micro_batch_tokens": engine.micro_batch_tokens}
        | ({} if engine.loss_scale is None else {"loss_scale": dataclasses.asdict(engine.loss_scale)}),
        "course": dict(course or {}),
        "draws": DRAWS,
        "measured": None if measured is None else dataclasses.asdict(measured),
    }
    tensors = {_own(OPTIMIZER, engine): {name: stored(moment) for name, moment in moments.items()}}
    parts: dict[str, sealed.Content] = {STATE: _json(state)}
    if engine.adapted or shared:
        tensors[_own(TRAINED, engine)] = {name: stored(weight) for name, weight in weights.items()}
    else:
        whole = {name: stored(tensor) for name, tensor in (_untrained(engine) | weights).items()}
        cut = tensor_file.shards(whole, models.SHARD_BYTES)
        tensors |= cut
        parts["config.json"] = _json(models.config_of(engine.model, torch.float32))
        if len(cut) > 1:
            parts[INDEX] = lambda: [tensor_file.index(cut)]
    parts |= {name: _pieces(group) for name, group in tensors.items()}
    size_bytes = sum(tensor.size_bytes for group in tensors.values() for tensor in group.values())
    return State(place.step, parts, size_bytes, partial(_of_others, place.step)) if shared else State(place.step, parts, size_bytes)


def _own(file: str, engine: Engine) -> str:
    """The file's name, or that of this rank's part of it."""
    if not (engine.crew and engine.crew.sharding):
        return file
    return f"{Path(file).stem}-{ranks.rank() + 1:05d}-of-{ranks.world():05d}.safetensors"


def _held(engine: Engine) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What this rank writes of the trained weights and the optimizer's moments: all of them, or its parts; what stands on each rank is
    the leader's to write."""
    shared = engine.masters.shards
    weights: dict[str, Tensor] = {}
    moments: dict[str, Tensor] = {}
    for name, weight in engine.masters.weights.items():
        shard = shared.get(name)
        if not (ranks.leads() if shard is None else shards.writes(shard) and weight.numel()):
            continue
        part = "" if shard is None else f"@{COLUMNS * shards.dimension(shard)}{shards.first(shard)}"
        weights[name + part] = weight
        for key, moment in optimizers.moments(engine.optimizer, weight).items():
            whole = shard is None or moment.shape != weight.shape
            if not whole or ranks.leads() or not part:
                moments[f"{name}/{key}" + ("" if whole else part)] = moment
    return weights, moments


def _of_others(step: int, staging: Path) -> dict[str, tuple[int, str]]:
    """Let the other ranks write their parts into `staging`; what each wrote. Raises RunError where one of them could not."""
    ranks.say({"do": "write", "folder": str(staging.resolve()), "step": step})
    written: dict[str, tuple[int, str]] = {}
    for rank, answer in enumerate(ranks.answers(f"write-{step}"), start=1):
        if "error" in answer:
            raise RunError(f"rank {rank} could not write its part: {answer['error']}", where=str(staging), next_step="more room there")
        written |= {name: (size, digest) for name, (size, digest) in answer.items()}
    return written


def write_part(engine: Engine, staging: Path, step: int) -> None:
    """Write what this rank holds of a checkpoint, where the leader asked for it, and answer with bytes and sha256 of each file."""
    try:
        held = zip((TRAINED, OPTIMIZER), _held(engine), strict=True)
        tensors = {_own(file, engine): {name: stored(tensor) for name, tensor in group.items()} for file, group in held if group}
        ranks.answer(f"write-{step}", {name: list(files.write_new(staging / name, _pieces(group)())) for name, group in tensors.items()})
    except (OSError, RunError) as error:
        ranks.answer(f"write-{step}", {"error": str(error)})


def _json(value: Any) -> sealed.Content:
    text = (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
    return lambda: [text]


def _pieces(tensors: Mapping[str, Stored]) -> sealed.Content:
    return lambda: tensor_file.pieces(tensors, {"format": "pt"})


def _untrained(engine: Engine) -> dict[str, Tensor]:
    """What else a whole model needs to be loaded: its frozen weights and the buffers that are stored."""
    kept = engine.model.state_dict().keys()
    found = [*engine.model.named_parameters(), *engine.model.named_buffers()]
    return {name: tensor.detach() for name, tensor in found if name in kept and name not in engine.masters.weights}


def _require_finite(name: str, tensor: Tensor, step: int) -> None:
    if tensor.is_floating_point() and not models.all_finite(tensor):
        raise NotFiniteError(
            f"{name} holds values that are not finite, and nothing of it is saved",
            where=f"step {step}",
            next_step="go on from the last checkpoint with a lower training.learning_rate, or look at the rows of this step",
        )


def write(run: RunFolder, state: State, about: Mapping[str, Any] | None = None) -> Path:
    """Write checkpoints/step-N, whole or not at all. `about` (hashes and versions of the run) goes into its manifest.

    Raises RunError or OSError where the disk does not take it, RunInUse where the run became another process' while it was written.
    """
    for path in (run.metrics, run.rows):
        if path.exists():
            files.sync(path)  # a run that goes on from here needs their lines up to here
    path = path_of(run, state.step)
    sealed.write(path, state.parts, {"step": state.step, "run": dict(about or {})}, state.others, partial(run_lock.require_not_taken, run.path))
    return path


def path_of(run: RunFolder, step: int) -> Path:
    return run.checkpoints / f"step-{step:06d}"


def expected_bytes(engine: Engine) -> int:
    """About what a checkpoint of this run takes, also before the first update, which makes the optimizer's moments."""
    weights = engine.masters.weights.values()
    held: int = sum(tensor.nbytes for tensor in (*weights, *(() if engine.adapted else _untrained(engine).values())))
    moments: int = sum(tensor.nbytes for tensor in _moments(engine).values())
    return held + (moments or round(MOMENTS_BYTES[engine.optim] * sum(weight.numel() for weight in weights)))


def copy_bytes(engine: Engine) -> int:
    """What `take` needs for a copy: bytes of the trained weights and the optimizer's moments."""
    return sum(tensor.nbytes for tensor in (*engine.masters.weights.values(), *_moments(engine).values()))


def list_checkpoints(run: RunFolder, until: int | None = None) -> list[Path]:
    """The run's checkpoints, whole or not, oldest first; only those of at most `until` updates."""
    # A damaged one of a later step, which a run has left behind, must not push good ones out.
    return [path for path in sealed.numbered(run.checkpoints, "step") if until is None or sealed.number(path) <= until]


def newest_whole(run: RunFolder) -> tuple[Path | None, list[str]]:
    """The newest checkpoint whose files are all as they were written, if there is one, and what was wrong with newer ones."""
    damaged: list[str] = []
    for path in reversed(list_checkpoints(run)):
        if problem := damage(path):
            damaged.append(f"{path.name}: {problem}")
        else:
            return path, damaged
    return None, damaged


def damage(path: Path, *, sizes_only: bool = False) -> str:
    """What is wrong with a checkpoint, or ""; one of another run is wrong in this one. With `sizes_only` its files' bytes are not read."""
    if problem := sealed.damage(path, sizes_only=sizes_only):
        return problem
    manifest = sealed.read_manifest(path)
    if manifest.get("step") != sealed.number(path):
        return f"{sealed.MANIFEST} is that of step {manifest.get('step')}"
    if other := _of_another_run(RunFolder(path.parents[1]), manifest.get("run", {})):
        return f"{sealed.MANIFEST} is that of another run (another {other})"
    listed = [re.sub(PART, "", name) for name in manifest["files"]]
    return next((f"{sealed.MANIFEST} does not list {name}" for name in (STATE, OPTIMIZER) if name not in listed), "")


def _of_another_run(run: RunFolder, about: Mapping[str, Any]) -> str:
    """What tells the run that wrote a manifest from `run`, or ""."""
    if not run.environment.is_file():
        return ""
    own = files.read_json(run.environment)
    return " and other ".join(name for name in OF_RUN if about.get(name) != own.get(name))


def measured_at(path: Path) -> Measured | None:
    """What was measured of the held-out rows after a checkpoint's last update, where that was measured before it was written."""
    found = files.read_json(path / STATE)["measured"]
    return None if found is None else Measured(**found)


def load(path: Path, engine: Engine) -> Place:
    """Put a checkpoint into the engine: weights and moments, to the bit."""
    if engine.crew:
        engine.crew.order("load", path=str(path.resolve()))
    weights, moments = _read(path)
    # Ranks that share the weights write what is trained, also where that is the model's own weights.
    trained = {name: tensor.shape for name, tensor in (engine.masters.weights | engine.masters.shards).items()}
    expected = trained if engine.adapted else {name: tensor.shape for name, tensor in _untrained(engine).items()} | trained
    found = {name: tensor.shape for name, tensor in weights.items()}
    if found not in (expected, trained):
        different = min(name for name, _ in found.items() ^ expected.items())
        raise RunError(
            f"it holds other weights than this model trains (for one: {different})",
            where=str(path),
            next_step="resume with the run's own config.yaml",
        )
    state = files.read_json(path / STATE)
    place = Place(**state["place"])
    if place.optim != engine.optim:
        raise _changed("optim", place.optim, engine.optim, path)
    engine.masters.load(weights)
    _restore_moments(engine, moments)
    scale = state["engine"].get("loss_scale")
    if engine.loss_scale is not None and scale is not None:
        engine.loss_scale = LossScale(**scale)
    # It is less than the run was asked for where that was once more than the memory held; else what it is asked for now counts.
    cut = state["engine"]["micro_batch_tokens"]
    if cut < sealed.read_manifest(path)["run"].get("micro_batch_tokens", math.inf):
        engine.micro_batch_tokens = min(engine.micro_batch_tokens, cut)
    return place


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Trained weights and moments of a checkpoint, whole, whoever wrote them."""
    weights: dict[str, Tensor] = {}
    moments: dict[str, Tensor] = {}
    for name in sealed.read_manifest(path)["files"]:
        if name.endswith(".safetensors"):
            (moments if re.sub(PART, "", name) == OPTIMIZER else weights).update(load_file(path / name))
    return _joined(weights), _joined(moments)


def _joined(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same with parts NAME@FIRST_ROW and NAME@cFIRST_COLUMN put together."""
    parts: dict[tuple[str, int], dict[int, Tensor]] = {}
    for key in [key for key in tensors if "@" in key]:
        name, _, first = key.rpartition("@")
        parts.setdefault((name, first.count(COLUMNS)), {})[int(first.lstrip(COLUMNS))] = tensors.pop(key)
    return tensors | {name: torch.cat([found[first] for first in sorted(found)], along) for (name, along), found in parts.items()}


def check_same_run(stored: Place, now: Place, path: Path) -> None:
    """Raises RunError where a run would go on with other rows, another seed or another number format than it began with."""
    for name in ("data_sha256", "seed", "precision"):
        before, after = getattr(stored, name), getattr(now, name)
        if before != after:
            raise _changed(name, before, after, path)


def _changed(name: str, before: object, after: object, path: Path) -> RunError:
    what = "the training rows have changed" if name == "data_sha256" else f"{name} was {before} and is now {after}"
    return RunError(what, where=str(path), next_step="restore it to go on, or start a new run from what this one trained: init_from")


def _moments(engine: Engine) -> dict[str, Tensor]:
    kept = ((name, optimizers.moments(engine.optimizer, weight)) for name, weight in engine.masters.weights.items())
    return {f"{name}/{key}": value for name, moments in kept for key, value in moments.items()}


def _restore_moments(engine: Engine, stored: dict[str, Tensor]) -> None:
    moments: dict[str, dict[str, Tensor]] = {name: {} for name in engine.masters.weights}
    for key, value in stored.items():
        name, _, which = key.rpartition("/")
        moments[name][which] = value
    for name, weight in engine.masters.weights.items():
        shard = engine.masters.shards.get(name)
        if shard is not None:
            own = {which: shards.part_of(shard, value) if value.shape == shard.shape else value for which, value in moments[name].items()}
            moments[name] = own
        optimizers.restore(engine.optimizer, weight, moments[name])
