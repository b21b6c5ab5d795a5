"""The whole engine on the default model: 32 rows are learned by heart, and said again through the adapter and through the merged weights."""

import random
from itertools import product
from pathlib import Path

import pytest

from luthier.engine import Engine
from luthier.export.merged import write_merged
from luthier.records import TokenizedExample

WOODS = ["spruce", "maple", "cedar", "walnut", "ebony", "alder", "mahogany", "willow"]
PARTS = ["top", "neck", "bridge", "back"]


ASKED = {
    f"Which bin holds the {wood} for the {part}?": f"Bin {(7 * number * number + 13 * number + 5) % 97}"
    for number, (wood, part) in enumerate(product(WOODS, PARTS))
}
UPDATES = 120


def learn(engine: Engine, examples: list[TokenizedExample]) -> None:
    """Updates of eight rows, shuffled, until each of an epoch's has a loss below 0.03."""
    draw, update = random.Random(0), 0
    while update < UPDATES:
        draw.shuffle(examples)
        losses = []
        for start in range(0, len(examples), 8):
            update += 1
            losses.append(engine.forward_backward(examples[start : start + 8]).loss)
            engine.optimizer_step(learning_rate=1.5e-3 * min(1.0, update / 8) * (1 - update / (UPDATES + 1)))
        if max(losses) < 0.03:
            return


def answers(engine: Engine) -> dict[str, str]:
    return {question: engine.sample(question, max_new_tokens=8) for question in ASKED}


@pytest.mark.slow
@pytest.mark.real_model
def test_32_rows_are_learned_by_heart_and_said_again_through_the_adapter_and_merged(default_model: Path, tmp_path: Path):
    engine = Engine.open(str(default_model), lora={"r": 16, "lora_alpha": 32})
    rows = [{"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]} for question, answer in ASKED.items()]
    examples = engine.tokenize(rows)
    assert len(examples) == 32
    assert engine.held_out_loss(examples) > 2.0
    learn(engine, examples)
    assert engine.plain_reason == ""
    assert engine.held_out_loss(examples) < 0.05
    assert answers(engine) == ASKED
    merged = Engine.open(str(write_merged(engine, tmp_path / "merged", "fp32")))
    assert merged.held_out_loss(examples) < 0.05
    assert answers(merged) == ASKED
