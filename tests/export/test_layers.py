"""The first layer at which two models part is named, by the name that both have for it."""

from pathlib import Path

import pytest
import torch

from luthier.engine import Engine
from luthier.export import layers

IDS = [5, 60, 7, 320, 44]


@pytest.fixture(scope="module")
def adapted(tiny_model: Path) -> Engine:
    engine = Engine.open(str(tiny_model), lora={"r": 4, "lora_alpha": 8})
    with torch.no_grad():
        for number, (name, parameter) in enumerate(engine.model.named_parameters()):
            if "lora_B" in name:
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
    engine.model.eval()
    return engine


@pytest.fixture(scope="module")
def found(adapted: Engine) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """What the layers give with the adapter beside them, and merged."""
    trained = layers.outputs(adapted.model, IDS)
    return trained, layers.outputs(adapted.model.merge_and_unload(), IDS)


def test_an_adapter_and_its_sum_have_the_same_layers_and_outputs(found: tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]) -> None:
    trained, merged = found
    assert list(trained) == list(merged)
    assert next(iter(trained)) == "model.embed_tokens"
    assert {"model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj", "model.norm", "lm_head"} <= trained.keys()
    assert layers.first_difference(trained, merged, "fp32") == ""


@pytest.mark.parametrize("name", ["model.layers.0.mlp.up_proj", "model.layers.1.self_attn.v_proj"])
def test_the_first_that_differs_is_named_and_not_what_follows_from_it(
    name: str, found: tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]
) -> None:
    trained, merged = found
    broken, after = {}, False
    for layer, output in merged.items():
        after = after or layer == name
        broken[layer] = 1.1 * output if after else output
    assert layers.first_difference(trained, broken, "fp32").startswith(f"{name} is the first layer that differs (by 0.1 of what it gives")
    assert layers.first_difference(trained, broken, "bf16").startswith(name)
    assert layers.first_difference(trained, {layer: output + 1e-9 for layer, output in merged.items()}, "fp32") == ""


def test_numbers_that_are_none_differ(found: tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]) -> None:
    trained, merged = found
    assert layers.first_difference(trained, {**merged, "lm_head": torch.full_like(merged["lm_head"], float("nan"))}, "bf16").startswith("lm_head")
