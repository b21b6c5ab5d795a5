"""Facts read from a folder are those of the loaded model."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from luthier.errors import ModelError
from luthier.models import architectures, facts, load


def test_the_facts_of_a_folder_are_those_of_the_model(tiny_model: Path):
    found = facts.from_folder(tiny_model)
    model = load.load_model(tiny_model, "fp32", "cpu")
    assert found.parameters == sum(weight.numel() for weight in model.parameters())
    assert found == facts.ModelFacts(
        parameters=found.parameters,
        layers=2,
        hidden=64,
        intermediate=128,
        heads=4,
        kv_heads=2,
        head_dim=16,
        vocabulary=500,
        context=512,
        tied=True,
    )


def test_sizes_that_a_config_leaves_out_follow_from_the_others(tiny_model: Path, tmp_path: Path):
    folder = shutil.copytree(tiny_model, tmp_path / "old")
    config = {"n_layer": 2, "n_embd": 64, "n_head": 4, "n_inner": None, "vocab_size": 500, "n_positions": 512}
    (folder / "config.json").write_text(json.dumps(config))
    found = facts.from_folder(folder)
    assert (found.layers, found.kv_heads, found.head_dim, found.intermediate, found.context) == (2, 4, 16, 256, 512)


def test_a_config_without_sizes_is_named(tiny_model: Path, tmp_path: Path):
    folder = shutil.copytree(tiny_model, tmp_path / "odd")
    (folder / "config.json").write_text('{"model_type": "odd"}')
    with pytest.raises(ModelError, match=r"odd/config.json: does not say hidden \(hidden_size or n_embd"):
        facts.from_folder(folder)


SMALL = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2 = {"vocab_size": 96, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64, "bos_token_id": 1, "eos_token_id": 2}
EXPERTS = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "decoder_sparse_step": 1}
# model_type: its own sizes, beside SMALL where they have a head's width of their own
OWN = {
    "gpt2": GPT2,
    "gpt_neox": {**SMALL, "num_key_value_heads": 4},
    "phi": {**SMALL, "num_key_value_heads": 4},
    "mixtral": {**SMALL, "num_local_experts": 4, "num_experts_per_tok": 2},
    "gpt_oss": {**SMALL, "head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {**SMALL, **EXPERTS, "head_dim": 16},
    **{name: {**SMALL, "head_dim": 16} for name in ("gemma", "gemma2", "gemma3_text", "qwen3", "mistral")},
}


@pytest.mark.parametrize("model_type", [name for name in architectures.ARCHITECTURES if name != "gemma3"])
def test_what_is_counted_from_a_config_is_what_transformers_builds(model_type: str, tmp_path: Path):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(model_type, **OWN.get(model_type, SMALL))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    config.save_pretrained(tmp_path)
    found = facts.from_folder(tmp_path)
    assert found.parameters == sum(weight.numel() for weight in model.parameters())
    idle = sum(weight.numel() // 2 for name, weight in model.named_parameters() if "experts" in name and "bias" not in name)
    assert found.active_parameters == found.parameters - idle


def test_biases_that_a_config_asks_for_are_counted(tmp_path: Path):
    plain = facts.from_config({"model_type": "llama", **SMALL}, tmp_path)
    asked = facts.from_config({"model_type": "llama", **SMALL, "attention_bias": True, "mlp_bias": True}, tmp_path)
    assert asked.parameters - plain.parameters == 3 * ((32 + 16 + 16 + 32) + (48 + 48 + 32))


def test_the_decoder_of_a_model_that_sees_images_is_counted(tmp_path: Path):
    text = {"model_type": "gemma3_text", **SMALL, "head_dim": 16}
    whole = {"model_type": "gemma3", "text_config": text, "vision_config": {"hidden_size": 999}}
    assert facts.from_config(whole, tmp_path) == facts.from_config(text, tmp_path)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "odd", **SMALL}, r"parameters of model_type 'odd' cannot be counted .* no weights lie beside it"),
        ({"model_type": "llama", "hidden_size": 32}, r"does not say heads \(num_attention_heads or n_head"),
        ({"model_type": "t5", **SMALL, "is_encoder_decoder": True}, r"cannot be counted|has an encoder"),
        ({}, r"model_type None cannot be counted"),
    ],
)
def test_what_a_config_lacks_is_named(config: dict[str, Any], words: str, tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=words):
        facts.from_folder(tmp_path)


def test_an_encoder_is_refused_even_with_its_weights(tiny_model: Path, tmp_path: Path):
    folder = shutil.copytree(tiny_model, tmp_path / "t5")
    (folder / "config.json").write_text(json.dumps({"model_type": "t5", **SMALL, "is_encoder_decoder": True}))
    with pytest.raises(ModelError, match="has an encoder, and only decoders are trained"):
        facts.from_folder(folder)
