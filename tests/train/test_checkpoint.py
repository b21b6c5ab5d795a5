"""A checkpoint is whole or it is not used, and what it holds comes back to the bit."""

import dataclasses
import errno
import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch
from faulty_disk import Failing, using
from transformers import AutoModelForCausalLM

from luthier import files
from luthier.engine import Engine
from luthier.errors import NotFiniteError, RunError
from luthier.records import TokenizedExample
from luthier.run_folder import RunFolder
from luthier.train import checkpoint
from luthier.train.checkpoint import Place

PLACE = Place(step=2, data_sha256="d", seed=0, precision="fp32")


def at(step: int) -> Place:
    return dataclasses.replace(PLACE, step=step)


def save(run: RunFolder, engine: Engine, place: Place) -> Path:
    return checkpoint.write(run, checkpoint.take(engine, place))


def train(engine: Engine, examples: list[TokenizedExample], updates: int) -> list[float]:
    losses = []
    for _ in range(updates):
        losses.append(engine.forward_backward(examples).loss)
        engine.optimizer_step(1e-2)
    return losses


def trained(engine: Engine) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in engine.model.named_parameters() if parameter.requires_grad}


def test_weights_moments_and_place_come_back_to_the_bit(engine: Engine, examples: list[TokenizedExample], run: RunFolder, tiny_model: Path) -> None:
    train(engine, examples, 2)
    path = save(run, engine, PLACE)
    other = Engine.open(str(tiny_model), lora={"r": 4, "lora_alpha": 8}, seed=9)
    assert checkpoint.load(path, other) == PLACE
    expected, found = trained(engine), trained(other)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    # The moments are seen in what comes next.
    assert train(engine, examples, 2) == train(other, examples, 2)


def test_a_checkpoint_before_the_first_update_can_be_resumed(
    engine: Engine, examples: list[TokenizedExample], run: RunFolder, tiny_model: Path
) -> None:
    path = save(run, engine, at(0))
    other = Engine.open(str(tiny_model), lora={"r": 4, "lora_alpha": 8}, seed=9)
    checkpoint.load(path, other)
    assert train(engine, examples, 2) == train(other, examples, 2)


def test_only_safetensors_and_json_and_a_sum_of_each(engine: Engine, examples: list[TokenizedExample], run: RunFolder) -> None:
    train(engine, examples, 1)
    path = save(run, engine, PLACE)
    names = sorted(file.name for file in path.iterdir())
    assert names == ["manifest.json", "optimizer.safetensors", "state.json", "trained.safetensors"]
    manifest = json.loads((path / "manifest.json").read_text())
    assert (manifest["schema"], manifest["step"]) == (1, 2)
    assert sorted(manifest["files"]) == [name for name in names if name != "manifest.json"]
    assert all(entry["bytes"] == (path / name).stat().st_size for name, entry in manifest["files"].items())
    assert checkpoint.damage(path) == ""


def test_the_newest_by_number_is_resumed_from(engine: Engine, run: RunFolder) -> None:
    for step in (999_999, 1_000_000):
        save(run, engine, at(step))
    assert checkpoint.newest_whole(run)[0].name == "step-1000000"


def flip_a_bit(path: Path) -> None:
    content = bytearray((path / "trained.safetensors").read_bytes())
    content[-1] ^= 1
    (path / "trained.safetensors").write_bytes(content)


