"""What the benchmark asks of one tool in one process, and what the tool's process answers. Standard library only.

A worker is called with one argument, a job as JSON, and prints its answer as the last line of its standard output. Workers are named
`with_TOOL.py`, because a file beside them that were named like a library would be imported in its stead.
"""

import importlib.metadata
import json
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

MARK = "BENCHMARK "
SHOWN = ("luthier", "torch", "transformers", "peft", "trl", "llamafactory", "ms-swift", "litgpt", "lightning")


@dataclass(frozen=True, slots=True)
class Job:
    """Rows to train on, in order: update u trains rows [u * batch_size, (u + 1) * batch_size)."""

    model: str  # a folder of Transformers
    adapter: str  # a folder of PEFT: every tool that can begins with the same numbers
    rows: str  # JSON lines of {"ids": [...], "trained": [...]}
    scratch: str  # an empty folder of this process
    batch_size: int
    updates: int
    learning_rate: float
    method: str  # lora | full
    setting: dict[str, Any]
    started: float  # when the process was started, in seconds since the epoch

    def read_rows(self) -> list[dict[str, list[int]]]:
        with open(self.rows, encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        return rows[: self.batch_size * self.updates]


@dataclass(slots=True)
class Update:
    """One update as the tool did it. `executed` counts padding and leaves out what was not run."""

    loss: float
    grad_norm: float
    seconds: float
    logical: int
    executed: int
    trained: int


@dataclass(slots=True)
class Record:
    """What a worker measures of itself; the parent measures the memory of the process."""

    job: Job
    updates: list[Update] = field(default_factory=list)
    first_micro_batch_s: float = 0.0
    first_update_s: float = 0.0

    def begin_micro_batch(self) -> None:
        self.first_micro_batch_s = self.first_micro_batch_s or time.time() - self.job.started

    def end_update(self, update: Update) -> None:
        self.first_update_s = self.first_update_s or time.time() - self.job.started
        self.updates.append(update)

    def answer(self) -> None:
        """Say what was measured, as the last line of the standard output."""
        versions = {name: version for name in SHOWN if (version := _version(name))}
        times = {"first_micro_batch_s": self.first_micro_batch_s, "first_update_s": self.first_update_s}
        print(f"\n{MARK}{json.dumps({'updates': [asdict(one) for one in self.updates], **times, 'versions': versions})}", flush=True)


def read_job() -> Job:
    return Job(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def labels(row: dict[str, list[int]]) -> list[int]:
    """The row's tokens, and -100 where one is not trained."""
    return [token if trained else -100 for token, trained in zip(row["ids"], row["trained"], strict=True)]
