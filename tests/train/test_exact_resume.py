"""A run that goes on from any of its updates is the uninterrupted one to the bit; cut otherwise, or with other threads, to rounding.

Randomness is derived from the seed and the update's number, so that a resumed run draws what the straight one drew. Each case trains once
straight through, keeping a checkpoint of every update, and then goes on from each of them with an engine that has seen nothing.
"""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier import files
from luthier.engine import Engine
from luthier.models import load, methods
from luthier.records import TokenizedExample
from luthier.run_folder import RunFolder
from luthier.stopping import Stop
from luthier.train import checkpoint, loop
from luthier.train.checkpoint import Place

# Ten rows by threes: every second epoch begins within an update. 8 updates are 2.4 epochs.
COURSE = loop.Course(updates=8, examples_seen=24, batch_size=3, learning_rate=1e-2, lr_scheduler_type="cosine", warmup_steps=2, seed=7)
LORA = {"r": 4, "lora_alpha": 8}
CASES: dict[str, dict[str, Any]] = {
    # name             method, its settings, and how the engine runs
    "lora":            {"method": "lora", "settings": LORA},
    "dropout":         {"method": "lora", "settings": LORA | {"lora_dropout": 0.2}},
    "cut":             {"method": "lora", "settings": LORA, "micro_batch_tokens": 16},
    "nothing shared":  {"method": "lora", "settings": LORA, "share_prefixes": False, "micro_batch_tokens": 40},
    "noise":           {"method": "lora", "settings": LORA, "neftune_noise_alpha": 5.0, "label_smoothing": 0.1},
    "checkpointing":   {"method": "lora", "settings": LORA | {"lora_dropout": 0.1}, "gradient_checkpointing": "full"},
    "dora":            {"method": "dora", "settings": LORA},
    "full":            {"method": "full", "settings": {}},
    "full in fp16":    {"method": "full", "settings": {}, "precision": "fp16"},
    "prefix":          {"method": "prefix", "settings": {"num_virtual_tokens": 4}},
    "bottleneck":      {"method": "bottleneck", "settings": {}},
    "lion":            {"method": "lora", "settings": LORA, "optim": "lion"},
    "adafactor":       {"method": "lora", "settings": LORA, "optim": "adafactor"},
    "muon":            {"method": "full", "settings": {}, "optim": "muon"},
}  # fmt: skip
MORE = {
    "bf16":            {"method": "lora", "settings": LORA, "precision": "bf16"},
    "prompt":          {"method": "prompt", "settings": {"num_virtual_tokens": 4}},
    "p_tuning":        {"method": "p_tuning", "settings": {"num_virtual_tokens": 4}},
    "ia3":             {"method": "ia3", "settings": {}},
    "full, cut":       {"method": "full", "settings": {}, "micro_batch_tokens": 16, "gradient_checkpointing": "selective"},
    "full with noise": {"method": "full", "settings": {}, "neftune_noise_alpha": 5.0, "optim": "adafactor"},
    "all of it":       {"method": "dora", "settings": LORA | {"lora_dropout": 0.2}, "neftune_noise_alpha": 3.0, "micro_batch_tokens": 24},
}  # fmt: skip


def open_engine(model: Path, case: dict[str, Any], **changes: Any) -> Engine:
    how = {"precision": "fp32", **case, **changes}
    method, own, precision = how.pop("method"), how.pop("settings"), how.pop("precision")
    asked = methods.settings_of(str(model), method, own, precision, seed=3)
    tokenizer = load.load_tokenizer(model)
    engine = Engine(methods.add(load.load_model(model, precision, "cpu"), asked, (), tokenizer), tokenizer, **how)
    engine.require_optimizer()
    return engine


# The others are among the slow tests.
FAST = {"dropout", "full", "full in fp16", "bottleneck"}


class Trained:
    """A training whose every line and state is kept in a run folder."""

    def __init__(self, run: RunFolder, engine: Engine, examples: list[TokenizedExample], course: loop.Course, *, done: int, every: bool) -> None:
        place = Place(0, "d", 7, "fp32", engine.optim)

        def save(step: int) -> None:
            checkpoint.write(run, checkpoint.take(engine, dataclasses.replace(place, step=step)))

        watching = [run.add_step, lambda report: save(report.step) if every or report.step == course.updates else None]
        loop.fit(engine, examples, course, watching, Stop(), done=done, on_rows=run.add_rows)
        self.engine, self.run = engine, run

    @property
    def lines(self) -> list[dict[str, Any]]:
        rows = [json.loads(line) for line in (self.run.metrics.read_text() + self.run.rows.read_text()).splitlines()]
        return [{name: value for name, value in row.items() if name not in ("seconds", "peak_bytes")} for row in rows]

    def hashes(self, step: int) -> dict[str, str]:
        return {path.name: files.sha256(path) for path in sorted(checkpoint.path_of(self.run, step).glob("*.safetensors"))}


