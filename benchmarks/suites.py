"""The same benchmarks through lm-eval's own command line and through Luthier, in turn: are the scores equal, and how long does each take?

    python scripts/fetch_suites.py suites
    python benchmarks/suites.py suites --rows 100 --tasks mmlu_anatomy mmlu_astronomy mmlu_abstract_algebra gsm8k humaneval [--adapter RUN/adapter]

fp32, the same rows, the answers of both kept in --to. Printed: a line for each number, and each answer that differs. Needs luthier[eval].
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from luthier.engine import opening
from luthier.evaluate import suites
from luthier.evaluate.kept import Kept
from luthier.models import find
from luthier.reporting import Silent

TASKS = ("mmlu_anatomy", "mmlu_astronomy", "mmlu_abstract_algebra", "gsm8k", "humaneval")


def theirs(asked: argparse.Namespace, task: str, folder: Path) -> tuple[dict[str, float], list[str], float]:
    """The numbers of `lm_eval run`, its answers (none where it only scored choices), and its seconds, loading included."""
    model = f"pretrained={find.find(asked.model, Silent())},dtype=float32" + (f",peft={asked.adapter}" if asked.adapter else "")
    words = ["run", "--model", "hf", "--model_args", model, "--tasks", task, "--include_path", str(asked.suites), "--limit", str(asked.rows)]
    words += ["--device", "cpu", "--batch_size", str(asked.batch), "--log_samples", "--output_path", str(folder), "--confirm_run_unsafe_code"]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hub"), "TOKENIZERS_PARALLELISM": "false"}
    begun = time.perf_counter()
    ran = subprocess.run([sys.executable, "-m", "lm_eval", *words], env=os.environ | offline, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - begun
    if ran.returncode:
        raise SystemExit(ran.stderr[-2000:])
    (results,) = folder.rglob("results_*.json")
    found = json.loads(results.read_text())["results"][task]
    samples = [json.loads(line) for path in folder.rglob(f"samples_{task}_*.jsonl") for line in path.read_text().splitlines()]
    answers = {sample["doc_id"]: sample["resps"][0][0] for sample in samples if isinstance(sample["resps"][0][0], str)}
    return _named(task, found), [*answers.values()], seconds


def ours(asked: argparse.Namespace, task: str, folder: Path) -> tuple[dict[str, float], list[str], float]:
    """The same of Luthier."""
    begun = time.perf_counter()
    engine = opening.open_beside(asked.adapter, Silent(), "fp32") if asked.adapter else opening.open_model(asked.model, Silent(), "fp32", "cpu")
    kept = Kept(folder / "answers.jsonl")
    found = suites.run(engine, "model", "model", [task], str(asked.suites), asked.rows, kept, True, Silent())
    seconds = time.perf_counter() - begun
    lines = (folder / "answers.jsonl").read_text(encoding="utf-8").splitlines() if len(kept) else []
    return {name: counted.value for name, counted in found.items()}, [json.loads(line).get("answer", "") for line in lines], seconds


def _named(task: str, found: dict[str, Any]) -> dict[str, float]:
    """Their numbers by our names: the filter stands behind a metric where a task has several."""
    numbers = {key.partition(",")[::2]: value for key, value in found.items() if "," in key and "stderr" not in key}
    several = len({chosen for _, chosen in numbers}) > 1
    return {f"{task} {metric}" + (f" ({chosen})" if several else ""): value for (metric, chosen), value in numbers.items()}


def compare(asked: argparse.Namespace, task: str) -> bool:
    """A task's lines. False where a number differs."""
    with tempfile.TemporaryDirectory() as scratch:
        home = asked.to or Path(scratch)
        folders = [home / task / who for who in ("lm-eval", "luthier")]
        for folder in folders:
            folder.mkdir(parents=True)
        their_numbers, their_answers, their_s = theirs(asked, task, folders[0])
        our_numbers, our_answers, our_s = ours(asked, task, folders[1])
    others = [answer for answer in their_answers if answer not in our_answers]
    for name, value in their_numbers.items():
        print(f"{name:<48} lm-eval {value:.4f}   luthier {our_numbers.get(name, float('nan')):.4f}", flush=True)
    print(f"{task:<48} lm-eval {their_s:.0f} s   luthier {our_s:.0f} s   {len(others)} of {len(their_answers)} answers differ", flush=True)
    for answer in others:
        print(f"    only lm-eval: {answer!r}", flush=True)
    return their_numbers.keys() == our_numbers.keys() and all(abs(value - our_numbers[name]) < 1e-6 for name, value in their_numbers.items())


def main() -> int:
    """Every task in turn; exit code 1 where a number differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suites", type=Path)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--adapter", type=Path, help="an adapter's folder of that model")
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--batch", type=int, default=8, help="lm-eval's --batch_size")
    parser.add_argument("--to", type=Path, help="a folder for what both said")
    asked: Any = parser.parse_args()
    equal = [compare(asked, task) for task in asked.tasks]
    return int(not all(equal))


if __name__ == "__main__":
    sys.exit(main())
