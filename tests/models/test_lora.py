"""LoRA in full: which layers, which ranks, where it starts, and what other tools read of it."""

import copy
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file

from luthier.config.adapters import LoraSettings
from luthier.engine import Engine
from luthier.errors import ConfigError, ModelError
from luthier.models import adapters, initial, load, lora, methods, quantized, targets
from luthier.records import Source, TokenizedExample

IDS = torch.arange(3, 40)[None]
STARTS = ["pissa", "olora", "loftq"]


def base(folder: Path, precision: str = "fp32") -> Any:
    return load.load_model(folder, precision, "cpu")


def adapted(folder: Path, **settings: Any) -> peft.PeftModel:
    return lora.add(base(folder), LoraSettings(**{"r": 4, "lora_alpha": 8.0} | settings), seed=7)


def adapted_names(model: Any) -> set[str]:
    return {name for name, _ in initial.lora_layers(model)}


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS).logits.float()
        return found


def examples(rows: int = 6, tokens: int = 40) -> list[TokenizedExample]:
    draw = torch.Generator().manual_seed(4)
    ids = torch.randint(3, 500, (rows, tokens), generator=draw).tolist()
    return [TokenizedExample(row, [False] * 4 + [True] * (tokens - 4), Source("rows", place)) for place, row in enumerate(ids)]


def train(model: Any, folder: Path, updates: int = 5) -> Engine:
    engine = Engine(model, load.load_tokenizer(folder))
    for _ in range(updates):
        engine.forward_backward(examples())
        engine.optimizer_step(1e-2)
    engine.model.eval()
    return engine


# Which layers.

EXPRESSIONS = {
    # written                                   stored                                                       layers
    r".*\.(q|v)_proj": (["q_proj", "v_proj"], {f"model.layers.{n}.self_attn.{p}_proj" for n in (0, 1) for p in "qv"}),
    r".*mlp\.down_proj": (["down_proj"], {f"model.layers.{n}.mlp.down_proj" for n in (0, 1)}),
    r"model\.layers\.1\..*\.o_proj": (["model.layers.1.self_attn.o_proj"], {"model.layers.1.self_attn.o_proj"}),
}


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_one_expression_for_whole_names_takes_what_peft_takes(tiny_model: Path, tmp_path: Path, expression: str) -> None:
    stored, expected = EXPRESSIONS[expression]
    model = adapted(tiny_model, target_modules=expression)
    theirs = peft.get_peft_model(base(tiny_model), peft.LoraConfig(r=4, target_modules=expression))
    assert adapted_names(model) == expected == adapted_names(theirs)
    adapters.save_adapter(model, tmp_path / "adapter", "tiny")
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["target_modules"] == stored


def test_an_expression_never_takes_the_head(tiny_model: Path) -> None:
    assert adapted_names(adapted(tiny_model, target_modules=".*")) == adapted_names(adapted(tiny_model))


def test_an_expression_leaves_routers_and_experts_out() -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 200, "num_local_experts": 4}
    model = MixtralForCausalLM(MixtralConfig(num_attention_heads=4, num_key_value_heads=2, **sizes))
    assert targets.resolve(model, ".*") == targets.resolve(model, "all-linear") == ["k_proj", "o_proj", "q_proj", "v_proj"]


