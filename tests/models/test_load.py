"""Loading: exact weights or a reason, and tokenizers with a real limit and a pad token."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from luthier.errors import ModelError
from luthier.models import load


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_model, tmp_path / "mine")


def edit(path: Path, **changes: object) -> None:
    value = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: kept for name, kept in value.items() if kept is not None}))


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_a_model_is_loaded_in_the_precision_asked_for(tiny_model: Path, precision: str, dtype: torch.dtype):
    model = load.load_model(tiny_model, precision, "cpu")
    stored = load_file(tiny_model / "model.safetensors")["model.layers.1.mlp.up_proj.weight"]
    assert {weight.dtype for weight in model.parameters()} == {dtype}
    assert torch.equal(model.model.layers[1].mlp.up_proj.weight, stored.to(dtype))
    assert not model.training
    assert model.config._attn_implementation == "sdpa"


def test_weights_that_are_missing_are_not_made_up(folder: Path):
    kept = load_file(folder / "model.safetensors")
    del kept["model.layers.1.mlp.up_proj.weight"]
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"no values for 1 weights of the model, model.layers.1.mlp.up_proj.weight"):
        load.load_model(folder, "fp32", "cpu")


def test_weights_that_are_not_finite_are_named(folder: Path):
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"model.norm.weight holds values that are not finite"):
        load.load_model(folder, "fp32", "cpu")


@pytest.mark.parametrize("changes", [{"model_type": "unheard"}, {"hidden_size": 32}, {"num_attention_heads": "four"}])
def test_a_config_that_does_not_fit_is_a_model_error(folder: Path, changes: dict[str, object]):
    edit(folder / "config.json", **changes)
    with pytest.raises(ModelError, match="the model cannot be loaded"):
        load.load_model(folder, "fp32", "cpu")


def test_a_weight_of_another_shape_than_the_config_says_is_named(folder: Path):
    edit(folder / "config.json", vocab_size=400)
    with pytest.raises(ModelError, match=r"model.embed_tokens.weight is \[500, 64\], and config.json asks for \[400, 64\]"):
        load.load_model(folder, "fp32", "cpu")


def test_another_kind_of_model_than_the_weights_are_of_is_named_by_a_weight(folder: Path):
    edit(folder / "config.json", model_type="gpt2", architectures=["GPT2LMHeadModel"])
    with pytest.raises(ModelError, match=r"holds no values for \d+ weights of the model, lm_head.weight first"):
        load.load_model(folder, "fp32", "cpu")


def test_weights_stored_in_another_format_than_the_config_says_are_read_as_asked(folder: Path):
    edit(folder / "config.json", dtype="float16", torch_dtype="float16")
    assert load.load_model(folder, "fp32", "cpu").dtype == torch.float32


def test_a_cut_file_is_named_before_loading(folder: Path):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ModelError, match=r"model.safetensors: cut or damaged"):
        load.load_model(folder, "fp32", "cpu")


def test_an_absurd_limit_becomes_the_context_and_a_missing_pad_the_end_token(folder: Path):
    edit(folder / "tokenizer_config.json", model_max_length=10**30, pad_token=None)
    tokenizer = load.load_tokenizer(folder)
    assert tokenizer.model_max_length == 512
    assert tokenizer.pad_token == tokenizer.eos_token == "<|im_end|>"


def test_a_limit_below_the_context_is_kept(folder: Path):
    edit(folder / "tokenizer_config.json", model_max_length=100)
    assert load.load_tokenizer(folder).model_max_length == 100


def test_a_cut_tokenizer_is_a_model_error(folder: Path):
    path = folder / "tokenizer.json"
    path.write_text(path.read_text()[:500])
    with pytest.raises(ModelError, match="mine: the tokenizer cannot be loaded"):
        load.load_tokenizer(folder)


def test_a_model_that_sdpa_would_be_wrong_for_keeps_its_own_attention(tiny_model: Path, tmp_path: Path):
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(vocab_size=500, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
    Gemma2ForCausalLM(config).save_pretrained(tmp_path / "gemma2")
    assert load.load_model(tmp_path / "gemma2", "fp32", "cpu").config._attn_implementation == "eager"


def test_a_file_that_is_written_over_in_place_changes_nothing_that_was_loaded(tiny_model: Path, tmp_path: Path):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    file = folder / "model.safetensors"
    model = load.load_model(folder, "fp32", "cpu")
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with file.open("r+b") as written:
        written.seek(-100_000, 2)
        written.write(b"\0" * 100_000)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert all(weight.data_ptr() % 64 == 0 for weight in model.parameters())
