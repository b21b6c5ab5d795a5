import json
import subprocess
import sys
from dataclasses import replace

import pytest

from luthier.config.load import load_config
from luthier.config.methods import BLOCKS
from luthier.config.settings import Settings
from luthier.errors import ConfigError, MachineError
from luthier.plan.choose import resolve
from luthier.plan.cost import DataShape
from luthier.records import Machine


def settings(**sections):
    return Settings.model_validate({"model": "m", **sections, "data": {"train": "t.jsonl", **sections.get("data", {})}})


def rows(count, tokens=150):
    return DataShape(count, count * tokens, count * 40, 210, 90, 50)


def every_value(tree):
    return [value for part in tree.values() for value in (every_value(part) if isinstance(part, dict) else [part])]


def test_nothing_that_a_plan_can_fill_stays_auto_and_each_choice_has_a_reason(smollm2, laptop, addresses):
    plan = resolve(
        settings(data={"format": "messages"}, device="cpu", template="chatml", training={"attn_implementation": "sdpa"}), smollm2, laptop, addresses
    )
    of_several_ranks = {"wrapping"}  # one process shares its weights with nobody
    left_out = dict.fromkeys(BLOCKS | {"preference"} | of_several_ranks, True) | {"evaluation": {"general"}, "launch": {"cpu_offload"}}
    assert "auto" not in every_value(plan.settings.model_dump(exclude=left_out))
    names = [choice.name for choice in plan.resolved]
    filled = ["batch_size", "learning_rate", "num_train_epochs", "warmup_ratio"]
    filled += ["precision", "micro_batch_tokens", "gradient_checkpointing", "compile"]
    of_lora = ["lora.r", "lora.lora_alpha", "lora.lora_dropout"]
    assert sorted(names) == sorted(["data.max_length", "evaluation.max_new_tokens", *of_lora, *(f"training.{name}" for name in filled)])
    assert all(choice.why for choice in plan.resolved)
    taught = {"learning_rate", "batch_size", "num_train_epochs", "warmup_ratio", "r", "lora_alpha", "lora_dropout"}
    assert {choice.name.rpartition(".")[2] for choice in plan.resolved if choice.source} == taught


def test_what_was_given_is_kept_and_not_called_resolved(smollm2, laptop, addresses):
    given = settings(training={"learning_rate": 3e-4, "batch_size": 7})
    plan = resolve(given, smollm2, laptop, addresses)
    assert plan.settings.training.learning_rate == 3e-4
    assert plan.settings.training.batch_size == 7
    assert {"training.learning_rate", "training.batch_size"}.isdisjoint(choice.name for choice in plan.resolved)
    assert given.data.max_length == "auto", "the settings that were handed in are untouched"


@pytest.mark.parametrize(
    ("parameters", "rate"),
    [(30e6, 1e-3), (135e6, 1e-3), (360e6, 6e-4), (1.1e9, 3e-4), (3e9, 2e-4), (7e9, 1e-4), (8e9, 1e-4), (13e9, 1e-4), (70e9, 5e-5), (400e9, 5e-5)],
)
def test_the_rate_falls_with_the_model(parameters, rate, llama3_8b, laptop, addresses):
    plan = resolve(settings(), replace(llama3_8b, parameters=int(parameters)), laptop, addresses)
    assert plan.settings.training.learning_rate == pytest.approx(rate)


@pytest.mark.parametrize(("parameters", "rate"), [(135e6, 1e-4), (7e9, 1e-5), (8e9, 1e-5), (70e9, 5e-6)])
def test_the_rate_of_full_training_is_a_tenth(parameters, rate, llama3_8b, laptop, addresses):
    plan = resolve(settings(method="full"), replace(llama3_8b, parameters=int(parameters)), laptop, addresses)
    assert plan.settings.training.learning_rate == pytest.approx(rate)


def test_activations_are_computed_again_only_where_nothing_cheaper_makes_the_run_fit(llama3_8b, laptop):
    long_rows = DataShape(1000, 1_000_000, 500_000, 4000, 0, 500)
    given = settings(training={"micro_batch_tokens": 8192, "precision": "bf16", "side_by_side": False}, data={"max_length": 8192})
    chosen = {}
    for gigabytes in (100, 60, 50, 26, 20):
        plan = resolve(given, llama3_8b, replace(laptop, memory_bytes=gigabytes * 10**9), long_rows)
        chosen[gigabytes] = (plan.settings.training.gradient_checkpointing, plan.fits, plan.saved_bytes > 0)
    assert chosen[100] == ("off", True, False)
    assert chosen[60] == ("off", False, False), "smaller micro-batches are the next step"
    assert chosen[50] == ("selective", True, True)
    assert chosen[26] == ("full", True, True)
    assert chosen[20][1] is False