def cut(path: Path) -> None:
    content = (path / "optimizer.safetensors").read_bytes()
    (path / "optimizer.safetensors").write_bytes(content[: len(content) // 2])


DAMAGES = {
    "trained.safetensors is not as it was written": flip_a_bit,
    "optimizer.safetensors has ": cut,
    "optimizer.safetensors is missing": lambda path: (path / "optimizer.safetensors").unlink(),
    "manifest.json is missing": lambda path: (path / "manifest.json").unlink(),
    "manifest.json is not whole": lambda path: (path / "manifest.json").write_text('{"state.json": "'),
    "manifest.json has the schema None": lambda path: (path / "manifest.json").write_text("{}"),
    "manifest.json is that of step 1": lambda path: (shutil.rmtree(path), shutil.copytree(path.with_name("step-000001"), path)),
}


@pytest.mark.parametrize("named", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_older_one_used(named: str, engine: Engine, examples: list[TokenizedExample], run: RunFolder) -> None:
    train(engine, examples, 1)
    older = save(run, engine, at(1))
    newer = save(run, engine, at(2))
    DAMAGES[named](newer)
    found, [damaged] = checkpoint.newest_whole(run)
    assert found == older
    assert damaged.startswith(f"step-000002: {named}")
    assert newer.is_dir()


def test_where_no_checkpoint_is_whole_each_is_named(engine: Engine, run: RunFolder) -> None:
    assert checkpoint.newest_whole(run) == (None, [])
    flip_a_bit(save(run, engine, at(1)))
    cut(save(run, engine, at(2)))
    newest, damaged = checkpoint.newest_whole(run)
    assert newest is None
    assert [line.partition(" ")[0] for line in damaged] == ["step-000002:", "step-000001:"]


@pytest.mark.parametrize("other", checkpoint.OF_RUN)
def test_a_checkpoint_that_was_copied_from_another_run_is_damage(other: str, engine: Engine, run: RunFolder) -> None:
    known = {"id": "ours", "contents": {"data": "d", "base": "b"}}
    files.write_json(run.environment, known)
    for step, about in ((1, known), (2, known | {other: {"data": "e"}}), (3, {name: known[name] for name in known if name != other})):
        checkpoint.write(run, checkpoint.take(engine, at(step)), about)
    newest, damaged = checkpoint.newest_whole(run)
    assert newest == run.checkpoints / "step-000001"
    assert damaged == [f"step-00000{step}: manifest.json is that of another run (another {other})" for step in (3, 2)]


def test_a_full_disk_leaves_no_half_checkpoint(engine: Engine, run: RunFolder) -> None:
    kept = save(run, engine, at(1))
    with using(Failing(10, errno.ENOSPC)), pytest.raises(RunError, match="the disk is full"):
        save(run, engine, at(2))
    assert list(run.checkpoints.iterdir()) == [kept]
    assert checkpoint.damage(kept) == ""


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nothing_that_is_not_finite_is_ever_saved(value: float, engine: Engine, examples: list[TokenizedExample], run: RunFolder) -> None:
    train(engine, examples, 1)
    name, weight = next(iter(engine.masters.weights.items()))
    for tensor, said in ((weight.data, name), (engine.optimizer.state[weight]["exp_avg"], f"{name}/exp_avg")):
        kept = float(tensor.view(-1)[3])
        tensor.view(-1)[3] = value
        with pytest.raises(NotFiniteError, match=re.escape(f"{said} holds values that are not finite")):
            save(run, engine, PLACE)
        assert list(run.checkpoints.iterdir()) == []
        tensor.view(-1)[3] = kept
    save(run, engine, PLACE)


def test_finite_values_whose_sum_is_not_are_saved(engine: Engine, run: RunFolder) -> None:
    next(iter(engine.masters.weights.values())).data.fill_(3e38)
    save(run, engine, PLACE)


@pytest.mark.parametrize("shard_bytes", [2 * 10**9, 60_000])
def test_a_full_checkpoint_is_a_model_that_transformers_loads(
    shard_bytes: int, examples: list[TokenizedExample], run: RunFolder, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("luthier.models.save.SHARD_BYTES", shard_bytes)
    engine, other = (Engine.open(str(tiny_model), full=True) for _ in range(2))
    engine.model.get_input_embeddings().weight.requires_grad_(False)
    other.model.get_input_embeddings().weight.requires_grad_(False)
    train(engine, examples, 2)
    path = save(run, engine, PLACE)
    files = sorted(file.name for file in path.glob("model*"))
    assert files == ["model.safetensors"] if shard_bytes > 10**6 else len(files) > 2 and files[-1] == "model.safetensors.index.json"
    loaded, report = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert all(torch.equal(loaded.get_parameter(name), weight) for name, weight in engine.model.named_parameters())
    checkpoint.load(path, other)
    assert train(engine, examples, 2) == train(other, examples, 2)
    # What the run leaves in the end is cut alike.
    engine.save_state(run.model)
    assert sorted(file.name for file in run.model.glob("model*")) == files
    assert all(torch.equal(AutoModelForCausalLM.from_pretrained(run.model).get_parameter(n), w) for n, w in engine.model.named_parameters())


def test_another_models_checkpoint_is_refused(engine: Engine, run: RunFolder, tiny_model: Path) -> None:
    path = save(run, engine, PLACE)
    before = trained(other := Engine.open(str(tiny_model), lora={"r": 4, "target_modules": ["q_proj"]}))
    with pytest.raises(RunError, match="other weights than this model trains"):
        checkpoint.load(path, other)
    assert all(torch.equal(tensor, before[name]) for name, tensor in trained(other).items())


def test_another_rank_is_refused(engine: Engine, run: RunFolder, tiny_model: Path) -> None:
    path = save(run, engine, PLACE)
    with pytest.raises(RunError, match=r"other weights than this model trains \(for one: .*lora_A"):
        checkpoint.load(path, Engine.open(str(tiny_model), lora={"r": 8, "lora_alpha": 8}))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"data_sha256": "e"}, "the training rows have changed"),
        ({"seed": 1}, "seed was 0 and is now 1"),
        ({"precision": "bf16"}, "precision was fp32"),
    ],
)
def test_a_run_does_not_go_on_with_other_rows_seed_or_precision(change: dict[str, object], said: str) -> None:
    with pytest.raises(RunError, match=said):
        checkpoint.check_same_run(PLACE, dataclasses.replace(PLACE, **change), Path("run"))  # type: ignore[arg-type]
    checkpoint.check_same_run(PLACE, at(7), Path("run"))


def test_the_masters_and_the_loss_scale_of_an_fp16_model_come_back(examples: list[TokenizedExample], run: RunFolder, tiny_model: Path) -> None:
    engine, other = (Engine.open(str(tiny_model), full=True, precision="fp16") for _ in range(2))
    train(engine, examples, 2)
    assert engine.loss_scale is not None
    engine.loss_scale.value, engine.loss_scale.good_steps = 512.0, 7
    checkpoint.load(save(run, engine, PLACE), other)
    assert other.loss_scale == engine.loss_scale
    for name, master in engine.masters.weights.items():
        assert master.dtype == torch.float32
        assert torch.equal(master, other.masters.weights[name])
        assert torch.equal(engine.model.get_parameter(name), other.model.get_parameter(name))
    assert train(engine, examples, 2) == train(other, examples, 2)
