"""A frozen base in 8 bits, on the CPU's twin: how far it is off, that only products change, and that it is refused where it cannot be."""

from typing import Any

import pytest
import torch
from conftest_engine import gradients, open_tiny, ragged

from luthier.engine import fp8
from luthier.engine.fp8 import in_8_bits, product, weight_in_8_bits
from luthier.errors import ConfigError


def test_rows_are_rounded_to_their_own_scale() -> None:
    x = torch.randn(6, 32) * torch.tensor([1e-6, 1e-3, 1.0, 10.0, 1e4, 0.0])[:, None]
    rounded = in_8_bits(x)
    assert rounded.values.dtype == torch.float8_e4m3fn
    back = rounded.values.float() * rounded.scales
    # e4m3 has 3 bits after the point: at most 1/16 off, but for what is very small beside its row's largest
    assert bool(((back - x).abs() <= x.abs() / 16 + x.abs().amax(-1, keepdim=True) * 2**-16).all())
    assert bool((back[5] == 0).all())


@pytest.mark.parametrize("bias", [None, torch.randn(48)])
def test_products_of_a_weight_are_made_in_8_bits_in_both_directions(bias: torch.Tensor | None) -> None:
    torch.manual_seed(0)
    weight, x, slope = torch.randn(48, 32), torch.randn(2, 5, 32, requires_grad=True), torch.randn(2, 5, 48)
    held = weight_in_8_bits(weight)
    y = torch.nn.functional.linear(x, held, bias)
    (dx,) = torch.autograd.grad(y, x, slope)
    exact = torch.nn.functional.linear(x, weight, bias)
    for mine, theirs in ((y, exact), (dx, slope @ weight)):
        off = float((mine - theirs).detach().norm() / theirs.detach().norm())
        assert 1e-3 < off < 0.05
    flat = slope.reshape(-1, 48)
    expected = product(in_8_bits(flat), in_8_bits(weight.T.contiguous()), torch.float32)
    torch.testing.assert_close(flat @ held, expected)
    torch.testing.assert_close(torch.ones(10, 32).addmm_(flat, held), expected + 1)
    torch.testing.assert_close(dx.reshape(-1, 32), expected)
    assert type(held + 1) is torch.Tensor
    torch.testing.assert_close(held + 1, weight + 1)


def test_an_update_is_close_and_what_was_there_comes_back(tiny_model: Any) -> None:
    examples = ragged(seed=2, rows=6, prefix=20)
    engine = open_tiny(tiny_model)
    loss, wanted = engine.forward_backward(examples).loss, gradients(engine)
    line = engine.quantize_frozen(examples)
    off = engine.forward_backward(examples).loss
    found = gradients(engine)
    assert off != loss
    assert off == pytest.approx(loss, rel=2e-2)
    # Products of two rounded factors are 4 % off each; through all layers and back that adds up (SmolLM2-135M: 31 %, cosine 0.95).
    mine, theirs = (torch.cat([gradient[name].flatten() for name in wanted]) for gradient in (found, wanted))
    assert 1e-3 < float((mine - theirs).norm() / theirs.norm()) < 0.45
    assert float(torch.cosine_similarity(mine, theirs, dim=0)) > 0.9
    gap = (engine.held_out_loss(examples) - loss) / loss
    assert f"(a gap of {gap:+.2%})" in line
    assert line.startswith("frozen_base: fp8: the loss of 6 rows is ")
    engine.go_plain("a test asks")
    assert not any(isinstance(module.weight, fp8.Weight8) for module in engine.model.modules() if isinstance(module, torch.nn.Linear))
    assert engine.forward_backward(examples).loss == pytest.approx(loss, rel=1e-5)


def test_its_adapter_is_saved_as_ever_and_learns(tiny_model: Any, tmp_path: Any) -> None:
    engine = open_tiny(tiny_model)
    examples = ragged(seed=2, rows=4)
    engine.quantize_frozen(examples)
    losses = []
    for _ in range(4):
        losses.append(engine.forward_backward(examples).loss)
        engine.optimizer_step(1e-2)
    assert losses[-1] < losses[0]
    assert (engine.save_state(tmp_path / "adapter") / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize(("method", "precision", "reason"), [
    ("full", "auto", "needs frozen weights, and method: full leaves none"),
    ("prefix", "auto", "stands below LoRA adapters, and method: prefix has none"),
    ("lora", "fp32", "goes with precision: bf16, and it is fp32"),
    ("lora", "auto", "needs an NVIDIA GPU of compute capability 8.9 or newer"),
])  # fmt: skip
def test_it_is_refused_where_it_cannot_be(method: str, precision: str, reason: str) -> None:
    fp8.require("bf16", method, precision, "cpu")
    with pytest.raises(ConfigError, match=reason) as caught:
        fp8.require("fp8", method, precision, "cpu")
    assert caught.value.next_step == "training.frozen_base: bf16"
