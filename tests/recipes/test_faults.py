"""A run whose memory ends, or whose numbers are none: what it says, what it leaves, and how it ends."""

import dataclasses
import json
import math
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest_runs import Listener, Write, chat_row, write_rows
from safetensors.torch import load_file

from luthier import files
from luthier.config.load import Config, load_config
from luthier.engine import Engine, optimizers, shortage, update
from luthier.engine.batches import Document
from luthier.engine.packed import Packed
from luthier.errors import NotFiniteError, OutOfMemory
from luthier.recipes import preference, sft
from luthier.run_folder import RunFolder, list_runs
from luthier.train import checkpoint, trackers
from luthier.train.trackers import About, Finish, Log

ROWS = [chat_row(place) for place in range(16)]
EIGHT = ["training.num_train_epochs=2", "training.logging_steps=1", "training.async_save=false"]
PAIRS = [{"prompt": f"{100 + place} Pierce Rd", "chosen": f"the good answer {place}", "rejected": f"a worse answer {place}"} for place in range(8)]


def metrics_of(run: RunFolder, kind: str = "train") -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in ("seconds", "peak_bytes")} for row in run.read_metrics(kind)]


def weights_of(run: RunFolder) -> dict[str, torch.Tensor]:
    return load_file(run.adapter / "adapter_model.safetensors")


def only_run(config: Config) -> RunFolder:
    (run,) = list_runs(Path(config.beside(config.settings.output_dir)))
    return run


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's collection of all that a test process holds takes longer than these runs."""
    monkeypatch.setattr(shortage, "collect", lambda: None)


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """A memory for so many tokens at once, from the so-manieth pass through the model on."""
    honest, passes = update.run_packed, []

    def limit(tokens: int, after: int = 0) -> None:
        passes.clear()

        def run_packed(model: Any, documents: list[Document], layout: Packed) -> torch.Tensor:
            passes.append(len(documents))
            if sum(len(one.inputs) for one in documents) > tokens and len(passes) > after:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return honest(model, documents, layout)

        monkeypatch.setattr(update, "run_packed", run_packed)

    return limit


# Memory