def new_run(folder: Path) -> RunFolder:
    (folder / "checkpoints").mkdir(parents=True)
    return RunFolder(folder)


def require_exact(case: dict[str, Any], model: Path, examples: list[TokenizedExample], folder: Path, course: loop.Course) -> None:
    straight = Trained(new_run(folder / "straight"), open_engine(model, case), examples, course, done=0, every=True)
    saved = [step for step in range(1, course.updates) if checkpoint.path_of(straight.run, step).is_dir()]
    assert len(saved) >= course.updates - 3, "fp16 skips its first updates"
    for step in saved:
        run = new_run(folder / f"from-{step}")
        for name in ("metrics.jsonl", "rows.jsonl"):
            (run.path / name).write_bytes((straight.run.path / name).read_bytes())
        run.forget_after(step)
        engine = open_engine(model, case)
        assert checkpoint.load(checkpoint.path_of(straight.run, step), engine).step == step
        resumed = Trained(run, engine, examples, course, done=step, every=False)
        assert resumed.lines == straight.lines, f"resumed after step {step}"
        assert resumed.hashes(course.updates) == straight.hashes(course.updates), f"resumed after step {step}"


@pytest.mark.parametrize("name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in CASES])
def test_a_run_that_goes_on_from_any_update_is_the_straight_one_to_the_bit(
    name: str, tiny_model: Path, examples: list[TokenizedExample], tmp_path: Path
) -> None:
    require_exact(CASES[name], tiny_model, examples, tmp_path, dataclasses.replace(COURSE, updates=5, examples_seen=14))


@pytest.mark.nightly
@pytest.mark.parametrize("shape", ["linear", "cosine_with_restarts", "warmup_stable_decay"])
@pytest.mark.parametrize("name", [*CASES, *MORE])
def test_every_case_from_every_one_of_twenty_updates(
    name: str, shape: str, tiny_model: Path, examples: list[TokenizedExample], tmp_path: Path
) -> None:
    course = dataclasses.replace(COURSE, updates=20, examples_seen=60, lr_scheduler_type=shape, num_cycles=2, decay_steps=5)
    require_exact((CASES | MORE)[name], tiny_model, examples, tmp_path, course)


# Cut otherwise


def gradients(engine: Engine) -> Iterator[tuple[str, torch.Tensor]]:
    for name, weight in engine.masters.weights.items():
        assert weight.grad is not None
        yield name, weight.grad.clone()


@pytest.mark.parametrize("name", ["dropout", "full", pytest.param("prefix", marks=pytest.mark.slow)])
def test_with_another_budget_an_update_is_the_same_within_a_millionth_and_the_weights_within_ten_thousandths(
    name: str, tiny_model: Path, examples: list[TokenizedExample], tmp_path: Path
) -> None:
    budgets = (4096, 24)
    engines = [open_engine(tiny_model, CASES[name], micro_batch_tokens=budget) for budget in budgets]
    losses = []
    for engine in engines:
        torch.manual_seed(0)  # as the loop does at each update
        losses.append(engine.forward_backward(examples).loss)
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    for (weight, one), (_, other) in zip(*map(gradients, engines), strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-6), weight
    runs = [new_run(tmp_path / str(budget)) for budget in budgets]
    slow = dataclasses.replace(COURSE, learning_rate=1e-3)
    ended = [
        Trained(run, open_engine(tiny_model, CASES[name], micro_batch_tokens=budget), examples, slow, done=0, every=False)
        for run, budget in zip(runs, budgets, strict=True)
    ]
    first, second = (one.engine.masters.weights for one in ended)
    assert max(float((first[weight] - second[weight]).abs().max()) for weight in first) < 1e-4
    assert ended[0].lines != ended[1].lines, "so small a budget rounds otherwise: the comparison would show nothing"


def test_with_other_threads_an_update_is_the_same_within_a_millionth_and_the_weights_within_ten_thousandths(
    tiny_model: Path, examples: list[TokenizedExample], tmp_path: Path
) -> None:
    before, losses, found, ended = torch.get_num_threads(), [], [], []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            engine = open_engine(tiny_model, CASES["full"])
            losses.append(engine.forward_backward(examples).loss)
            found.append(dict(gradients(engine)))
            engine.forget_gradients()
            slow = dataclasses.replace(COURSE, learning_rate=1e-3)
            ended.append(Trained(new_run(tmp_path / str(threads)), engine, examples, slow, done=0, every=False).engine.masters.weights)
    finally:
        torch.set_num_threads(before)
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    assert max(float((found[0][name] - found[1][name]).abs().max()) for name in found[0]) < 1e-6
    assert max(float((ended[0][name] - ended[1][name]).abs().max()) for name in ended[0]) < 1e-4
