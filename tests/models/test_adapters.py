"""Adapters: the right layers, the same start for the same seed, and a stored one comes back whole or not at all."""

import json
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from luthier.config.adapters import LoraSettings
from luthier.errors import ConfigError, ModelError, RunError
from luthier.models import adapters, load, lora
from luthier.models.weights import fingerprint

ALL_LINEAR = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
IDS = torch.arange(3, 40)[None]


def base(folder: Path, precision: str = "fp32") -> Any:
    return load.load_model(folder, precision, "cpu")


def adapted(folder: Path, target_modules: str | list[str] = "all-linear", seed: int = 7, precision: str = "fp32") -> peft.PeftModel:
    return lora.add(base(folder, precision), LoraSettings(r=4, lora_alpha=8.0, target_modules=target_modules), seed=seed)


def trained(folder: Path) -> peft.PeftModel:
    """An adapted model whose adapters do something (B starts at zero)."""
    model = adapted(folder)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.2, generator=torch.Generator().manual_seed(len(name)))
    return model.eval()


def test_all_linear_means_every_layer_but_the_head(tiny_model: Path):
    model = adapted(tiny_model)
    assert {name.split(".")[-4] for name, _ in model.named_parameters() if "lora_A" in name} == ALL_LINEAR
    assert {name for name, weight in model.named_parameters() if weight.requires_grad and "lora_" not in name} == set()


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_adapter_weights_are_fp32_on_any_base_and_change_nothing_yet(tiny_model: Path, precision: str):
    model = adapted(tiny_model, precision=precision)
    assert {weight.dtype for weight in model.parameters() if weight.requires_grad} == {torch.float32}
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, base(tiny_model, precision)(IDS).logits)


def test_the_same_seed_gives_the_same_adapter_and_leaves_other_draws_alone(tiny_model: Path):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first, second, other = (peft.get_peft_model_state_dict(adapted(tiny_model, seed=seed)) for seed in (7, 7, 8))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("target_modules", ["q_proj", ["q_proj", "v_proj"]])
def test_named_layers_only(tiny_model: Path, target_modules: str | list[str]):
    names = {name.split(".")[-4] for name, _ in adapted(tiny_model, target_modules).named_parameters() if "lora_A" in name}
    assert names == ({"q_proj"} if isinstance(target_modules, str) else set(target_modules))


@pytest.mark.parametrize("wrong", [["q_proj", "query"], ["lm_head"], ["embed_tokens"]])
def test_a_layer_that_is_not_there_is_named_with_those_that_are(tiny_model: Path, wrong: list[str]):
    with pytest.raises(ConfigError, match=r"all-linear, or some of: down_proj, gate_proj, k_proj"):
        adapted(tiny_model, wrong)


@pytest.mark.parametrize("trainable", [True, False])
def test_a_saved_adapter_answers_the_same_when_loaded(tiny_model: Path, tmp_path: Path, trainable: bool):
    model = trained(tiny_model)
    adapters.save_adapter(model, tmp_path / "adapter", "tiny")
    loaded = adapters.load_adapter(base(tiny_model), tmp_path / "adapter", trainable)
    with torch.no_grad():
        assert torch.equal(loaded(IDS).logits, model(IDS).logits)
        assert not torch.allclose(loaded(IDS).logits, base(tiny_model)(IDS).logits, atol=1e-3)
    assert any(weight.requires_grad for weight in loaded.parameters()) == trainable


def test_other_tools_load_a_saved_adapter_and_learn_its_base_by_name(tiny_model: Path, tmp_path: Path):
    model = trained(tiny_model)
    adapters.save_adapter(model, tmp_path / "adapter", "tiny")
    other = peft.PeftModel.from_pretrained(base(tiny_model), str(tmp_path / "adapter"))
    with torch.no_grad():
        assert torch.equal(other(IDS).logits, model(IDS).logits)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny"
    assert config["target_modules"] == sorted(ALL_LINEAR)
    assert all(str(tiny_model) not in path.read_text(errors="replace") for path in (tmp_path / "adapter").iterdir())


