"""A loop that begins in the middle goes on as the one that came so far by itself: rows, rates, draws and weights."""

from pathlib import Path

import pytest
import torch

from luthier.engine import Engine
from luthier.records import StepReport, TokenizedExample
from luthier.stopping import Stop
from luthier.train import loop
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
