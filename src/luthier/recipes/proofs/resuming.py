"""A run that is cut off and goes on, against the same run straight through: real runs of the recipe, in scratch folders."""

import contextlib
import itertools
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from luthier import files, run_folder
from luthier.config.load import Config, load_config
from luthier.recipes import training
from luthier.recipes.proofs.bench import Bench, failed, passed, with_values
from luthier.records import Proof
from luthier.reporting import NO_NUMBERS, Bar, Silent
from luthier.run_folder import RunFolder
from luthier.train import checkpoint

UPDATES = 4
# So that the last updates are in a second epoch.
EPOCH_UPDATES = 2.5
# Rows of an update, at most.
ROWS = 8
# On a GPU sums come in another order each time, unless deterministic: true asks for the slower kind.
GPU_TOLERANCE = 1e-3
NOT_COMPARED = {"seconds", "peak_bytes"}


class _CutOff(Exception):
    """Ends a run in the middle of an update's report, as a crash would."""


class _Cutter(Silent):
    """A reporter that ends the training when so many updates are done."""

    def __init__(self, updates: int) -> None:
        self.updates = updates

    @contextmanager
    def bar(self, title: str, total: int) -> Iterator[Bar]:
        yield _CuttingBar(self.updates if title == "training" else total + 1)


class _CuttingBar:
    def __init__(self, updates: int) -> None:
        self.updates = updates

    def advance(self, done: int, text: str = "", numbers: Mapping[str, str] = NO_NUMBERS) -> None:
        if done >= self.updates:
            raise _CutOff


def resumes_exactly(bench: Bench) -> Proof:
    """Weights, optimizer and metrics of a run that is cut off after a random update and resumed."""
    last_saved = random.Random(bench.plan.settings.seed).randrange(1, UPDATES)
    bench.drop_engine()
    straight = training.fit(_config(bench, "straight", last_saved), Silent())
    resumed = _cut_off_and_resumed(_config(bench, "resumed", last_saved), last_saved)
    one, other = (checkpoint.list_checkpoints(run)[-1] for run in (straight, resumed))
    differing = sorted(name for name in _tensor_files(one) | _tensor_files(other) if _sha256(one / name) != _sha256(other / name))
    what = f"cut off in update {last_saved + 1} of {UPDATES}, resumed after {last_saved}"
    numbers: dict[str, object] = {
        "updates": UPDATES,
        "cut_off_in": last_saved + 1,
        "sha256": {name: _sha256(one / name) for name in _tensor_files(one)},
    }
    if differing and bench.plan.settings.device != "cpu" and torch.cuda.is_available():
        return _nearly(one, other, differing, what)
    if differing:
        furthest = _difference(one, other, differing)
        step = "luthier doctor, and report it; until then train without stopping"
        return failed(f"{what}: {', '.join(differing)} differ from the straight run's ({furthest:.1e} relative)", step, **numbers, furthest=furthest)
    if told := _metrics_differ(straight, resumed):
        return failed(f"{what}: the weights are the same and metrics.jsonl is not: {told}", "luthier doctor, and report it", **numbers)
    return passed(f"{what}: sha256 of {', '.join(sorted(_tensor_files(one)))} equal, metrics equal", **numbers)


def _config(bench: Bench, name: str, save_steps: int) -> Config:
    settings = bench.plan.settings
    batch_size = min(int(settings.training.batch_size), ROWS, max(1, int(len(bench.ready.prepared.train) / EPOCH_UPDATES)))
    values: dict[str, Any] = {
        "output_dir": str(bench.scratch / name),
        "data.max_rows": max(2, int(batch_size * EPOCH_UPDATES)),
        "training.batch_size": batch_size,
        "training.max_steps": UPDATES,
        "training.save_strategy": "steps",
        "training.save_steps": save_steps,
        "training.save_total_limit": UPDATES,
    }
    return with_values(bench.config, values)


def _cut_off_and_resumed(config: Config, last_saved: int) -> RunFolder:
    with contextlib.suppress(_CutOff):
        training.fit(config, _Cutter(last_saved + 1))
    run = run_folder.list_runs(Path(config.settings.output_dir))[-1]
    assert not run.trained.is_dir(), "a run of the checks was not cut off"
    return training.fit(load_config(run.config), Silent(), resume=run)


def _tensor_files(path: Path) -> set[str]:
    return {file.name for file in path.glob("*.safetensors")}


def _sha256(path: Path) -> str:
    return files.sha256(path) if path.is_file() else "missing"


def _nearly(one: Path, other: Path, differing: list[str], what: str) -> Proof:
    furthest = _difference(one, other, differing)
    said = f"{what}: {furthest:.1e} apart (relative; {GPU_TOLERANCE:.0e} is allowed on a GPU, where sums come in another order)"
    if furthest <= GPU_TOLERANCE:
        return passed(said, furthest=furthest)
    return failed(said, "training.deterministic: true, which is exact", furthest=furthest)


def _difference(one: Path, other: Path, names: list[str]) -> float:
    """The largest relative difference of a tensor; infinite where they hold other ones."""
    largest = 0.0
    for name in names:
        if not ((one / name).is_file() and (other / name).is_file()):
            return float("inf")
        left, right = load_file(one / name), load_file(other / name)
        if left.keys() != right.keys():
            return float("inf")
        for key, tensor in left.items():
            distance, size = float((tensor.double() - right[key].double()).norm()), float(tensor.double().norm())
            largest = max(largest, distance / max(size, 1e-12))
    return largest


def _metrics_differ(straight: RunFolder, resumed: RunFolder) -> str:
    """The first row of metrics in which the runs differ, or ""."""
    rows = ([row for kind in ("train", "eval") for row in run.read_metrics(kind)] for run in (straight, resumed))
    for one, other in itertools.zip_longest(*rows):
        names = sorted(
            name for name in {**(one or {}), **(other or {})} if name not in NOT_COMPARED and (one or {}).get(name) != (other or {}).get(name)
        )
        if names:
            return f"{names[0]} of step {(one or other)['step']} is {(one or {}).get(names[0])} and {(other or {}).get(names[0])}"
    return ""
