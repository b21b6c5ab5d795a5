"""Bottleneck adapters: where they stand, what they compute, that they begin as nothing, and that a stored one comes back whole or not at all."""

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    FalconConfig,
    FalconForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    MixtralConfig,
    MixtralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PhiConfig,
    PhiForCausalLM,
)

from luthier.config.adapters import BottleneckSettings
from luthier.errors import ModelError
from luthier.models import adapters, bottleneck, load

IDS = torch.arange(3, 40)[None]
KINDS = ("houlsby", "pfeiffer", "parallel")
ALL = [f"model.layers.{number}.bottleneck_{part}" for number in range(2) for part in ("self_attn", "mlp")]


def base(folder: Path, precision: str = "fp32") -> Any:
    return load.load_model(folder, precision, "cpu")


def add(model: Any, seed: int = 0, **settings: Any) -> bottleneck.BottleneckModel:
    return bottleneck.add(model, BottleneckSettings.model_validate(settings), seed=seed)


def disturb(model: Any) -> Any:
    """Give every trained weight another value."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn(weight.shape, generator=generator) * 0.1)
    return model


@torch.no_grad()
def logits(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    return model.eval()(input_ids=ids, use_cache=False).logits


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
def test_it_begins_as_its_base_to_the_bit_and_is_off_when_it_is_off(kind: str, precision: str, tiny_model: Path) -> None:
    expected = logits(base(tiny_model, precision))
    model = add(base(tiny_model, precision), kind=kind)
    assert torch.equal(logits(model), expected)
    assert {weight.dtype for weight in model.parameters() if weight.requires_grad} == {torch.float32}
    assert not torch.equal(logits(disturb(model)), expected)
    with model.disable_adapter():
        assert torch.equal(logits(model), expected)
    assert not torch.equal(logits(model), expected)


@pytest.mark.parametrize(("kind", "places"), [("houlsby", ALL), ("pfeiffer", ALL[1::2]), ("parallel", ALL[1::2])])
def test_where_the_adapters_stand(kind: str, places: list[str], tiny_model: Path) -> None:
    model = add(base(tiny_model), kind=kind, reduction_factor=8)
    assert list(model.adapters) == places
    trained = {name: weight.shape for name, weight in model.named_parameters() if weight.requires_grad}
    assert {name.removeprefix("base_model.").rpartition(".")[0].rpartition(".")[0] for name in trained} == set(places)
    assert sum(shape.numel() for shape in trained.values()) == len(places) * (2 * 64 * 8 + 8 + 64)


@pytest.mark.parametrize("non_linearity", ["relu", "gelu", "silu", "tanh"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_they_compute(kind: str, non_linearity: str, tiny_model: Path) -> None:
    """A block by hand: each sub-layer's output, and on it scaling * up(f(down(x)))."""
    model = disturb(add(base(tiny_model), kind=kind, non_linearity=non_linearity, scaling=3.0))
    block = model.get_base_model().model.layers[0]
    functions = {"relu": torch.relu, "gelu": torch.nn.functional.gelu, "silu": torch.nn.functional.silu, "tanh": torch.tanh}

    def added(adapter: Any, x: torch.Tensor) -> torch.Tensor:
        return 3.0 * adapter.up(functions[non_linearity](adapter.down(x)))

    x = torch.randn(1, 5, 64, generator=torch.Generator().manual_seed(2))
    rotary = model.get_base_model().model.rotary_emb(x, torch.arange(5)[None])
    with torch.no_grad():
        found = block(x, position_embeddings=rotary)
        plain = copy.deepcopy(block)
        for part in (plain.self_attn, plain.mlp):
            part._forward_hooks.clear()
        attended = plain.self_attn(plain.input_layernorm(x), position_embeddings=rotary)[0]
        states = x + attended + (added(block.bottleneck_self_attn, attended) if kind == "houlsby" else 0)
        normed = plain.post_attention_layernorm(states)
        out = plain.mlp(normed)
        expected = states + out + added(block.bottleneck_mlp, normed if kind == "parallel" else out)
    torch.testing.assert_close(found, expected)


def test_the_same_seed_gives_the_same_adapter_and_leaves_other_draws_alone(tiny_model: Path) -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first, second, other = (add(base(tiny_model), seed=seed).adapter_tensors() for seed in (7, 7, 8))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


