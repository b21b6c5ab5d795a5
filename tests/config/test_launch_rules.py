"""What cannot stand together where several devices train is refused as the settings are read."""

from typing import Any

import pytest

NOT_WITH_CUT_LAYERS = {
    "objective: dpo": "wrapping: tp is for objective: sft, and not for dpo",
    "method: qlora": "and not those of method: qlora",
    "method: dora": "and not those of method: dora",
    "training: {neftune_noise_alpha: 5}": "was not shown to draw neftune_noise_alpha",
    "training: {frozen_base: fp8}": "frozen_base: fp8 makes another form of layers",
    "sequence_parallel: 2": "sequence_parallel runs rows together",
    "nodes: 2": "wrapping: tp is for the devices of one host",
}


@pytest.mark.parametrize(("text", "said"), NOT_WITH_CUT_LAYERS.items(), ids=NOT_WITH_CUT_LAYERS)
def test_what_cannot_be_done_with_layers_that_are_cut_is_refused(refuse: Any, text: str, said: str) -> None:
    error = refuse(f"wrapping: tp\ndevices: 2\n{text}\n")
    assert said in error.problem
    assert (error.where, bool(error.next_step)) == ("luthier.yaml:3", True)


@pytest.mark.parametrize("wrapping", ["auto", "ddp", "tp"])
def test_parts_of_weights_can_lie_elsewhere_where_there_are_some(refuse: Any, load: Any, wrapping: str) -> None:
    error = refuse("launch: {cpu_offload: true}\n", "devices=2", f"wrapping={wrapping}")
    assert (error.where, error.problem.endswith(f"wrapping is {wrapping}")) == ("luthier.yaml:3", True)
    assert load("launch: {cpu_offload: true}\n", "devices=2", "wrapping=fsdp").settings.launch.cpu_offload is True
    assert load("launch: {cpu_offload: false}\n", "devices=2", f"wrapping={wrapping}").settings.launch.cpu_offload is False


def test_heads_are_dealt_to_a_number_of_devices(refuse: Any, load: Any) -> None:
    assert "devices: auto is known only when the run starts" in refuse("wrapping: tp\ndevices: auto\n").problem
    assert load("wrapping: tp\ndevices: 2\n").settings.wrapping == "tp"