def test_saving_again_replaces_the_older_adapter(tiny_model: Path, tmp_path: Path):
    for model in (adapted(tiny_model), trained(tiny_model)):
        adapters.save_adapter(model, tmp_path / "adapter", "tiny")
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert any(tensor.any() for name, tensor in stored.items() if "lora_B" in name)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


@contextmanager
def files_of_at_most(size_bytes: int) -> Iterator[None]:
    """The operating system takes no file that is longer, from libraries in Rust neither."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_does_not_take_a_library_s_file_is_told_in_words_and_keeps_the_older_adapter(tiny_model: Path, tmp_path: Path):
    """PEFT's weights and the tokenizer are written by Rust, whose errors are no OSError."""
    model, folder = adapted(tiny_model, "q_proj"), tmp_path / "adapter"
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    adapters.save_adapter(model, folder, "tiny", tokenizer)
    before = {path.name: path.stat().st_size for path in folder.iterdir()}
    weights, words = before["adapter_model.safetensors"], before["tokenizer.json"]
    assert weights < words, "so that each of the two is met"
    for size_bytes in (weights - 1, words - 1):
        with files_of_at_most(size_bytes), pytest.raises(RunError, match=r"adapter: cannot be written \(File too large\)\n  Try: choose another"):
            adapters.save_adapter(model, folder, "tiny", tokenizer)
        assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
        assert {path.name: path.stat().st_size for path in folder.iterdir()} == before


def test_values_that_are_not_finite_are_neither_saved_nor_loaded(tiny_model: Path, tmp_path: Path):
    model = trained(tiny_model)
    adapters.save_adapter(model, tmp_path / "good", "tiny")
    with torch.no_grad():
        next(weight for weight in model.parameters() if weight.requires_grad)[0, 0] = float("inf")
    with pytest.raises(ModelError, match="not finite"):
        adapters.save_adapter(model, tmp_path / "bad", "tiny")
    assert not (tmp_path / "bad").exists()
    change(tmp_path / "good", lambda tensors: next(iter(tensors.values())).fill_(float("nan")))
    with pytest.raises(ModelError, match="not finite"):
        adapters.load_adapter(base(tiny_model), tmp_path / "good", trainable=False)


def change(folder: Path, how: Any) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    how(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")


def widen(tensors: dict[str, torch.Tensor]) -> None:
    name = next(name for name in tensors if "lora_A" in name)
    tensors[name] = torch.zeros(4, 96)


CHANGES = {
    "it lacks 1 tensors": lambda tensors: tensors.pop(next(iter(tensors))),
    "no place for, extra first": lambda tensors: tensors.update(extra=torch.zeros(1)),
    r"is \[4, 96\] and the model needs \[4, ": widen,
}


@pytest.mark.parametrize("words", CHANGES)
def test_an_adapter_of_another_model_is_refused_and_the_model_stays_as_it_was(tiny_model: Path, tmp_path: Path, words: str):
    adapters.save_adapter(trained(tiny_model), tmp_path / "adapter", "some-other-model")
    change(tmp_path / "adapter", CHANGES[words])
    model = base(tiny_model)
    with pytest.raises(ModelError, match=f"made for some-other-model and does not fit .*{words}"):
        adapters.load_adapter(model, tmp_path / "adapter", trainable=False)
    assert {name for name, _ in model.named_parameters()} == {name for name, _ in base(tiny_model).named_parameters()}
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, base(tiny_model)(IDS).logits)


def test_a_base_of_the_same_shapes_with_other_weights_is_told_by_both_hashes(tiny_model: Path, tmp_path: Path):
    adapters.save_adapter(trained(tiny_model), tmp_path / "adapter", "tiny")
    other = tmp_path / "other"
    shutil.copytree(tiny_model, other)
    tensors = load_file(other / "model.safetensors")
    tensors["model.norm.weight"] += 1
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    first, second = (fingerprint(folder)[:12] for folder in (tiny_model, other))
    with pytest.raises(ModelError, match=f"made for tiny and does not fit .*other: that base's weights have the hash {first}, and these {second}"):
        adapters.load_adapter(base(other), tmp_path / "adapter", trainable=False)


