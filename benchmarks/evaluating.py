"""How much faster the questions of an evaluation are answered together than one by one: python benchmarks/evaluating.py [MODEL] [ROWS]

The same questions, decoding and number format three times: one by one through Transformers' generate, one by one through Luthier's decoder,
and as `luthier eval` asks them (batched, by length, what all begin with run once). The answers must be the same in fp32.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from luthier.config.data import DataSettings
from luthier.data import prepare
from luthier.data.tokenize import prompt_ids
from luthier.data.us_addresses import demo_rows
from luthier.engine import opening
from luthier.models import find
from luthier.reporting import Silent

MODEL, ROWS = "smollm2-135m-instruct", 32
MAX_NEW_TOKENS = 48


def timed(work: Callable[[], list[str]]) -> tuple[list[str], float]:
    start = time.perf_counter()
    found = work()
    return found, time.perf_counter() - start


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else MODEL
    rows = int(sys.argv[2]) if len(sys.argv) > 2 else ROWS
    engine = opening.open_model(name, Silent(), "fp32", "cpu")
    _, test = demo_rows()
    read = prepare.load_rows(DataSettings(train=str(test)), Path(), seed=0)
    prompts = [prompt_ids(row.prompt, engine.tokenizer) for row in read.train[:rows]]
    plain = AutoModelForCausalLM.from_pretrained(find.find(name, Silent()), dtype=torch.float32).eval()

    def transformers_one_by_one() -> list[str]:
        answers = []
        for ids in prompts:
            with torch.no_grad():
                out = plain.generate(
                    torch.tensor([ids]), max_new_tokens=MAX_NEW_TOKENS, do_sample=False, eos_token_id=sorted(engine.stop_ids), pad_token_id=0
                )
            answers.append(engine.tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True))
        return answers

    ways: dict[str, Callable[[], list[str]]] = {
        "generate, one by one": transformers_one_by_one,
        "engine, one by one": lambda: [engine.answer([ids], max_new_tokens=MAX_NEW_TOKENS)[0] for ids in prompts],
        "luthier eval": lambda: engine.answer(prompts, max_new_tokens=MAX_NEW_TOKENS),
    }
    engine.answer(prompts[:2], max_new_tokens=2)
    found = {way: timed(work) for way, work in ways.items()}
    first, slowest = next(iter(found.values()))
    print(f"{len(prompts)} questions, at most {MAX_NEW_TOKENS} tokens each, fp32, {torch.get_num_threads()} threads")
    for way, (answers, seconds) in found.items():
        same = sum(one == other for one, other in zip(answers, first, strict=True))
        print(f"{way:<22} {seconds:7.1f} s  {len(prompts) / seconds:6.2f} answers/s  {slowest / seconds:5.1f} x  {same}/{len(prompts)} the same")


if __name__ == "__main__":
    main()
