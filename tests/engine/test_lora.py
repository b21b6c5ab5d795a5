"""Our LoRA function against PEFT's own forward."""

from pathlib import Path

import pytest
import torch
from conftest_engine import furthest, gradients, open_tiny, ragged

from luthier.config.adapters import LoraSettings
from luthier.engine import Engine, lora, update
from luthier.engine.draws import Draws
from luthier.models import load
from luthier.models import lora as lora_adapters


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
        model = lora_adapters.add(
            load.load_model(tiny_model, "fp32", "cpu"), LoraSettings(r=4, lora_alpha=8.0, target_modules=["q_proj"], use_rslora=use_rslora)
        )
        layer = model.base_model.model.model.layers[0].self_attn.q_proj
        torch.nn.init.ones_(layer.lora_B["default"].weight)
        lora.install(model, lambda: None, Draws())
        x = torch.ones(1, 3, 64)
        return layer(x) - layer.base_layer(x)

    torch.testing.assert_close(answer(True), 2 * answer(False))  # 8 / sqrt(4) against 8 / 4


def test_layers_with_one_input_go_through_one_function(engine: Engine) -> None:
    groups = {
        frozenset(name.split(".")[-1] for name, module in engine.model.named_modules() if any(module is one for one in group))
        for group in lora._groups([module for module in engine.model.modules() if lora.is_plain(module)], lambda: update.trace(engine.model))
    }
    assert groups == {frozenset(names.split()) for names in ("q_proj k_proj v_proj", "o_proj", "gate_proj up_proj", "down_proj")}


@pytest.mark.parametrize("budgets", [(4096, 1), (4096, 50)])
def test_dropout_does_not_depend_on_the_cut(tiny_model: Path, budgets: tuple[int, int]) -> None:
    examples = ragged(seed=3, rows=9)
    found = []
    for budget in budgets:
        engine = open_tiny(tiny_model, dropout=0.4, micro_batch_tokens=budget)
        torch.manual_seed(5)
        found.append((engine.forward_backward(examples).loss, gradients(engine)))
    (loss, one), (other_loss, other) = found
    assert loss == pytest.approx(other_loss, rel=1e-6)
    assert furthest(one, other) < 2e-5
    without = open_tiny(tiny_model)
    assert without.forward_backward(examples).loss != pytest.approx(loss, rel=1e-3)
    torch.manual_seed(6)
    assert engine.forward_backward(examples).loss != pytest.approx(loss, rel=1e-4)


def test_dropout_drops_its_share_and_keeps_the_mean() -> None:
    drawn, alone = Draws(3), Draws(3)
    drawn.begin_micro_batch([(0, 400), (1, 600)], [400, 600])
    alone.begin_micro_batch([(1, 600)], [600])
    kept = drawn.kept(0, 64, 0.25, torch.device("cpu"))
    assert kept.shape == (1000, 64)
    assert float(kept.float().mean()) == pytest.approx(0.75, abs=0.01)
    assert not torch.equal(kept[:400], drawn.kept(1, 64, 0.25, torch.device("cpu"))[:400])
    assert torch.equal(kept[400:], alone.kept(0, 64, 0.25, torch.device("cpu")))


def test_with_the_adapter_off_it_is_the_base_model(tiny_model: Path) -> None:
    engine = open_tiny(tiny_model)
    example = ragged(seed=1, rows=1)[0]
    base = Engine(load.load_model(tiny_model, "fp32", "cpu"), engine.tokenizer)
    with engine.model.disable_adapter():
        off = engine.held_out_loss([example])
    assert off == pytest.approx(base.held_out_loss([example]), rel=1e-6)
    assert off != pytest.approx(engine.held_out_loss([example]), rel=1e-4)
