"""llama.cpp, the engine of GGUF files, in a process of its own on a free port of this machine.

with LlamaCpp(Path("model-q8_0.gguf"), {"support": Path("support.gguf")}, threads=2) as engine:
    engine.url                             # speaks OpenAI's API, and llama.cpp's own
    engine.answer([[1, 4093, 198]], 64)

Run as a program this file is that process: it ends with whoever started it, however that one ends.
"""

import http.client
import importlib.util
import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, TypeVar

from luthier.errors import CallError, LuthierError, MachineError, ModelError
from luthier.models import gguf_file
from luthier.records import TokenizedExample
from luthier.serve.backends.last_words import LastWords

INSTALL = 'pip install "luthier[gguf]"'
HOST = "127.0.0.1"
# A large model is read from a slow disk before the process answers.
START_S = 600.0
ANSWER_S = 600.0
END_S = 10.0
# Tokens of a row that are asked for at once, in the hope that it says them by itself.
AHEAD = 8
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Said:
    """A greedy answer: its text, its tokens, and at as many places as it tells of the likeliest tokens with their log-probabilities (nats)."""

    text: str
    tokens: list[int]
    heads: list[dict[int, float]]


class LlamaCpp:
    """A GGUF model, and LoRA adapters for it by name, as llama.cpp runs them. A context manager: `url` is there inside."""

    def __init__(
        self, model: Path, adapters: Mapping[str, Path] | None = None, *, threads: int = 1, slots: int = 4, context: int = 2048, key: str = ""
    ) -> None:
        """`slots` requests are answered at once, each in a context of `context` tokens; more wait. With a `key` it answers who has it alone."""
        self.model, self.adapters, self.key = model, dict(adapters or {}), key
        self.threads, self.slots, self.context = threads, slots, context
        self.url = ""
        self._process: subprocess.Popen[str] | None = None
        self._said: LastWords | None = None
        self._letter = 0  # a token that is one whole letter

    def __enter__(self) -> "LlamaCpp":
        self.begin()
        try:
            self.wait()
        except BaseException:
            self.close()
            raise
        return self

    def begin(self) -> None:
        """Begin to start it; `wait` returns once it answers. Raises CallError or ModelError for what it cannot run."""
        if importlib.util.find_spec("xllamacpp") is None:
            raise CallError("needs xllamacpp", where=str(self.model), next_step=INSTALL)
        for path in (self.model, *self.adapters.values()):
            gguf_file.read(path)  # what is cut or no GGUF never reaches a parser written in C
        asked = {
            "model": str(self.model),
            "adapters": [str(path) for path in self.adapters.values()],
            "threads": self.threads,
            "slots": self.slots,
            "context": self.context,
            "key": self.key,
        }
        self._process = process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8", errors="replace",
        )  # fmt: skip
        assert process.stdin
        assert process.stderr
        self._said = LastWords(process.stderr)
        # Not as an argument: everyone on this machine can read those, and here is a key.
        with suppress(BrokenPipeError):  # it has died: `wait` says why
            process.stdin.write(json.dumps(asked) + "\n")
            process.stdin.flush()

    def wait(self) -> None:
        """Wait until it answers. Raises LuthierError with its own words where it ends before."""
        if self._process is None:
            raise MachineError("llama.cpp was ended before it answered", where=str(self.model), next_step="start it again")
        self.url = self._address(self._process)
        self._letter = self.tokenize("a")[-1]

    def last_words(self) -> list[str]:
        """The newest lines that it said."""
        return self._said.lines() if self._said else []

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the process. Safe to call again."""
        process, self._process = self._process, None
        loaded, self.url = bool(self.url), ""
        if process is None:
            return
        assert process.stdin
        assert process.stdout
        if not loaded:  # it looks at its pipe only then
            process.kill()
        with suppress(BrokenPipeError):
            process.stdin.close()  # its word to go
        try:
            process.wait(timeout=END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()

    @property
    def headers(self) -> dict[str, str]:
        """What a request has to bring along."""
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}

    @property
    def running(self) -> bool:
        """Whether the process is there; it may have died."""
        return self._process is not None and self._process.poll() is None

    def lora(self, adapter: str | None = None) -> list[dict[str, float]]:
        """The field `lora` of a request to llama.cpp for one adapter by its name, or for the model alone."""
        return [{"id": number, "scale": float(name == adapter)} for number, name in enumerate(self.adapters)]

    def answer(self, prompts: Sequence[list[int]], max_new_tokens: int, adapter: str | None = None) -> list[str]:
        """The greedy answers to prompts of token ids, in their order."""
        return self._each(lambda prompt: self.say(prompt, max_new_tokens, adapter=adapter).text, prompts)

    def say(self, prompt: list[int], max_new_tokens: int, *, top: int = 0, adapter: str | None = None) -> Said:
        """What it says greedily to a prompt of token ids, with the `top` likeliest tokens at each place."""
        asked = {
            "prompt": prompt, "n_predict": max_new_tokens, "n_probs": top, "return_tokens": True, "temperature": 0.0, "lora": self.lora(adapter),
        }  # fmt: skip
        answer = self.ask("/completion", asked)
        tokens = [int(token) for token in answer["tokens"]]
        probabilities = answer.get("completion_probabilities", [])
        # It leaves out a token that is half a character: what follows it would be taken for another place.
        told = itertools.takewhile(lambda pair: pair[0] == pair[1]["id"], zip(tokens, probabilities, strict=False))
        return Said(str(answer["content"]), tokens, [_head(one) for _, one in told])

    def likeliest(self, row: TokenizedExample, places: int | None = None, adapter: str | None = None) -> list[int]:
        """The likeliest token at each of the last `places` of a row (None: from its first trained one on), after all that stands before it."""
        return [next(iter(found)) for found in self.log_probabilities([row], places, top=1, adapter=adapter)[0]]

    def log_probabilities(
        self, rows: Sequence[TokenizedExample], places: int | None = None, *, top: int = 64, adapter: str | None = None
    ) -> list[list[dict[int, float]]]:
        """For each row and each such place the `top` likeliest tokens with their log-probabilities (nats), the likeliest first."""
        return self._each(lambda row: self.heads(row, places, top=top, adapter=adapter), rows)

    def heads(
        self, row: TokenizedExample, places: int | None = None, *, top: int = 64, adapter: str | None = None, said: Said | None = None
    ) -> list[dict[int, float]]:
        """The same of one row. What it has `said` to all that stands before those places, with as many of the likeliest, is not asked again."""
        ids, first = row.token_ids, row.trained.index(True)
        begin = max(first, len(ids) - places) if places is not None else first
        found: list[dict[int, float]] = []
        while (place := begin + len(found)) < len(ids):
            # As long as it says by itself what stands in the row, one request tells about many places.
            said = said or self.say(ids[:place], min(AHEAD, len(ids) - place), top=top, adapter=adapter)
            right = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(said.tokens, ids[place:], strict=False)))
            found += said.heads[: min(right + 1, len(ids) - place)] or [self._after(ids[:place], top, adapter)]
            said = None
        return found

    def _after(self, prompt: list[int], top: int, adapter: str | None) -> dict[int, float]:
        # What comes next is made certain, as it stays silent of a token that ends an answer or is half a character. The probabilities are
        # those from before that. The prompt but for its last token lies in the cache of the slot that had it before.
        asked = {
            "prompt": prompt,
            "n_predict": 1,
            "n_probs": top,
            "temperature": 0.0,
            "lora": self.lora(adapter),
            "logit_bias": [[self._letter, 1e6]],
        }
        [found] = self.ask("/completion", asked)["completion_probabilities"]
        return _head(found)

    def tokenize(self, text: str) -> list[int]:
        """The ids that llama.cpp's own tokenizer gives for a text, special tokens read as such and nothing put before it."""
        asked = {"content": text, "add_special": False, "parse_special": True}
        return [int(token) for token in self.ask("/tokenize", asked)["tokens"]]

    def render(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] = ()) -> str:
        """The prompt that llama.cpp makes of a conversation with the template inside the file."""
        asked = {"messages": list(messages), **({"tools": list(tools)} if tools else {})}
        return str(self.ask("/apply-template", asked)["prompt"])

    def ask(self, path: str, asked: Mapping[str, Any]) -> Any:
        """The JSON answer to a request. Raises MachineError where the process has died, ModelError for what it refuses."""
        host, _, port = self.url.rpartition("//")[2].partition(":")
        # Not urllib, which would look for a proxy to this very machine.
        connection = http.client.HTTPConnection(host, int(port or 0), timeout=ANSWER_S)
        try:
            connection.request("POST", path, json.dumps(asked), {"Content-Type": "application/json", **self.headers})
            response = connection.getresponse()
            text = response.read().decode("utf-8", "replace")
        except OSError as error:
            raise MachineError(
                f"llama.cpp does not answer ({error})", where=str(self.model), next_step="see whether the memory is enough, and try again"
            ) from error
        finally:
            connection.close()
        if response.status != 200:
            raise ModelError(f"llama.cpp refuses {path}: {text[:300]}", where=str(self.model), next_step="a shorter prompt, or a larger context")
        return json.loads(text)

    def _each(self, work: Callable[[Any], Result], asked: Sequence[Any]) -> list[Result]:
        with ThreadPoolExecutor(self.slots) as threads:
            return list(threads.map(work, asked))

    def _address(self, process: "subprocess.Popen[str]") -> str:
        """The address that the process listens on. Raises LuthierError with its last words where it has none."""
        assert process.stdout
        if line := process.stdout.readline():
            return str(json.loads(line)["url"])
        return _raise_for(self.last_words(), self.model, process.wait(timeout=END_S))


