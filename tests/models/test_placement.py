"""One model over several places: the same numbers as on one device, in training and in answering, and nothing kept that is not needed."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import luthier
from luthier.config.load import load_config
from luthier.engine import opening
from luthier.errors import ConfigError
from luthier.models import load, placement
from luthier.reporting import Silent
from luthier.run_folder import RunFolder

IDS = torch.arange(3, 40)[None]
MAPS: dict[str, Any] = {
    "a block on the disk": {"model.layers.1": "disk"},
    "all blocks on the disk": {"": "disk"},
    "the nearest name counts": {"model.layers": "disk", "model.layers.0": "cpu"},
}


@pytest.fixture(scope="module")
def whole(tiny_model: Path) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = load.load_model(tiny_model, "fp32", "cpu")(IDS).logits
    return logits


def placed(folder: Path, asked: Any, memory_bytes: int = 10**9, precision: str = "fp32") -> Any:
    places = placement.place_of_parts(folder, asked, load.DTYPES[precision], "cpu", memory_bytes)
    return load.load_model(folder, precision, "cpu", places=places)  # type: ignore[arg-type]


@pytest.mark.parametrize("asked", MAPS.values(), ids=MAPS)
def test_blocks_on_the_disk_give_the_same_logits(tiny_model: Path, whole: torch.Tensor, asked: Any) -> None:
    model = placed(tiny_model, asked)
    away = model.model.layers[1].mlp.up_proj.weight
    assert away.untyped_storage().nbytes() == 4, "it takes no memory while it is away"
    with torch.no_grad():
        for _ in range(2):
            assert (model(IDS).logits - whole).abs().max() <= 1e-5
    assert model.model.layers[1].mlp.up_proj.weight is away, "fetched, and let go"


def test_auto_fills_the_memory_and_then_the_disk(tiny_model: Path, whole: torch.Tensor) -> None:
    everything = placement.place_of_parts(tiny_model, "auto", torch.float32, "cpu", 10**9)
    assert set(everything.values()) == {"cpu"}
    block = sum(one.numel() for one in load.load_model(tiny_model, "fp32", "cpu").model.layers[0].parameters()) * 4
    tables = 500 * 64 * 4
    places = placement.place_of_parts(tiny_model, "auto", torch.float32, "cpu", int((tables + 1.5 * block) / placement.MEMORY_SHARE))
    assert [places[f"model.layers.{number}"] for number in (0, 1)] == ["cpu", "disk"]
    with torch.no_grad():
        assert (load.load_model(tiny_model, "fp32", "cpu", places=places)(IDS).logits - whole).abs().max() <= 1e-5


def test_another_format_than_the_files_is_kept_on_the_disk_too(tiny_model: Path) -> None:
    with torch.no_grad():
        expected = load.load_model(tiny_model, "bf16", "cpu")(IDS).logits
        assert torch.equal(placed(tiny_model, {"": "disk"}, precision="bf16")(IDS).logits, expected)


WRONG = {
    "a part that is none": ({"model.layer.1": "disk"}, "is no block of this model"),
    "a part that stays": ({"lm_head": "disk"}, "lm_head stays on cpu"),
    "a GPU that is not here": ({"model.layers.1": 7}, "7 is no place here"),
    "a GPU where there is none": ({"model.layers.1": "cuda"}, "'cuda' is no place here"),
    "a GPU's name that is none": ({"model.layers.1": "cuda:first"}, "'cuda:first' is no place here"),
    "another word": ({"model.layers.1": "tpu"}, "'tpu' is no place here"),
}


@pytest.mark.parametrize(("asked", "said"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_is_refused(tiny_model: Path, asked: Any, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "_gpus", lambda: 0)
    with pytest.raises(ConfigError, match=said):
        placement.place_of_parts(tiny_model, asked, torch.float32, "cpu", 10**9)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> dict[str, Path]:
    """The same training on one device, and with all blocks on the disk, computed again in the backward pass or not."""
    folder = tmp_path_factory.mktemp("placed")
    rows = [{"instruction": f"Say {number}", "output": f"it is {number} " * (1 + number % 3)} for number in range(16)]
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    training = "{batch_size: 4, max_steps: 3, precision: fp32, learning_rate: 1e-2, compile: 'off'}"
    text = f"model: {tiny_model}\ndevice: cpu\ndata: {{train: rows.jsonl, eval: 4}}\ntraining: {training}\nevaluation: {{sample_answers: 0}}\n"
    (folder / "luthier.yaml").write_text(text.replace("eval: 4", "eval: 25%"))
    again = "training.gradient_checkpointing=full"
    asked = {"one device": [], "disk": ["device_map={'': disk}"], "disk, computed again": ["device_map={'': disk}", again]}
    return {name: luthier.fit(folder / "luthier.yaml", [*how, f"output_dir={name}"]).path for name, how in asked.items()}


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in RunFolder(run).read_metrics("train")]


def test_training_over_places_is_training_on_one_device(runs: dict[str, Path]) -> None:
    wanted = losses(runs["one device"])
    assert losses(runs["disk"]) == pytest.approx(wanted, abs=1e-5)
    assert losses(runs["disk, computed again"]) == pytest.approx(wanted, abs=1e-5)


def test_answering_and_merging_know_the_run_s_places(runs: dict[str, Path]) -> None:
    run = RunFolder(runs["disk"])
    engine = opening.open_trained(run, Silent())
    assert engine.model.get_base_model().model.layers[0].mlp.up_proj.base_layer.weight.isnan().all(), "it lies on the disk"
    asked = [{"role": "user", "content": "Say 3"}]
    assert engine.sample(asked) == opening.open_trained(RunFolder(runs["one device"]), Silent()).sample(asked)
    merging = opening.open_for_merging(run, Silent())
    assert not any(weight.isnan().any() for weight in merging.model.parameters()), "what is merged is there"


REFUSED = {
    "device_map: auto\nmethod: full": "reads or trains weights of blocks that lie elsewhere",
    "device_map: auto\nmethod: qlora": "reads or trains weights of blocks that lie elsewhere",
    "device_map: auto\nlora: {use_dora: true}": "lora with use_dora",
    "device_map: auto\nlora: {init_lora_weights: pissa}": "starts from weights that lie elsewhere",
    "device_map: auto\ntraining: {frozen_base: fp8}": "another form of weights",
    "device_map: auto\ndevices: 2": "for one process",
    "device_map: cpu\ndevice: cuda": "say different things",
}


@pytest.mark.parametrize(("text", "said"), REFUSED.items(), ids=REFUSED)
def test_settings_that_need_the_weights_at_hand_are_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "luthier.yaml").write_text(f"model: m\ndata: {{train: r.jsonl}}\n{text}\n")
    with pytest.raises(ConfigError, match=said):
        load_config(tmp_path / "luthier.yaml")