def test_full_training_that_does_not_fit_is_told_what_would(llama3_8b, laptop, addresses):
    plan = resolve(settings(method="full", training={"precision": "bf16"}), llama3_8b, replace(laptop, memory_bytes=120 * 10**9), addresses)
    assert plan.next_step.startswith("training.optim: adamw_8bit, ")
    plan = resolve(settings(method="full", training={"precision": "bf16"}), llama3_8b, replace(laptop, memory_bytes=40 * 10**9), addresses)
    assert plan.next_step.startswith("method: lora, ")


@pytest.mark.parametrize("optim", ["adamw", "muon"])
@pytest.mark.parametrize("freeze", [None, {"layers": "0-3", "embeddings": True}])
def test_the_advice_to_take_lora_can_be_taken(optim, freeze, llama3_8b, laptop, addresses, tmp_path):
    machine = replace(laptop, memory_bytes=40 * 10**9)
    written = {"model": "m", "data": {"train": "t.jsonl"}, "method": "full", "training": {"optim": optim, "precision": "bf16"}}
    written |= {"freeze": freeze} if freeze else {}
    plan = resolve(Settings.model_validate(written), llama3_8b, machine, addresses)
    *changes, checkpointing = plan.next_step.partition(" (")[0].split(", ")
    assert changes[0] == "method: lora"
    assert ("no freeze" in changes, "training.optim: adamw" in changes) == (freeze is not None, optim == "muon")
    if "no freeze" in changes:
        del written["freeze"]
    named = [change.split(": ") for change in [*changes, *checkpointing.split(" and ")] if change != "no freeze"]
    file = tmp_path / "luthier.yaml"
    file.write_text(json.dumps(written), encoding="utf-8")
    assert resolve(load_config(file, [f"{name}={value}" for name, value in named]).settings, llama3_8b, machine, addresses).fits


def test_the_advice_to_take_qlora_can_be_taken_beside_fp8(llama3_8b, laptop, addresses):
    plan = resolve(
        settings(lora={"r": 8}, training={"precision": "bf16", "frozen_base": "fp8"}), llama3_8b, replace(laptop, memory_bytes=9 * 10**9), addresses
    )
    assert plan.next_step.startswith("method: qlora, training.frozen_base: bf16 and ")


def test_fp16_is_chosen_where_it_was_measured_to_be_faster(smollm2, addresses):
    old_gpu = Machine("cuda", "an old GPU", 4, 16 * 10**9, 4_000.0, 8_000.0, 50_000.0)
    plan = resolve(settings(), smollm2, old_gpu, addresses)
    assert plan.settings.training.precision == "fp16"
    assert "50,000 in fp16" in next(choice.why for choice in plan.resolved if choice.name == "training.precision")


@pytest.mark.parametrize(
    ("model", "count", "batch"),
    [
        ("smollm2", 790, 16),  # 790 rows x 5 epochs / 200 updates, to a power of two
        ("smollm2", 5_000, 32),
        ("smollm2", 50_000, 32),
        ("llama3_8b", 1_000, 8),
        ("llama3_8b", 9_000, 32),
        ("llama3_8b", 40, 4),
        ("smollm2", 3, 1),  # 3 rows x 10 epochs / 20 updates
        ("smollm2", 1, 1),
    ],
)
def test_the_batch_fits_the_model_and_the_rows(model, count, batch, laptop, request):
    plan = resolve(settings(), request.getfixturevalue(model), laptop, rows(count))
    assert plan.settings.training.batch_size == batch
    assert plan.updates >= min(20, 10 * count)


def test_updates_are_passes_laid_end_to_end(smollm2, laptop):
    assert resolve(settings(training={"batch_size": 4, "num_train_epochs": 3}), smollm2, laptop, rows(10)).updates == 8
    assert resolve(settings(training={"batch_size": 4, "num_train_epochs": 0.5}), smollm2, laptop, rows(10)).updates == 2
    assert resolve(settings(training={"max_steps": 5}), smollm2, laptop, rows(10)).updates == 5


def test_few_updates_are_mentioned(smollm2, laptop):
    plan = resolve(settings(training={"batch_size": 32, "num_train_epochs": 3}), smollm2, laptop, rows(40))
    assert "4 updates are few" in "\n".join(plan.lines())


def test_the_longest_row_is_the_models_context_but_at_most_2048(smollm2, laptop, addresses):
    assert resolve(settings(), smollm2, laptop, addresses).settings.data.max_length == 2048
    assert resolve(settings(), replace(smollm2, context=512), laptop, addresses).settings.data.max_length == 512


