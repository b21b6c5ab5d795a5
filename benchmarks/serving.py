"""How fast `luthier serve` answers many clients: python benchmarks/serving.py [--model M] [--clients 16] [--adapters 8] [--gguf FILE]

Side by side in one run, in turn, so that a machine that is busy is busy for all:

- one by one: PEFT's adapters in Transformers' generate, each request after the other, as `transformers serve` answers (it has no adapters
  at all; without HTTP, which favors it)
- one adapter: all clients ask our server for the same adapter
- many adapters: each client asks for one of them
- with --gguf: the same file behind `luthier serve --engine gguf`, and behind the bare server of llama.cpp

First every answer of the server is compared, token by token, with what generate says with that adapter: in fp32 all must be equal.
Printed: tokens a second, seconds to the first token, and the bars (3x one by one; 80 % of one adapter; 95 % of the bare server).
"""

import argparse
import contextlib
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from luthier.data.us_addresses import demo_rows
from luthier.models import find
from luthier.reporting import Silent
from luthier.serve.backends.llama_cpp import LlamaCpp

SYSTEM = "Turn the address into JSON."


@dataclass(frozen=True, slots=True)
class Answered:
    """One answer: its text, its tokens, and the seconds to the first and to the last of them."""

    text: str
    tokens: int
    first_s: float
    seconds: float


def questions(count: int) -> list[list[dict[str, str]]]:
    """Chats that differ, of the demo's rows."""
    _, held_out = demo_rows()
    with held_out.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line, _ in zip(lines, range(count), strict=False)]
    asked = [next(turn["content"] for turn in row["messages"] if turn["role"] == "user") for row in rows]
    return [[{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}] for text in asked]


def make_adapters(folder: Path, home: Path, count: int, rank: int) -> dict[str, Path]:
    """LoRA adapters of all linear layers that each say something else."""
    made = {}
    for number in range(count):
        torch.manual_seed(number)
        base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        model = get_peft_model(base, LoraConfig(r=rank, lora_alpha=rank, target_modules="all-linear", task_type="CAUSAL_LM"))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(0, 0.02)
        made[f"a{number}"] = home / f"a{number}"
        model.save_pretrained(home / f"a{number}")
    return made


@contextlib.contextmanager
def served(*words: str) -> Iterator[str]:
    """`luthier serve` in a process of its own. Gives its URL."""
    process = subprocess.Popen(
        [sys.executable, "-m", "luthier", "serve", *words, "--port", "0"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if "serving on " in line:
            break
    else:
        raise SystemExit("".join(said))
    threading.Thread(target=process.stdout.read, daemon=True).start()
    url = said[-1].split("serving on ")[1].split("/v1")[0]
    try:
        wait_until_ready(url)
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def wait_until_ready(url: str) -> None:
    """Until requests are answered."""
    for _ in range(600):
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/ready", timeout=10):
            return
        time.sleep(0.2)
    raise SystemExit(f"{url} is not ready after two minutes")


def ask(url: str, model: str, chat: list[dict[str, str]], tokens: int) -> Answered:
    """One streamed answer, greedy."""
    asked = {"model": model, "messages": chat, "max_tokens": tokens, "temperature": 0, "stream": True, "stream_options": {"include_usage": True}}
    request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(asked).encode(), {"Content-Type": "application/json"})
    begun, first, text, said = time.perf_counter(), 0.0, "", 0
    with urllib.request.urlopen(request, timeout=600) as answer:
        for line in answer:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if event["choices"] and (piece := event["choices"][0]["delta"].get("content")):
                first, text = first or time.perf_counter() - begun, text + piece
            said = (event.get("usage") or {}).get("completion_tokens", said)
    return Answered(text, said, first, time.perf_counter() - begun)


def together(url: str, names: Sequence[str], chats: list[list[dict[str, str]]], clients: int, tokens: int) -> tuple[list[Answered], float]:
    """All chats from so many clients at once; each client has its name. Gives the answers in their order, and the seconds of all."""
    begun = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        answers = list(pool.map(lambda pair: ask(url, names[pair[0] % len(names)], pair[1], tokens), enumerate(chats)))
    return answers, time.perf_counter() - begun


def one_by_one(model: Any, tokenizer: Any, names: Sequence[str], chats: list[list[dict[str, str]]], tokens: int) -> tuple[list[Answered], float]:
    """The same through Transformers' generate, each after the other. The first token of a request comes after all answers before it."""
    begun, answers = time.perf_counter(), []
    for place, chat in enumerate(chats):
        model.set_adapter(names[place % len(names)])
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        start = time.perf_counter()
        with torch.no_grad():
            said = model.generate(**ids, max_new_tokens=tokens, do_sample=False, pad_token_id=0)[0, ids["input_ids"].shape[1] :]
        stopped = said[-1].item() == tokenizer.eos_token_id
        seconds = time.perf_counter() - start
        text = tokenizer.decode(said, skip_special_tokens=True)
        answers.append(Answered(text, len(said) - stopped, start - begun + seconds / len(said), time.perf_counter() - begun))
    return answers, time.perf_counter() - begun


def report(name: str, rounds: list[tuple[list[Answered], float]]) -> float:
    """A line of the table. Gives the median of the rounds, in tokens a second."""
    rates = sorted(sum(one.tokens for one in answers) / seconds for answers, seconds in rounds)
    firsts = [one.first_s for answers, _ in rounds for one in answers]
    print(f"{name:<28}{statistics.median(rates):8.1f} tokens/s ({rates[0]:.1f}-{rates[-1]:.1f}){statistics.median(firsts):8.2f} s to the first token")
    return statistics.median(rates)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--adapters", type=int, default=8)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--gguf", type=Path, help="a GGUF file of the model, to compare the engine gguf with llama.cpp's own server")
    return parser.parse_args()