SIZES = {
    "vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
FAMILIES: dict[str, Any] = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=60, n_embd=32, n_layer=2, n_head=4)),
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**SIZES, head_dim=8)),
    "phi": lambda: PhiForCausalLM(PhiConfig(**SIZES)),
    "mixtral": lambda: MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=2)),
    "falcon": lambda: FalconForCausalLM(FalconConfig(vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_other_families_have_the_same_places(family: str, kind: str) -> None:
    model = FAMILIES[family]()
    expected = logits(model)
    adapted = add(model, kind=kind)
    assert len(adapted.adapters) == (4 if kind == "houlsby" else 2)
    assert torch.equal(logits(adapted), expected)
    assert not torch.equal(logits(disturb(adapted)), expected)


def test_blocks_without_an_mlp_of_their_own_are_named() -> None:
    model = OPTForCausalLM(OPTConfig(vocab_size=60, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, word_embed_proj_dim=32))
    with pytest.raises(ModelError, match=r"one attention and one MLP, and here is self_attn \(OPTAttention\).*fc1 \(Linear\)"):
        add(model)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stored_adapter_comes_back_to_the_bit(kind: str, tiny_model: Path, tmp_path: Path) -> None:
    model = disturb(add(base(tiny_model), kind=kind, reduction_factor=4.0, non_linearity="gelu", scaling=2.0))
    adapters.save_adapter(model, tmp_path / "a", "tiny")
    loaded = adapters.load_adapter(base(tiny_model), tmp_path / "a", trainable=False)
    assert torch.equal(logits(loaded), logits(model))
    assert not any(weight.requires_grad for weight in loaded.parameters())
    again = adapters.load_adapter(base(tiny_model), tmp_path / "a", trainable=True)
    assert {name for name, weight in again.named_parameters() if weight.requires_grad} == {
        name for name, weight in model.named_parameters() if weight.requires_grad
    }
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert config == {
        "peft_type": "BOTTLENECK", "task_type": "CAUSAL_LM", "base_model_name_or_path": "tiny",
        "kind": kind, "reduction_factor": 4.0, "non_linearity": "gelu", "scaling": 2.0,
    }  # fmt: skip


def test_a_fresh_process_answers_the_same(tiny_model: Path, tmp_path: Path) -> None:
    model = disturb(add(base(tiny_model), kind="houlsby"))
    adapters.save_adapter(model, tmp_path / "a", "tiny")
    save_file({"logits": logits(model)}, tmp_path / "logits.safetensors")
    script = f"""
from pathlib import Path
import torch
from safetensors.torch import load_file
from luthier.models import adapters, load
model = adapters.load_adapter(load.load_model(Path({str(tiny_model)!r}), "fp32", "cpu"), Path({str(tmp_path)!r}) / "a", trainable=False)
with torch.no_grad():
    found = model(input_ids=torch.arange(3, 40)[None], use_cache=False).logits
assert torch.equal(found, load_file({str(tmp_path / "logits.safetensors")!r})["logits"])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def change(folder: Path, how: Any) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    how(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")


NAME = "model.layers.0.bottleneck_mlp.down.weight"
CHANGES = {
    "it lacks 1 tensors": lambda tensors: tensors.pop(NAME),
    "no place for, extra first": lambda tensors: tensors.update(extra=torch.zeros(1)),
    r"is \[5, 64\] and the model needs \[4, 64\]": lambda tensors: tensors.update({NAME: torch.zeros(5, 64)}),
    "not finite": lambda tensors: tensors[NAME].fill_(float("nan")),
}


@pytest.mark.parametrize("words", CHANGES)
def test_an_adapter_that_does_not_fit_is_refused_and_the_model_stays_as_it_was(words: str, tiny_model: Path, tmp_path: Path) -> None:
    adapters.save_adapter(disturb(add(base(tiny_model))), tmp_path / "a", "some-other-model")
    change(tmp_path / "a", CHANGES[words])
    model = base(tiny_model)
    names = [name for name, _ in model.named_modules()]
    with pytest.raises(ModelError, match=words):
        adapters.load_adapter(model, tmp_path / "a", trainable=False)
    assert [name for name, _ in model.named_modules()] == names
    assert torch.equal(logits(model), logits(base(tiny_model)))


def test_settings_that_are_none_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    adapters.save_adapter(add(base(tiny_model)), tmp_path / "a", "tiny")
    config = tmp_path / "a" / "adapter_config.json"
    config.write_text(config.read_text().replace('"pfeiffer"', '"sideways"'), encoding="utf-8")
    with pytest.raises(ModelError, match=r"is not a bottleneck adapter"):
        adapters.load_adapter(base(tiny_model), tmp_path / "a", trainable=False)
