"""Several adapters as one: what comes out is an adapter like any other, and what cannot be summed is refused with both named."""

import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from conftest_runs import Listener, Write, chat_row
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from luthier.config.adapters import LoraSettings
from luthier.config.load import load_config
from luthier.errors import CallError, ModelError, RunError
from luthier.models import adapters, load, lora
from luthier.recipes import merging, sft
from luthier.run_folder import RunFolder, open_run

IDS = torch.tensor([[5, 60, 7, 320, 44]])


def stored(model: Path, folder: Path, seed: int, **settings: Any) -> Path:
    """An adapter that changes the model's answers, in a folder."""
    adapted = lora.add(load.load_model(model, "fp32", "cpu"), LoraSettings(**{"r": 4, "lora_alpha": 8.0} | settings), seed=seed)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1, generator=torch.Generator().manual_seed(seed + len(name)))
    adapters.save_adapter(adapted, folder, str(model), load.load_tokenizer(model))
    return folder


@pytest.fixture
def one(tiny_model: Path, tmp_path: Path) -> Path:
    return stored(tiny_model, tmp_path / "one", 1)


@pytest.fixture
def other(tiny_model: Path, tmp_path: Path) -> Path:
    return stored(tiny_model, tmp_path / "other", 2)


def logits(model: Path, adapter: Path | None = None) -> torch.Tensor:
    """As plain PEFT computes them."""
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.no_grad():
        found: torch.Tensor = (peft.PeftModel.from_pretrained(base, str(adapter)) if adapter else base)(input_ids=IDS).logits
    return found


@pytest.mark.parametrize("how", ["linear", "cat"])
@pytest.mark.parametrize("rslora", [True, False])
def test_all_of_one_and_nothing_of_the_other_is_the_one(how: str, rslora: bool, other: Path, tiny_model: Path, tmp_path: Path) -> None:
    first = stored(tiny_model, tmp_path / "first", 3, use_rslora=rslora)
    folder = merging.merge([f"{first}:1.0", f"{other}:0.0"], tmp_path / "both", how)
    expected = logits(tiny_model, first)
    assert torch.allclose(logits(tiny_model, folder), expected, atol=1e-4 * float(expected.std()))
    assert float((logits(tiny_model) - expected).abs().max()) > 0.05


def deltas(folder: Path) -> dict[str, torch.Tensor]:
    """What an adapter adds to each layer's weight."""
    tensors, config = load_file(folder / "adapter_model.safetensors"), json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    scale = config["lora_alpha"] / config["r"]
    return {name: scale * tensors[name.replace("lora_A", "lora_B")] @ tensors[name] for name in tensors if "lora_A" in name}


def test_cat_is_the_weighted_sum_of_what_they_add_whatever_their_ranks(one: Path, tiny_model: Path, tmp_path: Path) -> None:
    wide = stored(tiny_model, tmp_path / "wide", 4, r=8)
    both = deltas(merging.merge([f"{one}:0.7", f"{wide}:-0.3"], tmp_path / "both", "cat"))
    first, second = deltas(one), deltas(wide)
    assert both.keys() == first.keys()
    for name, delta in both.items():
        assert torch.allclose(delta, 0.7 * first[name] - 0.3 * second[name], atol=1e-6)


def test_linear_weighs_each_with_its_share(one: Path, tmp_path: Path) -> None:
    """The same adapter twice: A and B are each (sqrt 0.7 + sqrt 0.3) times what they were, and half and half is twice the adapter."""
    both = deltas(merging.merge([f"{one}:0.7", f"{one}:0.3"], tmp_path / "both", "linear"))
    factor = (0.7**0.5 + 0.3**0.5) ** 2
    for name, delta in deltas(one).items():
        assert torch.allclose(both[name], factor * delta, atol=1e-6)


@pytest.mark.parametrize("how", ["ties", "dare_linear", "dare_ties"])
def test_sparse_sums_load_in_plain_peft_and_are_the_same_every_time(how: str, one: Path, other: Path, tiny_model: Path, tmp_path: Path) -> None:
    first, again, denser = (
        merging.merge([f"{one}:0.7", f"{other}:0.3"], tmp_path / name, how, density) for name, density in (("a", 0.5), ("b", 0.5), ("c", 0.9))
    )
    assert (first / "adapter_model.safetensors").read_bytes() == (again / "adapter_model.safetensors").read_bytes()
    assert not torch.equal(logits(tiny_model, first), logits(tiny_model, denser))
    assert logits(tiny_model, first).isfinite().all()


def test_the_folder_is_that_of_an_ordinary_adapter(one: Path, other: Path, tiny_model: Path, tmp_path: Path) -> None:
    folder = merging.merge([f"{one}:0.5", f"{other}:0.5"], tmp_path / "both")
    assert {path.name for path in folder.iterdir()} == {path.name for path in one.iterdir()}
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == str(tiny_model)
    assert config["r"] == 8  # cat: the ranks add up
    assert len(load_file(folder / "adapter_model.safetensors")) == len(load_file(one / "adapter_model.safetensors"))
    adapters.load_adapter(load.load_model(tiny_model, "fp32", "cpu"), folder, trainable=True)


def test_a_run_is_named_like_a_folder(copied: RunFolder, tiny_model: Path, tmp_path: Path) -> None:
    other = stored(tiny_model, tmp_path / "wide", 4, r=16)
    folder = merging.merge([f"{copied.path}:1", f"{other}:0"], tmp_path / "both")
    expected = logits(tiny_model, copied.adapter)
    assert torch.allclose(logits(tiny_model, folder), expected, atol=1e-3)


