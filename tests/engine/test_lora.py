"""Our LoRA function against PEFT's own forward."""

from pathlib import Path

import pytest
import torch
from conftest_engine import gradients, open_tiny, ragged

from luthier.engine import Engine, lora
from luthier.models import adapters, load


def test_it_gives_what_peft_gives_and_can_be_given_back(engine: Engine) -> None:
    examples = ragged(seed=1, rows=4)
    ours = engine.forward_backward(examples).loss
    our_gradients = gradients(engine)
    engine._give_back()
    assert not any("forward" in module.__dict__ for module in engine.model.modules())
    theirs = engine.forward_backward(examples).loss
    their_gradients = gradients(engine)
    assert ours == pytest.approx(theirs, rel=1e-6)
    for name, gradient in our_gradients.items():
        torch.testing.assert_close(gradient, their_gradients[name], rtol=2e-4, atol=1e-6)


def test_rank_stabilized_lora_is_scaled_by_the_root_of_the_rank(tiny_model: Path) -> None:
    def answer(use_rslora: bool) -> torch.Tensor:
        model = adapters.add_lora(load.load_model(tiny_model, "fp32", "cpu"), 4, 8.0, 0.0, ["q_proj"], use_rslora, 0)
        layer = model.base_model.model.model.layers[0].self_attn.q_proj
        torch.nn.init.ones_(layer.lora_B["default"].weight)
        lora.install(model)
        x = torch.ones(1, 3, 64)
        return layer(x) - layer.base_layer(x)

    torch.testing.assert_close(answer(True), 2 * answer(False))  # 8 / sqrt(4) against 8 / 4


def test_dropout_is_left_to_peft(tiny_model: Path) -> None:
    model = adapters.add_lora(load.load_model(tiny_model, "fp32", "cpu"), 4, 8.0, 0.5, "all-linear", False, 0)
    assert not any(lora.is_plain(module) for module in model.modules())


def test_with_the_adapter_off_it_is_the_base_model(tiny_model: Path) -> None:
    engine = open_tiny(tiny_model)
    example = ragged(seed=1, rows=1)[0]
    base = Engine(load.load_model(tiny_model, "fp32", "cpu"), engine.tokenizer)
    with engine.model.disable_adapter():
        off = engine.held_out_loss([example])
    assert off == pytest.approx(base.held_out_loss([example]), rel=1e-6)
    assert off != pytest.approx(engine.held_out_loss([example]), rel=1e-4)
