"""A base in 4 or 8 bits: what is quantized, and that the plain model it stands for is that model."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from luthier.config.settings import Settings
from luthier.errors import ConfigError, ModelError
from luthier.models import load, quantized
from luthier.models.quantized import Quantization

KINDS = ["nf4", "fp4", "int8", "int8_torchao"]
IDS = torch.tensor([[5, 60, 7, 320, 44]])


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    pytest.importorskip(quantized.KINDS[request.param].library)
    return str(request.param)


def base(folder: Path, kind: str, source: str = "fp32", precision: str = "fp32", double_quant: bool = True) -> Any:
    return quantized.load_model(folder, precision, "cpu", Quantization(kind, double_quant, source, precision))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=IDS).logits
    return found.float()


def test_the_linear_layers_are_quantized_and_nothing_else(kind: str, tiny_model: Path) -> None:
    model = base(tiny_model, kind, "bf16", "bf16")
    names = {name.rpartition(".")[2] for name, _ in quantized.quantized_layers(model)}
    assert names == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert type(model.lm_head) is torch.nn.Linear
    assert model.lm_head.weight is model.model.embed_tokens.weight
    others = {name: parameter.dtype for name, parameter in model.named_parameters() if "proj" not in name}
    assert set(others.values()) == {torch.bfloat16}
    assert any("norm" in name for name in others)


def test_it_is_near_the_base_and_nearer_with_more_bits(kind: str, tiny_model: Path) -> None:
    plain = load.load_model(tiny_model, "fp32", "cpu")
    error = float((logits(base(tiny_model, kind)) - logits(plain)).std() / logits(plain).std())
    assert (0.01 if "4" in kind else 1e-4) < error < (0.6 if "4" in kind else 0.05)


@pytest.mark.parametrize("four_bits", ["nf4", "fp4"])
def test_no_layer_of_four_bits_packs_its_weight_anew(four_bits: str, tiny_model: Path) -> None:
    """The same for a model that was only opened to answer, on a CPU that has what the packing is for."""
    model = base(tiny_model, four_bits)
    assert not any(layer.support_avx512bf16_for_cpu for _, layer in quantized.quantized_layers(model))
    before = {name: layer.weight.data.clone() for name, layer in quantized.quantized_layers(model)}
    logits(model)
    for name, layer in quantized.quantized_layers(model):
        assert torch.equal(layer.weight.data, before[name])
        assert not getattr(layer.weight.quant_state, "packing_format_for_cpu", False)


def test_the_plain_model_that_it_stands_for_gives_the_same_logits(kind: str, tiny_model: Path) -> None:
    model = base(tiny_model, kind, "bf16", "fp32")
    expected = logits(model)
    plain = quantized.unquantized(model)
    assert not list(quantized.quantized_layers(plain))
    assert {parameter.dtype for parameter in plain.parameters()} == {torch.float32}
    assert float((logits(plain) - expected).abs().max()) < 1e-4 * float(expected.std())


def test_the_same_weights_are_quantized_whatever_format_it_is_opened_in(kind: str, tiny_model: Path) -> None:
    """A run in bf16 that is opened in fp32, to be compared or merged, has the weights that were trained beside."""
    trained, opened_wide = base(tiny_model, kind, "bf16", "bf16"), base(tiny_model, kind, "bf16", "fp32")
    for (_, one), (_, other) in zip(quantized.quantized_layers(trained), quantized.quantized_layers(opened_wide), strict=True):
        assert torch.equal(quantized.weight_of(one, torch.float32), quantized.weight_of(other, torch.float32))
    assert opened_wide.model.norm.weight.dtype == torch.float32


def test_two_loads_are_the_same_to_the_bit(kind: str, tiny_model: Path) -> None:
    assert torch.equal(logits(base(tiny_model, kind, "bf16", "bf16")), logits(base(tiny_model, kind, "bf16", "bf16")))


def test_a_model_of_transposed_layers_is_quantized_and_comes_back(tmp_path: Path) -> None:
    """GPT-2 keeps its matrices the other way round."""
    from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(vocab_size=500, n_embd=64, n_layer=2, n_head=4, n_positions=64)).save_pretrained(tmp_path / "gpt2")
    model = base(tmp_path / "gpt2", "nf4")
    assert len(list(quantized.quantized_layers(model))) == 8
    expected = logits(model)
    plain = quantized.unquantized(model)
    plain.save_pretrained(tmp_path / "plain")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    assert float((logits(again) - expected).abs().max()) < 1e-4 * float(expected.std())


def test_a_model_without_a_layer_that_the_library_takes_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(vocab_size=500, n_embd=64, n_layer=1, n_head=4, n_positions=64)).save_pretrained(tmp_path / "gpt2")
    with pytest.raises(ConfigError, match=r"int8_torchao finds no linear layer[\s\S]*method: lora"):
        base(tmp_path / "gpt2", "int8_torchao")


def test_routers_are_not_quantized(tmp_path: Path) -> None:
    """A router in 4 bits would send tokens elsewhere."""
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

    config = Qwen2MoeConfig(
        vocab_size=500,
        hidden_size=64,
        intermediate_size=64,
        moe_intermediate_size=32,
        shared_expert_intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_experts=4,
        num_experts_per_tok=2,
    )
    Qwen2MoeForCausalLM(config).save_pretrained(tmp_path / "moe")
    names = [name for name, _ in quantized.quantized_layers(base(tmp_path / "moe", "nf4"))]
    assert any("q_proj" in name for name in names)
    assert not any("gate" in name.split(".")[-1] and "proj" not in name for name in names)


def test_a_weight_that_is_no_number_is_found_before_it_is_quantized(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "broken")
    tensors = load_file(tmp_path / "broken" / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")
    save_file(tensors, tmp_path / "broken" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"model\.layers\.1\.mlp\.up_proj\.weight holds values that are not finite"):
        base(tmp_path / "broken", "nf4")


def test_a_device_that_was_not_tried_is_refused() -> None:
    with pytest.raises(ConfigError, match="not been tried on mps"):
        quantized.require("nf4", "mps")


def settings(**qlora: Any) -> Settings:
    given = {"model": "m", "data": {"train": "rows"}, "method": "qlora", "qlora": qlora, "training": {"precision": "bf16"}}
    return Settings.model_validate(given)


@pytest.mark.parametrize(
    ("asked", "precision", "compute"), [("auto", None, "bf16"), ("fp32", None, "fp32"), ("auto", "fp32", "fp32"), ("fp16", "fp32", "fp32")]
)
def test_products_are_in_the_format_asked_for_or_opened_in(asked: str, precision: str | None, compute: str) -> None:
    found = quantized.quantization_of(settings(compute_dtype=asked), precision)
    assert found == Quantization("nf4", True, "bf16", compute)


def test_other_methods_have_no_quantized_base() -> None:
    assert quantized.quantization_of(Settings.model_validate({"model": "m", "data": {"train": "rows"}})) is None
