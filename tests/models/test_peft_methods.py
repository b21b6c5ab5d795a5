"""IA3 and every type of PEFT that is promised: trained, saved, loaded again here and by plain PEFT, to the bit."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft_types import TYPES
from safetensors.torch import load_file, save_file
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from luthier.config.adapters import Ia3Settings
from luthier.errors import ConfigError, ModelError
from luthier.models import adapters, load, peft_methods, peft_types

IDS = torch.arange(3, 40)[None]
# Types whose fresh adapter leaves every logit as it was, in fp32 to the bit.
BEGIN_AS_BASE = set(TYPES) - {"C3A", "DEFT", "FOURIERFT", "FROD", "HRA", "OSF", "UNILORA", "VBLORA"}
# Those that change nothing but the rounding.
BEGIN_AS_BASE_BUT_FOR_ROUNDING = {"DEFT", "FROD", "HRA", "OSF"}
SIZES = {
    "vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "pad_token_id": 0,
}  # fmt: skip


def base(folder: Path, precision: str = "fp32") -> Any:
    return load.load_model(folder, precision, "cpu")


def add(folder: Path, kind: str, precision: str = "fp32", seed: int = 3) -> Any:
    return peft_methods.add(base(folder, precision), {"type": kind, **TYPES[kind]}, seed=seed)


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model.eval()(input_ids=IDS, use_cache=False).logits


def train(model: Any, updates: int = 3) -> list[float]:
    """A few updates by AdamW; the loss before each."""
    model.train()
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=2e-2)
    losses = []
    for _ in range(updates):
        loss = model(input_ids=IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    return losses


@pytest.fixture(scope="module")
def trained(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an adapter of every type after three updates, and with the logits of the model that holds it in logits/TYPE.safetensors."""
    folder = tmp_path_factory.mktemp("types")
    (folder / "logits").mkdir()
    for kind in TYPES:
        model = add(tiny_model, kind)
        train(model)
        save_file({"logits": logits(model)}, folder / "logits" / f"{kind}.safetensors")
        adapters.save_adapter(model, folder / kind, "tiny")
    return folder


@pytest.mark.parametrize("kind", TYPES)
def test_what_was_trained_is_loaded_again_to_the_bit(kind: str, trained: Path, tiny_model: Path) -> None:
    expected = load_file(trained / "logits" / f"{kind}.safetensors")["logits"]
    loaded = adapters.load_adapter(base(tiny_model), trained / kind, trainable=False)
    assert torch.equal(logits(loaded), expected)
    assert not torch.equal(expected, logits(base(tiny_model)))
    with loaded.disable_adapter():
        assert torch.equal(logits(loaded), logits(base(tiny_model)))
    config = json.loads((trained / kind / "adapter_config.json").read_text())
    assert config["peft_type"] == kind
    assert config["base_model_name_or_path"] == "tiny"


