"""Names of layers without loading a model: the same as the model's own."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from luthier.errors import ConfigError
from luthier.models import layer_names, load, targets
from luthier.models.architectures import ARCHITECTURES

SMALL = {
    **{"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2},
    **{"n_embd": 32, "n_layer": 2, "n_head": 4, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "float32"},
}
# Not causal models by themselves: the decoder of one that also sees.
WITHIN_OTHERS = {"gemma3"}


def small(model_type: str) -> Any:
    config = AutoConfig.for_model(model_type)
    wanted = {name: value for name, value in SMALL.items() if hasattr(config, name)}
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **wanted))


@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES.keys() - WITHIN_OTHERS))
def test_the_names_of_an_architecture_are_those_of_its_model(model_type: str) -> None:
    linear = [name for name in targets.linear_layers(small(model_type)) if not layer_names.NO_LINEAR.search(name)]
    assert sorted(layer_names.of_architecture(model_type, 2)) == sorted(linear)


def test_every_architecture_has_its_names() -> None:
    assert layer_names.OF_BLOCKS.keys() == ARCHITECTURES.keys()
    assert layer_names.of_architecture("rwkv", 2) == []


def test_the_names_in_weights_are_those_of_the_model(tiny_model: Path) -> None:
    assert sorted(layer_names.of_weights(tiny_model)) == sorted(targets.linear_layers(load.load_model(tiny_model, "fp32", "cpu")))


@pytest.mark.parametrize("wanted", ["all-linear", ["all-linear"], "q_proj", ["q_proj", "self_attn.v_proj"], r".*\.1\.mlp\.(up|down)_proj"])
def test_what_the_model_has_is_let_pass(wanted: Any) -> None:
    layer_names.require(wanted, layer_names.of_architecture("llama", 2), "lora.target_modules")


@pytest.mark.parametrize(("wanted", "problem"), [("c_attn", "no linear layer has 'c_attn'"), (["q_proj", "c_attn"], "has no linear layer c_attn$")])
def test_what_the_model_has_not_is_refused_with_what_it_has(wanted: Any, problem: str) -> None:
    with pytest.raises(ConfigError) as refused:
        layer_names.require(wanted, layer_names.of_architecture("llama", 2), "lora.target_modules")
    assert refused.value.where == "lora.target_modules"
    assert "some of: down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj" in refused.value.next_step
    assert re.search(problem, refused.value.problem)
