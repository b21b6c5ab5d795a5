"""Checkpoints: what was trained, the optimizer's moments and the place in the data, in a folder that is whole or not there.

safetensors and JSON only. `manifest.json` holds the sha256 of every file, so that a damaged one is found and named.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from luthier import files
from luthier.engine import Engine
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


def save(run: RunFolder, engine: Engine, place: Place, keep: int) -> Path:
    """Write checkpoints/step-N and then delete all but the newest `keep`."""

    def fill(folder: Path) -> None:
        save_file({name: parameter.detach().contiguous() for name, parameter in _trained(engine)}, folder / "trained.safetensors")
        save_file(_moments(engine), folder / "optimizer.safetensors")
        state = {"step": place.step, "data_sha256": place.data_sha256, "seed": place.seed, "precision": place.precision}
        files.write_json(folder / "state.json", state)
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
    parameters = dict(_trained(engine))
    shapes, wanted = ({name: tensor.shape for name, tensor in tensors.items()} for tensors in (stored, parameters))
    if shapes != wanted:
        different = min(name for name, _ in shapes.items() ^ wanted.items())
        raise RunError(
            f"it holds other weights than this model trains (for one: {different})",
            where=str(path),
            next_step="resume with the run's own config.yaml",
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(stored[name])
    _restore_moments(engine, load_file(path / "optimizer.safetensors"))
    return Place(**files.read_json(path / "state.json"))


def check_same_run(stored: Place, now: Place, path: Path) -> None:
    """Raises RunError where a run would go on with other rows, another seed or another number format than it began with."""
    for name in ("data_sha256", "seed", "precision"):
        before, after = getattr(stored, name), getattr(now, name)
        if before != after:
            what = "the training rows have changed" if name == "data_sha256" else f"{name} was {before} and is now {after}"
            raise RunError(what, where=str(path), next_step="restore it to go on, or start a new run from this one's adapter: init_from")


def _trained(engine: Engine) -> list[tuple[str, torch.nn.Parameter]]:
    return [(name, parameter) for name, parameter in engine.model.named_parameters() if parameter.requires_grad]


def _moments(engine: Engine) -> dict[str, torch.Tensor]:
    state: Any = engine.adam.state
    return {f"{name}/{key}": value.detach().contiguous() for name, parameter in _trained(engine) for key, value in state.get(parameter, {}).items()}


def _restore_moments(engine: Engine, stored: dict[str, torch.Tensor]) -> None:
    for name, parameter in _trained(engine):
        keys = ("step", "exp_avg", "exp_avg_sq")
        if f"{name}/step" in stored:
            # AdamW keeps its count of steps on the CPU, the moments beside the weights.
            moments = {key: stored[f"{name}/{key}"] for key in keys}
            engine.adam.state[parameter] = {key: value if key == "step" else value.to(parameter.device) for key, value in moments.items()}
