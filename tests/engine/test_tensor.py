"""Models whose layers cannot be cut are refused, by what their plan says."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, CohereConfig, CohereForCausalLM, GPT2Config, GPT2LMHeadModel, Qwen3Config, Qwen3ForCausalLM

from luthier.config.settings import Settings
from luthier.engine import sharding, tensor
from luthier.errors import ConfigError

SMALL = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8}


def test_what_the_plan_of_a_model_does_otherwise_is_refused() -> None:
    with pytest.raises(ConfigError, match="Qwen3ForCausalLM has a part that is replicated_with_grad_allreduce"):
        list(tensor._planned(Qwen3ForCausalLM(Qwen3Config(**SMALL, intermediate_size=16))))
    with pytest.raises(ConfigError, match="Transformers has no plan for GPT2LMHeadModel") as refused:
        list(tensor._planned(GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2))))
    assert (refused.value.where, refused.value.next_step[:13]) == ("wrapping", "wrapping: ddp")


def test_weights_that_the_plan_of_a_model_forgets_are_refused() -> None:
    assert len(list(tensor._planned(_cohere()))) == 7
    with pytest.raises(
        ConfigError, match=r"CohereForCausalLM has weights beside those that its plan cuts \(model.layers.0.self_attn.q_norm.weight\)"
    ):
        list(tensor._planned(_cohere(use_qk_norm=True)))


def _cohere(**more: bool) -> CohereForCausalLM:
    return CohereForCausalLM(CohereConfig(**SMALL, intermediate_size=16, pad_token_id=0, bos_token_id=1, eos_token_id=2, **more))


def test_attention_that_drops_is_refused(tiny_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    assert len(list(tensor._planned(model))) == 2 * 7
    model.config.attention_dropout = 0.1
    with pytest.raises(ConfigError, match="drops a part of its attention"):
        list(tensor._planned(model))


@pytest.mark.parametrize(
    ("given", "where"),
    [({"lora": {"lora_dropout": 0.1}}, "lora.lora_dropout"), ({"method": "full", "training": {"precision": "bf16"}}, "training.precision")],
)
def test_what_is_known_once_the_settings_are_filled_is_refused(given: dict[str, object], where: str) -> None:
    settings = Settings.model_validate({"model": "m", "data": {"train": "t"}, "devices": 2, "wrapping": "tp", **given})
    filled = settings.model_copy(update={"lora": settings.lora.model_copy(update={"r": 8, "lora_alpha": 16})})
    with pytest.raises(ConfigError, match="this does not go with wrapping: tp") as refused:
        sharding.require(filled)
    assert refused.value.where == where


def test_a_pass_beside_the_leader_leaves_the_mode_alone(tiny_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model).train()
    tensor.join(model, [[1, 2, 3]], bare=False)
    assert model.training
    assert torch.is_grad_enabled()