def _head(told: Mapping[str, Any]) -> dict[int, float]:
    return {int(one["id"]): float(one["logprob"]) for one in told["top_logprobs"]}


def _raise_for(lines: list[str], model: Path, code: int) -> str:
    reasons = [line for line in lines if "error" in line.lower() or "failed" in line.lower() or "couldn't" in line]
    reason = (reasons or lines or [f"it ended with code {code}"])[0][:300]
    found: LuthierError
    if "bind" in reason:
        found = MachineError(f"llama.cpp cannot listen on {HOST}: {reason}", where=str(model), next_step="see which program holds the port")
    elif code == -9 or "alloc" in reason:
        found = MachineError(f"the memory is not enough for it ({reason})", where=str(model), next_step="a smaller context, or fewer bits")
    else:
        found = ModelError(f"llama.cpp cannot load it: {reason}", where=str(model), next_step="export it again, or install a newer xllamacpp")
    raise found


def _serve(asked: dict[str, Any], speak: IO[str]) -> None:
    """The process: load, listen, say where, and stay until the pipe from whoever started it closes."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = asked["model"]
    params.n_ctx = asked["context"] * asked["slots"]
    params.n_parallel = asked["slots"]
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = asked["threads"]
    params.hostnames, params.port = [HOST], 0  # the system finds a free one
    params.api_keys = [asked["key"]] if asked["key"] else []
    params.fit_params = params.ui = False
    # Its cache of prompts is not told apart by adapter (llama.cpp#26207); what a slot itself remembers is.
    params.cache_ram_mib = 0
    params.lora_init_without_apply = True
    params.prefill_assistant = False  # a last message of the assistant is a whole turn, as in training
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(path, 1.0) for path in asked["adapters"]]
    server = xllamacpp.Server(params)
    print(json.dumps({"url": server.listening_address}), file=speak, flush=True)
    sys.stdin.read()
    os._exit(0)  # nothing to save; its threads would be waited for


if __name__ == "__main__":
    for _number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(_number, signal.SIG_IGN)  # a Ctrl-C in the terminal reaches all; who started us says when to end
    # What C code prints goes where the log goes: the first pipe is ours.
    _speak = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if _line := sys.stdin.readline():  # none: whoever started us is gone already
        _serve(json.loads(_line), _speak)
