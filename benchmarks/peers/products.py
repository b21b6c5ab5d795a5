"""How fast this machine multiplies matrices of the model's own shapes, in GFLOP/s: what utilisation is counted against."""

import json
import statistics
import time
from pathlib import Path

import torch
from protocol import MARK, read_job

ROWS, TURNS = 1024, 25


def gflops(shapes: list[tuple[int, int]], dtype: torch.dtype) -> float:
    """1,024 rows through one layer of each shape, into a buffer that is there already; the median of TURNS."""
    pairs = [(torch.randn(ROWS, inputs, dtype=dtype), torch.randn(inputs, outputs, dtype=dtype)) for inputs, outputs in shapes]
    buffers = [torch.empty(ROWS, outputs, dtype=dtype) for _, outputs in shapes]
    seconds = []
    for _ in range(TURNS):
        start = time.perf_counter()
        for (left, right), buffer in zip(pairs, buffers, strict=True):
            torch.mm(left, right, out=buffer)
        seconds.append(time.perf_counter() - start)
    return sum(2 * ROWS * inputs * outputs for inputs, outputs in shapes) / statistics.median(seconds) / 1e9


def main() -> None:
    config = json.loads((Path(read_job().model) / "config.json").read_text(encoding="utf-8"))
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    width = hidden // config["num_attention_heads"]
    keys = width * config["num_key_value_heads"]
    shapes = [(hidden, hidden), (hidden, keys), (hidden, keys), (hidden, hidden), (hidden, inner), (hidden, inner), (inner, hidden)]
    print(f"\n{MARK}{json.dumps({'bf16': gflops(shapes, torch.bfloat16), 'fp32': gflops(shapes, torch.float32)})}")


if __name__ == "__main__":
    main()
