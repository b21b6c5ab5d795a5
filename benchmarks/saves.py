"""What a checkpoint costs the training: python benchmarks/saves.py [--model NAME] [--full] [--updates 24] [--every 8]

Updates of 8 rows of random tokens without checkpoints, with training waiting for each, and with one that is written meanwhile (async_save).
"""

import argparse
import random
import statistics
import tempfile
import time
from pathlib import Path

import luthier  # noqa: F401  # sets how torch's threads wait, before torch is loaded
from luthier.config.settings import Settings
from luthier.engine import Engine
from luthier.records import Source, StepReport, TokenizedExample
from luthier.run_folder import RunFolder
from luthier.stopping import Stop
from luthier.train import loop
from luthier.train.checkpoint import Place
from luthier.train.saving import Saver

MODES = {
    "no checkpoints": {"save_strategy": "no"},
    "training waits": {"async_save": False},
    "async_save":     {"async_save": True},
}  # fmt: skip


def rows(tokens: int) -> list[TokenizedExample]:
    draw = random.Random(0)
    trained = [place >= tokens // 2 for place in range(tokens)]
    return [TokenizedExample([draw.randrange(3, 500) for _ in range(tokens)], trained, Source("rows", number + 1)) for number in range(16)]


def measure(asked: argparse.Namespace, training: dict[str, object], parent: Path) -> str:
    """One training: its seconds, and how long each save kept the next update waiting."""
    engine = Engine.open(asked.model, **({"full": True} if asked.full else {"lora": {"r": 16}}), precision=asked.precision)
    run = RunFolder(parent)
    every = {} if "save_strategy" in training else {"save_steps": asked.every}
    settings = Settings.model_validate(
        {"model": "m", "data": {"train": "r"}, "training": {"batch_size": 8, "micro_batch_tokens": 4096, **every, **training}}
    )
    course = loop.Course(asked.updates, 8 * asked.updates, 8, 1e-4, "constant", 0, 0)
    held: list[float] = []
    start = time.perf_counter()
    with Saver(run, engine, Place(0, "d", 0, asked.precision), settings, course, 16, Stop(), print) as saver:

        def watch(report: StepReport) -> None:
            before = time.perf_counter()
            saver.watch(report)
            if every and report.step % asked.every == 0:
                held.append(time.perf_counter() - before)

        loop.fit(engine, rows(asked.tokens), course, [watch], Stop())
    seconds = time.perf_counter() - start
    size = sum(file.stat().st_size for file in run.checkpoints.rglob("*") if file.is_file()) / max(1, len(list(run.checkpoints.glob("step-*"))))
    waited = f", {1000 * statistics.median(held):.0f} ms a save ({size / 1e6:.1f} MB)" if held else ""
    return f"{seconds:.1f} s{waited}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--updates", type=int, default=24)
    parser.add_argument("--every", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as parent:
        for name, training in MODES.items():
            print(f"{name:16}{measure(asked, training, Path(parent) / name)}", flush=True)


if __name__ == "__main__":
    main()
