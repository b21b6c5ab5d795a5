"""Several devices in numbers: what each holds and sends, how the weights are shared, and how far it scales."""

import itertools
import tomllib
from dataclasses import replace
from importlib import resources
from typing import Any

import pytest

from luthier.config.settings import Settings
from luthier.errors import ConfigError, MachineError
from luthier.models.facts import ModelFacts
from luthier.plan import choose, cost, elsewhere, ranks, scaling, wishes
from luthier.plan.cost import DataShape
from luthier.plan.ranks import Group, Traffic
from luthier.records import Machine

ROWS = DataShape(train_rows=10_000, train_tokens=5_000_000, trained_tokens=1_000_000, longest=1500, shared_prefix_tokens=0, answer_p99=50)
FEW = replace(ROWS, train_rows=1000, train_tokens=120_000, trained_tokens=30_000, longest=150)


def settings(method: str = "lora", **asked: Any) -> Settings:
    training = {"precision": "bf16", "batch_size": 64, "num_train_epochs": 1.0} | asked.pop("training", {})
    adapter = {} if method == "full" else {"lora": {"r": 16, "lora_alpha": 32.0, "lora_dropout": 0.0}}
    return Settings.model_validate(
        {"model": "m", "data": {"train": "t", "max_length": 2048}, "method": method, "training": training, **adapter, **asked}
    )


@pytest.fixture(scope="module")
def llama70b() -> ModelFacts:
    return ModelFacts(70_553_706_496, 80, 8192, 28672, 64, 8, 128, 128256, 131072, False)


@pytest.fixture(scope="module")
def h100() -> Machine:
    return elsewhere.machine_of(wishes.devices()["h100"])


def test_what_two_ranks_send_is_what_was_counted_on_a_wire() -> None:
    """4 layers of SmolLM2-135M, LoRA r=8: counted per rank and update, 2 ranks (docs/scaling.md)."""
    linear = 2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536
    trained = 4 * 8 * (2 * (576 + 576) + 2 * (576 + 192) + 3 * (576 + 1536))
    weights = 4 * linear + 49_152 * 576
    ddp = ranks.traffic("ddp", Group(2, 1), trained, 2 * weights, 4, 1)
    assert ddp == Traffic(4 * trained, 0, 1)
    assert ddp.inside == pytest.approx(1.31e6, rel=0.01)
    assert ranks.traffic("fsdp", Group(2, 1), trained, 2 * weights, 4, 1).inside == pytest.approx(87.9e6, rel=0.05)
    assert ranks.traffic("fsdp", Group(2, 1), trained, 4 * weights, 4, 1).inside == pytest.approx(172.8e6, rel=0.05)


def test_devices_that_share_the_tokens_hold_their_part_of_a_long_row_and_send_what_attention_needs(smollm2: ModelFacts, h100: Machine) -> None:
    long = replace(ROWS, longest=8192)
    told = {"training": {"micro_batch_tokens": 8192, "gradient_checkpointing": "off"}, "data": {"train": "t", "max_length": 8192}, "devices": 8}
    alone, shared = (
        choose.resolve(settings(**told, sequence_parallel=size), replace(smollm2, heads=8, kv_heads=4), h100, long).settings for size in (1, 4)
    )
    facts = replace(smollm2, heads=8, kv_heads=4)
    parts = [cost.memory_parts(each, facts, h100, long) for each in (alone, shared)]
    assert parts[1]["activations"] == pytest.approx(parts[0]["activations"] / 4, rel=0.01)
    assert parts[1]["weights"] == parts[0]["weights"]
    sent = [scaling.traffic_of(each, facts, h100, long) for each in (alone, shared)]
    # Of 64 rows of 500 tokens each device has 4,000; 3 of 4 of their numbers go to others, 2 bytes each, forward and backward.
    assert sent[1].inside - sent[0].inside == 2 * 3 * 4000 * 2 * (8 + 4) * facts.head_dim * facts.layers * 2 // 4
    assert (ranks.at_work(alone, h100), ranks.at_work(shared, h100)) == (8, 8)
    few = [cost.changed(each, {"training.batch_size": 2}) for each in (alone, shared)]
    assert [ranks.at_work(each, h100) for each in few] == [2, 8], "two rows are the work of two teams of four"


