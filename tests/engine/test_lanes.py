"""Micro-batches that run side by side: the same loss and gradients as one after the other, the same bits each time, and one cut that is fair."""

from pathlib import Path

import pytest
import torch
from conftest_engine import furthest, gradients, open_tiny, ragged

from luthier.engine import Engine
from luthier.engine.batches import lay_out
from luthier.engine.lanes import Lanes, here

EXACT = 2e-5  # relative, fp32


@pytest.fixture
def alone(tiny_model: Path) -> Engine:
    engine = open_tiny(tiny_model)
    engine.lanes = None
    return engine


def test_it_can_be_switched_off_and_is_not_for_what_trains_every_weight(engine: Engine, tiny_model: Path) -> None:
    assert engine.lanes is not None
    assert open_tiny(tiny_model, side_by_side=False).lanes is None
    assert Engine.open(str(tiny_model), full=True).lanes is None


@pytest.mark.parametrize("prefix", [0, 40])
@pytest.mark.parametrize("micro_batch_tokens", [140, 4096])
def test_side_by_side_gives_what_one_after_the_other_gives(engine: Engine, alone: Engine, prefix: int, micro_batch_tokens: int) -> None:
    examples = ragged(seed=prefix, rows=9, prefix=prefix)
    for one in (engine, alone):
        one.micro_batch_tokens = micro_batch_tokens
    step = engine.lay_out(examples, None, learns=True)
    assert (step.lanes, len(step.micro_batches) > 2) == (2, micro_batch_tokens == 140)
    first, second = (one.forward_backward(examples, row_losses=True) for one in (engine, alone))
    assert first.loss == pytest.approx(second.loss, rel=1e-6)
    assert first.row_losses == pytest.approx(second.row_losses, rel=1e-5)
    assert (first.executed_tokens, first.trained_tokens) == (second.executed_tokens, second.trained_tokens)
    assert furthest(gradients(engine), gradients(alone)) < EXACT


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_bits_do_not_depend_on_which_lane_is_faster(tiny_model: Path, dtype: torch.dtype) -> None:
    engine = open_tiny(tiny_model)
    engine.model.to(dtype)
    engine.micro_batch_tokens = 140
    examples = ragged(seed=3, rows=12, prefix=30)
    step = engine.lay_out(examples, None, learns=True)
    assert (step.lanes, len(step.micro_batches) > 4) == (2, True), "several micro-batches in each lane"
    found = []
    for _ in range(6):
        engine.forward_backward(examples)
        found.append({name: master.grad.clone() for name, master in engine.masters.weights.items()})  # type: ignore[union-attr]
        engine.forget_gradients()
    assert all(torch.equal(again[name], gradient) for again in found[1:] for name, gradient in found[0].items())


def test_an_error_in_one_lane_ends_the_update_and_leaves_nothing_for_the_next(engine: Engine, alone: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = ragged(seed=5, rows=8)
    losses = engine.head.losses

    def fail(*given: object) -> object:
        if here() == 2:
            raise RuntimeError("the second lane failed")
        return losses(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(type(engine.head), "losses", lambda head, *given: fail(*given))
    with pytest.raises(RuntimeError, match="the second lane failed"):
        engine.forward_backward(examples)
    monkeypatch.undo()
    engine.forget_gradients()
    assert engine.forward_backward(examples).loss == pytest.approx(alone.forward_backward(examples).loss, rel=1e-6)
    assert furthest(gradients(engine), gradients(alone)) < EXACT


def test_the_lanes_have_equal_shares_of_the_budget_and_keep_to_it() -> None:
    examples = ragged(seed=1, rows=40, longest=200)
    step = lay_out(examples, micro_batch_tokens=1000, share_prefixes=False, lanes=2)
    sizes = [sum(len(one.inputs) for one in pack) for pack in step.micro_batches]
    assert sorted(one.place for pack in step.micro_batches for one in pack) == list(range(40))
    assert (step.lanes, len(sizes) % 2) == (2, 0)
    assert max(sizes) <= 500
    assert step.tokens_at_once <= 1000
    assert max(sizes) - min(sizes) <= 200


def test_rows_of_more_than_a_lanes_share_run_one_after_the_other() -> None:
    examples = ragged(seed=1, rows=8, prefix=300)
    for budget in (320, 500, 600):
        step = lay_out(examples, micro_batch_tokens=budget, share_prefixes=False, lanes=2)
        assert step.lanes == 1
        assert step.tokens_at_once <= max(budget, max(len(one.inputs) for pack in step.micro_batches for one in pack))


def test_there_are_no_lanes_beside_trained_tables(tiny_model: Path) -> None:
    settings = {"r": 2, "modules_to_save": ["embed_tokens"]}
    assert Engine.open(str(tiny_model), lora={"r": 2}).lanes is not None
    assert Engine.open(str(tiny_model), lora=settings).lanes is None


def test_what_a_loss_compares_stays_in_one_micro_batch() -> None:
    together = [[place, place + 1] for place in range(0, 20, 2)]
    step = lay_out(ragged(seed=2, rows=20), micro_batch_tokens=200, share_prefixes=False, together=together, lanes=2)
    packs = [{one.place for one in pack} for pack in step.micro_batches]
    assert len(packs) > 2
    assert all(any(set(pair) <= pack for pack in packs) for pair in together)


def test_a_lane_runs_in_the_mode_of_its_caller_and_knows_its_number() -> None:
    seen: dict[int, bool] = {}
    with torch.no_grad():
        Lanes(2).run(lambda place: seen.update({here(): torch.is_grad_enabled()}))
    assert seen == {1: False, 2: False}
    assert here() == 0
