"""SERVE.md of an artifact: the lines that start it in the programs that read it, with its own names."""

import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

NAME = "SERVE.md"
# What vLLM and LoRAX take as --max-lora-rank; an adapter of another rank needs the next larger one.
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


@dataclass(frozen=True, slots=True)
class Artifact:
    """What the lines are about."""

    name: str  # of the folder, and what the model is called in requests
    kind: str  # a key of LINES
    base: str  # the base model as a user names it, and what an adapter needs beside it
    file: str = ""  # the GGUF file in the folder
    rank: int = 0  # of an adapter
    context: int = 2048
    engines: tuple[str, ...] = ()  # that read an adapter of this method
    stored: str = ""


def max_rank(rank: int) -> int:
    """The --max-lora-rank that an adapter of this rank needs: 12 needs 16."""
    return next((size for size in RANKS if size >= rank), rank)


def _adapter(one: Artifact) -> dict[str, str]:
    base, folder, name = (shlex.quote(text) for text in (one.base, f"./{one.name}", one.name))
    rank = max_rank(one.rank)
    lines = {
        "vllm": f"vllm serve {base} --enable-lora --max-lora-rank {rank} --lora-modules {name}={folder}",
        "sglang": f"python -m sglang.launch_server --model-path {base} --lora-paths {name}={folder} --max-lora-rank {rank} --port 8000",
        "lorax": f"lorax-launcher --model-id {base} --adapter-id {folder} --adapter-source local --port 8000",
    }
    return {"luthier": f"luthier serve {base} {name}={folder}"} | {engine: lines[engine] for engine in lines if engine in one.engines}


def _merged(one: Artifact) -> dict[str, str]:
    folder, name = shlex.quote(f"./{one.name}"), shlex.quote(one.name)
    return {
        "luthier": f"luthier serve {folder}",
        "vllm": f"vllm serve {folder} --served-model-name {name} --max-model-len {one.context}",
        "sglang": f"python -m sglang.launch_server --model-path {folder} --served-model-name {name} --port 8000",
    }


def _compressed(one: Artifact) -> dict[str, str]:
    return {engine: line for engine, line in _merged(one).items() if engine != "luthier"}


def _gguf(one: Artifact) -> dict[str, str]:
    path, name = shlex.quote(f"./{one.name}/{one.file}"), shlex.quote(one.name)
    return {
        "luthier": f"luthier serve {path} --engine gguf",
        "llama.cpp": f"llama-server -m {path} --alias {name} -c {one.context} --port 8000",
        "ollama": f"printf 'FROM %s\\n' {path} > Modelfile && ollama create {name} -f Modelfile && ollama run {name}",
    }


def _gguf_lora(one: Artifact) -> dict[str, str]:
    path = shlex.quote(f"./{one.name}/{one.file}")
    return {"llama.cpp": f"llama-server -m BASE.gguf --lora {path} -c {one.context} --port 8000"}


def _ollama(one: Artifact) -> dict[str, str]:
    folder, name = shlex.quote(f"./{one.name}"), shlex.quote(one.name)
    return {"ollama": f"(cd {folder} && ollama create {name} -f Modelfile) && ollama run {name}"}


LINES: dict[str, Callable[[Artifact], dict[str, str]]] = {
    # target     what starts it, by program
    "adapter":   _adapter,
    "merged":    _merged,
    "gptq":      _compressed,
    "awq":       _compressed,
    "int8":      _compressed,
    "fp8":       _compressed,
    "gguf":      _gguf,
    "gguf-lora": _gguf_lora,
    "ollama":    _ollama,
}  # fmt: skip


def text(one: Artifact, notes: Iterable[str] = ()) -> str:
    """SERVE.md: a line for each program, to be run beside the artifact's folder, and a request that all of them answer."""
    parts = [f"# Serving {one.name}", "", "Run beside this folder."]
    for engine, line in LINES[one.kind](one).items():
        parts += ["", f"{engine}:", "", "```sh", line, "```"]
    parts += ["", *(f"- {note}" for note in notes)] if notes else []
    asked = f'{{"model": "{one.name}", "messages": [{{"role": "user", "content": "Hello"}}]}}'
    request = f"curl http://localhost:8000/v1/chat/completions -H 'Content-Type: application/json' -d {shlex.quote(asked)}"
    return "\n".join([*parts, "", "A request (Ollama listens on port 11434):", "", "```sh", request, "```", ""])


def main_file(folder: Path) -> str:
    """The GGUF file of an artifact; "" where there is none."""
    return next((path.name for path in sorted(folder.glob("*.gguf"))), "")
