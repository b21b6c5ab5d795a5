"""The arithmetic behind the engine's benchmark: what it counts as work, whose speed it shows, which bars it calls met."""

import math
import sys
from pathlib import Path
from typing import Any

import pytest

from luthier.records import Source, TokenizedExample

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import engine_scaling
import engine_table
from engine_table import Measured, Shape

CONFIG = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
}
SHAPE = Shape.of(CONFIG, 16)


def row(*token_ids: int) -> TokenizedExample:
    return TokenizedExample(list(token_ids), [False] + [True] * (len(token_ids) - 1), Source("rows", 1))


ROWS = [row(1, 2, 3, 4), row(1, 2, 3, 5)]
TWIN = [{"loss": 2.0, "trained": 6}, {"loss": 1.0, "trained": 6}]


def measured(tool: str = "trl", losses: tuple[float, ...] = (2.0, 1.0), seconds: float = 2.0, **changes: Any) -> Measured:
    """One round of two updates of eight logical tokens."""
    update = {"grad_norm": 1.0, "seconds": seconds, "logical": 8, "executed": 8, "trained": 6}
    answer = {
        "updates": [{**update, "loss": loss, **changes.get("update", {})} for loss in losses],
        **{"peak_bytes": changes.get("peak_bytes", 10**9), "first_micro_batch_s": 5.0, "first_update_s": 7.0},
    }
    packed = changes.get("packed", False)
    return Measured(tool, changes.get("setting", "bf16"), changes.get("precision", "bf16"), packed, peer=tool != "luthier", rounds=[answer])


def line_of(one: Measured) -> engine_table.Line:
    return engine_table.line(one, TWIN, [ROWS, ROWS], SHAPE, {"warm_up": 1, "method": "lora", "gflops": {"bf16": 100.0, "fp32": 50.0}})


def test_the_sizes_of_the_default_model_are_those_of_its_weights() -> None:
    assert (SHAPE.body, SHAPE.head, SHAPE.adapter) == (106_168_320, 28_311_552, 4_884_480)


def test_a_token_costs_what_the_formula_says() -> None:
    lora = engine_table.flops(SHAPE, "lora", executed=1000, trained=500, visible=0) / 1000
    full = engine_table.flops(SHAPE, "full", executed=1000, trained=1000, visible=0) / 1000
    assert lora == pytest.approx(4 * 106.16832e6 + 4 * 28.311552e6 * 0.5 + 6 * 4.88448e6)
    assert full == pytest.approx(6 * (106.16832e6 + 28.311552e6))
    # 256 tokens see 256 * 257 / 2 pairs; two products forward and four backward, of 2 * 576 operations a pair and layer
    assert engine_table.flops(SHAPE, "lora", 0, 0, 256 * 257 / 2) == 6 * 2 * 576 * 30 * 256 * 257 / 2


def test_equal_beginnings_are_counted_once() -> None:
    assert engine_table.visible_pairs(ROWS) == 2 * (1 + 2 + 3 + 4)
    assert engine_table.visible_pairs_shared(ROWS) == (1 + 2 + 3 + 4 + 4, 5)


def test_rates_are_of_the_timed_updates() -> None:
    one = measured()
    one.rounds[0]["updates"][0]["seconds"] = 99.0  # the update before the timed ones
    found = line_of(one)
    assert (found.logical, found.executed, found.trained) == (4.0, 4.0, 3.0)
    expected = engine_table.flops(SHAPE, "lora", 8, 6, 20) / 2.0 / 1e9 / 100.0
    assert found.utilisation == pytest.approx(expected)


def test_padding_and_sharing_are_told_apart() -> None:
    padded, shared = line_of(measured(update={"executed": 16})), line_of(measured(update={"executed": 5}))
    assert (padded.padding, padded.rho) == (0.5, 1.0)
    assert (shared.padding, shared.rho) == (0.0, 1.6)
    assert shared.utilisation == pytest.approx(engine_table.flops(SHAPE, "lora", 5, 6, 14) / 2.0 / 1e9 / 100.0)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"losses": (2.0, 1.02)}, "update 2 is 1.02 and the twin's 1 (2.00% apart)"),
        ({"losses": (2.0, 1.001), "precision": "fp32"}, "(0.10% apart)"),
        ({"losses": (2.0, math.nan)}, "not finite"),
        ({"update": {"grad_norm": 0.0}}, "gradient norm is not above zero"),
        ({"losses": (2.0,)}, "1 updates of 2"),
        ({"losses": (2.5, 1.0), "packed": True}, "mean loss is 1.75 and the twin's 1.5"),
    ],
)
def test_no_speed_is_shown_for_other_losses(wrong: dict[str, Any], reason: str) -> None:
    found = line_of(measured(**wrong))
    assert reason in found.gate
    text = engine_table.table("short", [found])
    assert "| trl | bf16 | - | - |" in text
    assert reason in text


def test_losses_within_the_gate_pass() -> None:
    assert line_of(measured(losses=(2.0, 1.009))).gate == ""
    assert line_of(measured(losses=(2.0, 1.00009), precision="fp32")).gate == ""
    # packs hold other rows in each update, and as many trained tokens altogether
    assert line_of(measured(losses=(1.0, 2.0, 1.5), packed=True)).gate == ""


def test_what_could_not_run_is_listed_with_the_reason() -> None:
    absent = Measured("litgpt", "bf16-true", "bf16", False, True, failure="not installed: no such wheel")
    text = engine_table.table("short", [line_of(measured()), line_of(absent)])
    assert "- litgpt, bf16-true: not installed: no such wheel" in text
    assert "| trl | bf16 | 4 |" in text


def test_bars_are_held_against_the_fastest_peer_that_passes() -> None:
    ours = line_of(measured("luthier", seconds=0.5, peak_bytes=2 * 10**9))
    slow, fast = line_of(measured(seconds=4.0)), line_of(measured(seconds=2.0, setting="packed"))
    wrong = line_of(measured(losses=(9.0, 9.0), seconds=0.01, setting="wrong"))
    said = engine_table.bars("short", [ours, slow, fast, wrong], "lora")
    assert "met: 4.00x trl (packed), asked: 3x" in said
    assert any(one.startswith("NOT MET: utilisation") for one in said)
    assert any(one.startswith("NOT MET: peak memory 2.00 GB") for one in said)
    assert "NOT MET: 4.00x trl (packed), asked: 5x" in engine_table.bars("shared", [ours, slow, fast], "lora")


def test_the_start_is_held_against_eight_seconds_and_trl() -> None:
    assert [one[:7] for one in engine_table.start_bars(7.5, 7.0)] == ["met: fi", "NOT MET"]
    assert len(engine_table.start_bars(7.5, None)) == 1


def test_every_point_of_the_plots_has_rows_of_its_length() -> None:
    ids = list(range(40_000))
    for point in engine_scaling.points(quick=False):
        rows, batch = engine_scaling.rows_of(ids, point, updates=2)
        assert len(rows) == 2 * batch
        assert {len(one.token_ids) for one in rows} == {point.length}
    assert {point.value for point in engine_scaling.points(quick=False) if point.axis == "row_tokens"} >= {128, 16384}
