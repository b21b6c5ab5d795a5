"""The plan against what really happens: peak memory and time of full, LoRA and QLoRA at two lengths. docs/planning.md has the table.

python benchmarks/planning.py --output planning.json             every pair, each in a process of its own; goes on where an earlier call stopped
python benchmarks/planning.py --output planning.json --table     prints the table of what is there

The rate that the time is planned with is measured in the same process, before and after each update: so the ratio holds on a busy machine too.
"""

import argparse
import dataclasses
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

METHODS = ("full", "lora", "qlora")
LENGTHS = (128, 1024)
TOKENS_AN_UPDATE = 2048
# Updates that warm the machine up, and that are timed. The peak is that of all of them.
WARM, TIMED = 2, 6
WORDS = re.findall(r"\w+", "the luthier sets a bridge on the belly and hears how the wood answers before any string is put on it at all")


def row(tokens: int, number: int) -> dict[str, str]:
    """A row of about so many tokens: three quarters prompt, one quarter answer; a fifth shorter or longer than asked."""
    count = round(tokens * (0.8 + 0.2 * (number * 7 % 11) / 10))
    words = [WORDS[(number * 31 + place * (1 + number % 5)) % len(WORDS)] for place in range(count)]
    cut = 3 * count // 4
    return {"prompt": f"{number}: " + " ".join(words[:cut]), "completion": " " + " ".join(words[cut:])}


def settings(method: str, tokens: int, folder: Path, side_by_side: bool) -> str:
    """The settings of a run as JSON, which is YAML."""
    rows = folder / "rows.jsonl"
    batch = TOKENS_AN_UPDATE // tokens
    rows.write_text("".join(json.dumps(row(tokens, number)) + "\n" for number in range(batch * (WARM + TIMED))), encoding="utf-8")
    training = {
        "batch_size": batch,
        "learning_rate": 1e-5,
        "precision": "auto",
        "compile": "off",
        "side_by_side": side_by_side,
        "num_train_epochs": 1,
    }
    data = {"train": str(rows), "eval": None, "max_length": 2048}
    return json.dumps(
        {"model": "smollm2-135m-instruct", "data": data, "method": method, "training": training, "output_dir": str(folder / "runs")}, indent=1
    )


def measure(method: str, tokens: int, side_by_side: bool) -> dict[str, Any]:
    """Plan a run and make its updates as a run does; in this process, which must be a new one."""
    import numpy as np

    import luthier  # noqa: F401  # sets how torch's threads wait
    from luthier.config.load import load_config
    from luthier.engine import probe
    from luthier.plan import cost, shape
    from luthier.reporting import Silent
    from luthier.train import loop, session

    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "luthier.yaml"
        file.write_text(settings(method, tokens, Path(scratch), side_by_side), encoding="utf-8")
        config, rows = session.read(load_config(file), Silent())
        ready = session.tokenize(config, rows, Silent())
        prepared = ready.prepared
        of_rows = shape.of_tokens(prepared.lengths, prepared.trained_tokens, prepared.shared_prefix_tokens)
        plan = session.resolve(config.settings, ready, of_rows, Silent())
        run = session.begin(config, plan, ready, len(prepared.train), "planning")
        engine = session.start(run, plan, ready, Silent(), resume=False)
        batch, precision = int(plan.settings.training.batch_size), str(plan.settings.training.precision)
        worst = [prepared.train[int(place)] for place in prepared.lengths.argsort(kind="stable")[::-1][:batch]]
        engine.forward_backward(worst)
        engine.forget_gradients()
        rates, seconds, peaks, ran = [], [], [], []
        for update in range(WARM + TIMED):
            examples = [prepared.train[place] for place in range(update * batch, (update + 1) * batch)]
            before, start = probe.measure(plan.machine.device), time.perf_counter()
            engine.forward_backward(examples)
            engine.optimizer_step(1e-5)
            took = time.perf_counter() - start
            peaks.append(loop.peak_bytes())
            if update >= WARM:
                rates += [before, probe.measure(plan.machine.device)]
                seconds.append(took)
                ran += examples
        machine = at_median_rates(plan.machine, rates)
        counts = [np.array([getattr(example, name) for example in ran]) for name in ("tokens", "trained_tokens")]
        here = shape.of_tokens(counts[0], counts[1], prepared.shared_prefix_tokens)
        return {
            "method": method,
            "tokens": tokens,
            "side_by_side": side_by_side,
            "precision": precision,
            "predicted_bytes": plan.memory_bytes,
            "measured_bytes": peaks[-1],
            "peaks": peaks,
            "predicted_seconds": cost.training_seconds(plan.settings, ready.facts, machine, here, TIMED),
            "measured_seconds": sum(seconds),
            "seconds": seconds,
            "gflops": {"bf16": machine.bf16_gflops, "fp32": machine.fp32_gflops},
            "plain": engine.plain_reason,
            "load": os.getloadavg()[0],
            "machine": f"{platform.machine()}, {plan.machine.cores} cores, {plan.machine.name}",
        }


def at_median_rates(machine: Any, measured: list[Any]) -> Any:
    """The machine at the rates that it had while the updates ran."""
    return dataclasses.replace(
        machine, **{name: statistics.median(getattr(one, name) for one in measured) for name in ("bf16_gflops", "fp32_gflops")}
    )


def table(results: list[dict[str, Any]]) -> str:
    """A line a run: what was planned, what was measured, and their ratio."""
    lines = ["| method | tokens a row | side by side | memory planned | measured | off by | time planned | measured | off by |"]
    lines.append("|---|--:|---|--:|--:|--:|--:|--:|--:|")
    for one in results:
        planned, measured = sum(one["predicted_bytes"].values()), one["measured_bytes"]
        seconds, took = one["predicted_seconds"], one["measured_seconds"]
        lines.append(
            f"| {one['method']} | {one['tokens']:,} | {'yes' if one['side_by_side'] else 'no'} | {planned / 1e9:.2f} GB | {measured / 1e9:.2f} GB "
            f"| {planned / measured - 1:+.0%} | {seconds:.1f} s | {took:.1f} s | {seconds / took - 1:+.0%} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("planning.json"), help="where the results are kept")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--lengths", nargs="+", type=int, default=LENGTHS, help="tokens of a row")
    parser.add_argument("--alone", action="store_true", help="training.side_by_side: false")
    parser.add_argument("--table", action="store_true", help="print the table of what is there, and measure nothing")
    parser.add_argument("--one", nargs=2, metavar=("METHOD", "TOKENS"), help="measure one pair in this process and print it as JSON")
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(measure(asked.one[0], int(asked.one[1]), not asked.alone)))
        return
    results = json.loads(asked.output.read_text(encoding="utf-8")) if asked.output.is_file() else []
    done = {(one["method"], one["tokens"], one["side_by_side"]) for one in results}
    for method, tokens in [] if asked.table else [(method, tokens) for method in asked.methods for tokens in asked.lengths]:
        if (method, tokens, not asked.alone) in done:
            continue
        command = [sys.executable, __file__, "--one", method, str(tokens), *(["--alone"] if asked.alone else [])]
        results.append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1]))
        asked.output.write_text(json.dumps(results, indent=1), encoding="utf-8")
    print(table(results))


if __name__ == "__main__":
    main()
