"""Time attention of packed documents, forward and backward of one layer: blocks of queries (engine/blocks.py) beside torch's SDPA.

    python benchmarks/attention.py

Nine heads of 64, three of them with keys and values, as in the default model. SDPA runs the documents of one length as one batch.
Rounds are interleaved; the table shows medians in milliseconds, and how far the two results differ.
"""

import statistics  # noqa: I001
import time
from collections.abc import Callable

import luthier  # noqa: F401  # sets how torch's threads wait, before torch is loaded
import torch

from luthier.engine.blocks import Group, Rule, attend

SHAPES = [(13, 80), (8, 128), (4, 256), (2, 512), (1, 1024), (1, 2048)]
HEADS, KV_HEADS, WIDTH, ROUNDS = 9, 3, 64, 9


def main() -> None:
    print("| documents x tokens | format | SDPA ms | blocks ms | ratio | largest difference |\n| --- | --- | --- | --- | --- | --- |")
    for dtype in (torch.bfloat16, torch.float32):
        for documents, tokens in SHAPES:
            compare(documents, tokens, dtype)


def compare(documents: int, tokens: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    total = documents * tokens
    q, k, v = (torch.randn(total, heads, WIDTH).to(dtype).requires_grad_() for heads in (HEADS, KV_HEADS, KV_HEADS))
    slope = torch.randn(total, HEADS, WIDTH).to(dtype)

    def blocks() -> torch.Tensor:
        return attend(q, k, v, [Group(0, (tokens,) * documents)], Rule(WIDTH**-0.5))

    def sdpa() -> torch.Tensor:
        rows = (one.view(documents, tokens, -1, WIDTH).transpose(1, 2) for one in (q, k, v))
        by_query, *others = rows
        keys, values = (one.repeat_interleave(HEADS // KV_HEADS, dim=1) for one in others)
        mixed = torch.nn.functional.scaled_dot_product_attention(by_query, keys, values, is_causal=True)
        return mixed.transpose(1, 2).reshape(total, HEADS, WIDTH)

    seconds: dict[Callable[[], torch.Tensor], list[float]] = {sdpa: [], blocks: []}
    for _ in range(ROUNDS + 2):
        for way, measured in seconds.items():
            start = time.perf_counter()
            way().backward(slope)
            measured.append(time.perf_counter() - start)
    slow, fast = (1000 * statistics.median(measured[2:]) for measured in seconds.values())
    difference = float((blocks() - sdpa()).abs().max())
    shape = f"{documents} x {tokens} | {str(dtype).removeprefix('torch.')}"
    print(f"| {shape} | {slow:.1f} | {fast:.1f} | {slow / fast:.1f} | {difference:.1e} |", flush=True)


if __name__ == "__main__":
    main()
