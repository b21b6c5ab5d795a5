"""One clipped step: that of torch, whatever the optimizer keeps its moments in; and fp16's loss scale."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest_engine import ragged
from test_architectures import build
from transformers import Trainer

from luthier.engine import Engine, optimizers, precision
from luthier.engine.precision import LossScale
from luthier.errors import ConfigError
from luthier.models import load

SETTINGS = {"betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}


def weights(seed: int, dtype: torch.dtype = torch.float32) -> list[torch.nn.Parameter]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(rows, 96, generator=draw).to(dtype)) for rows in (64, 3)]


def give_gradients(parameters: list[torch.nn.Parameter], seed: int, size: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=draw) * size


@pytest.mark.parametrize("size", [1e-3, 10.0])
@pytest.mark.parametrize("loss_scale", [1.0, 1024.0])
def test_a_step_is_that_of_torch_after_its_own_clipping(size: float, loss_scale: float) -> None:
    ours, theirs = weights(0), weights(0)
    optimizer = optimizers.OPTIMIZERS["adamw"](ours, SETTINGS)
    plain = torch.optim.AdamW(theirs, lr=3e-3, foreach=False, **SETTINGS)  # type: ignore[arg-type]
    for update in range(3):
        give_gradients(ours, update, size * loss_scale)
        give_gradients(theirs, update, size)
        norm = optimizers.step(optimizer, 3e-3, 1.0, loss_scale)
        assert norm == pytest.approx(float(torch.nn.utils.clip_grad_norm_(theirs, 1.0)), rel=1e-6)
        plain.step()
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one, other, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_changes_nothing(bad: float) -> None:
    parameters = weights(0)
    before = [parameter.detach().clone() for parameter in parameters]
    optimizer = optimizers.OPTIMIZERS["adamw"](parameters, SETTINGS)
    give_gradients(parameters, 0, 1.0)
    parameters[1].grad[0, 0] = bad  # type: ignore[index]
    assert not torch.isfinite(torch.tensor(optimizers.step(optimizer, 1e-2, 1.0)))
    assert all(torch.equal(one, other) for one, other in zip(before, parameters, strict=True))
    assert optimizers.moments(optimizer, parameters[0]) == {}


@pytest.mark.parametrize(
    ("optim", "module"), [("adamw_8bit", "bitsandbytes"), ("lion", "bitsandbytes"), ("lion_8bit", "bitsandbytes"), ("schedule_free", "schedulefree")]
)
def test_a_library_that_is_not_here_is_an_error_with_the_way_out(monkeypatch: pytest.MonkeyPatch, optim: str, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, f"{module}.optim", None)
    with pytest.raises(ConfigError, match=rf'training.optim: {optim} needs {module}.*\n  Try: pip install "luthier\[optim\]"'):
        optimizers.OPTIMIZERS[optim](weights(0), SETTINGS)


def test_a_torch_without_muon_is_an_error_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(ConfigError, match=r"muon needs torch 2.9 or newer.*\n  Try: a newer torch"):
        optimizers.OPTIMIZERS["muon"](weights(0), SETTINGS)


def full(folder: Path, **settings: Any) -> Engine:
    return Engine(load.load_model(folder, "fp32", "cpu").requires_grad_(True), load.load_tokenizer(folder), **settings)


def test_norms_and_biases_are_not_decayed_as_in_transformers(tiny_model: Path) -> None:
    for model in (load.load_model(tiny_model, "fp32", "cpu"), build("GPT2", {}), build("Qwen2", {}), build("Gemma3", {"head_dim": 8})):
        engine = Engine(model.requires_grad_(True), None, adam={"weight_decay": 0.1})
        names = {weight: name for name, weight in engine.masters.weights.items()}
        decayed = {names[weight] for group in engine.optimizer.param_groups if group["weight_decay"] == 0.1 for weight in group["params"]}
        assert decayed == set(Trainer.get_decay_parameter_names(None, model)) & set(names.values())  # type: ignore[arg-type]
        assert len(decayed) < len(names)


def test_a_matrix_that_gets_no_gradient_shrinks_by_its_decay_and_a_norm_does_not(tiny_model: Path) -> None:
    engine = full(tiny_model, adam={"weight_decay": 0.5})
    before = {name: weight.detach().clone() for name, weight in engine.masters.weights.items()}
    for weight in engine.masters.weights.values():
        weight.grad = torch.zeros_like(weight)
    engine.optimizer_step(0.1)
    for name, weight in engine.masters.weights.items():
        factor = 1.0 if "norm" in name else 0.95
        torch.testing.assert_close(weight.detach(), before[name] * factor)


def test_a_rate_of_its_own_is_a_factor_and_factors_are_multiplied(tiny_model: Path) -> None:
    moved = {}
    for what, rates in {"plain": {}, "other": {"q_proj": 0.1, r"layers\.0\.": 0.5}}.items():
        engine = full(tiny_model, rates=rates)
        before = {name: weight.detach().clone() for name, weight in engine.masters.weights.items()}
        engine.forward_backward(ragged(seed=4, rows=4))
        engine.optimizer_step(1e-3)
        moved[what] = {name: float((weight.detach() - before[name]).norm()) for name, weight in engine.masters.weights.items()}
    for name, distance in moved["plain"].items():
        factor = (0.1 if "q_proj" in name else 1.0) * (0.5 if "layers.0." in name else 1.0)
        assert moved["other"][name] == pytest.approx(factor * distance, rel=1e-3), name


def test_a_rate_for_weights_that_are_not_there_is_an_error(tiny_model: Path) -> None:
    with pytest.raises(ConfigError, match=r"training.learning_rates: 'w_proj' is found in no name"):
        full(tiny_model, rates={"w_proj": 0.1}).require_optimizer()
    with pytest.raises(ConfigError, match=r"training.learning_rates: '\(' is no regular expression"):
        full(tiny_model, rates={"(": 0.1}).require_optimizer()


def test_muon_turns_the_matrices_inside_the_layers_and_leaves_the_rest_to_adamw(tiny_model: Path) -> None:
    engine = full(tiny_model, optim="muon")
    engine.forward_backward(ragged(seed=4, rows=4))
    engine.optimizer_step(1e-3)
    for name, weight in engine.masters.weights.items():
        inside = weight.ndim == 2 and "embed" not in name and "lm_head" not in name
        assert ("momentum_buffer" in optimizers.moments(engine.optimizer, weight)) == inside, name


def test_eight_bits_learn_in_a_quarter_of_the_moments(tiny_model: Path) -> None:
    pytest.importorskip("bitsandbytes")
    kept = {}
    for optim in ("adamw", "adamw_8bit"):
        engine = Engine(load.load_model(tiny_model, "bf16", "cpu"), load.load_tokenizer(tiny_model), optim=optim)
        examples = ragged(seed=4, rows=8, prefix=20)
        losses = []
        for _ in range(25):
            losses.append(engine.forward_backward(examples).loss)
            engine.optimizer_step(2e-3)
        assert losses[-1] < 0.2 * losses[0]
        moments = [optimizers.moments(engine.optimizer, weight) for weight in engine.masters.weights.values()]
        kept[optim] = sum(tensor.numel() * tensor.element_size() for one in moments for tensor in one.values())
    assert kept["adamw_8bit"] < 0.35 * kept["adamw"]  # the smallest tensors stay in fp32


def test_the_loss_scale_follows_the_rule_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "GROWTH_STEPS", 3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=3)
    ours = LossScale()
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.0)
    for finite in [False, True, True, False, True, True, True, True, True, True, False, False, True]:
        parameter.grad = None
        scaler.scale(parameter.sum()).backward()
        parameter.grad.mul_(1.0 if finite else float("inf"))  # type: ignore[union-attr]
        scaler.step(optimizer)
        scaler.update()
        ours.update(finite)
        assert ours.value == scaler.get_scale()
        assert ours.lowered == (not finite)


def test_at_its_floor_the_scale_is_no_longer_to_blame() -> None:
    scale = LossScale(value=2.0)
    scale.update(False)
    assert (scale.value, scale.lowered) == (1.0, True)
    scale.update(False)
    assert (scale.value, scale.lowered) == (1.0, False)


def test_fp16_gradients_that_overflow_halve_the_scale_and_the_run_goes_on(tiny_model: Path) -> None:
    engine = Engine(load.load_model(tiny_model, "fp16", "cpu"), load.load_tokenizer(tiny_model))
    assert engine.loss_scale is not None
    engine.loss_scale.value = 2.0**24
    examples = ragged(seed=4, rows=4)
    before = [weight.detach().clone() for weight in engine.masters.weights.values()]
    engine.forward_backward(examples)
    assert not torch.isfinite(torch.tensor(engine.optimizer_step(1e-3)))
    assert engine.overflowed
    assert engine.loss_scale.value == 2.0**23
    assert all(torch.equal(one, other) for one, other in zip(before, engine.masters.weights.values(), strict=True))
    norms = []
    for _ in range(20):
        engine.forward_backward(examples)
        norms.append(engine.optimizer_step(1e-3))
        if not engine.overflowed:
            break
    assert norms[-1] < 100  # the scale is out of it again
    assert not any(torch.equal(one, other) for one, other in zip(before, engine.masters.weights.values(), strict=True))


def test_only_fp16_is_scaled(tiny_model: Path) -> None:
    for name in ("bf16", "fp32"):
        assert Engine(load.load_model(tiny_model, name, "cpu"), load.load_tokenizer(tiny_model)).loss_scale is None  # type: ignore[arg-type]