def test_a_longer_row_than_the_model_can_read_is_refused(smollm2, laptop, addresses):
    with pytest.raises(ConfigError, match=r"9,000 tokens are more than this model's context of 8,192\n  Try: data.max_length: 8192"):
        resolve(settings(data={"max_length": 9000}), smollm2, laptop, addresses)


def test_precision_follows_the_measured_rates(smollm2, laptop, addresses):
    assert resolve(settings(), smollm2, laptop, addresses).settings.training.precision == "bf16"
    slow = resolve(settings(), smollm2, replace(laptop, bf16_gflops=3.0), addresses)
    assert slow.settings.training.precision == "fp32"
    assert "3 GFLOP/s in bf16, 140 in fp32 on laptop" in "\n".join(slow.lines())


def test_a_given_precision_that_is_slow_here_is_kept_and_mentioned(smollm2, laptop, addresses):
    plan = resolve(settings(training={"precision": "fp32"}), smollm2, laptop, addresses)
    assert plan.settings.training.precision == "fp32"
    assert "bf16 is faster on this machine than fp32" in "\n".join(plan.lines())


def test_answers_may_be_a_little_longer_than_those_taught(smollm2, laptop, addresses):
    assert resolve(settings(), smollm2, laptop, addresses).settings.evaluation.max_new_tokens == 56
    assert resolve(settings(), smollm2, laptop, replace(addresses, answer_p99=2)).settings.evaluation.max_new_tokens == 16


def test_the_demo_fits_and_takes_minutes(smollm2, laptop, addresses):
    plan = resolve(settings(), smollm2, laptop, addresses)
    assert plan.fits
    assert plan.next_step == ""
    assert sum(plan.memory_bytes.values()) < 4e9
    assert 60 < plan.seconds < 1_200


def test_dropout_ends_sharing_and_costs_time(smollm2, laptop, addresses):
    shared = resolve(settings(), smollm2, laptop, addresses)
    dropped = resolve(settings(lora={"lora_dropout": 0.1}), smollm2, laptop, addresses)
    assert dropped.memory_bytes["shared prefix"] == 0
    assert dropped.seconds > 1.4 * shared.seconds


@pytest.mark.parametrize(("given", "shared"), [({"vera_dropout": 0.1}, False), ({"module_dropout": 0.2}, False), ({"vera_dropout": 0.0}, True)])
def test_dropout_of_a_method_of_peft_ends_sharing_too(given, shared, smollm2, laptop, addresses):
    plan = resolve(settings(method="peft", peft={"type": "VERA", **given}), smollm2, laptop, addresses)
    assert (plan.memory_bytes["shared prefix"] > 0) == shared


def test_dropout_of_virtual_tokens_is_drawn_once_an_update_and_ends_no_sharing(smollm2, laptop, addresses):
    encoder = {"encoder_reparameterization_type": "LSTM", "encoder_dropout": 0.1}
    plan = resolve(settings(method="p_tuning", p_tuning=encoder), smollm2, laptop, addresses)
    assert plan.memory_bytes["shared prefix"] > 0


def test_too_large_by_its_micro_batch_names_the_size_that_fits(smollm2, laptop):
    machine = replace(laptop, memory_bytes=3_300_000_000)
    long_rows = DataShape(2_000, 2_000_000, 500_000, 1_000, 0, 50)
    plan = resolve(settings(training={"batch_size": 16, "micro_batch_tokens": 4096}), smollm2, machine, long_rows)
    assert not plan.fits
    assert plan.next_step == "training.micro_batch_tokens: 1024 (the same result, a little slower)"
    mended = resolve(settings(training={"batch_size": 16, "micro_batch_tokens": 1024}), smollm2, machine, long_rows)
    assert mended.fits, "the advice must really help"


def test_told_how_much_memory_there_is_the_plan_cuts_until_the_run_fits(smollm2, laptop):
    long_rows = DataShape(2_000, 2_000_000, 500_000, 1_000, 0, 50)
    # Without max_memory two micro-batches run side by side, which needs more.
    for given, chosen in ((None, 2048), ("7GB", 4096), ("4.9 GB", 2048), ("3.5GB", 1024)):
        plan = resolve(settings(training={"batch_size": 16}, max_memory=given), smollm2, laptop, long_rows)
        assert plan.fits
        assert plan.settings.training.micro_batch_tokens == chosen
        plan.require_room()


def test_a_run_that_does_not_fit_is_refused_with_the_way_out(smollm2, laptop, addresses):
    plan = resolve(settings(max_memory="900MB"), smollm2, laptop, addresses)
    with pytest.raises(
        MachineError,
        match=r"needs about 1\.\d+ GB of memory, and may take 85% of max_memory: 900MB\n  Try: a smaller model, or max_memory: [12]\.\dGB",
    ):
        plan.require_room()
    known = resolve(settings(max_memory=plan.next_step.rpartition(" ")[2]), smollm2, laptop, addresses)
    assert known.fits, "the advice must really help"