REFUSED = {
    "an expression that matches nothing": (
        {"target_modules": ".*query"},
        r"no linear layer has '\.\*query' as its name.*all-linear, or some of: down_proj",
    ),
    "one beside layers": ({"target_modules": ".*q_proj", "layers_to_transform": [0]}, "an expression for whole names chooses the layers itself"),
    "a rank for no layer": ({"target_modules": ["q_proj"], "rank_pattern": {"k_proj": 2}}, r"lora.rank_pattern: 'k_proj' matches no adapted.*q_proj"),
    "an alpha for no layer": ({"alpha_pattern": {"layers.7.*": 2}}, r"lora.alpha_pattern: 'layers.7.\*' matches no adapted layer.*down_proj, gate"),
    "a rank wider than a layer": ({"r": 33, "init_lora_weights": "pissa"}, "takes r = 33 directions from .*k_proj, which has 32"),
    "an odd rank": ({"r": 3, "init_lora_weights": "orthogonal"}, "orthogonal needs an even rank"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_with_the_way_out(tiny_model: Path, case: str) -> None:
    settings, words = REFUSED[case]
    with pytest.raises(ConfigError) as refused:
        adapted(tiny_model, **settings)
    assert re.search(words, str(refused.value), re.DOTALL)


def test_patterns_mean_what_they_mean_to_peft(tiny_model: Path, tmp_path: Path) -> None:
    patterns = {"rank_pattern": {"q_proj": 2, r"layers\.1\..*down_proj": 6}, "alpha_pattern": {"q_proj": 3.0}}
    model = adapted(tiny_model, **patterns)
    found = {name: (layer.r["default"], layer.scaling["default"]) for name, layer in initial.lora_layers(model)}
    theirs = peft.get_peft_model(
        base(tiny_model), peft.LoraConfig(r=4, lora_alpha=8, target_modules=targets.resolve(base(tiny_model), "all-linear"), **patterns)
    )
    assert found == {name: (layer.r["default"], layer.scaling["default"]) for name, layer in initial.lora_layers(theirs)}
    assert found["model.layers.0.self_attn.q_proj"] == (2, 1.5)
    assert (found["model.layers.1.mlp.down_proj"][0], found["model.layers.0.mlp.down_proj"][0]) == (6, 4)
    train(model, tiny_model)
    assert_reloads_everywhere(model, tiny_model, tmp_path)


# Where it starts.


@pytest.mark.parametrize("how", [*STARTS, "orthogonal"])
def test_every_start_begins_as_the_base_up_to_rounding_and_leaves_the_base_as_it_is(tiny_model: Path, how: str) -> None:
    untouched = logits(base(tiny_model))
    model = adapted(tiny_model, init_lora_weights=how)
    assert all(weight.abs().max() > 1e-4 for name, weight in model.named_parameters() if "lora_B" in name)
    assert float((logits(model) - untouched).abs().max() / untouched.std()) < 1e-4
    with model.disable_adapter():
        assert torch.equal(logits(model), untouched)
    again = adapted(tiny_model, init_lora_weights=how)
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("how", ["pissa", "olora"])
def test_a_start_is_pefts_and_learns_as_pefts(tiny_model: Path, how: str) -> None:
    ours = adapted(tiny_model, init_lora_weights=how)
    theirs = peft.get_peft_model(base(tiny_model), peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=how))
    for (name, one), (_, other) in zip(initial.lora_layers(ours), initial.lora_layers(theirs), strict=True):
        delta, expected = (layer.lora_B["default"].weight @ layer.lora_A["default"].weight for layer in (one, other))
        torch.testing.assert_close(delta, expected, rtol=1e-4, atol=1e-5, msg=name)
    engines = [Engine(model, load.load_tokenizer(tiny_model)) for model in (ours, theirs)]
    losses = [[step for _ in range(4) for step in [engine.forward_backward(examples()).loss, engine.optimizer_step(1e-2)]] for engine in engines]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert not engines[0].plain_reason


def test_starts_are_right_for_layers_that_are_stored_the_other_way_round() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=200, n_embd=32, n_layer=1, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2)).eval()
    untouched = logits(model)
    for how in STARTS:
        adapted_model = lora.add(copy.deepcopy(model), LoraSettings(r=4, init_lora_weights=how))
        assert float((logits(adapted_model) - untouched).abs().max() / untouched.std()) < 1e-4


@pytest.mark.parametrize("how", [*STARTS, "orthogonal"])
def test_on_a_quantized_base_the_start_is_the_base_but_loftq_is_nearer_to_what_it_was(tiny_model: Path, how: str) -> None:
    asked = methods.settings_of(str(tiny_model), "qlora", {"r": 8, "lora_alpha": 8.0, "init_lora_weights": how}, "fp32", 0)
    quantization = quantized.quantization_of(asked, "fp32")
    rounded = logits(quantized.load_model(tiny_model, "fp32", "cpu", quantization))
    found = logits(methods.add(quantized.load_model(tiny_model, "fp32", "cpu", quantization), asked))
    unrounded = logits(base(tiny_model))
    if how == "loftq":
        assert (found - unrounded).norm() < 0.9 * (rounded - unrounded).norm()
    else:
        assert float((found - rounded).abs().max() / rounded.std()) < 1e-4


