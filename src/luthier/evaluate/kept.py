"""Answers as they come, a line each, so that an evaluation that was killed asks only for what is missing."""

import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from luthier import files
from luthier.records import Answer
from luthier.version import VERSION


class Kept:
    """The answers in one file. They are found again by who was asked, what, and how: whatever else changes, such an answer stays right."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._found: dict[str, dict[str, Any]] = {}
        files.make_folder(path.parent)
        content = path.read_bytes() if path.exists() else b""
        for line in content.split(b"\n"):
            try:
                entry = json.loads(line)
                self._found[entry["key"]] = entry
            except (ValueError, KeyError, TypeError):
                continue  # cut by a kill, as it was written
        if content and not content.endswith(b"\n"):
            files.append_line(path, "")  # ends it
        self._since = time.perf_counter()

    def __len__(self) -> int:
        return len(self._found)

    def begin(self) -> None:
        """The clock starts: the next answer took from now until it was added."""
        self._since = time.perf_counter()

    def answer(self, key: str) -> Answer | None:
        """The answer of this key, where there is one."""
        entry = self._found.get(key)
        return None if entry is None else Answer(entry["answer"], entry["tokens"], entry["stopped"])

    def seconds(self, key: str) -> float:
        """How long the asking of this answer took; of answers that were made together, each took its share."""
        return float(self._found[key]["seconds"])

    def prompt_tokens(self, key: str) -> int | None:
        """How many tokens the question had, where that was counted."""
        tokens: int | None = self._found[key]["prompt_tokens"]
        return tokens

    def add(
        self, key: str, answer: Answer, *, model: str, row: str, sample: int = 0, prompt_tokens: int | None = None, seconds: float | None = None
    ) -> None:
        """Keep an answer, with what a reader of the file wants to know of it: who was asked, and which row."""
        now = time.perf_counter()
        took, self._since = now - self._since if seconds is None else seconds, now
        said = {"answer": answer.text, "tokens": answer.tokens, "stopped": answer.stopped}
        entry = {"key": key, "model": model, "row": row, "sample": sample, **said, "prompt_tokens": prompt_tokens, "seconds": round(took, 4)}
        self._found[key] = entry
        files.append_line(self._path, json.dumps(entry, ensure_ascii=False))


def key_of(model: str, prompt: Sequence[int] | Sequence[dict[str, str]], how: dict[str, object]) -> str:
    """What an answer is found by: the model's hash, the question as tokens or messages, the decoding, and this version of Luthier."""
    text = json.dumps([VERSION, model, list(prompt), how], sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
