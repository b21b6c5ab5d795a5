"""Training beside a base in 4 or 8 bits: the fast path is right, and answering in between changes no gradient."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest_engine import furthest, gradients, ragged

from luthier.config.adapters import LoraSettings
from luthier.engine import Engine
from luthier.engine import lora as fast_lora
from luthier.models import load, lora, quantized
from luthier.models.quantized import Quantization

KINDS = ["nf4", "fp4", "int8", "int8_torchao"]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    pytest.importorskip(quantized.KINDS[request.param].library)
    return str(request.param)


def base(folder: Path, kind: str, source: str = "fp32", precision: str = "fp32", double_quant: bool = True) -> Any:
    return quantized.load_model(folder, precision, "cpu", Quantization(kind, double_quant, source, precision))


def opened(folder: Path, kind: str, precision: str = "fp32", **settings: Any) -> Engine:
    """An engine over a quantized base with an adapter that changes its answers."""
    model = lora.add(base(folder, kind, precision, precision), LoraSettings(r=4, lora_alpha=8.0, **settings))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return Engine(model, load.load_tokenizer(folder))


@pytest.mark.parametrize("share", [True, False])
def test_fast_path_and_plain_twin_agree(kind: str, share: bool, tiny_model: Path) -> None:
    engine, rows = opened(tiny_model, kind), ragged(1, 6, prefix=20)
    engine.share_prefixes = share
    assert engine.plain_reason == ""
    assert any("forward" in module.__dict__ for module in engine.model.modules() if fast_lora.is_plain(module))
    fast, fast_gradients = engine.forward_backward(rows).loss, gradients(engine)
    engine.go_plain("to compare")
    plain, plain_gradients = engine.forward_backward(rows).loss, gradients(engine)
    assert fast == pytest.approx(plain, rel=1e-5)
    assert furthest(fast_gradients, plain_gradients) < 1e-5


def cosine(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    left, right = (torch.cat([found[name].flatten().double() for name in sorted(found)]) for found in (one, other))
    return float(left @ right / (left.norm() * right.norm()))


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("plain", [True, False])
def test_gradients_are_the_same_after_an_evaluation(kind: str, plain: bool, precision: str, tiny_model: Path) -> None:
    """bitsandbytes packs a weight of 4 bits anew when it answers on some CPUs, and its backward pass then reads it wrongly."""
    engine, rows = opened(tiny_model, kind, precision), ragged(1, 4)
    if plain:
        engine.go_plain("to see the libraries' own products")
    engine.forward_backward(rows)
    before = gradients(engine)
    engine.held_out_loss(rows)
    engine.answer([[1, 60, 7]], max_new_tokens=4)
    with torch.no_grad():
        engine.model.eval()(torch.tensor([[1, 60, 7]]))
    engine.forward_backward(rows)
    assert cosine(before, gradients(engine)) >= 0.999


def test_training_and_answering_compute_the_same(kind: str, tiny_model: Path) -> None:
    engine, rows = opened(tiny_model, kind), ragged(1, 4)
    assert engine.forward_backward(rows).loss == pytest.approx(engine.held_out_loss(rows), rel=1e-6)


def test_nothing_of_the_base_is_trained(kind: str, tiny_model: Path) -> None:
    engine, rows = opened(tiny_model, kind, "bf16"), ragged(1, 4)
    before = {name: value.clone() for name, value in engine.model.named_parameters() if not value.requires_grad}
    engine.forward_backward(rows)
    engine.optimizer_step(1e-2)
    assert all("lora_" in name for name, value in engine.model.named_parameters() if value.requires_grad)
    assert {value.dtype for value in engine.trained_parameters} == {torch.float32}
    assert not engine.model.is_gradient_checkpointing
    for name, value in engine.model.named_parameters():
        if name in before:
            one, other = (tensor.dequantize() if hasattr(tensor, "qdata") else tensor for tensor in (value, before[name]))
            assert torch.equal(one, other), name