def test_a_fresh_process_with_plain_peft_answers_the_same(trained: Path, tiny_model: Path) -> None:
    script = f"""
import peft, torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
for kind in {list(TYPES)}:
    base = AutoModelForCausalLM.from_pretrained({str(tiny_model)!r}, dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(base, {str(trained)!r} + "/" + kind).eval()
    with torch.no_grad():
        found = model(input_ids=torch.arange(3, 40)[None], use_cache=False).logits
    expected = load_file({str(trained)!r} + "/logits/" + kind + ".safetensors")["logits"]
    print(kind, float((found - expected).abs().max() / expected.std()))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    off = {kind: float(difference) for kind, difference in (line.split() for line in done.stdout.splitlines() if line.split()[0] in TYPES)}
    assert off.keys() == TYPES.keys()
    # The same file may be mapped at another address there, where a product rounds otherwise.
    assert {kind: difference for kind, difference in off.items() if difference > 1e-5} == {}


@pytest.mark.parametrize("kind", TYPES)
def test_it_trains_beside_a_base_in_bf16(kind: str, tiny_model: Path) -> None:
    model = add(tiny_model, kind, "bf16")
    weights = {name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad}
    # LN_TUNING trains the norms themselves, ADAPTION_PROMPT keeps its prompt in the base's format: the engine gives both fp32 masters.
    kept_in = torch.bfloat16 if kind in ("LN_TUNING", "ADAPTION_PROMPT") else torch.float32
    assert {weight.dtype for weight in weights.values()} == {kept_in}
    losses = train(model)
    assert all(loss == loss for loss in losses)
    assert any(not torch.equal(weight, weights[name]) for name, weight in model.named_parameters() if name in weights)


@pytest.mark.parametrize("kind", TYPES)
def test_which_types_begin_as_their_base(kind: str, tiny_model: Path) -> None:
    found, expected = logits(add(tiny_model, kind)), logits(base(tiny_model))
    assert torch.equal(found, expected) == (kind in BEGIN_AS_BASE)
    if kind in BEGIN_AS_BASE_BUT_FOR_ROUNDING:
        assert float((found - expected).abs().max() / expected.std()) < 1e-4


@pytest.mark.parametrize("kind", ["VERA", "OFT", "SHIRA", "VBLORA"])
def test_the_same_seed_gives_the_same_adapter(kind: str, tiny_model: Path) -> None:
    first, second = (dict(add(tiny_model, kind).named_parameters()) for _ in range(2))
    assert all(torch.equal(weight, second[name]) for name, weight in first.items())


def test_without_named_layers_every_linear_layer_gets_one(tiny_model: Path) -> None:
    every = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    for asked in ({}, {"target_modules": "all-linear"}):
        model = peft_methods.add(base(tiny_model), {"type": "miss", "r": 8, **asked})
        assert set(model.peft_config["default"].target_modules) == every
    model = peft_methods.add(base(tiny_model), {"type": "OFT", "oft_block_size": 8, "target_modules": ["q_proj"]})
    assert model.peft_config["default"].target_modules == {"q_proj"}


# A section, and what is said of it.
REFUSED = {
    "type: VERRA": ({"type": "VERRA"}, "PEFT has no type VERRA", "did you mean VERA"),
    "no type": ({"r": 8}, "no type is named", "VERA"),
    "field": ({"type": "VERA", "rr": 8}, "VERA has no setting rr", "did you mean r?"),
    "far field": ({"type": "VERA", "zzzzzz": 8}, "VERA has no setting zzzzzz", "projection_prng_key"),
    "decided": ({"type": "VERA", "inference_mode": True}, "inference_mode is decided by the run", "take it out"),
    "lora": ({"type": "lora"}, "lora is a method of its own", "method: lora"),
    "prefix": ({"type": "PREFIX_TUNING"}, "is a method of its own", "method: prefix"),
    "prompt": ({"type": "PROMPT_TUNING"}, "is a method of its own", "method: prompt"),
    "p-tuning": ({"type": "P-TUNING"}, "is a method of its own", "method: p_tuning"),
    "adalora": ({"type": "ADALORA"}, "moves its ranks in steps of its own", "method: lora"),
    "poly": ({"type": "POLY"}, "number of its task", "method: lora"),
    "value": ({"type": "SHIRA", "r": 4000}, "PEFT refuses it", "mend its settings"),
    "layers": ({"type": "OFT", "target_modules": ["query"]}, "no linear layer query", "q_proj"),
    "no tokens": ({"type": "TRAINABLE_TOKENS"}, "TRAINABLE_TOKENS needs token_indices", "{type: TRAINABLE_TOKENS, token_indices: [0, 1]}"),
    "empty tokens": ({"type": "TRAINABLE_TOKENS", "token_indices": []}, "needs token_indices", "token_indices: [0, 1]"),
    "a far token": ({"type": "TRAINABLE_TOKENS", "token_indices": [3, 9999]}, "token 9999 is not there: the embedding has", "ids from 0 to"),
    "a negative token": ({"type": "TRAINABLE_TOKENS", "token_indices": [-1]}, "token_indices is [-1]", "whole numbers from 0"),
    "adaption prompt": ({"type": "ADAPTION_PROMPT"}, "needs adapter_len and adapter_layers", "adapter_len: 10, adapter_layers: 2"),
    "its layers": ({"type": "ADAPTION_PROMPT", "adapter_len": 4}, "needs adapter_layers", "adapter_len: 10, adapter_layers: 2"),
    "oft's rank": ({"type": "OFT", "r": 8}, "OFT takes r or oft_block_size, which is 32", "oft_block_size: 0 beside r"),
    "dropout": ({"type": "LOHA", "rank_dropout": 2}, "rank_dropout is 2", "below 1"),
    "all dropped": ({"type": "VERA", "vera_dropout": 1.0}, "vera_dropout is 1.0", "below 1"),
    "dropout in words": ({"type": "OFT", "module_dropout": "much"}, "module_dropout is 'much'", "a share"),
    "pattern": ({"type": "LOHA", "rank_pattern": {"query": 2}}, "'query' matches no adapted layer", "q_proj"),
    "pattern elsewhere": ({"type": "LOKR", "alpha_pattern": {"q_proj": 2}, "target_modules": ["v_proj"]}, "matches no", "adapted are: v_proj"),
    "other pattern": ({"type": "FOURIERFT", "n_frequency": 50, "n_frequency_pattern": {"query": 2}}, "'query' matches no", "q_proj"),
    "no expression": ({"type": "LOHA", "rank_pattern": {"(q": 2}}, "is no regular expression", "q_proj"),
    "module": ({"type": "LOHA", "modules_to_save": ["score"]}, "no module score", "embed_tokens"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_peft_has_not_is_refused_with_the_nearest(name: str, tiny_model: Path) -> None:
    asked, problem, next_step = REFUSED[name]
    with pytest.raises(ConfigError) as refusal:
        peft_methods.add(base(tiny_model), asked)
    assert problem in refusal.value.problem
    assert next_step in refusal.value.next_step


def test_patterns_and_saved_modules_that_are_there_are_taken(tiny_model: Path) -> None:
    asked = {"type": "LOHA", "r": 4, "rank_pattern": {"layers.0.*q_proj": 2}, "modules_to_save": ["norm"]}
    shapes = {name: weight.shape for name, weight in peft_methods.add(base(tiny_model), asked).named_parameters() if weight.requires_grad}
    ranks = {shape[1] for name, shape in shapes.items() if "q_proj.hada_w1_a" in name}
    assert ranks == {2, 4}
    assert any("modules_to_save" in name for name in shapes)
    peft_methods.add(base(tiny_model), {"type": "OFT", "r": 8, "oft_block_size": 0, "module_dropout": 0.5})


def change(folder: Path, how: Any) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    how(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")


CHANGES = {
    "it lacks 1 tensors": lambda tensors: tensors.pop(next(iter(tensors))),
    "no place for, extra first": lambda tensors: tensors.update(extra=torch.zeros(1)),
    r"is \[2, 2\] and the model needs": lambda tensors: tensors.update({next(iter(tensors)): torch.zeros(2, 2)}),
}


@pytest.mark.parametrize("kind", ["IA3", "OFT", "LN_TUNING", "ADAPTION_PROMPT"])
@pytest.mark.parametrize("words", CHANGES)
def test_a_stored_adapter_that_does_not_fit_is_refused(kind: str, words: str, tmp_path: Path, tiny_model: Path) -> None:
    adapters.save_adapter(add(tiny_model, kind), tmp_path / "a", "tiny")
    change(tmp_path / "a", CHANGES[words])
    with pytest.raises(ModelError, match=words):
        adapters.load_adapter(base(tiny_model), tmp_path / "a", trainable=False)


def ia3_of(model: Any, **settings: Any) -> tuple[set[str], set[str]]:
    """The layers with factors on their outputs, and those with factors on their inputs."""
    adapted = peft_methods.add_ia3(model, Ia3Settings(**settings))
    tuned = {name.rpartition(".")[2]: module for name, module in adapted.named_modules() if hasattr(module, "is_feedforward")}
    inner = {name for name, module in tuned.items() if module.is_feedforward}
    return tuned.keys() - inner, inner


# (model, outputs with factors, inputs with factors): PEFT's own table where its names are there, else found in a block
IA3_LAYERS: dict[str, tuple[Any, set[str], set[str]]] = {
    "llama": (lambda: LlamaForCausalLM(LlamaConfig(**SIZES)), {"k_proj", "v_proj"}, {"down_proj"}),
    "qwen3": (lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=8)), {"q_proj", "v_proj"}, {"down_proj"}),
    "gpt2": (lambda: GPT2LMHeadModel(GPT2Config(vocab_size=60, n_embd=32, n_layer=2, n_head=4)), {"c_attn"}, {"c_proj"}),
    "phi3": (lambda: Phi3ForCausalLM(Phi3Config(**SIZES)), {"qkv_proj"}, {"down_proj"}),
    "mixtral": (lambda: MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=2)), {"k_proj", "v_proj"}, set()),
}


@pytest.mark.parametrize("name", IA3_LAYERS)
def test_ia3_finds_keys_values_and_the_mlps_last_layer(name: str) -> None:
    make, outer, inner = IA3_LAYERS[name]
    assert ia3_of(make()) == (outer, inner)


def test_ia3_takes_named_layers(tiny_model: Path) -> None:
    assert ia3_of(base(tiny_model), target_modules=["v_proj", "up_proj"], feedforward_modules=["up_proj"]) == ({"v_proj"}, {"up_proj"})
    assert ia3_of(base(tiny_model), target_modules=["v_proj"]) == ({"v_proj"}, set())
    with pytest.raises(ConfigError, match=r"no linear layer query"):
        ia3_of(base(tiny_model), target_modules=["query"])
    with pytest.raises(ConfigError, match=r"down_proj is not among ia3.target_modules"):
        ia3_of(base(tiny_model), target_modules=["v_proj"], feedforward_modules=["down_proj"])


def test_ia3_says_what_is_there_where_it_finds_no_block() -> None:
    def opt() -> Any:
        return OPTForCausalLM(
            OPTConfig(vocab_size=60, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, word_embed_proj_dim=32)
        )

    assert ia3_of(opt()) == ({"q_proj", "k_proj"}, {"fc2"})  # PEFT knows it by name
    model = opt()
    model.config.model_type = "unknown"
    with pytest.raises(ConfigError, match=r"keys, values and MLP are not found"):
        ia3_of(model)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_ia3_begins_as_its_base_to_the_bit_and_its_factors_are_fp32(precision: str, tiny_model: Path) -> None:
    model = peft_methods.add_ia3(base(tiny_model, precision), Ia3Settings())
    assert torch.equal(logits(model), logits(base(tiny_model, precision)))
    assert {weight.dtype for weight in model.parameters() if weight.requires_grad} == {torch.float32}
    assert sum(weight.numel() for weight in model.parameters() if weight.requires_grad) == 2 * (32 + 32 + 128)


def test_saving_twice_gives_the_same_bytes(tiny_model: Path, tmp_path: Path) -> None:
    for name in ("one", "other"):
        adapters.save_adapter(peft_methods.add_ia3(base(tiny_model), Ia3Settings()), tmp_path / name, "tiny")
    config = json.loads((tmp_path / "one" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["down_proj", "k_proj", "v_proj"]
    assert config["feedforward_modules"] == ["down_proj"]
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "other" / file).read_bytes()


def test_a_new_type_needs_no_code() -> None:
    """Every type of this PEFT is either run by its name or has a way out."""
    known = {kind.value for kind in peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING}
    assert set(peft_methods.known_types()) | peft_types.ELSEWHERE.keys() == known
    # ADAMSS wants scikit-learn, which is not among the libraries of the tests.
    assert set(peft_methods.known_types()) - set(TYPES) == {"ADAMSS"}
