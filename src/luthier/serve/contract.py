"""What a run promises to whoever serves it: the template, the stop tokens, the system message, and prompts rendered to the id."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from luthier import files
from luthier.data.tokenize import prompt_ids
from luthier.errors import DataError, RunError
from luthier.records import Conversation, Turn
from luthier.run_folder import RunFolder

SCHEMA = 1
GOLDEN_PROMPTS = 3


def write(run: RunFolder, tokenizer: Any, stop_ids: set[int], rows: Sequence[Conversation]) -> None:
    """Keep the contract of a run that was trained on `rows`."""
    files.write_json(
        run.contract,
        {
            "schema": SCHEMA,
            "template": tokenizer.chat_template,
            "template_sha256": template_hash(tokenizer),
            "templated": rows[0].templated,
            "system": shared_system(rows),
            "stop_tokens": _spelled(stop_ids, tokenizer),
            "golden": [
                {"messages": [_message(turn) for turn in row.prompt], "tools": row.tools, "ids": prompt_ids(row.prompt, tokenizer, row.tools)}
                for row in rows[:GOLDEN_PROMPTS]
                if row.prompt
            ],
        },
    )


def read_checked(run: RunFolder, tokenizer: Any, stop_ids: set[int]) -> dict[str, Any]:
    """The run's contract, after its golden prompts were rendered again and its stop tokens compared. Raises RunError where one differs."""
    return checked(run.contract, tokenizer, stop_ids)


def beside(folder: Path) -> Path | None:
    """The contract in a folder or in the one above it, as an export of a run has it that lies in the run; None where there is none."""
    return next((path for place in (folder, folder.resolve().parent) if (path := place / "contract.json").is_file()), None)


def of(run: RunFolder | None, folder: Path | None, tokenizer: Any, stop_ids: set[int]) -> dict[str, Any]:
    """The contract of a run, or the one beside a folder, checked; {} where there is none, and for a model that is named otherwise.

    Raises RunError where it does not hold.
    """
    path = run.contract if run else beside(folder) if folder else None
    return checked(path, tokenizer, stop_ids) if path else {}


def read(path: Path) -> dict[str, Any]:
    """The contract in a file, unchecked. Raises RunError where it is none."""
    contract: dict[str, Any] = files.read_json(path)
    if missing := {"stop_tokens", "golden", "template_sha256", "system"} - (contract.keys() if isinstance(contract, dict) else set()):
        problem = f"is no contract of a run (without {', '.join(sorted(missing))})"
        raise RunError(problem, where=str(path), next_step="copy the run's contract.json there again")
    return contract


def checked(path: Path, tokenizer: Any, stop_ids: set[int]) -> dict[str, Any]:
    """The contract in a file, checked as that of a run. Raises RunError where it does not hold, or is none."""
    contract = read(path)
    if contract["stop_tokens"] != (stops := _spelled(stop_ids, tokenizer)):
        raise RunError(
            f"the model was trained to stop at {', '.join(contract['stop_tokens'])} and would now stop at {', '.join(stops) or 'nothing'}",
            where=str(path),
            next_step="restore the base model's generation_config.json and tokenizer, or train again",
        )
    for golden in contract["golden"]:
        if not _same(golden, contract["template_sha256"], tokenizer):
            raise RunError(
                "the base's tokenizer or chat template has changed since the training: the same messages give other tokens",
                where=str(path),
                next_step="restore the base model that the run was trained on (environment.json names it), or train again",
            )
    return contract


def _spelled(token_ids: set[int], tokenizer: Any) -> list[str]:
    return sorted(tokenizer.convert_ids_to_tokens(sorted(token_ids)))


def _message(turn: Turn) -> dict[str, str]:
    return {"role": turn.role, "content": turn.content} | ({"extra": turn.extra} if turn.extra else {})


def _same(golden: dict[str, Any], template_sha256: str, tokenizer: Any) -> bool:
    """Whether the messages still give the same tokens. A template that writes today's date can only be compared itself."""
    if "strftime_now" in str(tokenizer.chat_template):
        return template_hash(tokenizer) == template_sha256
    try:
        return bool(prompt_ids(turns_of(golden), tokenizer, golden.get("tools", "")) == golden["ids"])
    except DataError:
        return False


def turns_of(golden: Mapping[str, Any]) -> list[Turn]:
    """The turns of a golden prompt."""
    return [Turn(message["role"], message["content"], extra=message.get("extra", "")) for message in golden["messages"]]


def template_hash(tokenizer: Any) -> str:
    return hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest()


def shared_system(rows: Sequence[Conversation]) -> str | None:
    """The system message that at least nine rows of ten begin with, or None."""
    first = Counter(row.turns[0].content if row.turns[0].role == "system" else None for row in rows)
    text, count = first.most_common(1)[0]
    return text if count >= 0.9 * len(rows) else None
