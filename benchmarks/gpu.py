"""Luthier on a GPU beside TRL and Unsloth (where they import) and a plain loop: LoRA in bf16 on models of Llama's shape with random weights.

    python benchmarks/gpu.py              8 billion parameters, then 1.2 billion; needs one GPU of 80 GB
    python benchmarks/gpu.py --size 1b    that one only
    python benchmarks/gpu.py --size tiny  a check that everything runs, also without a GPU; its speed means nothing

Each tool runs in a process of its own and trains the same rows, in packs of 4,096 tokens (the plain loop: a row at a time). The rate is so
low that nothing is learned, so every tool must find the same mean loss. No speed is shown for one whose loss is more than 1 % from that of
the plain loop, or whose gradient norm is zero. Tokens are those of the rows: padding does not count.
"""

import argparse
import importlib.util
import json
import math
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

SIZES = {
    # name   width  inner  layers  heads  key heads  words    rows
    "8b":   (4096, 14336,  32,     32,    8,         128_256, 320),
    "1b":   (2048,  8192,  16,     32,    8,         128_256, 960),
    "tiny": (  64,   128,   2,      4,    2,             512,  32),
}  # fmt: skip
PACK_TOKENS, PACKS_AN_UPDATE = 4096, 4
WARM_UP_UPDATES = 3
RATE = 1e-9
LORA = {
    "r": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.0,
    "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}
MOST_OFF = 0.01
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

Row = dict[str, list[int]]


def rows_of(size: str) -> list[Row]:
    """Rows of 64 to 1,024 random tokens, of which the last two thirds are trained."""
    draw, words = random.Random(0), SIZES[size][5]
    longest = 64 if size == "tiny" else 1024
    rows = []
    for _ in range(SIZES[size][6]):
        ids = [draw.randrange(10, words) for _ in range(draw.randint(longest // 16, longest))]
        rows.append({"input_ids": ids, "labels": [-100] * (len(ids) // 3) + ids[len(ids) // 3 :]})
    return rows


def updates_of(rows: list[Row]) -> list[list[Row]]:
    """Rows in order, about as many tokens an update as the packs of the others hold."""
    updates: list[list[Row]] = [[]]
    for row in rows:
        if updates[-1] and tokens_of([*updates[-1], row]) > PACK_TOKENS * PACKS_AN_UPDATE:
            updates.append([])
        updates[-1].append(row)
    return updates


def tokens_of(rows: list[Row]) -> int:
    return sum(len(row["input_ids"]) for row in rows)


def save_model(size: str, folder: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    width, inner, layers, heads, key_heads, words, _ = SIZES[size]
    config = LlamaConfig(
        hidden_size=width, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=key_heads,
        vocab_size=words, max_position_embeddings=8192, tie_word_embeddings=size == "1b", dtype="bfloat16",
    )  # fmt: skip
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(DEVICE):
        model = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder)


def load_model(folder: Path) -> Any:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    return get_peft_model(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, device_map=DEVICE), LoraConfig(**LORA))  # type: ignore[arg-type]


def with_luthier(folder: Path, rows: list[Row], precision: str = "bf16") -> tuple[list[float], list[float], list[float]]:
    """Losses, gradient norms and seconds of every update."""
    from luthier.engine import Engine
    from luthier.records import Source, TokenizedExample

    model = load_model(folder)
    for parameter in model.parameters():
        parameter.data = parameter.data.float() if parameter.requires_grad else parameter.data
    engine = Engine(model, None, micro_batch_tokens=PACK_TOKENS)
    if engine.plain_reason:
        raise RuntimeError(engine.plain_reason)
    examples = [
        [TokenizedExample(row["input_ids"], [label != -100 for label in row["labels"]], Source("rows", 0)) for row in update]
        for update in updates_of(rows)
    ]
    if precision == "fp8":
        print(engine.quantize_frozen(examples[0]), file=sys.stderr)
    readings, seconds = [], []
    for update in examples:
        start = time.perf_counter()
        if engine.reads_late:
            readings.append(engine.send_update(update, RATE))
            torch.cuda.synchronize()  # so that each update's time is its own; a run does without
        else:
            measured = engine.forward_backward(update), engine.optimizer_step(RATE)
            readings.append(lambda measured=measured: measured)  # type: ignore[misc]
        seconds.append(time.perf_counter() - start)
    found = [reading() for reading in readings]
    return [measured.loss for measured, _ in found], [norm for _, norm in found], seconds


def with_plain_loop(folder: Path, rows: list[Row]) -> tuple[list[float], list[float], list[float]]:
    model = load_model(folder)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE)
    losses, norms, seconds = [], [], []
    for update in updates_of(rows):
        start, total = time.perf_counter(), 0.0
        count = sum(label != -100 for row in update for label in row["labels"][1:])
        for row in update:
            ids, labels = (torch.tensor([row[name]], device=DEVICE) for name in ("input_ids", "labels"))
            share = sum(label != -100 for label in row["labels"][1:]) / count
            loss = model(input_ids=ids, labels=labels).loss * share
            loss.backward()
            total += float(loss)
        losses.append(total)
        norms.append(float(torch.nn.utils.clip_grad_norm_(trained, 1.0)))
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    return losses, norms, seconds


def with_trl(folder: Path, rows: list[Row], model: Any = None) -> tuple[list[float], list[float], list[float]]:
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.begins: list[float] = []
            self.ends: list[float] = []

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.begins.append(_now())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.ends.append(_now())

    clock = Clock()
    with tempfile.TemporaryDirectory() as scratch:
        settings = SFTConfig(
            output_dir=scratch, packing=True, max_length=PACK_TOKENS, per_device_train_batch_size=1, gradient_accumulation_steps=PACKS_AN_UPDATE,
            bf16=DEVICE == "cuda", gradient_checkpointing=False, learning_rate=RATE, lr_scheduler_type="constant", num_train_epochs=1,
            logging_steps=1, report_to=[], save_strategy="no",
        )  # fmt: skip
        trainer = SFTTrainer(model or load_model(folder), settings, train_dataset=Dataset.from_list(rows), callbacks=[clock])
        trainer.train()
        told = [row for row in trainer.state.log_history if "grad_norm" in row]
    seconds = [end - begin for begin, end in zip(clock.begins, clock.ends, strict=True)]
    return [row["loss"] for row in told], [row["grad_norm"] for row in told], seconds


def with_unsloth(folder: Path, rows: list[Row]) -> tuple[list[float], list[float], list[float]]:
    from unsloth import FastLanguageModel  # before TRL, which it changes

    model, _ = FastLanguageModel.from_pretrained(str(folder), max_seq_length=PACK_TOKENS, dtype=torch.bfloat16, load_in_4bit=False)
    return with_trl(folder, rows, FastLanguageModel.get_peft_model(model, use_gradient_checkpointing=False, **LORA))


def _now() -> float:
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


TOOLS: dict[str, tuple[str, Callable[..., tuple[list[float], list[float], list[float]]]]] = {
    # name             needs      runs
    "plain loop":     ("peft",    with_plain_loop),
    "luthier":        ("luthier", with_luthier),
    "luthier, fp8":   ("luthier", lambda folder, rows: with_luthier(folder, rows, "fp8")),
    "trl, packed":    ("trl",     with_trl),
    "unsloth, packed": ("unsloth", with_unsloth),
}  # fmt: skip


def work(tool: str, size: str, folder: Path) -> None:
    """In a process of its own: one tool's losses and speed, as a line of JSON."""
    rows = rows_of(size)
    losses, norms, seconds = TOOLS[tool][1](folder, rows)
    warm = min(WARM_UP_UPDATES, len(seconds) - 1)
    tokens = tokens_of(rows) / len(seconds)  # an update's
    result = {
        "loss": statistics.fmean(losses),
        "grad_norm": min(norms),
        "tokens_per_second": tokens / statistics.median(seconds[warm:]),
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9 if DEVICE == "cuda" else math.nan,
    }
    print(json.dumps(result))


def compare(size: str, folder: Path) -> None:
    save_model(size, folder)
    device = torch.cuda.get_device_name() if DEVICE == "cuda" else "CPU"
    print(f"\n{size} on {device}, torch {torch.__version__}: {tokens_of(rows_of(size)):,} tokens, LoRA r={LORA['r']}, packs of {PACK_TOKENS:,}")
    if DEVICE == "cuda":
        torch.cuda.empty_cache()
    expected = math.nan
    for tool, (package, _) in TOOLS.items():
        if importlib.util.find_spec(package) is None:
            print(f"  {tool:16} is not installed")
            continue
        command = [sys.executable, __file__, "--work", tool, "--size", size, "--model", str(folder)]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.returncode:
            print(f"  {tool:16} failed: {(ended.stderr.strip().splitlines() or ['without a word'])[-1][:150]}")
            continue
        result = json.loads(ended.stdout.strip().splitlines()[-1])
        expected = result["loss"] if tool == "plain loop" else expected
        off = abs(result["loss"] / expected - 1)
        right = off <= MOST_OFF and result["grad_norm"] > 0
        speed = f"{result['tokens_per_second']:10,.0f} tokens/s  {result['peak_gb']:5.1f} GB"
        shown = speed if right else "no speed: its loss or gradient is wrong"
        print(f"  {tool:16} {shown}  loss {result['loss']:.4f}  norm {result['grad_norm']:.3g}")


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--size", choices=list(SIZES), action="append")
    asked.add_argument("--work", choices=list(TOOLS), help=argparse.SUPPRESS)
    asked.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    told = asked.parse_args()
    sizes = told.size or ["8b", "1b"]
    if DEVICE == "cpu" and sizes != ["tiny"]:
        sys.exit("benchmarks/gpu.py needs an NVIDIA GPU (--size tiny runs without one)")
    if told.work:
        work(told.work, sizes[0], told.model)
        return
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            compare(size, Path(folder))


if __name__ == "__main__":
    main()