def test_loftq_starts_at_what_four_bits_lose(tiny_model: Path) -> None:
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    layer = dict(initial.lora_layers(adapted(tiny_model, r=32, init_lora_weights="loftq")))["model.layers.0.self_attn.k_proj"]
    weight = layer.base_layer.weight
    lost = weight - dequantize_4bit(*quantize_4bit(weight, quant_type="nf4"))
    found = layer.scaling["default"] * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    torch.testing.assert_close(found, lost, rtol=1e-3, atol=1e-5)  # 32 is the whole rank of this layer


def test_wide_layers_start_at_nearly_the_same_and_still_at_the_base(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = dict(initial.lora_layers(adapted(tiny_model, init_lora_weights="pissa")))
    monkeypatch.setattr(initial, "EXACT_WIDTH", 16)
    model = adapted(tiny_model, init_lora_weights="pissa")
    for name, layer in initial.lora_layers(model):
        one, other = (float((each.lora_B["default"].weight @ each.lora_A["default"].weight).detach().norm()) for each in (layer, exact[name]))
        assert 0.98 * other < one < 1.001 * other
    untouched = logits(base(tiny_model))
    assert float((logits(model) - untouched).abs().max() / untouched.std()) < 1e-4


def test_eva_starts_along_the_inputs_of_the_rows(tiny_model: Path) -> None:
    untouched = logits(base(tiny_model))
    model = adapted(tiny_model, init_lora_weights="eva")
    initial.by_variance(model, examples(), seed=0)
    assert torch.equal(logits(model), untouched)
    inputs: list[torch.Tensor] = []
    layer = model.get_base_model().model.layers[1].mlp.down_proj
    hook = layer.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    with torch.no_grad():
        for example in examples():
            model(input_ids=torch.tensor([example.token_ids]))
    hook.remove()
    x = torch.cat([one[0, 4:] for one in inputs])
    of_all = (x - x.mean(0)).pow(2).sum()
    a = layer.lora_A["default"].weight / layer.lora_A["default"].weight.norm(dim=1, keepdim=True)
    explained = ((x - x.mean(0)) @ a.T).pow(2).sum() / of_all
    drawn = torch.linalg.qr(torch.randn(x.shape[1], 4, generator=torch.Generator().manual_seed(0)))[0]
    assert explained > 3 * ((x - x.mean(0)) @ drawn).pow(2).sum() / of_all
    again = adapted(tiny_model, init_lora_weights="eva")
    initial.by_variance(again, examples(), seed=0)
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), again.parameters(), strict=True))
    assert sorted(model.peft_config["default"].target_modules) == targets.resolve(base(tiny_model), "all-linear")


def test_eva_without_enough_tokens_says_so(tiny_model: Path) -> None:
    with pytest.raises(ConfigError, match="the first 1 hold 1 trained tokens for a rank of 4"):
        initial.by_variance(adapted(tiny_model, init_lora_weights="eva"), [TokenizedExample([3, 4], [False, True], Source("rows", 1))], seed=0)
    with pytest.raises(ConfigError, match="the first 0 hold 0 trained tokens"):
        Engine.open(str(tiny_model), lora={"r": 4, "init_lora_weights": "eva"})


def test_a_start_is_kept_and_taken_again(tiny_model: Path, tmp_path: Path) -> None:
    model = adapted(tiny_model, init_lora_weights="pissa")
    initial.keep(model, tmp_path / "start")
    trained = copy.deepcopy(dict(train(model, tiny_model).masters.weights))
    other = adapted(tiny_model)
    initial.take(other, tmp_path / "start")
    with torch.no_grad():
        for name, weight in other.named_parameters():
            if name in trained:
                weight.copy_(trained[name])
    assert torch.equal(logits(Engine(other, load.load_tokenizer(tiny_model)).model), logits(model))
    initial.keep(adapted(tiny_model), tmp_path / "none")
    assert not (tmp_path / "none").exists()