@pytest.mark.parametrize("asked", [{"method": "full", "freeze": {"layers": "0-30"}}, {"lora": {"layers_to_transform": [30]}}])
def test_a_layer_that_is_not_there_is_refused_by_the_plan(smollm2, laptop, addresses, asked):
    with pytest.raises(ConfigError, match="layer 30 is not there: this model has 30"):
        resolve(settings(**asked), smollm2, laptop, addresses)


def test_too_large_by_its_number_format_names_bf16(llama3_8b, laptop, addresses):
    machine = replace(laptop, memory_bytes=24_000_000_000, bf16_gflops=1.0)
    plan = resolve(settings(), llama3_8b, machine, addresses)
    assert plan.next_step.startswith("training.precision: bf16")
    assert resolve(settings(training={"precision": "bf16", "micro_batch_tokens": 256}), llama3_8b, machine, addresses).fits


def test_too_large_in_any_way_names_the_memory_that_is_needed(llama3_8b, laptop, addresses):
    plan = resolve(settings(), llama3_8b, laptop, addresses)
    assert not plan.fits
    assert plan.next_step.startswith("a smaller model, or a machine with at least 2")
    assert "does not fit in 90% of 8 GB. Try: a smaller model" in "\n".join(plan.lines())


def test_the_plan_reads_well(smollm2, laptop, addresses):
    text = "\n".join(resolve(settings(), smollm2, laptop, addresses).lines())
    assert "training.learning_rate: 0.001 (usual for lora on 135M parameters, " in text
    assert "updates: 247 of 16 examples" in text
    assert "(an estimate)" in text


def test_the_plan_is_plain_json(smollm2, laptop, addresses):
    plan = resolve(settings(), smollm2, laptop, addresses)
    stored = json.loads(json.dumps(plan.as_json()))
    assert stored["resolved"][1] == {
        "name": "training.num_train_epochs",
        "value": 5.0,
        "why": "100 to 1,000 rows",
        "source": "guides, by rows; Tunstall 2023 for preferences",
    }
    assert Settings.model_validate(stored["settings"]) == plan.settings


def test_planning_needs_no_torch():
    code = "import sys, luthier.plan.choose, luthier.plan.machine; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_room_that_is_kept_for_answers_is_said(smollm2, laptop, addresses):
    plan = resolve(settings(data={"max_length": 1024, "reserve_for_generation": 256}), smollm2, laptop, addresses)
    assert "note: rows have up to 768 tokens, since data.reserve_for_generation keeps 256 of data.max_length free" in plan.lines()
    assert not any("reserve" in line for line in resolve(settings(), smollm2, laptop, addresses).lines())


def test_a_quantized_base_takes_less_memory_and_more_time_than_a_whole_one(llama3_8b, laptop, addresses):
    plain, small = (resolve(settings(method=method, training={"precision": "bf16"}), llama3_8b, laptop, addresses) for method in ("lora", "qlora"))
    assert small.memory_bytes["weights"] < 0.4 * plain.memory_bytes["weights"]
    assert {name: size for name, size in small.memory_bytes.items() if name != "weights"} == {
        name: size for name, size in plain.memory_bytes.items() if name != "weights"
    }
    assert 1.02 < small.seconds / plain.seconds < 2


def test_a_run_that_fits_in_4_bits_alone_is_told_so(llama3_8b, laptop, addresses):
    machine = replace(laptop, memory_bytes=16_000_000_000)
    plan = resolve(settings(lora={"r": 8}, training={"precision": "bf16"}), llama3_8b, machine, addresses)
    assert plan.next_step.startswith("method: qlora and ")


def test_a_rate_that_would_never_reach_its_peak_is_refused(smollm2, laptop, addresses):
    refused = r"training.warmup_steps is 11, and the run has 10 updates: the rate would never reach its peak\n  Try: fewer than 10"
    with pytest.raises(ConfigError, match=refused):
        resolve(settings(training={"max_steps": 10, "warmup_steps": 11}), smollm2, laptop, addresses)
    resolve(settings(training={"max_steps": 10, "warmup_steps": 10}), smollm2, laptop, addresses)


@pytest.mark.parametrize("method", ["lora", "dora", "qlora"])
def test_an_adapter_wider_than_the_model_is_refused(method, smollm2, laptop, addresses):
    refused = r"lora.r is 577, and the model's vectors have 576 numbers: more is not in them\n  Try: lora.r: 16 is usual; 576 at most"
    with pytest.raises(ConfigError, match=refused):
        resolve(settings(method=method, lora={"r": 577}), smollm2, laptop, addresses)
    resolve(settings(method=method, lora={"r": 576}), smollm2, laptop, addresses)