def test_heads_that_cannot_be_dealt_out_are_refused(smollm2: ModelFacts, h100: Machine) -> None:
    with pytest.raises(ConfigError, match="the 9 heads and 3 key heads of this model cannot be dealt to 2 ranks") as refused:
        choose.resolve(settings(devices=2, sequence_parallel=2), smollm2, h100, ROWS)
    assert (refused.value.where, refused.value.next_step) == ("sequence_parallel", "sequence_parallel: 1 or 3")


def test_devices_that_compute_a_part_of_every_layer_share_weights_and_heads(smollm2: ModelFacts, h100: Machine) -> None:
    for devices, facts, possible in ((2, smollm2, "1 or 3"), (3, replace(smollm2, intermediate=1540), "1")):
        with pytest.raises(ConfigError, match=f"columns of the MLP of this model cannot be dealt to {devices} ranks") as refused:
            choose.resolve(settings(devices=devices, wrapping="tp"), facts, h100, ROWS)
        assert (refused.value.where, refused.value.next_step) == ("devices", f"devices: {possible}")
    whole, cut = (choose.resolve(settings(devices=3, wrapping=how), smollm2, h100, ROWS).settings for how in ("ddp", "tp"))
    parts = [cost.memory_parts(each, smollm2, h100, ROWS) for each in (whole, cut)]
    assert parts[1]["weights"] == -(-parts[0]["weights"] // 3)
    assert parts[1]["gathered"] == ranks.tables_bytes(smollm2, cut.training.precision)
    sent = [scaling.traffic_of(each, smollm2, h100, ROWS) for each in (whole, cut)]
    tokens = int(cut.training.batch_size) * ROWS.train_tokens / ROWS.train_rows
    # 7 sums a layer of a vector of each token, 2 bytes a number; in a ring of 3 each sends 4 of 3 of it.
    assert sent[1].inside - sent[0].inside == pytest.approx(4 / 3 * tokens * smollm2.hidden * 7 * smollm2.layers * 2, rel=1e-6)
    assert ranks.at_work(cut, h100) == 3


@pytest.mark.parametrize("wrapping", ["fsdp", "tp"])
@pytest.mark.parametrize(("frozen", "tables"), [(False, 49_152 * 576), (True, 0)])
def test_tables_are_trained_whole_on_each_device(wrapping: str, frozen: bool, tables: int, smollm2: ModelFacts, h100: Machine) -> None:
    told = {"training": {"precision": "fp32", "micro_batch_tokens": 1024}, "freeze": {"embeddings": frozen}, "devices": 3}
    whole, cut = (choose.resolve(settings("full", wrapping=how, **told), smollm2, h100, ROWS) for how in ("ddp", wrapping))
    name = "gradients and optimizer"
    third = whole.memory_bytes[name] / 3
    assert cut.memory_bytes[name] == pytest.approx(third + 12 * tables * 2 / 3, rel=1e-6), "an fp32 gradient and two moments of each number"


def test_numbers_of_devices_that_cannot_cut_layers_are_shown_as_they_can_run(llama70b: ModelFacts, h100: Machine) -> None:
    plan = choose.resolve(settings(devices=8, wrapping="tp"), llama70b, h100, ROWS)
    found = scaling.simulate(plan.settings, llama70b, h100, ROWS, plan.updates, [1, 3, 8, 16])
    assert [one.wrapping for one in found] == ["ddp", "fsdp", "tp", "hsdp"]
    assert any("other numbers are shown with fsdp or hsdp" in line for line in scaling.assumptions(h100, plan.settings))


def test_hsdp_sends_between_hosts_only_its_part_of_what_is_trained() -> None:
    found = ranks.traffic("hsdp", Group(8, 4), 1_000_000, 8_000_000_000, 32, 1)
    assert found.between == 2 * 3 / 4 * 4_000_000 / 8
    assert found.inside > 1e9
    alone = ranks.traffic("fsdp", Group(8, 4), 1_000_000, 8_000_000_000, 32, 1)
    assert (alone.inside, alone.between > 1e9) == (0, True), "a ring is as slow as its slowest step"


def test_the_wrapping_follows_from_what_fits(llama70b: ModelFacts, smollm2: ModelFacts, h100: Machine) -> None:
    def chosen(facts: ModelFacts, **asked: Any) -> tuple[str, str]:
        plan = choose.resolve(settings(**asked), facts, h100, ROWS)
        why = next((one.why for one in plan.resolved if one.name == "wrapping"), "")
        return plan.settings.wrapping, why

    assert chosen(smollm2) == ("auto", ""), "one device shares nothing"
    assert chosen(smollm2, devices=8)[0] == "ddp"
    assert chosen(llama70b, devices=8) == ("fsdp", "the weights do not fit one device: each has a part, and gets the others' as it needs them")
    assert chosen(llama70b, devices=8, nodes=2)[0] == "hsdp"
    assert chosen(llama70b, devices=8, method="qlora")[0] == "ddp", "in 4 bits they fit"
    assert chosen(llama70b, devices=8, wrapping="ddp")[0] == "ddp", "what was asked for"


def test_cut_weights_make_a_run_fit_that_does_not_fit_one_device(llama70b: ModelFacts, h100: Machine) -> None:
    assert not choose.resolve(settings(), llama70b, h100, ROWS).fits
    plan = choose.resolve(settings(devices=8), llama70b, h100, ROWS)
    assert plan.fits
    assert plan.memory_bytes["weights"] == pytest.approx(2 * 70.55e9 / 8, rel=0.01)
    tables = 2 * 128256 * 8192 * 2
    assert plan.memory_bytes["gathered"] == pytest.approx(tables + 2 * (2 * 70.55e9 - tables) / 80, rel=0.01)
    assert "devices: 8 (fsdp); each sends about" in "\n".join(plan.lines())


def test_parts_that_do_not_fit_the_devices_lie_in_main_memory_where_that_has_room(llama70b: ModelFacts, h100: Machine) -> None:
    two = settings(devices=2)
    plan = choose.resolve(two, llama70b, replace(h100, host_bytes=400 * 10**9), ROWS)
    assert (plan.settings.wrapping, plan.settings.launch.cpu_offload, plan.fits) == ("fsdp", True, True)
    tables = 2 * 128256 * 8192 * 2
    assert plan.memory_bytes["weights"] == plan.memory_bytes["adapter and optimizer"] == 0
    assert plan.memory_bytes["gathered"] == pytest.approx(tables + 2 * (2 * 70.55e9 - tables) / 80, rel=0.01)
    assert plan.host_memory == pytest.approx(2 * (1.25e9 + 2 * 70.55e9), rel=0.01), "each process loads the whole model"
    said = "\n".join(plan.lines())
    assert "launch.cpu_offload: True (the parts do not fit the devices" in said
    assert "main memory of each host: about 285 GB of 400 GB" in said
    assert plan.as_json()["host_memory_bytes"] == plan.host_memory
    small, unknown = (choose.resolve(two, llama70b, replace(h100, host_bytes=size), ROWS) for size in (300 * 10**9, 0))
    assert [(one.settings.launch.cpu_offload, one.fits, one.host_memory) for one in (small, unknown)] == [("auto", False, 0)] * 2
    assert ("cpu_offload" in small.next_step, "cpu_offload" in unknown.next_step) == (False, True)
    roomy = choose.resolve(settings(devices=8), llama70b, replace(h100, host_bytes=4_000 * 10**9), ROWS)
    assert (roomy.settings.launch.cpu_offload, roomy.fits) == ("auto", True), "it is slow, and they fit"


def test_main_memory_that_was_asked_for_and_is_not_there_is_named(llama70b: ModelFacts, h100: Machine) -> None:
    asked = settings(devices=8, wrapping="fsdp", launch={"cpu_offload": True})
    plan = choose.resolve(asked, llama70b, replace(h100, host_bytes=500 * 10**9), ROWS)
    with pytest.raises(MachineError, match=r"needs about 1,139 GB of main memory on each host, and may take 90% of 500 GB") as refused:
        plan.require_room()
    assert refused.value.where == "launch.cpu_offload"
    assert refused.value.next_step.endswith("or hosts with at least 1,265 GB of main memory")


def test_tables_that_are_trained_stay_on_the_device_beside_parts_in_main_memory(smollm2: ModelFacts, h100: Machine) -> None:
    told = {"training": {"precision": "fp32", "micro_batch_tokens": 1024}, "devices": 2, "wrapping": "fsdp"}
    plan = choose.resolve(settings("full", **told, launch={"cpu_offload": True}), smollm2, h100, ROWS)
    tables = 49_152 * 576
    assert plan.memory_bytes["gradients and optimizer"] == 12 * tables
    assert plan.memory_bytes["head's gradient"] == 8 * tables


def test_settings_of_several_devices_that_do_nothing_are_named(smollm2: ModelFacts, laptop: Machine) -> None:
    def said(**asked: Any) -> list[str]:
        return [note for note in choose.resolve(settings(**asked), smollm2, laptop, FEW).notes if "has no effect" in note]

    written = {"port": 29500, "timeout_minutes": 5.0}
    alone = said(launch=written)
    assert [note.split()[1] for note in alone] == ["launch.port", "launch.timeout_minutes"]
    assert [note.split()[1] for note in said(launch=written, devices=2)] == ["launch.port"]
    assert said(launch=written, devices=2, nodes="1:2") == said() == []
    assert said(launch={"cpu_offload": True}, devices=2, wrapping="fsdp") == [
        "note: launch.cpu_offload has no effect here: a CPU's parts of the weights are in main memory anyway"
    ]


def test_processes_on_one_cpu_have_their_part_of_its_memory_and_are_no_faster(smollm2: ModelFacts, laptop: Machine) -> None:
    one, two = (choose.resolve(settings(devices=count), smollm2, laptop, FEW) for count in (1, 2))
    assert cost.memory_limit(two.settings, laptop) == cost.memory_limit(one.settings, laptop) // 2
    assert two.seconds == pytest.approx(one.seconds)
    gpu = replace(laptop, device="cuda")
    assert choose.resolve(settings(devices=2), smollm2, gpu, FEW).seconds == pytest.approx(choose.resolve(settings(), smollm2, gpu, FEW).seconds / 2)


def test_devices_auto_are_the_gpus_of_the_host(smollm2: ModelFacts, laptop: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,2,5")
    assert choose.resolve(settings(devices="auto"), smollm2, laptop, FEW).settings.devices == 1, "a CPU is one"
    plan = choose.resolve(settings(devices="auto"), smollm2, replace(laptop, device="cuda"), FEW)
    assert (plan.settings.devices, plan.settings.wrapping) == (3, "ddp")
    assert choose.resolve(settings(devices="auto", sequence_parallel=3), smollm2, replace(laptop, device="cuda"), FEW).settings.devices == 3
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,2")
    with pytest.raises(ConfigError, match=r"this host has 2 devices, which cannot be cut into teams of sequence_parallel: 3"):
        choose.resolve(settings(devices="auto", sequence_parallel=3), smollm2, replace(laptop, device="cuda"), FEW)


def test_scaling_stops_where_an_update_has_no_more_rows(smollm2: ModelFacts, h100: Machine) -> None:
    plan = choose.resolve(settings(), smollm2, h100, ROWS)
    found = scaling.simulate(plan.settings, smollm2, h100, ROWS, plan.updates, [1, 8, 64, 512])
    assert [one.devices for one in found] == [1, 8, 64, 512]
    assert [one.hosts for one in found] == [1, 1, 8, 64]
    assert found[0].efficiency == 1.0
    assert found[0].sent_bytes == 0
    assert all(later.efficiency < earlier.efficiency for earlier, later in itertools.pairwise(found))
    assert found[3].speedup <= 64, "64 rows are the work of 64 devices"
    assert found[2].update_seconds <= found[3].update_seconds


@pytest.mark.parametrize(("count", "hosts"), [(8, 1), (12, 2), (9, 3), (13, 13), (512, 64)])
def test_as_many_devices_as_were_asked_for_lie_on_hosts_that_are_alike(count: int, hosts: int, smollm2: ModelFacts, h100: Machine) -> None:
    plan = choose.resolve(settings(), smollm2, h100, ROWS)
    (scaled,) = scaling.simulate(plan.settings, smollm2, h100, ROWS, plan.updates, [count])
    assert (scaled.devices, scaled.hosts) == (count, hosts)


def test_a_large_model_is_cut_where_it_must_be(llama70b: ModelFacts, h100: Machine) -> None:
    plan = choose.resolve(settings(), llama70b, h100, ROWS)
    found = scaling.simulate(plan.settings, llama70b, h100, ROWS, plan.updates, [1, 8, 64])
    assert [(one.wrapping, one.fits) for one in found] == [("ddp", False), ("fsdp", True), ("hsdp", True)]


def test_the_links_say_where_they_are_from() -> None:
    table = tomllib.loads(resources.files("luthier.plan").joinpath("links.toml").read_text(encoding="utf-8"))
    assert len(table["source"]) > 100
    for links in (table["inside"], table["between"]):
        assert set(links) - {"this", "other"} <= set(wishes.devices())
        assert {"this", "other"} <= set(links)