def test_adapters_of_two_bases_are_refused_with_both_named(one: Path, tiny_model: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    with torch.no_grad():
        model.model.norm.weight += 1
    shutil.copytree(tiny_model, tmp_path / "another-base")
    model.save_pretrained(tmp_path / "another-base")
    other = stored(tmp_path / "another-base", tmp_path / "other", 2)
    with pytest.raises(CallError, match=rf"tiny-llama and .*other of {tmp_path}/another-base"):
        merging.merge([f"{one}:0.5", f"{other}:0.5"], tmp_path / "both")
    assert not (tmp_path / "both").exists()


def test_two_ranks_need_cat(one: Path, tiny_model: Path, tmp_path: Path) -> None:
    wide = stored(tiny_model, tmp_path / "wide", 4, r=8)
    with pytest.raises(ModelError, match=r"linear takes adapters of one rank, and these have 4 and 8[\s\S]*--how cat"):
        merging.merge([f"{one}:0.5", f"{wide}:0.5"], tmp_path / "both", "linear")


@pytest.mark.parametrize(
    ("settings", "said"), [({"use_dora": True}, "use_dora"), ({"modules_to_save": ["embed_tokens", "lm_head"]}, "modules_to_save")]
)
def test_what_is_more_than_two_matrices_is_refused(settings: dict[str, Any], said: str, one: Path, tiny_model: Path, tmp_path: Path) -> None:
    other = stored(tiny_model, tmp_path / "other", 5, **settings)
    with pytest.raises(ModelError, match=rf"{said}[\s\S]*--to merged"):
        merging.merge([f"{one}:0.5", f"{other}:0.5"], tmp_path / "both")


def test_other_layers_are_refused(one: Path, tiny_model: Path, tmp_path: Path) -> None:
    other = stored(tiny_model, tmp_path / "other", 5, layers_to_transform=[1])
    with pytest.raises(ModelError, match="layers_to_transform"):
        merging.merge([f"{one}:0.5", f"{other}:0.5"], tmp_path / "both")


@pytest.mark.parametrize("written", ["one", "one:", "one:much", ":0.5", "one:nan"])
def test_a_part_without_a_weight_is_a_wrong_call(written: str, tmp_path: Path) -> None:
    with pytest.raises(CallError, match="names no adapter with a weight"):
        merging.merge([written, "other:1"], tmp_path / "both")


def test_one_adapter_alone_is_not_combined(one: Path, tmp_path: Path) -> None:
    with pytest.raises(CallError, match="two adapters or more"):
        merging.merge([f"{one}:1"], tmp_path / "both")


def test_nothing_is_overwritten(one: Path, other: Path) -> None:
    before = (other / "adapter_model.safetensors").read_bytes()
    with pytest.raises(RunError, match="nothing is overwritten"):
        merging.merge([f"{one}:1", f"{other}:1"], other)
    assert (other / "adapter_model.safetensors").read_bytes() == before


def test_a_name_that_is_nothing_is_said(one: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not a run folder"):
        merging.merge([f"{one}:1", "nothing-here:1"], tmp_path / "both")


def test_half_and_half_of_one_adapter_is_that_adapter(one: Path, tmp_path: Path) -> None:
    both = deltas(merging.merge([f"{one}:0.5", f"{one}:0.5"], tmp_path / "both"))
    for name, delta in deltas(one).items():
        assert torch.allclose(both[name], delta, atol=1e-6)


@pytest.mark.parametrize(("weight", "density", "said"), [(0, 0.5, "every weight is 0"), (1, 0.0, "density is 0"), (1, 1.5, "density is 1.5")])
def test_a_sum_of_nothing_is_refused(weight: float, density: float, said: str, one: Path, other: Path, tmp_path: Path) -> None:
    with pytest.raises(CallError, match=said):
        merging.merge([f"{one}:{weight}", f"{other}:{weight}"], tmp_path / "both", "ties", density)
    assert not (tmp_path / "both").exists()


def test_bases_that_were_quantized_differently_are_said(write: Write, tmp_path: Path) -> None:
    rows = [chat_row(place) for place in range(4)]
    plain, quantized = (sft.fit(write(rows, f"method={method}", name=method)) for method in ("lora", "qlora"))
    listener = Listener()
    merging.merge([f"{plain.path}:1", f"{quantized.adapter}:1"], tmp_path / "both", reporter=listener)
    words = f"trained beside different bases: {plain.adapter} beside an unquantized base and {quantized.adapter} beside a base in nf4"
    assert words in listener.lines
    listener.lines.clear()
    merging.merge([f"{plain.path}:1", f"{plain.path}:1"], tmp_path / "same", reporter=listener)
    assert listener.lines == []


def test_what_it_wrote_can_be_gone_on_from_and_is_called_what_it_is(one: Path, other: Path, write: Write, tmp_path: Path) -> None:
    folder = merging.merge([f"{one}:0.5", f"{other}:0.5"], tmp_path / "both")
    with pytest.raises(RunError, match=rf"holds an adapter, and is not a run folder[\s\S]*init_from: {folder} in a luthier.yaml"):
        open_run(str(folder))
    config = write([chat_row(place) for place in range(4)], f"init_from={folder}", "lora.r=8", "training.max_steps=1")
    run = sft.fit(config)
    assert load_config(run.config).settings.lora.r == 8
    with pytest.raises(RunError, match=rf"name its run: {run.path}"):
        open_run(str(run.adapter))


def test_a_base_that_is_written_relative_is_looked_up_beside_the_adapter(one: Path, other: Path, tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "base")
    for folder in (one, other):
        config = json.loads((folder / adapters.CONFIG).read_text())
        (folder / adapters.CONFIG).write_text(json.dumps(config | {"base_model_name_or_path": "../base"}))
    assert (merging.merge([f"{one}:0.5", f"{other}:0.5"], tmp_path / "both") / adapters.WEIGHTS).is_file()
