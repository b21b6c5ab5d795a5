"""Prefix, prompt and p-tuning: PEFT's own modules, begun as the settings say, read by plain PEFT with the same logits."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from luthier.config.settings import Settings
from luthier.errors import ConfigError, ModelError
from luthier.models import adapters, facts, load, methods, virtual
from luthier.plan.trained import trained_parameters

IDS = torch.arange(3, 40)[None]
VARIANTS = {
    "prefix": {"method": "prefix", "prefix": {"num_virtual_tokens": 5}},
    "prefix with its network": {"method": "prefix", "prefix": {"num_virtual_tokens": 5, "prefix_projection": True, "encoder_hidden_size": 24}},
    "prompt": {"method": "prompt", "prompt": {"num_virtual_tokens": 5}},
    "p_tuning": {"method": "p_tuning", "p_tuning": {"num_virtual_tokens": 5, "encoder_hidden_size": 24}},
    "p_tuning, LSTM": {"method": "p_tuning", "p_tuning": {"num_virtual_tokens": 5, "encoder_reparameterization_type": "LSTM"}},
}


def settings_of(given: dict[str, Any]) -> Settings:
    return Settings.model_validate({"model": "tiny", "data": {"train": "rows.jsonl"}} | given)


def base(folder: Path, precision: str = "fp32") -> Any:
    return load.load_model(folder, precision, "cpu")


def adapted(folder: Path, given: dict[str, Any], precision: str = "fp32") -> Any:
    return methods.add(base(folder, precision), settings_of(given), (), load.load_tokenizer(folder))


def moved(model: Any) -> Any:
    """What is trained stands elsewhere than where it began, as after a few updates."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight += torch.randn(weight.shape, generator=generator) * 0.1
    return model.eval()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("variant", list(VARIANTS))
def test_only_the_virtual_tokens_are_trained_in_fp32_and_every_seed_has_its_own(tiny_model: Path, variant: str, precision: str) -> None:
    first, again, other = (adapted(tiny_model, VARIANTS[variant] | {"seed": seed}, precision) for seed in (1, 1, 2))
    trained = [{name: weight for name, weight in model.named_parameters() if weight.requires_grad} for model in (first, again, other)]
    assert all(name.startswith("prompt_encoder.") and weight.dtype == torch.float32 for name, weight in trained[0].items())
    assert all(torch.equal(weight, trained[1][name]) for name, weight in trained[0].items())
    assert any(not torch.equal(weight, trained[2][name]) for name, weight in trained[0].items())


@pytest.mark.parametrize("variant", [*VARIANTS, "p_tuning, LSTM of two"])
def test_the_plan_counts_what_is_trained(tiny_model: Path, variant: str) -> None:
    two = {"encoder_reparameterization_type": "LSTM", "encoder_num_layers": 2, "encoder_hidden_size": 10}
    given = VARIANTS.get(variant, {"method": "p_tuning", "p_tuning": two})
    trained = sum(weight.numel() for weight in adapted(tiny_model, given).parameters() if weight.requires_grad)
    assert trained_parameters(settings_of(given), facts.from_folder(tiny_model)) == trained


def test_making_one_leaves_other_draws_alone(tiny_model: Path) -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    adapted(tiny_model, VARIANTS["prefix"])
    adapted(tiny_model, VARIANTS["p_tuning"])
    assert torch.equal(torch.rand(3), expected)


READ = """
import sys, torch, peft
from transformers import AutoModelForCausalLM
for folder in sys.argv[2:]:
    model = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32), folder).eval()
    with torch.no_grad():
        torch.save(model(torch.arange(3, 40)[None]).logits, folder + "/logits.pt")
"""


