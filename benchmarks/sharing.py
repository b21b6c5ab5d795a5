"""What a pass of a shared beginning by itself costs, in tokens of a common pass: the number behind batches.PASS_TOKENS.

    python benchmarks/sharing.py

Rows of 60 tokens after a common beginning, through the default model in bf16, shared and not, interleaved; medians of five updates.
"""

import random
import statistics
import time

import luthier  # noqa: F401  # sets how torch's threads wait, before torch is loaded
from luthier.engine import Engine, batches
from luthier.records import Source, TokenizedExample

CASES = [(4, 16), (4, 32), (4, 64), (4, 300), (16, 16), (16, 32), (32, 24)]
OWN_TOKENS, TRAINED_TOKENS, ROUNDS = 30, 30, 5


def main() -> None:
    batches.PASS_TOKENS = 0
    engine = Engine.open("smollm2-135m-instruct", lora={"r": 16, "lora_alpha": 32}, precision="bf16")
    print("| rows | beginning | shared s | each by itself s | executed | a pass costs |\n| --- | --- | --- | --- | --- | --- |")
    for count, beginning in CASES:
        examples = rows(count, beginning)
        seconds: dict[bool, list[float]] = {True: [], False: []}
        executed: dict[bool, int] = {}
        for _ in range(ROUNDS + 2):
            for shares in (True, False):
                engine.share_prefixes = shares
                start = time.perf_counter()
                executed[shares] = engine.forward_backward(examples).executed_tokens
                engine.forget_gradients()
                seconds[shares].append(time.perf_counter() - start)
        shared, alone = (statistics.median(seconds[shares][2:]) for shares in (True, False))
        cost = (shared - alone * executed[True] / executed[False]) * executed[False] / alone
        print(f"| {count} | {beginning} | {shared:.2f} | {alone:.2f} | {executed[True]} / {executed[False]} | {cost:.0f} tokens |", flush=True)


def rows(count: int, beginning: int) -> list[TokenizedExample]:
    draw = random.Random(count + beginning)
    common = [draw.randrange(100, 40_000) for _ in range(beginning)]
    own = OWN_TOKENS + TRAINED_TOKENS
    trained = [False] * (beginning + OWN_TOKENS) + [True] * TRAINED_TOKENS
    return [TokenizedExample(common + [draw.randrange(100, 40_000) for _ in range(own)], trained, Source("rows", line + 1)) for line in range(count)]


if __name__ == "__main__":
    main()
