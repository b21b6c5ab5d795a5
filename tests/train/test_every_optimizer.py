"""Every optimizer learns, needs what the plan says, and goes on from a checkpoint as if nothing had been."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from luthier.config.adapters import LoraSettings
from luthier.engine import Engine, optimizers
from luthier.engine.optimizers import OPTIMIZERS
from luthier.models import load, lora
from luthier.plan.memory import MOMENTS_BYTES
from luthier.records import TokenizedExample
from luthier.run_folder import RunFolder
from luthier.train import checkpoint
from luthier.train.checkpoint import Place

# What is trained, and in which format: with bf16 the optimizer changes fp32 twins.
HOW = [("lora", "fp32"), ("full", "bf16")]
EVERY = [(optim, *how) for optim in OPTIMIZERS for how in HOW if (optim, how[0]) != ("muon", "lora")]
RATES = {"full": 2e-3, "lora": 2e-2}
ADAM: dict[str, Any] = {"betas": (0.9, 0.99), "weight_decay": 0.05}


def open_engine(folder: Path, optim: str, what: str, precision: Any, seed: int = 0) -> Engine:
    pytest.importorskip({"schedule_free": "schedulefree", "adafactor": "transformers", "adamw": "torch", "muon": "torch"}.get(optim, "bitsandbytes"))
    model = load.load_model(folder, precision, "cpu")
    model = model.requires_grad_(True) if what == "full" else lora.add(model, LoraSettings(r=4, lora_alpha=8), seed=seed)
    return Engine(model, load.load_tokenizer(folder), optim=optim, adam=ADAM, rates={r"lora_B|q_proj": 2.0})


def train(engine: Engine, examples: list[TokenizedExample], updates: int, rate: float) -> list[float]:
    losses = []
    for _ in range(updates):
        losses.append(engine.forward_backward(examples).loss)
        engine.optimizer_step(rate)
    return losses


def test_the_plan_knows_every_optimizer() -> None:
    assert MOMENTS_BYTES.keys() == OPTIMIZERS.keys()


@pytest.mark.parametrize(("optim", "what", "precision"), EVERY)
def test_it_learns_and_resumes_to_the_bit(
    tiny_model: Path, examples: list[TokenizedExample], run: RunFolder, optim: str, what: str, precision: str
) -> None:
    rate = RATES[what] * (0.2 if "lion" in optim else 1.0)
    engine = open_engine(tiny_model, optim, what, precision)
    losses = train(engine, examples, 8, rate)
    place = Place(8, "d", 0, precision, optim)
    path = checkpoint.write(run, checkpoint.take(engine, place))
    other = open_engine(tiny_model, optim, what, precision, seed=9)
    assert checkpoint.load(path, other) == place
    # Measuring changes nothing of what comes next, even where the weights are others meanwhile.
    assert engine.held_out_loss(examples) == other.held_out_loss(examples)
    straight = train(engine, examples, 3, rate)
    assert train(other, examples, 3, rate) == straight
    expected = engine.masters.weights
    assert all(torch.equal(weight, expected[name]) for name, weight in other.masters.weights.items())
    assert straight[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_it_keeps_as_many_bytes_as_the_plan_counts(tiny_model: Path, examples: list[TokenizedExample], optim: str) -> None:
    engine = open_engine(tiny_model, optim, "full", "fp32")
    train(engine, examples, 1, 1e-3)
    matrices = {name: weight for name, weight in engine.masters.weights.items() if weight.numel() >= 4096 and "embed" not in name}
    kept = sum(
        tensor.numel() * tensor.element_size()
        for weight in matrices.values()
        for tensor in optimizers.moments(engine.optimizer, weight).values()
        if tensor.ndim
    )
    counted = MOMENTS_BYTES[optim] * sum(weight.numel() for weight in matrices.values())
    assert kept == pytest.approx(counted, rel=0.02) or (optim == "adafactor" and kept < counted)


def test_what_schedule_free_evaluates_is_what_it_saves(tiny_model: Path, examples: list[TokenizedExample], tmp_path: Path) -> None:
    engine = open_engine(tiny_model, "schedule_free", "full", "bf16")
    train(engine, examples, 5, 2e-3)
    before = {name: weight.detach().clone() for name, weight in engine.masters.weights.items()}
    measured = engine.held_out_loss(examples)
    engine.save_state(tmp_path / "model")
    assert all(torch.equal(weight, before[name]) for name, weight in engine.masters.weights.items())
    saved = Engine(load.load_model(tmp_path / "model", "bf16", "cpu"), engine.tokenizer)
    assert saved.held_out_loss(examples) == measured
    # The mean of the weights on the way, and not the last ones.
    stored = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.bfloat16)
    trained = dict(engine.model.named_parameters())
    assert any(not torch.equal(weight, trained[name]) for name, weight in stored.named_parameters())
