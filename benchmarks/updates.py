"""Time updates of the demo's rows through the engine, as `luthier demo` runs them.

    python benchmarks/updates.py --batch-size 4 --updates 12
    GOMP_SPINCOUNT=10000 python benchmarks/updates.py --busy 1     (threads that spin ten times longer, beside one busy process)

Prints logical and executed tokens a second, and the median and the slowest update.
"""

import argparse
import json
import multiprocessing
import statistics
import time

import luthier  # noqa: F401  # sets how torch's threads wait, before torch is loaded
from luthier.data.us_addresses import demo_rows
from luthier.engine import Engine, probe
from luthier.train.order import epoch_order


def spin() -> None:
    """One process that keeps a core busy."""
    while True:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=4, help="examples per update")
    parser.add_argument("--updates", type=int, default=12, help="updates that are timed, after two that are not")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default=probe.measure().faster_precision)
    parser.add_argument("--no-sharing", action="store_true", help="every row by itself")
    parser.add_argument("--busy", type=int, default=0, help="processes that keep a core busy meanwhile")
    asked = parser.parse_args()

    engine = Engine.open("smollm2-135m-instruct", lora={"r": 16, "lora_alpha": 32}, precision=asked.precision)
    engine.share_prefixes = not asked.no_sharing
    rows = [json.loads(line) for line in demo_rows()[0].read_text(encoding="utf-8").splitlines()]
    examples = engine.tokenize(rows)
    order = epoch_order(len(examples), 0, 0)
    others = [multiprocessing.Process(target=spin, daemon=True) for _ in range(asked.busy)]
    for other in others:
        other.start()

    seconds, logical, executed = [], 0, 0
    for update in range(asked.updates + 2):
        batch = [examples[row] for row in order[update * asked.batch_size : (update + 1) * asked.batch_size]]
        start = time.perf_counter()
        measured = engine.forward_backward(batch)
        engine.optimizer_step(1e-3)
        if update >= 2:
            seconds.append(time.perf_counter() - start)
            logical, executed = logical + measured.logical_tokens, executed + measured.executed_tokens
    for other in others:
        other.terminate()
    print(
        f"{asked.precision}, batch {asked.batch_size}: {logical / sum(seconds):.0f} logical tokens/s, {executed / sum(seconds):.0f} executed; "
        f"update median {statistics.median(seconds):.2f} s, slowest {max(seconds):.2f} s"
    )


if __name__ == "__main__":
    main()
