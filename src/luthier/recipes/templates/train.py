"""A training script from scratch: the engine's four calls, and nothing hidden around them. Run it with `python scripts/train.py`."""

import json
import random
from pathlib import Path
from typing import Any

from luthier.engine import Engine

PROJECT = Path(__file__).resolve().parents[1]
MODEL = "smollm2-135m-instruct"
BATCH_SIZE = 4  # examples per update
EPOCHS = 3
LEARNING_RATE = 1e-3
SEED = 0


def read_question(row: dict[str, Any]) -> list[dict[str, str]]:
    """What stands before the answer, from any of the three row formats."""
    if "messages" in row:
        return list(row["messages"][:-1])
    if "prompt" in row:
        return [{"role": "prompt", "content": row["prompt"]}]
    return [{"role": "user", "content": f"{row['instruction']}\n\n{row['input']}"}]


def main() -> None:
    lines = (PROJECT / "data" / "train.jsonl").read_text(encoding="utf-8").split("\n")
    rows = [json.loads(line) for line in lines if line.strip()]

    engine = Engine.open(MODEL, lora={"r": 16, "lora_alpha": 32}, seed=SEED)
    examples = engine.tokenize(rows)

    shuffle = random.Random(SEED)
    updates = EPOCHS * -(-len(examples) // BATCH_SIZE)
    update = 0
    for _ in range(EPOCHS):
        shuffle.shuffle(examples)
        for start in range(0, len(examples), BATCH_SIZE):
            measured = engine.forward_backward(examples[start : start + BATCH_SIZE])
            norm = engine.optimizer_step(LEARNING_RATE * (1 - update / updates))
            update += 1
            print(f"update {update}/{updates}  loss {measured.loss:.4f}  gradient norm {norm:.3f}")

    engine.save_state(PROJECT / "models" / "adapter")
    question = read_question(rows[0])
    print(f"{question[-1]['content']}\n  -> {engine.sample(question)}")


if __name__ == "__main__":
    main()