# What others read.

FRESH_PROCESS = """
import sys, peft, torch
from pathlib import Path
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
from luthier.engine import Engine
from luthier.models import adapters, load
base, out = Path(sys.argv[1]), {}
for folder in sys.argv[3:]:
    plain = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), folder)
    ours = Engine(adapters.load_adapter(load.load_model(base, "fp32", "cpu"), Path(folder), trainable=False), load.load_tokenizer(base)).model
    with torch.no_grad():
        for name, model in (("plain", plain), ("ours", ours)):
            out[f"{name} {Path(folder).name}"] = model(input_ids=torch.arange(3, 40)[None]).logits
save_file(out, sys.argv[2])
"""


def assert_reloads_everywhere(model: Any, folder: Path, out: Path, of_peft: float = 1e-4) -> dict[str, Any]:
    """Saved, then loaded here (to the bit) and by plain PEFT on the untouched base (within `of_peft` of the logits' deviation)."""
    engine = Engine(model, load.load_tokenizer(folder)) if not isinstance(model, Engine) else model
    expected = logits(engine.model.eval())
    adapters.save_adapter(engine.model, out / "adapter", "tiny")
    ours = Engine(adapters.load_adapter(base(folder), out / "adapter", trainable=False), engine.tokenizer)
    assert torch.equal(logits(ours.model), expected)
    theirs = peft.PeftModel.from_pretrained(base(folder), str(out / "adapter"))
    assert float((logits(theirs) - expected).abs().max() / expected.std()) < of_peft
    merged = logits(theirs.merge_and_unload())
    assert float((merged - expected).abs().max() / expected.std()) < 1e-4
    assert float((logits(base(folder)) - expected).abs().max() / expected.std()) > 0.1  # it has learned something
    config: dict[str, Any] = json.loads((out / "adapter" / "adapter_config.json").read_text())
    return config


VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "orthogonal": {"init_lora_weights": "orthogonal"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_saved_adapter_is_what_was_trained_here_in_plain_peft_and_merged(tiny_model: Path, tmp_path: Path, variant: str) -> None:
    engine = train(adapted(tiny_model, **VARIANTS[variant]), tiny_model)
    config = assert_reloads_everywhere(engine, tiny_model, tmp_path)
    assert (config["r"], config["lora_alpha"], config["init_lora_weights"]) == (4, 8.0, True)
    assert config["use_dora"] == (variant == "dora")


@pytest.mark.parametrize("use_rslora", [False, True])
@pytest.mark.parametrize("how", STARTS)
def test_other_starts_are_saved_as_plain_lora_of_twice_the_rank(tiny_model: Path, tmp_path: Path, how: str, use_rslora: bool) -> None:
    settings = {"init_lora_weights": how, "use_rslora": use_rslora, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 5.0}}
    engine = train(adapted(tiny_model, **settings), tiny_model, updates=3)
    config = assert_reloads_everywhere(engine, tiny_model, tmp_path)
    grown = math.sqrt(2) if use_rslora else 2
    assert (config["r"], config["lora_alpha"], config["init_lora_weights"]) == (8, pytest.approx(8 * grown), True)
    assert (config["rank_pattern"], config["alpha_pattern"]) == ({"q_proj": 4}, {"v_proj": pytest.approx(5 * grown)})


def test_a_fresh_process_gives_the_same_logits_to_the_bit_and_plain_peft_nearly(tiny_model: Path, tmp_path: Path) -> None:
    kinds: dict[str, dict[str, Any]] = {"lora": {}, "dora": {"use_dora": True}, "pissa": {"init_lora_weights": "pissa"}}
    expected = {}
    for kind, settings in kinds.items():
        engine = train(adapted(tiny_model, **settings), tiny_model)
        expected[kind] = logits(engine.model)
        adapters.save_adapter(engine.model, tmp_path / kind, "tiny")
    folders = [str(tmp_path / kind) for kind in kinds]
    command = [sys.executable, "-c", FRESH_PROCESS, str(tiny_model), str(tmp_path / "out.safetensors"), *folders]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    found = load_file(tmp_path / "out.safetensors")
    for kind, trained in expected.items():
        assert torch.equal(found[f"ours {kind}"], trained)
        assert float((found[f"plain {kind}"] - trained).abs().max() / trained.std()) < 1e-4


