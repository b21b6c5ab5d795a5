"""Models in 4 and 8 bits: what lies in the folder is what was computed, other programs read it, and the roundings do what their papers say."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from luthier import files
from luthier.engine import Engine, opening
from luthier.errors import ModelError
from luthier.export import awq, compressed, gptq, merged, rounding
from luthier.models import load
from luthier.reporting import Silent

KINDS = ("gptq", "awq", "int8", "fp8")
LAYER = "model.layers.1.mlp.down_proj"
IDS = torch.tensor([[5, 60, 7, 320, 44, 91, 100, 12]])
ROWS = torch.randint(3, 500, (16, 60), generator=torch.Generator().manual_seed(0)).tolist()


def write(kind: str, whole: Path, to: Path) -> Path:
    to.mkdir()
    if kind in ("gptq", "awq"):
        return {"gptq": compressed.write_gptq, "awq": compressed.write_awq}[kind](whole, to, calibration=ROWS)
    return {"int8": compressed.write_int8, "fp8": compressed.write_fp8}[kind](whole, to)


@pytest.fixture(scope="module")
def whole(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return merged.write_merged(Engine.open(str(tiny_model)), tmp_path_factory.mktemp("whole") / "merged", "bf16")


@pytest.fixture(scope="module")
def written(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("compressed")
    return {kind: write(kind, whole, folder / kind) for kind in KINDS}


def stored_weight(folder: Path, layer: str) -> torch.Tensor:
    """A layer's weight as its file says it, unpacked number by number."""
    tensors = load_file(folder / "model.safetensors")
    scales = tensors[f"{layer}.weight_scale"].float()
    if f"{layer}.weight" in tensors:
        return tensors[f"{layer}.weight"].float() * scales
    words, (outputs, inputs) = tensors[f"{layer}.weight_packed"], tensors[f"{layer}.weight_shape"].tolist()
    numbers = torch.tensor([[(int(words[row, place // 8]) >> (4 * (place % 8)) & 15) - 8 for place in range(inputs)] for row in range(outputs)])
    return numbers * scales.repeat_interleave(inputs // scales.shape[1], dim=1)


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=IDS).logits
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_reads_exactly_the_numbers_that_were_written(kind: str, written: dict[str, Path], whole: Path) -> None:
    model = load.load_model(written[kind], "fp32", "cpu")
    assert torch.equal(model.get_submodule(LAYER).weight, stored_weight(written[kind], LAYER))
    plain = load.load_model(whole, "fp32", "cpu")
    original = plain.get_submodule(LAYER).weight.clone()
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear) or "norm" in name.rpartition(".")[2]:
                plain.get_submodule(name).weight.copy_(module.weight)
    # Weights in 4 bits are all there is; 8 bits round what they are multiplied with too.
    assert torch.allclose(logits(model), logits(plain), atol=1e-4) is (kind in ("gptq", "awq"))
    assert float((logits(model) - logits(plain)).norm() / logits(plain).norm()) < 0.25
    assert not torch.equal(plain.get_submodule(LAYER).weight, original)


@pytest.mark.parametrize("kind", KINDS)
def test_the_folder_says_how_it_is_stored_and_what_was_left_alone(kind: str, written: dict[str, Path], whole: Path) -> None:
    asked = files.read_json(written[kind] / "config.json")["quantization_config"]
    assert asked["quant_method"] == "compressed-tensors"
    assert asked["ignore"] == ["lm_head"]
    [group] = asked["config_groups"].values()
    assert group["weights"]["num_bits"] == (4 if kind in ("gptq", "awq") else 8)
    assert group["weights"].get("group_size") == (64 if kind in ("gptq", "awq") else None)
    before, after = load_file(whole / "model.safetensors"), load_file(written[kind] / "model.safetensors")
    assert torch.equal(before["model.embed_tokens.weight"], after["model.embed_tokens.weight"])
    assert torch.equal(before["model.norm.weight"], after["model.norm.weight"])
    assert {path.name for path in whole.iterdir()} == {path.name for path in written[kind].iterdir()}
    assert load.load_tokenizer(written[kind]).chat_template == load.load_tokenizer(whole).chat_template


@pytest.mark.parametrize("kind", KINDS)
def test_our_engine_answers_with_it(kind: str, written: dict[str, Path]) -> None:
    engine = opening.open_model(str(written[kind]), Silent(), "fp32")
    [row] = engine.tokenize([{"messages": [{"role": "user", "content": "150 Pierce Rd"}, {"role": "assistant", "content": "Itasca"}]}])
    engine.check(row)
    assert engine.answer([IDS[0].tolist()], max_new_tokens=4) == engine.answer([IDS[0].tolist()], max_new_tokens=4)
    fast = engine.held_out_loss([row])
    engine.go_plain("to compare")
    assert engine.held_out_loss([row]) == pytest.approx(fast, rel=1e-3)


def outlying(width: int = 128, tokens: int = 400) -> torch.Tensor:
    """Inputs of which a few are much larger than the others, and that go together."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(tokens, width, generator=generator) + torch.randn(tokens, 1, generator=generator)
    inputs[:, ::16] *= 20
    return inputs


def test_gptq_keeps_the_products_nearer_than_rounding_does() -> None:
    inputs = outlying()
    weight = torch.randn(48, 128, generator=torch.Generator().manual_seed(2))
    found = gptq.solve(weight, inputs.T @ inputs, 32, torch.float32)
    plain = rounding.four_bits(weight, 32, torch.float32)
    off = {name: float((inputs @ (one.weight() - weight).T).norm()) for name, one in {"gptq": found, "plain": plain}.items()}
    assert off["gptq"] < 0.75 * off["plain"]
    assert found.numbers.min() >= -8
    assert found.numbers.max() <= 7


def test_awq_protects_the_columns_of_large_inputs(whole: Path) -> None:
    inputs = outlying()
    weight = torch.randn(48, 128, generator=torch.Generator().manual_seed(2))
    factors = awq._factors([weight], inputs.T @ inputs, 32, torch.float32)
    assert float(factors[::16].min()) > float(factors.median())
    plain = rounding.four_bits(weight, 32, torch.float32).weight()
    protected = rounding.four_bits(weight * factors, 32, torch.float32).weight() / factors
    assert float((inputs @ (protected - weight).T).norm()) < 0.95 * float((inputs @ (plain - weight).T).norm())


def test_blocks_that_multiply_by_one_plus_their_norms_weight_are_refused(whole: Path) -> None:
    model = load.load_model(whole, "fp32", "cpu")
    block = model.model.layers[0]
    norm = block.input_layernorm
    plain = type(norm).forward
    norm.forward = lambda states: plain(norm, states) + states / states.pow(2).mean(-1, keepdim=True).sqrt()
    states = torch.randn(1, 4, 64)

    def run() -> torch.Tensor:
        with torch.no_grad():
            found: torch.Tensor = block.mlp(block.post_attention_layernorm(states)) + block.self_attn.q_proj(block.input_layernorm(states))
        return found

    inputs = outlying(64)
    grams = dict.fromkeys(("self_attn.q_proj", "mlp.gate_proj"), inputs.T @ inputs) | {"mlp.down_proj": torch.eye(128)}
    grams["self_attn.o_proj"] = torch.eye(64)
    with pytest.raises(ModelError, match="built otherwise than Llama's"):
        awq.fold(block, grams, run, 64, torch.float32, "model")


def test_numbers_are_packed_lowest_first_with_their_sign() -> None:
    numbers = torch.tensor([[-8, 7, 0, 1, -1, 2, 3, 7]], dtype=torch.int8)
    word = int(rounding.packed(numbers)[0, 0]) & 0xFFFFFFFF
    assert [(word >> (4 * place) & 15) - 8 for place in range(8)] == numbers[0].tolist()


def test_the_group_is_the_largest_that_divides_every_row() -> None:
    assert rounding.group_size({576, 1536}) == 64
    assert rounding.group_size({4096, 11008}) == 128
    assert rounding.group_size({96}) == 32
    assert rounding.group_size({128, 40}) is None


def test_rows_that_no_group_divides_are_refused_before_anything_is_computed(tmp_path: Path, tiny_model: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    shutil.copytree(tiny_model, tmp_path / "odd")
    config = LlamaConfig.from_pretrained(tiny_model, hidden_size=40, num_attention_heads=4, num_key_value_heads=2, head_dim=10)
    with torch.random.fork_rng():
        LlamaForCausalLM(config).save_pretrained(tmp_path / "odd")
    (tmp_path / "out").mkdir()
    with pytest.raises(ModelError, match="rows of 40 numbers") as error:
        compressed.write_gptq(tmp_path / "odd", tmp_path / "out", calibration=ROWS)
    assert "--to int8" in error.value.next_step
    assert not any((tmp_path / "out").iterdir())


def test_without_rows_nothing_is_measured(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="needs rows"):
        compressed.write_awq(whole, tmp_path, calibration=[])


def test_without_the_library_the_line_that_installs_it_is_given(written: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r'pip install "luthier\[compress\]"'):
        load.load_model(written["int8"], "fp32", "cpu")