def main() -> None:
    """Our own engine beside generate; then the other engine beside its bare server."""
    how = parsed()
    chats = questions(how.requests)
    print(f"{how.clients} clients, {len(chats)} requests of at most {how.tokens} tokens, {torch.get_num_threads()} threads, {how.precision}")
    own_engine(how, chats)
    if how.gguf:
        other_engine(how, chats)


def own_engine(how: argparse.Namespace, chats: list[list[dict[str, str]]]) -> None:
    """Our server and generate, in turn."""
    folder = find.find(how.model, Silent())
    with tempfile.TemporaryDirectory() as home:
        paths = make_adapters(folder, Path(home), how.adapters, how.rank)
        names, tokenizer = [*paths], AutoTokenizer.from_pretrained(folder)
        base = AutoModelForCausalLM.from_pretrained(folder, dtype={"fp32": torch.float32, "bf16": torch.bfloat16}[how.precision])
        plain = PeftModel.from_pretrained(base, paths[names[0]], adapter_name=names[0])
        for name in names[1:]:
            plain.load_adapter(paths[name], adapter_name=name)
        plain.eval()
        words = [how.model, "--adapters", home, "--precision", how.precision, "--slots", str(how.clients), "--max-adapters", str(how.adapters)]
        with served(*words) as url:
            ways: dict[str, Callable[[], tuple[list[Answered], float]]] = {
                "one by one (generate, PEFT)": lambda: one_by_one(plain, tokenizer, names, chats, how.tokens),
                "luthier serve, one adapter": lambda: together(url, names[:1], chats, how.clients, how.tokens),
                "luthier serve, many adapters": lambda: together(url, names, chats, how.clients, how.tokens),
            }
            together(url, names, chats[: how.clients], how.clients, 2)  # each adapter is read once
            rounds = {way: [work()] for way, work in ways.items()}
            expected, found = (rounds[way][0][0] for way in ("one by one (generate, PEFT)", "luthier serve, many adapters"))
            equal = sum(one.text == other.text for one, other in zip(expected, found, strict=True))
            print(f"{equal} of {len(chats)} greedy answers are those of generate with the same adapter")
            if how.precision == "fp32" and equal < len(chats):
                raise SystemExit("answers differ: nothing is measured")
            for _ in range(how.rounds - 1):
                for way, work in ways.items():
                    rounds[way].append(work())
        rates = [report(way, found) for way, found in rounds.items()]
        print(f"many adapters: {rates[2] / rates[0]:.1f} times one by one (bar: 3), {rates[2] / rates[1]:.0%} of one adapter (bar: 80 %)")


def other_engine(how: argparse.Namespace, chats: list[list[dict[str, str]]]) -> None:
    """The engine gguf, and llama.cpp's own server with the same file, threads and slots, in turn."""
    threads = torch.get_num_threads()
    with (
        served("--engine", "gguf", f"base={how.gguf}", "--slots", str(how.clients)) as url,
        LlamaCpp(how.gguf, threads=threads, slots=how.clients) as bare,
    ):
        ways = {
            "llama.cpp, bare": lambda: together(bare.url, ["base"], chats, how.clients, how.tokens),
            "luthier serve --engine gguf": lambda: together(url, ["base"], chats, how.clients, how.tokens),
        }
        for work in ways.values():
            work()
        rounds: dict[str, list[tuple[list[Answered], float]]] = {way: [] for way in ways}
        for _ in range(how.rounds):
            for way, work in ways.items():
                rounds[way].append(work())
    bare_rate, own_rate = (report(way, found) for way, found in rounds.items())
    print(f"luthier serve --engine gguf: {own_rate / bare_rate:.0%} of the bare server (bar: 95 %)")


if __name__ == "__main__":
    main()
