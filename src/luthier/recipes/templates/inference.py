"""Ask the adapter that scripts/train.py wrote: `python scripts/inference.py "a question"`, or every test row without one.

A run of `luthier train` is asked with `luthier chat RUN`.
"""

import json
import sys
from pathlib import Path
from typing import Any

from luthier.engine import Engine

PROJECT = Path(__file__).resolve().parents[1]
MODEL = "smollm2-135m-instruct"


def read_question(row: dict[str, Any]) -> list[dict[str, str]]:
    """What stands before the answer, from any of the three row formats."""
    if "messages" in row:
        return list(row["messages"][:-1])
    if "prompt" in row:
        return [{"role": "prompt", "content": row["prompt"]}]
    return [{"role": "user", "content": f"{row['instruction']}\n\n{row['input']}"}]


def main() -> None:
    if not (PROJECT / "models" / "adapter").is_dir():
        sys.exit("there is no adapter yet. Try: python scripts/train.py")
    lines = (PROJECT / "data" / "test.jsonl").read_text(encoding="utf-8").split("\n")
    questions = [read_question(json.loads(line)) for line in lines if line.strip()]
    if len(sys.argv) > 1:
        # Asked as it was trained: with the system message of the rows, where they have one.
        system = [message for message in questions[0] if message["role"] == "system"]
        questions = [[*system, {"role": questions[0][-1]["role"], "content": sys.argv[1]}]]

    engine = Engine.open(MODEL, adapter=str(PROJECT / "models" / "adapter"))
    for question in questions:
        print(f"{question[-1]['content']}\n  -> {engine.sample(question)}")


if __name__ == "__main__":
    main()