def test_plain_peft_reads_them_in_a_fresh_process_with_the_same_logits(tiny_model: Path, tmp_path: Path) -> None:
    expected = {}
    for variant, given in VARIANTS.items():
        model = moved(adapted(tiny_model, given))
        adapters.save_adapter(model, tmp_path / variant, "tiny")
        with torch.no_grad():
            expected[variant] = model(IDS).logits
    subprocess.run([sys.executable, "-c", READ, str(tiny_model), *(str(tmp_path / variant) for variant in VARIANTS)], check=True)
    for variant, logits in expected.items():
        loaded = adapters.load_adapter(base(tiny_model), tmp_path / variant, trainable=False)
        with torch.no_grad():
            found = [loaded(IDS).logits, torch.load(tmp_path / variant / "logits.pt")]
        # Without gradients torch sums an LSTM in another order than with them, as it is when it is saved.
        assert all(torch.equal(one, logits) or ("LSTM" in variant and torch.allclose(one, logits, atol=1e-5)) for one in found), variant
        assert torch.equal(*found)
        assert not any(weight.requires_grad for weight in loaded.parameters())
        assert json.loads((tmp_path / variant / "adapter_config.json").read_text())["base_model_name_or_path"] == "tiny"


@pytest.mark.parametrize("tokens", [3, 50])
def test_a_text_is_cut_or_repeated_as_peft_does(tiny_model: Path, tokens: int) -> None:
    text = "Turn the address into JSON with the fields street, city, state and zip."
    given = {"method": "prompt", "prompt": {"num_virtual_tokens": tokens, "prompt_tuning_init_text": text}}
    config = peft.PromptTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=tokens,
        prompt_tuning_init="TEXT",
        prompt_tuning_init_text=text,
        tokenizer_name_or_path=str(tiny_model),
    )
    own, of_peft = adapted(tiny_model, given), peft.get_peft_model(base(tiny_model), config)
    assert torch.equal(own.prompt_encoder.default.embedding.weight, of_peft.prompt_encoder.default.embedding.weight)


def test_a_text_of_no_tokens_is_refused(tiny_model: Path) -> None:
    model = adapted(tiny_model, VARIANTS["prompt"])
    with pytest.raises(ConfigError, match="no tokens"):
        virtual.begin_with_text(model, "", load.load_tokenizer(tiny_model))


def test_a_prefix_begins_as_real_tokens_and_not_far_from_the_base(tiny_model: Path) -> None:
    """The keys and values are those that the model has after five tokens: asked behind them, it answers the same."""
    model = adapted(tiny_model, VARIANTS["prefix"]).eval()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = torch.randint(500, (5,))
    with torch.no_grad():
        expected = base(tiny_model)(torch.cat([drawn[None], IDS], dim=1)).logits[:, 5:]
        assert torch.allclose(model(IDS).logits, expected, atol=1e-4)


@pytest.mark.parametrize("method", ["prefix", "prompt", "p_tuning"])
def test_rows_of_added_tokens_would_stay_untrained_so_they_are_refused(tiny_model: Path, method: str) -> None:
    with pytest.raises(ConfigError, match="rows of added tokens"):
        methods.add(base(tiny_model), settings_of({"method": method}), [7], load.load_tokenizer(tiny_model))


@pytest.mark.parametrize("variant", ["prefix", "prompt"])
def test_training_goes_on_from_a_stored_one(tiny_model: Path, tmp_path: Path, variant: str) -> None:
    model = moved(adapted(tiny_model, VARIANTS[variant]))
    adapters.save_adapter(model, tmp_path / "adapter", "tiny")
    loaded = adapters.load_adapter(base(tiny_model), tmp_path / "adapter", trainable=True)
    trained = {name: weight for name, weight in loaded.named_parameters() if weight.requires_grad}
    assert list(trained) == ["prompt_encoder.default.embedding.weight"]
    assert torch.equal(trained["prompt_encoder.default.embedding.weight"], model.prompt_encoder.default.embedding.weight)


@pytest.mark.parametrize("variant", ["prefix with its network", "p_tuning"])
def test_where_the_network_is_not_stored_training_cannot_go_on(tiny_model: Path, tmp_path: Path, variant: str) -> None:
    adapters.save_adapter(adapted(tiny_model, VARIANTS[variant]), tmp_path / "adapter", "tiny")
    with pytest.raises(ModelError, match="not the network that made them"):
        adapters.load_adapter(base(tiny_model), tmp_path / "adapter", trainable=True)


def test_one_of_another_shape_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    adapters.save_adapter(adapted(tiny_model, VARIANTS["prefix"]), folder, "tiny")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"num_virtual_tokens": 6}))
    with pytest.raises(ModelError, match=r"prompt_embeddings is \[5, 128\] and the model needs \[6, 128\]"):
        adapters.load_adapter(base(tiny_model), folder, trainable=False)
