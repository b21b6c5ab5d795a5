"""A merged model is an ordinary folder: this release of Transformers and older ones read the same numbers in it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from luthier import files
from luthier.engine import Engine
from luthier.export import merged
from luthier.models import adapters, quantized
from luthier.models.find import check_folder


def open_trained(model: Path) -> Engine:
    """The model with an adapter whose B is not zero, so that there is something to merge."""
    engine = Engine.open(str(model), lora={"r": 4, "lora_alpha": 8})
    with torch.no_grad():
        for number, (name, parameter) in enumerate(engine.model.named_parameters()):
            if "lora_B" in name:
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
    return engine


def base_with(model: Path, folder: Path, **config: Any) -> Path:
    """A copy of the model whose config.json says something else."""
    shutil.copytree(model, folder)
    files.write_json(folder / "config.json", files.read_json(folder / "config.json") | config)
    return folder


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=torch.tensor([[5, 60, 7, 320, 44]])).logits
    return found


@pytest.mark.parametrize(("precision", "furthest"), [("fp32", 1e-4), ("bf16", 0.3), ("fp16", 0.05)])
def test_it_computes_what_base_and_adapter_did(precision: str, furthest: float, tiny_model: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    engine = open_trained(tiny_model)
    before = logits(engine.model)
    with engine.model.disable_adapter():
        base = logits(engine.model)
    folder = merged.write_merged(engine, tmp_path / "merged", precision)
    model, loading = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    assert float((logits(model) - before).abs().max()) < furthest < float((base - before).abs().max())


def test_in_bf16_the_sum_is_rounded_once_and_not_its_parts(tiny_model: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    exact = open_trained(tiny_model).model.merge_and_unload().state_dict()
    folder = merged.write_merged(open_trained(tiny_model), tmp_path / "merged", "bf16")
    for name, tensor in load_file(folder / "model.safetensors").items():
        assert torch.equal(tensor, exact[name].to(torch.bfloat16)), name


def test_it_is_a_whole_model_folder_without_pickles(tiny_model: Path, tmp_path: Path) -> None:
    folder = merged.write_merged(open_trained(tiny_model), tmp_path / "merged", "bf16")
    check_folder(folder)
    names = {path.name for path in folder.iterdir()}
    assert names == {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}


def test_the_config_is_read_alike_by_old_and_new_releases(tiny_model: Path, tmp_path: Path) -> None:
    base = base_with(tiny_model, tmp_path / "base", rope_parameters={"rope_theta": 100_000.0, "rope_type": "default"})
    folder = merged.write_merged(open_trained(base), tmp_path / "merged", "bf16")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 100_000.0
    assert config["torch_dtype"] == config["dtype"] == "bfloat16"
    assert "rope_scaling" not in config
    assert config["architectures"] == ["LlamaForCausalLM"]


def test_stretched_positions_are_written_under_both_names(tiny_model: Path, tmp_path: Path) -> None:
    rope = {"rope_theta": 10_000.0, "rope_type": "linear", "factor": 2.0}
    folder = merged.write_merged(open_trained(base_with(tiny_model, tmp_path / "base", rope_parameters=rope)), tmp_path / "merged", "bf16")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}
    assert config["rope_theta"] == 10_000.0


def test_an_older_release_knows_the_tokenizers_class(tiny_model: Path, tmp_path: Path) -> None:
    import transformers
    from transformers import AutoTokenizer

    folder = merged.write_merged(open_trained(tiny_model), tmp_path / "merged", "bf16")
    name = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))["tokenizer_class"]
    assert name == "PreTrainedTokenizerFast"
    assert hasattr(transformers, name)
    one, other = AutoTokenizer.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(folder)
    assert one("12 boxing wizards, quickly: é漢")["input_ids"] == other("12 boxing wizards, quickly: é漢")["input_ids"]
    assert one.chat_template == other.chat_template
    assert (other.eos_token, other.pad_token) == ("<|im_end|>", "<|endoftext|>")


def test_the_adapter_names_its_base(tiny_model: Path, tmp_path: Path) -> None:
    folder = merged.write_adapter(open_trained(tiny_model), tmp_path / "out" / "adapter", "org/base")
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == "org/base"
    assert config["r"] == 4


@pytest.mark.parametrize("method", ["lora", "dora", "qlora", "ia3"])
def test_what_merges_is_within_a_ten_thousandth_of_the_logits_spread(method: str, tiny_model: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    engine = Engine.open(str(tiny_model), method=method)
    with torch.no_grad():
        for number, parameter in enumerate(engine.trained_parameters):
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
    engine.model.eval()
    expected = logits(engine.model)
    with engine.model.disable_adapter():
        assert float((logits(engine.model) - expected).abs().max()) > 0.1
    if method == "qlora":
        engine.save_state(tmp_path / "adapter")
        plain = quantized.unquantized(quantized.load_model(tiny_model, "fp32", "cpu", quantized.Quantization("nf4", True, "fp32", "fp32")))
        engine = Engine(adapters.load_adapter(plain, tmp_path / "adapter", trainable=False), engine.tokenizer)
    folder = merged.write_merged(engine, tmp_path / "merged", "fp32")
    found = logits(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))
    assert float((found - expected).abs().max()) < 1e-4 * float(expected.std())


OLDER = """
import sys
import numpy, torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
assert transformers.__version__.startswith("4.57"), transformers.__version__
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], torch_dtype=torch.float32)
ids = torch.tensor([AutoTokenizer.from_pretrained(sys.argv[1])("12 boxing wizards, quickly: é漢 " * 20)["input_ids"]])
with torch.no_grad():
    numpy.save(sys.argv[2], model(input_ids=ids).logits.numpy())
"""


@pytest.mark.slow
def test_transformers_4_computes_the_same(tiny_model: Path, tmp_path: Path) -> None:
    """In a release before 5, with another rope_theta than the one that it takes where it finds none. Fetched by pip; skipped without a network."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    wanted = ["transformers==4.57.6", "tokenizers==0.22.1", "huggingface_hub==0.36.0", "requests", "urllib3", "idna", "certifi", "charset-normalizer"]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path / "older"), *wanted]
    if subprocess.run(pip, check=False, capture_output=True, timeout=300).returncode:
        pytest.skip("pip could not fetch the older release")
    base = base_with(tiny_model, tmp_path / "base", rope_parameters={"rope_theta": 100_000.0, "rope_type": "default"})
    folder = merged.write_merged(open_trained(base), tmp_path / "merged", "fp32", 60_000)
    assert len(list(folder.glob("*.safetensors"))) > 1
    found = tmp_path / "logits.npy"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "older")}
    subprocess.run([sys.executable, "-c", OLDER, str(folder), str(found)], check=True, env=environment, timeout=300)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        here = model(input_ids=torch.tensor([tokenizer("12 boxing wizards, quickly: é漢 " * 20)["input_ids"]])).logits
        model.config.rope_parameters["rope_theta"] = 10_000.0
        wrong = type(model)(model.config).eval()
        wrong.load_state_dict(model.state_dict())
        other = wrong(input_ids=torch.tensor([tokenizer("12 boxing wizards, quickly: é漢 " * 20)["input_ids"]])).logits
    older = torch.from_numpy(numpy.load(found))
    assert float((older - here).abs().max()) < 1e-4 * float(here.std()) < float((other - here).abs().max())
