"""Whether vLLM, SGLang and LoRAX take an adapter, by its files alone."""

from pathlib import Path
from typing import Any

import pytest
import torch

from luthier import files
from luthier.export import adapter
from luthier.models.save import write_tensors

CONFIG = {"peft_type": "LORA", "r": 8, "target_modules": ["q_proj", "v_proj"], "base_model_name_or_path": "org/base", "bias": "none"}
PREFIX = "base_model.model.model.layers.0.self_attn"


def write(folder: Path, tensors: dict[str, tuple[int, ...]] | None = None, **config: Any) -> Path:
    files.write_json(folder / "adapter_config.json", {**CONFIG, **config})
    shapes = tensors or {f"{PREFIX}.q_proj.lora_A.weight": (CONFIG["r"], 64), f"{PREFIX}.q_proj.lora_B.weight": (64, CONFIG["r"])}
    rank = config.get("r", CONFIG["r"])
    shapes = {name: tuple(rank if size == CONFIG["r"] else size for size in shape) for name, shape in shapes.items()} if tensors is None else shapes
    write_tensors(folder / "adapter_model.safetensors", {name: torch.zeros(shape) for name, shape in shapes.items()})
    return folder


@pytest.mark.parametrize(
    ("rank", "said"), [(8, "rank 8 needs --max-lora-rank 8"), (12, "rank 12 is none of 8, 16, 32, 64, ...: needs --max-lora-rank 16")]
)
def test_plain_lora_is_taken_by_all_three(rank: int, said: str, tmp_path: Path) -> None:
    found = adapter.readers(write(tmp_path, r=rank), ("peft", "vllm", "sglang", "lorax", "llama.cpp"))
    assert [(one.engine, one.takes) for one in found] == [("vllm", True), ("sglang", True), ("lorax", True)]
    assert str(found[0]) == f"vllm: takes it ({said})"
    assert "--model-id org/base, which it compares letter by letter" in str(found[2])


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"use_dora": True}, "the column lengths of DoRA"),
        ({"modules_to_save": ["lm_head"]}, "an embedding or a head that was trained whole"),
        ({"trainable_token_indices": {"embed_tokens": [3]}}, "the rows of added tokens"),
        ({"alpha_pattern": {"q_proj": 4}}, "layers of another alpha"),
        ({"bias": "all"}, "trained biases"),
        ({"base_model_name_or_path": None}, "names no model"),
        ({"target_modules": "all-linear"}, "target_modules is no list"),
        ({"r": 1024}, "its rank is 1024, and 512 is the most"),
    ],
)
def test_what_they_would_pass_over_is_refused_with_the_way_out(config: dict[str, Any], said: str, tmp_path: Path) -> None:
    for one in adapter.readers(write(tmp_path, **config), adapter.SERVERS):
        assert not one.takes
        assert said in one.why


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({f"{PREFIX}.q_proj.lora_magnitude_vector": (64,)}, "it has no place for"),
        ({f"{PREFIX}.k_proj.lora_A.weight": (8, 64)}, "of a layer that target_modules does not name"),
        ({f"{PREFIX}.q_proj.lora_A.weight": (4, 64)}, r"is [4, 64], and r is 8"),
        ({f"{PREFIX}.q_proj.lora_B.weight": (64, 4)}, r"is [64, 4], and r is 8"),
    ],
)
def test_tensors_that_do_not_fit_the_config_are_named(tensors: dict[str, tuple[int, ...]], said: str, tmp_path: Path) -> None:
    (one, *_) = adapter.readers(write(tmp_path, tensors), adapter.SERVERS)
    assert not one.takes
    assert said in one.why
    assert next(iter(tensors)) in one.why


def test_methods_that_no_server_reads_have_no_lines(tmp_path: Path) -> None:
    assert adapter.readers(write(tmp_path), ("peft",)) == []
