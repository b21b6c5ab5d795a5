"""Checkpoints: what was trained, the optimizer's moments and the place in the data, in a folder that is whole or not there.

safetensors and JSON only. `manifest.json` holds the sha256 of every file, so that a damaged one is found and named.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from luthier import files
from luthier.engine import Engine, optimizers
from luthier.engine.precision import LossScale
from luthier.errors import RunError
from luthier.run_folder import RunFolder

FILES = ("trained.safetensors", "optimizer.safetensors", "state.json")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run stands: `step` updates are done, on the rows whose hash is `data_sha256`."""

    step: int
    data_sha256: str
    seed: int
    precision: str
    optim: str = "adamw"


def save(run: RunFolder, engine: Engine, place: Place, keep: int) -> Path:
    """Write checkpoints/step-N and then delete all but the newest `keep`."""

    def fill(folder: Path) -> None:
        save_file({name: weight.detach().contiguous() for name, weight in engine.masters.weights.items()}, folder / "trained.safetensors")
        save_file(_moments(engine), folder / "optimizer.safetensors")
        scale = {} if engine.loss_scale is None else {"loss_scale": dataclasses.asdict(engine.loss_scale)}
        files.write_json(folder / "state.json", dataclasses.asdict(place) | scale)
        files.write_json(folder / "manifest.json", {path.name: files.sha256(path) for path in sorted(folder.iterdir())})

    path = files.build_folder(run.checkpoints / f"step-{place.step:06d}", fill)
    # Only what came before: a damaged one of a later step, which this run has left behind, must not push good ones out.
    before = [old for old in list_checkpoints(run) if int(old.name.removeprefix("step-")) <= place.step]
    for old in before[:-keep]:
        files.remove_folder(old)
    return path


def list_checkpoints(run: RunFolder) -> list[Path]:
    """The run's checkpoints, oldest first."""
    # By number: the millionth has a digit more than the others.
    return sorted(run.checkpoints.glob("step-*"), key=lambda path: (len(path.name), path.name))


def newest_whole(run: RunFolder) -> tuple[Path, list[str]]:
    """The newest checkpoint whose files are all as they were written, and what was wrong with newer ones."""
    damaged: list[str] = []
    for path in reversed(list_checkpoints(run)):
        if problem := damage(path):
            damaged.append(f"{path.name}: {problem}")
        else:
            return path, damaged
    seen = f" ({'; '.join(damaged)})" if damaged else ""
    raise RunError(f"there is no whole checkpoint to resume from{seen}", where=str(run.path), next_step=f"luthier train {run.config} starts anew")


def damage(path: Path) -> str:
    """What is wrong with a checkpoint, or ""."""
    manifest = path / "manifest.json"
    if not manifest.is_file():
        return "manifest.json is missing"
    try:
        expected = files.read_json(manifest)
    except RunError:
        return "manifest.json is not whole"
    for name in FILES:
        if name not in expected:
            return f"manifest.json does not list {name}"
    for name, digest in expected.items():
        if not (path / name).is_file():
            return f"{name} is missing"
        if files.sha256(path / name) != digest:
            return f"{name} is not as it was written"
    return ""


def load(path: Path, engine: Engine) -> Place:
    """Put a checkpoint into the engine: weights and moments, to the bit."""
    stored = load_file(path / "trained.safetensors")
    shapes, wanted = ({name: tensor.shape for name, tensor in tensors.items()} for tensors in (stored, engine.masters.weights))
    if shapes != wanted:
        different = min(name for name, _ in shapes.items() ^ wanted.items())
        raise RunError(
            f"it holds other weights than this model trains (for one: {different})",
            where=str(path),
            next_step="resume with the run's own config.yaml",
        )
    state = files.read_json(path / "state.json")
    scale = state.pop("loss_scale", None)
    place = Place(**state)
    if place.optim != engine.optim:
        raise _changed("optim", place.optim, engine.optim, path)
    engine.masters.load(stored)
    _restore_moments(engine, load_file(path / "optimizer.safetensors"))
    if engine.loss_scale is not None and scale is not None:
        engine.loss_scale = LossScale(**scale)
    return place


def check_same_run(stored: Place, now: Place, path: Path) -> None:
    """Raises RunError where a run would go on with other rows, another seed or another number format than it began with."""
    for name in ("data_sha256", "seed", "precision"):
        before, after = getattr(stored, name), getattr(now, name)
        if before != after:
            raise _changed(name, before, after, path)


def _changed(name: str, before: object, after: object, path: Path) -> RunError:
    what = "the training rows have changed" if name == "data_sha256" else f"{name} was {before} and is now {after}"
    return RunError(what, where=str(path), next_step="restore it to go on, or start a new run from what this one trained: init_from")


def _moments(engine: Engine) -> dict[str, torch.Tensor]:
    kept = ((name, optimizers.moments(engine.optimizer, weight)) for name, weight in engine.masters.weights.items())
    return {f"{name}/{key}": value for name, moments in kept for key, value in moments.items()}


def _restore_moments(engine: Engine, stored: dict[str, torch.Tensor]) -> None:
    moments: dict[str, dict[str, torch.Tensor]] = {name: {} for name in engine.masters.weights}
    for key, value in stored.items():
        name, _, which = key.rpartition("/")
        moments[name][which] = value
    for name, weight in engine.masters.weights.items():
        optimizers.restore(engine.optimizer, weight, moments[name])
