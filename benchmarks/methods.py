"""Every method on the demo's rows with the default model: what it trains, needs and reaches. docs/methods.md has the table.

python benchmarks/methods.py --output methods.json              every method, seeds 0 1 2; goes on where an earlier call stopped
python benchmarks/methods.py --output methods.json --methods lora full --seeds 0 --rows 100
python benchmarks/methods.py --output methods.json --table      prints the table of what is there
"""

import argparse
import json
import platform
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from luthier.data.us_addresses import demo_rows

LORA = {"lora": {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0}}
# What docs/methods.md recommends for 135M parameters and some hundred rows; what is not said is the default.
SETTINGS: dict[str, dict[str, Any]] = {
    # name             settings of the run
    "lora": {"method": "lora", "sections": LORA, "learning_rate": 1e-3},
    "dora": {"method": "dora", "sections": LORA, "learning_rate": 1e-3},
    "qlora nf4": {"method": "qlora", "sections": LORA, "learning_rate": 1e-3},
    "qlora int8": {"method": "qlora", "sections": {**LORA, "qlora": {"quantization": "int8"}}, "learning_rate": 1e-3},
    "bottleneck": {"method": "bottleneck", "sections": {"bottleneck": {"kind": "houlsby", "reduction_factor": 8}}, "learning_rate": 1e-3},
    "full": {"method": "full", "learning_rate": 1e-4},
    "prefix": {"method": "prefix", "learning_rate": 3e-2},
    "prompt": {"method": "prompt", "learning_rate": 3e-2},
    "p_tuning": {"method": "p_tuning", "learning_rate": 3e-3, "epochs": 3},
    "ia3": {"method": "ia3", "learning_rate": 2e-2},
}


def settings_of(name: str, seed: int, folder: Path, rows: int) -> str:
    """The settings of one run as JSON, which is YAML."""
    asked = SETTINGS[name]
    train, test = demo_rows()
    training = {"batch_size": 4, "num_train_epochs": asked.get("epochs", 1), "learning_rate": asked["learning_rate"], "lr_scheduler_type": "linear"}
    return json.dumps(
        {
            "model": "smollm2-135m-instruct",
            "data": {"train": str(train), "eval": str(test)},
            "method": asked["method"],
            **asked.get("sections", {}),
            "training": {**training, "precision": "bf16", "save_strategy": "no"},
            "evaluation": {"metrics": ["exact_match", "valid_json", "field_f1"], "max_rows": rows, "base_rows": 1, "sample_answers": 0},
            "output_dir": str(folder),
            "seed": seed,
        },
        indent=1,
    )


def measure(name: str, seed: int, rows: int) -> dict[str, Any]:
    """Train and evaluate in processes of their own, as a user would."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        file = folder / "luthier.yaml"
        file.write_text(settings_of(name, seed, folder / "runs", rows), encoding="utf-8")
        _luthier("train", file)
        run = next((folder / "runs").iterdir())
        steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        updates = [step for step in steps if "grad_norm" in step]
        _luthier("eval", run)
        tuned = json.loads((run / "scorecard.json").read_text(encoding="utf-8"))["models"]["tuned"]
        counted = re.search(r"trained: ([\d,]+) of", (run / "log.txt").read_text(encoding="utf-8"))
        return {
            "method": name,
            "seed": seed,
            "rows": rows,
            "trained_parameters": int(counted[1].replace(",", "")) if counted else None,
            "peak_bytes": max(step["peak_bytes"] for step in updates),
            "tokens_per_second": sum(step["logical_tokens"] for step in updates) / sum(step["seconds"] for step in updates),
            "last_loss": statistics.fmean(step["loss"] for step in updates[-10:]),
            **{metric: tuned[metric]["value"] for metric in ("exact_match", "valid_json", "field_f1")},
        }


def _luthier(verb: str, path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "luthier", verb, str(path)], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"luthier {verb} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")


def table(results: list[dict[str, Any]]) -> str:
    """A row a method: medians over its seeds, and the range of exact matches."""
    lines = [
        "| Method | Trained numbers | Peak memory | Tokens/s | Exact match (seeds) | Valid JSON | Field F1 |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in SETTINGS:
        if not (of_name := [one for one in results if one["method"] == name]):
            continue
        exact = ", ".join(f"{one['exact_match']:.2f}" for one in of_name)
        memory, speed, valid, score = (
            statistics.median(one[key] for one in of_name) for key in ("peak_bytes", "tokens_per_second", "valid_json", "field_f1")
        )
        numbers = of_name[0]["trained_parameters"]
        lines.append(f"| {name} | {numbers or 0:,} | {memory / 1e9:.1f} GB | {speed:,.0f} | {exact} | {valid:.2f} | {score:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="JSON file of what was measured")
    parser.add_argument("--methods", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--rows", type=int, default=320, help="held-out rows to answer")
    parser.add_argument("--table", action="store_true", help="print the table of what is there, and measure nothing")
    asked = parser.parse_args()
    results = json.loads(asked.output.read_text(encoding="utf-8"))["results"] if asked.output.exists() else []
    if not asked.table:
        done = {(one["method"], one["seed"]) for one in results}
        for seed, name in ((seed, name) for seed in asked.seeds for name in asked.methods if (name, seed) not in done):
            results.append(measure(name, seed, asked.rows))
            print(json.dumps(results[-1]), flush=True)
            asked.output.write_text(
                json.dumps({"machine": platform.processor() or platform.machine(), "results": results}, indent=1), encoding="utf-8"
            )
    print(table(results))


if __name__ == "__main__":
    main()