def test_a_run_goes_on_in_smaller_pieces_and_learns_the_same(write: Write, memory: Callable[..., None]) -> None:
    usual = sft.fit(write(ROWS, "lora.lora_dropout=0.1", *EIGHT))
    memory(170, after=6)
    listener = Listener()
    run = sft.fit(write(ROWS, "lora.lora_dropout=0.1", "training.save_steps=2", *EIGHT, name="small"), listener)
    (said,) = [line for line in listener.lines if "the memory was not enough for" in line]
    (noted,) = metrics_of(run, "memory")
    assert f"step {noted['step']}: the memory was not enough for micro-batches of 4,096 tokens" in said
    assert f"run again with {noted['micro_batch_tokens']:,}, which stay (the same result, a little slower; about " in said
    assert noted["micro_batch_tokens_before"] == 4096
    assert 40 <= noted["micro_batch_tokens"] <= 170
    assert said in run.log.read_text(encoding="utf-8")
    for one, other in zip(metrics_of(run), metrics_of(usual), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert {**one, "loss": 0, "grad_norm": 0} == {**other, "loss": 0, "grad_norm": 0}
    assert all(torch.allclose(value, weights_of(usual)[name], atol=1e-4) for name, value in weights_of(run).items())
    state = files.read_json(run.checkpoints / "step-000008" / "state.json")
    assert state["engine"]["micro_batch_tokens"] == noted["micro_batch_tokens"]


def test_a_run_that_goes_on_keeps_the_smaller_pieces_to_the_bit(write: Write, memory: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ["training.save_steps=1", *EIGHT]
    sft.fit(write(ROWS, *settings))  # the trial of the worst update is known from now on
    memory(170, after=6)
    straight = sft.fit(write(ROWS, *settings))
    memory(170, after=6)

    class PowerCut(Exception):
        pass

    def cut() -> None:
        raise PowerCut

    config = write(ROWS, *settings, name="cut")
    with pytest.raises(PowerCut):
        sft.fit(config, Listener(step_7=cut))
    before = only_run(config)
    (noted,) = metrics_of(before, "memory")
    assert noted["step"] < 6
    memory(10_000)  # there is room again, and the cut stays
    listener = Listener()
    run = sft.fit(load_config(before.config), listener, resume=before)
    assert not [line for line in listener.lines if "the memory was not enough for" in line]
    assert metrics_of(run) == metrics_of(straight)
    assert files.sha256(run.adapter / "adapter_model.safetensors") == files.sha256(straight.adapter / "adapter_model.safetensors")


def test_one_row_too_many_ends_with_the_strongest_levers_in_numbers(write: Write, memory: Callable[..., None]) -> None:
    memory(20, after=6)
    config = write(ROWS, "training.save_steps=1", *EIGHT)
    with pytest.raises(OutOfMemory) as caught:
        sft.fit(config)
    error = caught.value
    assert error.exit_code == 5
    assert "the memory is not enough for one row of" in error.problem
    assert "train.jsonl:" in error.where
    assert "GB), " in error.next_step
    assert "a smaller model; as it is, the run needs about" in error.next_step
    assert error.next_step.count("(about") == 3
    assert "gradient_checkpointing: full" in error.next_step or "max_length" in error.next_step
    assert not checkpoint.damage(checkpoint.list_checkpoints(only_run(config))[-1]), "what was saved before is whole"


def test_an_optimizer_without_room_ends_clearly_and_keeps_the_last_checkpoint(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    honest, steps = optimizers.step, []

    def fifth_fails(*given: Any) -> float:
        steps.append(1)
        if len(steps) == 5:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.")
        return honest(*given)

    monkeypatch.setattr(optimizers, "step", fifth_fails)
    config = write(ROWS, "training.save_steps=1", *EIGHT)
    with pytest.raises(OutOfMemory, match="not enough for the optimizer's step"):
        sft.fit(config)
    assert [path.name for path in checkpoint.list_checkpoints(only_run(config))] == ["step-000003", "step-000004"]


def test_a_save_without_room_for_its_copy_ends_clearly(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: Any, **named: Any) -> Any:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8589934592 bytes.")

    monkeypatch.setattr(checkpoint, "take", fail)
    with pytest.raises(OutOfMemory, match="tried to allocate 8589934592 bytes"):
        sft.fit(write(ROWS, *EIGHT))


def test_an_evaluation_that_does_not_fit_is_cut_and_the_run_goes_on(write: Write, memory: Callable[..., None]) -> None:
    write_rows(write(ROWS).file.parent / "eval.jsonl", [chat_row(place) for place in range(20, 44)])
    given = ["data.eval=eval.jsonl", "evaluation.sample_answers=0", *EIGHT]
    usual = sft.fit(write(ROWS, *given))
    memory(170)
    run = sft.fit(write(ROWS, *given))
    assert metrics_of(run, "eval")[-1]["loss"] == pytest.approx(metrics_of(usual, "eval")[-1]["loss"], rel=1e-4)


def test_pairs_are_cut_too(write: Write, memory: Callable[..., None]) -> None:
    given = ["objective=dpo", "training.num_train_epochs=2"]
    usual = preference.fit(write(PAIRS, *given))
    memory(110)
    run = preference.fit(write(PAIRS, *given, name="small"))
    assert metrics_of(run, "memory")
    for one, other in zip(metrics_of(run), metrics_of(usual), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)


REAL = """
import resource, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from conftest_runs import MACHINE, Listener, chat_row, make_config
from luthier.config.load import load_config
from luthier.files import home
from luthier.plan.machine import store_machine
from luthier.recipes import sft

def narrow():
    used = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmData"))
    resource.setrlimit(resource.RLIMIT_DATA, (used + {room}, resource.RLIM_INFINITY))

store_machine(home(), MACHINE)
turns = [("user", "town " * 150), ("assistant", "Itasca " * 20)]
rows = [{{"messages": [{{"role": role, "content": text + str(place)}} for role, text in turns]}} for place in range(48)]
settings = ["training.batch_size=24", "training.micro_batch_tokens=100000", "training.share_prefixes=false", "lora.r=4"]
config = make_config(Path({folder!r}), Path({model!r}), rows, *settings)
listener = Listener(**{{"trained:": narrow}})
try:
    sft.fit(config, listener)
finally:
    print("\\n".join(listener.lines))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux holds a process to RLIMIT_DATA")
@pytest.mark.parametrize(("room", "ends_well"), [(90_000_000, True), (500_000, False)])
def test_a_run_in_a_memory_that_is_really_too_small(room: int, ends_well: bool, tmp_path: Path, tiny_model: Path) -> None:
    code = REAL.format(tests=str(Path(__file__).parent), model=str(tiny_model), folder=str(tmp_path / "project"), room=room)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1", "LUTHIER_HOME": str(tmp_path / "home")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=200, check=False)
    if ends_well:
        assert done.returncode == 0, done.stderr
        assert "step 0: the memory was not enough for micro-batches of 100,000 tokens; the same work was run again with" in done.stdout
    else:
        assert "luthier.errors.OutOfMemory" in done.stderr
        assert "a smaller model; as it is, the run needs about" in done.stderr


# Numbers that are none


NOT_FINITE = [math.nan, math.inf, pytest.param(-math.inf, marks=pytest.mark.slow)]


def poisoned(monkeypatch: pytest.MonkeyPatch, updates: set[int], poison: Callable[[Engine], None]) -> None:
    """After the loss and gradients of these updates (from 1 on) were made, do something to the engine."""
    honest, calls = Engine.forward_backward, []

    def forward_backward(engine: Engine, examples: Any, *, row_losses: bool = False) -> Any:
        measured = honest(engine, examples, row_losses=row_losses)
        calls.append(1)
        if len(calls) - 1 in updates:  # the first call is the trial of the worst update
            poison(engine)
        return measured

    monkeypatch.setattr(Engine, "forward_backward", forward_backward)


@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize("kind", ["loss", "gradient", "weight", "optimizer"])
def test_one_bad_update_is_skipped_and_three_in_a_row_stop(kind: str, value: float, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bad loss or gradient leaves nothing. A bad weight or moment is found before it is saved, whatever came first."""

    def poison(engine: Engine) -> None:
        weight = engine.trained_parameters[1]
        if kind == "loss":
            raise AssertionError("the loss is replaced below")
        if kind == "gradient":
            assert weight.grad is not None
            weight.grad.view(-1)[0] = value
        elif kind == "weight":
            weight.data.view(-1)[0] = value
        else:
            engine.optimizer.state[weight]["exp_avg_sq"].view(-1)[0] = value

    if kind == "loss":
        honest, calls = Engine.forward_backward, []

        def forward_backward(engine: Engine, examples: Any, *, row_losses: bool = False) -> Any:
            measured = honest(engine, examples, row_losses=row_losses)
            calls.append(1)
            return dataclasses.replace(measured, loss=value) if len(calls) in (4, 7, 8, 9) else measured

        monkeypatch.setattr(Engine, "forward_backward", forward_backward)
    else:
        poisoned(monkeypatch, {3, 6, 7, 8}, poison)
    config = write(ROWS, "training.save_steps=1", *EIGHT)
    with pytest.raises(NotFiniteError) as caught:
        sft.fit(config)
    run = only_run(config)
    assert caught.value.exit_code == 6
    assert "train.jsonl:" in caught.value.where, "the rows are named"
    for line in run.metrics.read_text(encoding="utf-8").splitlines():
        json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    skipped = [row["step"] for row in run.read_metrics("skipped")]
    if kind in ("loss", "gradient"):
        assert skipped == [3, 6, 7, 8]
        assert "step 8 (rows" in caught.value.where
        assert [row["step"] for row in run.read_metrics("train")] == [1, 2, 4, 5]
    else:
        assert "holds values that are not finite" in caught.value.problem or skipped
    for path in run.path.rglob("*.safetensors"):
        assert all(torch.isfinite(tensor).all() for tensor in load_file(path).values() if tensor.is_floating_point()), path


def test_weights_that_are_none_at_the_very_end_are_not_what_the_run_leaves(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    def poison(engine: Engine) -> None:
        engine.trained_parameters[1].data.view(-1)[0] = math.inf

    poisoned(monkeypatch, {8}, poison)
    config = write(ROWS, "training.save_strategy='no'", *EIGHT[:2])
    with pytest.raises(NotFiniteError) as caught:
        sft.fit(config)
    assert "holds values that are not finite, and nothing of it is saved" in caught.value.problem
    assert caught.value.where.startswith("step 8 (the last updates: step 6: train.jsonl:")
    assert not only_run(config).adapter.exists()


@pytest.mark.parametrize("value", NOT_FINITE)
def test_a_held_out_loss_that_is_none_is_null_and_names_its_rows(value: float, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    write_rows(write(ROWS).file.parent / "eval.jsonl", [chat_row(place) for place in range(20, 24)])
    honest, one = Engine.held_out_loss, Engine.log_probabilities
    calls: list[int] = []

    def held_out_loss(engine: Engine, examples: Any) -> float:
        calls.append(1)
        return value if len(calls) == 2 else honest(engine, examples)  # the first is the trial's

    def log_probabilities(engine: Engine, examples: Any) -> list[float]:
        return [value, *one(engine, examples)[1:]]

    monkeypatch.setattr(Engine, "held_out_loss", held_out_loss)
    monkeypatch.setattr(Engine, "log_probabilities", log_probabilities)
    listener = Listener()
    best = ["training.save_best=true", "training.load_best_model_at_end=true"]
    config = write(ROWS, "data.eval=eval.jsonl", "evaluation.every_steps=4", "training.save_steps=4", *best, *EIGHT)
    run = sft.fit(config, listener)
    first, last = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines() if '"eval"' in line]
    assert (first["step"], first["loss"], first["not_finite"]) == (4, None, ["eval.jsonl:1"])
    assert math.isfinite(last["loss"])
    assert "not_finite" not in last
    assert [line for line in listener.lines if f"the held-out loss is {value} (1 of 4 rows: eval.jsonl:1)" in line]
    assert [line for line in listener.lines if "the best is step 8" in line], "a number that is none is not the best"
    assert run.report.is_file()


def test_a_loss_that_leaps_is_told_with_its_rows(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    honest, calls = Engine.forward_backward, []

    def forward_backward(engine: Engine, examples: Any, *, row_losses: bool = False) -> Any:
        measured = honest(engine, examples, row_losses=row_losses)
        calls.append(1)
        return dataclasses.replace(measured, loss=99.0) if len(calls) == 8 else measured

    monkeypatch.setattr(Engine, "forward_backward", forward_backward)
    listener = Listener()
    run = sft.fit(write(ROWS, *EIGHT), listener)
    (said,) = [line for line in listener.lines if "was usual" in line]
    assert said.startswith("step 7: the loss is 99, and ")
    assert said.count("train.jsonl:") == 4
    assert len(run.read_metrics("train")) == 8


def test_rows_that_are_all_the_same_train(write: Write) -> None:
    run = sft.fit(write([chat_row(1)] * 8, *EIGHT))
    assert all(math.isfinite(row["loss"]) and row["trained_tokens"] > 0 for row in run.read_metrics("train"))


# Trackers


def of_tensorboard(run: RunFolder) -> dict[str, dict[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.path / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return {name: {event.step: event.value for event in events.Scalars(name)} for name in events.Tags()["scalars"]}


def leveldb_log(content: bytes) -> Iterator[bytes]:
    """The records of W&B's own file: LevelDB's log (blocks of 32 KiB; crc, length and kind before each piece) after 7 bytes of its own."""
    place, record = 7, b""
    while place + 7 <= len(content):
        if 32_768 - place % 32_768 < 7:
            place += 32_768 - place % 32_768
            continue
        _, length, kind = struct.unpack("<IHB", content[place : place + 7])
        record += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield record
            record = b""


def of_wandb(run: RunFolder) -> dict[str, dict[int, float]]:
    from wandb.proto import wandb_internal_pb2

    found: dict[str, dict[int, float]] = {}
    (file,) = run.path.glob("wandb/offline-run-*/*.wandb")
    for data in leveldb_log(file.read_bytes()):
        record: Any = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        row = {"".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for name, value in row.items():
            if name.startswith(("train/", "eval/")):
                found.setdefault(name, {})[row["_step"]] = value
    return found


def of_mlflow(run: RunFolder) -> dict[str, dict[int, float]]:
    from mlflow import MlflowClient

    client: Any = MlflowClient(f"sqlite:///{run.path.parent / 'mlflow.db'}")
    (tracked,) = client.search_runs([client.get_experiment_by_name("luthier").experiment_id])
    assert tracked.info.status == "FINISHED"
    assert tracked.data.params["training.learning_rate"] == "0.01"
    assert float(tracked.data.tags["summary/train/loss"]) == run.read_metrics("train")[-1]["loss"]
    names = tracked.data.metrics
    return {name: {row.step: row.value for row in client.get_metric_history(tracked.info.run_id, name)} for name in names}


def of_trackio(run: RunFolder) -> dict[str, dict[int, float]]:
    import trackio

    (tracked,) = [one for one in trackio.Api().runs("luthier") if one.name.startswith(f"{run.name}-")]
    assert tracked.config["training.learning_rate"] == 0.01
    rows = trackio.sqlite_storage.SQLiteStorage.get_logs("luthier", tracked.name)
    assert rows[-1]["outcome"] == "finished"
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        for name in row.keys() - {"step", "timestamp", "outcome"}:
            found.setdefault(name, {})[row["step"]] = row[name]
    return found


LIBRARIES = {"tensorboard": of_tensorboard, "wandb": of_wandb, "mlflow": of_mlflow, "trackio": of_trackio}


@pytest.mark.slow
@pytest.mark.parametrize("name", LIBRARIES)
def test_a_library_holds_what_metrics_jsonl_holds(name: str, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "trackio":
        pytest.importorskip("trackio")  # an extra of its own
    monkeypatch.setenv("CANARY", "sk-canary-4242")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for variable in ("WANDB_API_KEY", "WANDB_MODE", "MLFLOW_TRACKING_URI", "TRACKIO_SERVER_URL", "TRACKIO_SPACE_ID"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("NETRC", "/nowhere")
    monkeypatch.setattr("sys.argv", ["luthier", "train", "--token=sk-canary-4242"])
    write_rows(write(ROWS).file.parent / "eval.jsonl", [chat_row(place) for place in range(20, 22)])
    listener = Listener()
    counts = ["evaluation.in_loop_rows=2", "evaluation.max_new_tokens=4", "evaluation.metrics=[exact_match, valid_json]"]
    run = sft.fit(write(ROWS, f"report_to=[{name}]", "data.eval=eval.jsonl", "evaluation.every_steps=4", *counts, *EIGHT), listener)
    assert not [line for line in listener.lines if line.startswith(f"{name}:")]
    found = LIBRARIES[name](run)
    for kind, prefix in (("train", "train"), ("eval", "eval")):
        for row in run.read_metrics(kind):
            for key in set(row) - {"kind", "step", "metrics", "drift"}:
                assert found[f"{prefix}/{key}"][row["step"]] == pytest.approx(row[key], rel=1e-6), key
            for key, value in [*row.get("metrics", {}).items(), *((f"drift/{key}", value) for key, value in row.get("drift", {}).items())]:
                assert found[f"{prefix}/{key}"][row["step"]] == pytest.approx(value, rel=1e-6), key
    assert len(found["train/loss"]) == 8
    assert len(found["eval/loss"]) == len(found["eval/base/exact_match"]) == len(found["eval/drift/kl"]) == 2
    for file in run.path.parent.rglob("*"):
        assert not file.is_file() or b"sk-canary-4242" not in file.read_bytes(), file


def test_trackers_change_nothing_of_a_run(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = sft.fit(write(ROWS, *EIGHT))

    def broken(about: About) -> tuple[Log, Finish]:
        torch.manual_seed(17)  # what a library does to draws of its own thread's doing
        raise OSError("no route to host")

    monkeypatch.setitem(trackers.TRACKERS, "wandb", broken)
    listener = Listener()
    run = sft.fit(write(ROWS, "report_to=[wandb]", *EIGHT, name="tracked"), listener)
    assert metrics_of(run) == metrics_of(usual)
    assert files.sha256(run.adapter / "adapter_model.safetensors") == files.sha256(usual.adapter / "adapter_model.safetensors")
    assert len([line for line in listener.lines if "no route to host" in line]) == 1
