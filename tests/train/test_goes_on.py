"""A loop that begins in the middle goes on as the one that came so far by itself: rows, rates, draws and weights."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.engine import Engine
from luthier.errors import NotFiniteError
from luthier.records import Source, StepReport, TokenizedExample
from luthier.reporting import Silent
from luthier.run_folder import RunFolder
from luthier.stopping import Stop
from luthier.train import loop, watchers
from luthier.train.loop import Course

COURSE = Course(updates=6, examples_seen=24, batch_size=4, learning_rate=1e-2, lr_scheduler_type="cosine", warmup_steps=2, seed=7)
DONE = 4  # updates, of which the third begins the second epoch


@pytest.fixture
def engine(tiny_model: Path) -> Engine:
    """Its adapter is not zero and draws at random: a generator that is not where it was shows."""
    engine = Engine.open(str(tiny_model), lora={"r": 4, "lora_alpha": 8, "lora_dropout": 0.3})
    with torch.no_grad():
        for name, parameter in engine.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2, generator=torch.Generator().manual_seed(0))
    return engine


def told(engine: Engine, examples: list[TokenizedExample], done: int) -> tuple[list[StepReport], list[list[str]]]:
    reports: list[StepReport] = []
    rows: list[list[str]] = []

    def on_rows(step: int, some: list[TokenizedExample], losses: list[float]) -> None:
        rows.append([str(one.source) for one in some])

    loop.fit(engine, examples, COURSE, [reports.append], Stop(), done=done, on_rows=on_rows)
    return reports, rows


def test_it_sees_the_rows_and_rates_of_the_straight_one(engine: Engine, examples: list[TokenizedExample]) -> None:
    straight, straight_rows = told(engine, examples, 0)
    later, later_rows = told(engine, examples, DONE)
    assert later_rows == straight_rows[DONE:]
    assert [report.learning_rate for report in later] == [report.learning_rate for report in straight[DONE:]]
    assert [report.epoch for report in later] == [report.epoch for report in straight[DONE:]]
    assert len({report.learning_rate for report in straight}) > 3


def test_it_draws_what_the_straight_one_draws(engine: Engine, examples: list[TokenizedExample]) -> None:
    """With a rate of nothing the weights stay, so that each loss is that of the rows and the draws alone."""
    still = Course(**{name: getattr(COURSE, name) for name in Course.__slots__} | {"learning_rate": 0.0})
    losses: dict[int, list[float]] = {}
    for done in (0, DONE):
        torch.manual_seed(done)  # whatever was drawn before
        reports: list[StepReport] = []
        loop.fit(engine, examples, still, [reports.append], Stop(), done=done)
        losses[done] = [report.loss for report in reports]
    assert losses[DONE] == losses[0][DONE:]
    assert len(set(losses[0])) == COURSE.updates


def report(step: int, loss: float) -> StepReport:
    return StepReport(step, 0.0, loss, 1.0, 1e-2, 1, 1, 1, 1.0, 0, {})


def test_the_updates_that_were_skipped_last_are_remembered(
    engine: Engine, examples: list[TokenizedExample], run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps 3 and 4 were skipped before the run was stopped, so that one more is the third in a row. What only overflowed does not count."""
    assert run.skipped_in_a_row() == 0
    run.add_skipped(1, [])
    run.add_step(report(2, 1.0))
    for step, overflowed in ((3, False), (3, True), (4, False)):
        run.add_skipped(step, [Source("rows.jsonl", 1)], overflowed=overflowed)
    assert run.skipped_in_a_row() == 2
    honest = engine.forward_backward

    def bad(rows: list[TokenizedExample], **named: Any) -> Any:
        return dataclasses.replace(honest(rows, **named), loss=float("nan"))

    monkeypatch.setattr(engine, "forward_backward", bad)
    skipped: list[loop.Skipped] = []
    with pytest.raises(NotFiniteError, match="step 5"):
        loop.fit(engine, examples, COURSE, [], Stop(), done=DONE, skipped_in_a_row=run.skipped_in_a_row(), on_skip=skipped.append)
    assert len(skipped) == 1


def test_the_usual_loss_is_remembered(run: RunFolder) -> None:
    for step in range(1, 6):
        run.add_step(report(step, 0.5))
    watchers.spike_teller(run, Silent(), lambda step: [Source("rows.jsonl", step)])(report(6, 50.0))
    assert "step 6: the loss is 50, and 0.5 was usual (rows rows.jsonl:6)" in run.log.read_text(encoding="utf-8")
