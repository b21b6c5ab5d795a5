"""What stored results of the frozen layers save, and what losses of rows cost: processor seconds of an update, interleaved.

    OMP_NUM_THREADS=1 python benchmarks/frozen.py --lowest 20

32 rows of 120 to 280 random tokens, 8 an update, LoRA r=16 on the layers from `--lowest` on.
"""

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import luthier  # noqa: F401  # sets how torch's threads wait, before torch is loaded
from luthier.engine import Engine, frozen
from luthier.records import Source, TokenizedExample

ROUNDS = 3


def row(number: int, draw: random.Random) -> TokenizedExample:
    tokens = [draw.randrange(10, 49_000) for _ in range(draw.randint(120, 280))]
    return TokenizedExample(tokens, [place >= len(tokens) // 2 for place in range(len(tokens))], Source("rows", number))


def processor_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lowest", type=int, default=20, help="the lowest layer that is trained")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    asked = parser.parse_args()
    engine = Engine.open("smollm2-135m-instruct", lora={"layers_to_transform": list(range(asked.lowest, 30))}, precision=asked.precision)
    draw = random.Random(0)
    rows = [row(number, draw) for number in range(1, 33)]
    updates = [rows[start : start + 8] for start in range(0, 32, 8)]

    def one(update: list[TokenizedExample], row_losses: bool = False) -> None:
        engine.forward_backward(update, row_losses=row_losses)
        engine.forget_gradients()

    one(updates[0])
    seconds: dict[str, list[float]] = {"plain": [], "with losses of rows": [], "stored": []}
    for _ in range(ROUNDS):
        seconds["plain"] += [processor_seconds(lambda update=update: one(update)) for update in updates]  # type: ignore[misc]
        seconds["with losses of rows"] += [processor_seconds(lambda update=update: one(update, True)) for update in updates]  # type: ignore[misc]
        with tempfile.TemporaryDirectory() as folder, frozen.cached(engine, rows, Path(folder), print):
            seconds["stored"] += [processor_seconds(lambda update=update: one(update)) for update in updates]  # type: ignore[misc]
    for name, values in seconds.items():
        print(f"{name}: median {statistics.median(values):.2f} s, {min(values):.2f} to {max(values):.2f}")


if __name__ == "__main__":
    main()