def test_the_files_are_what_serving_engines_read(tiny_model: Path, tmp_path: Path) -> None:
    adapters.save_adapter(adapted(tiny_model), tmp_path / "adapter", "org/tiny")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    expected = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "org/tiny", "bias": "none", "r": 4, "lora_alpha": 8,
        "target_modules": ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"],
        "modules_to_save": None, "use_dora": False, "use_rslora": False, "init_lora_weights": True, "layers_to_transform": None,
        "rank_pattern": {}, "alpha_pattern": {}, "lora_bias": False, "trainable_token_indices": None,
    }  # fmt: skip
    assert {name: config[name] for name in expected} == expected
    names = set(load_file(tmp_path / "adapter" / "adapter_model.safetensors"))
    layer = "base_model.model.model.layers.0.self_attn.q_proj"
    assert {f"{layer}.lora_A.weight", f"{layer}.lora_B.weight"} <= names
    assert all(name.endswith((".lora_A.weight", ".lora_B.weight")) for name in names)


def test_dora_begins_as_the_base_to_the_bit_and_trains_its_lengths(tiny_model: Path) -> None:
    model = lora.add(base(tiny_model), LoraSettings(r=4, lora_alpha=8.0), dora=True)
    assert torch.equal(logits(model), logits(base(tiny_model)))
    lengths = {name: weight.detach().clone() for name, weight in model.named_parameters() if "magnitude" in name}
    assert len(lengths) == 14
    engine = train(model, tiny_model)
    assert not engine.plain_reason
    assert all(not torch.equal(dict(model.named_parameters())[name], before) for name, before in lengths.items())


# The base it was made for.


def test_an_adapter_is_refused_by_another_base_of_the_same_shape_and_name(tiny_model: Path, tmp_path: Path) -> None:
    adapters.save_adapter(adapted(tiny_model), tmp_path / "adapter", "tiny")
    changed = base(tiny_model)
    with torch.no_grad():
        changed.model.layers[1].mlp.up_proj.weight += 0.01
    changed.save_pretrained(tmp_path / "other")
    with pytest.raises(ModelError, match=r"made for tiny and does not fit .*other: that base's weights have the hash \w{12}, and these \w{12}"):
        adapters.load_adapter(base(tmp_path / "other"), tmp_path / "adapter", trainable=False)
    base(tiny_model).save_pretrained(tmp_path / "copy", max_shard_size="100KB")  # the same, in other files
    adapters.load_adapter(base(tmp_path / "copy"), tmp_path / "adapter", trainable=False)


# Settings of an adapter that others made.


def test_settings_are_read_from_an_adapter_of_peft(tiny_model: Path, tmp_path: Path) -> None:
    config = peft.LoraConfig(r=6, lora_alpha=3, target_modules=["v_proj"], lora_dropout=0.1, use_rslora=True, layers_to_transform=1)
    peft.get_peft_model(base(tiny_model), config).save_pretrained(tmp_path / "theirs")
    assert lora.settings_of(tmp_path / "theirs") == LoraSettings(
        r=6, lora_alpha=3, target_modules=["v_proj"], lora_dropout=0.1, use_rslora=True, layers_to_transform=[1]
    )
    peft.get_peft_model(base(tiny_model), peft.IA3Config(target_modules=["v_proj"], feedforward_modules=[])).save_pretrained(tmp_path / "ia3")
    with pytest.raises(ModelError, match="holds an adapter of kind IA3"):
        lora.settings_of(tmp_path / "ia3")
    with pytest.raises(ModelError, match=r"adapter_config.json: is missing"):
        lora.settings_of(tmp_path)
