"""Norms and gated activations as single functions: what Transformers' modules give, and given back."""

from typing import Any

import pytest
import torch
from conftest_engine import furthest, gradients, open_tiny, ragged
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from luthier.engine import Engine, elementwise
from luthier.engine.elementwise import Functions


@pytest.mark.parametrize("kind", [LlamaRMSNorm, GemmaRMSNorm])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_norm_is_what_its_module_computes_with_the_gradients(kind: Any, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    module = kind(24).to(dtype)
    torch.nn.init.normal_(module.weight)
    x, slope = torch.randn(2, 5, 24).to(dtype).requires_grad_(), torch.randn(2, 5, 24).to(dtype)
    wanted = torch.autograd.grad(module(x), [x, module.weight], slope)
    give_back = elementwise.install(torch.nn.ModuleList([module]), Functions())
    assert "forward" in module.__dict__
    for found, theirs in zip(torch.autograd.grad(module(x), [x, module.weight], slope), wanted, strict=True):
        assert float((found - theirs).norm() / theirs.norm()) < (1e-6 if dtype == torch.float32 else 1e-2)
    give_back()
    assert "forward" not in module.__dict__


def test_a_module_that_only_looks_like_a_norm_is_left_alone() -> None:
    class Shifted(LlamaRMSNorm):
        def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
            return super().forward(hidden_states) + 0.1

    module = Shifted(24)
    elementwise.install(torch.nn.ModuleList([module, torch.nn.LayerNorm(24)]), Functions())
    assert "forward" not in module.__dict__


def test_compiled_functions_give_the_same_update(tiny_model: Any) -> None:
    examples = ragged(seed=4, rows=6, prefix=20)
    plain = open_tiny(tiny_model)
    loss, wanted = plain.forward_backward(examples).loss, gradients(plain)
    engine = open_tiny(tiny_model, compile=True)
    assert engine.notes == []
    changed = [name for name, module in engine.model.named_modules() if "forward" in module.__dict__ and "lora" not in name]
    assert any(name.endswith("norm") for name in changed)
    assert any(name.endswith("mlp") for name in changed)
    assert engine.forward_backward(examples).loss == pytest.approx(loss, rel=1e-6)
    assert furthest(gradients(engine), wanted) < 2e-5


def test_without_a_compiler_the_run_goes_on_and_says_so(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> Functions:
        raise RuntimeError("InvalidCxxCompiler: no working C++ compiler was found")

    monkeypatch.setattr(elementwise, "compiled", refuse)
    engine: Engine = open_tiny(tiny_model, compile=True)
    assert engine.notes == ["not compiled: InvalidCxxCompiler: no working C++ compiler was found"]
    assert engine.forward_backward(ragged(seed=4, rows=2)).loss > 0