def test_a_folder_that_is_no_adapter_is_named(tiny_model: Path, tmp_path: Path):
    with pytest.raises(ModelError, match=r"adapter_config.json: is missing"):
        adapters.load_adapter(base(tiny_model), tmp_path, trainable=False)
    adapters.save_adapter(adapted(tiny_model), tmp_path / "adapter", "tiny")
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(ModelError, match="cut or damaged"):
        adapters.load_adapter(base(tiny_model), tmp_path / "adapter", trainable=False)
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ModelError, match="other formats are not loaded"):
        adapters.load_adapter(base(tiny_model), tmp_path / "adapter", trainable=False)


def test_names_that_peft_takes_for_fused_experts_are_refused_and_left_out_of_all_linear(tmp_path: Path):
    from transformers import DeepseekV2Config, DeepseekV2ForCausalLM

    def model() -> Any:
        sizes = {"hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 200}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "n_routed_experts": 4}
        return DeepseekV2ForCausalLM(DeepseekV2Config(**sizes, **heads))

    with pytest.raises(ConfigError, match=r"gate_proj, up_proj: PEFT would take the experts"):
        lora.add(model(), LoraSettings(r=4, lora_alpha=8.0, target_modules=["q_a_proj", "gate_proj", "up_proj"]))
    adapted = lora.add(model(), LoraSettings(r=4, lora_alpha=8.0))
    assert not [name for name, weight in adapted.named_parameters() if weight.requires_grad and ".mlp." in name]
    adapters.save_adapter(adapted, tmp_path / "adapter", "tiny")
    loaded = adapters.load_adapter(model(), tmp_path / "adapter", trainable=False)
    assert {name for name, _ in loaded.named_parameters() if "lora_" in name} == {name for name, _ in adapted.named_parameters() if "lora_" in name}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"task_type": "SEQ_CLS"}, r"task_type is 'SEQ_CLS': only adapters of models that write text \(CAUSAL_LM\) are loaded"),
        ({"use_new_trick": True}, r"use_new_trick is True: PEFT \S+ does not know it, and would leave it out"),
        ({"use_rslora": "yes"}, r"use_rslora is 'yes': true or false is expected"),
        ({"lora_alpha": float("nan")}, r"lora_alpha is nan: a number is expected"),
        ({"lora_alpha": "8"}, r"lora_alpha is '8': a number is expected"),
        ({"r": "4"}, r"does not fit"),
        ({"r": 8}, r"lora_A.weight is \[4, 64\] and the model needs \[8, 64\]"),
        ({"target_modules": 5}, r"does not fit"),
        ({"use_dora": True}, r"it lacks 14 tensors, \S+lora_magnitude_vector first"),
        ({"layers_to_transform": [0]}, r"it holds 14 tensors that the model has no place for"),
        ({"peft_type": "FOO"}, r"PEFT cannot read it"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_configuration_that_peft_would_misread_is_refused(change: dict[str, Any], said: str, tiny_model: Path, tmp_path: Path):
    adapters.save_adapter(adapted(tiny_model), tmp_path / "adapter", "tiny")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ModelError, match=said):
        adapters.load_adapter(base(tiny_model), tmp_path / "adapter", trainable=False)


def test_a_switch_of_a_newer_peft_that_is_off_is_no_hindrance(tiny_model: Path, tmp_path: Path):
    adapters.save_adapter(adapted(tiny_model), tmp_path / "adapter", "tiny")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "use_new_trick": False, "new_table": None}))
    adapters.load_adapter(base(tiny_model), tmp_path / "adapter", trainable=False)


def test_an_adapter_that_is_written_over_in_place_changes_nothing_that_was_read(tiny_model: Path, tmp_path: Path):
    adapters.save_adapter(trained(tiny_model), tmp_path / "adapter", "tiny")
    _, tensors = adapters.read_stored(tmp_path / "adapter", base(tiny_model))
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    with (tmp_path / "adapter" / adapters.WEIGHTS).open("r+b") as written:
        written.seek(-10_000, 2)
        written.write(b"\0" * 10_000)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tensors.items())
