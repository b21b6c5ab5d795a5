"""What is measured and answered while a model trains is that of the model without dropout, and training goes on with it."""

from pathlib import Path

import pytest
import torch
from conftest_engine import ragged

from luthier.engine import Engine


@pytest.fixture
def engine(tiny_model: Path) -> Engine:
    """An adapter that is not zero and drops half of its input while it learns."""
    engine = Engine.open(str(tiny_model), lora={"r": 4, "lora_alpha": 64, "lora_dropout": 0.5})
    with torch.no_grad():
        for name, parameter in engine.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2, generator=torch.Generator().manual_seed(0))
    engine.model.train()
    return engine


def without_dropout(engine: Engine) -> Engine:
    for module in engine.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return engine


def test_the_held_out_loss_is_that_without_dropout(engine: Engine) -> None:
    rows = ragged(seed=3, rows=5)
    first, again = engine.held_out_loss(rows), engine.held_out_loss(rows)
    assert first == again
    assert first == pytest.approx(without_dropout(engine).held_out_loss(rows), rel=1e-6)


def test_answers_and_log_probabilities_are_those_without_dropout(engine: Engine) -> None:
    rows = ragged(seed=4, rows=4)
    prompts = [row.token_ids[:6] for row in rows]
    answers, values = engine.answer(prompts, max_new_tokens=8), engine.log_probabilities(rows)
    plainly = without_dropout(engine)
    assert answers == plainly.answer(prompts, max_new_tokens=8)
    assert values == pytest.approx(plainly.log_probabilities(rows), rel=1e-6)


def test_training_goes_on_with_dropout(engine: Engine) -> None:
    rows = ragged(seed=5, rows=3)
    engine.held_out_loss(rows)
    engine.answer([rows[0].token_ids[:5]], max_new_tokens=2)
    assert all(module.training for module in engine.model.modules() if isinstance(module, torch.nn.Dropout))
