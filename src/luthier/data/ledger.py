"""The books: rows read = used + set aside, tokens read = trained + masked. They are closed here, and must add up."""

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from luthier import files
from luthier.errors import LuthierError, RunError
from luthier.records import Conversation, Rejected, Source, TokenizedExample, Turn
from luthier.run_folder import SCHEMA, RunFolder


def close(
    read: int,
    rejected: Sequence[Rejected],
    train: Sequence[TokenizedExample],
    held_out: Sequence[TokenizedExample],
    tokens_read: int,
    sources: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """The ledger as it is written. `tokens_read` and `tokens` are of the training rows; `eval_tokens` of the held-out ones.

    Raises LuthierError where a row or a token is unaccounted for: that would be a fault of this program.
    """
    used = len(train) + len(held_out)
    if read != used + len(rejected):
        raise _fault(f"{read} rows were read, but {used} used and {len(rejected)} set aside make {used + len(rejected)}")
    trained = sum(example.trained_tokens for example in train)
    masked = sum(not on for example in train for on in example.trained)
    if tokens_read != trained + masked:
        raise _fault(f"{tokens_read} tokens were read, but {trained} trained and {masked} masked make {trained + masked}")
    return {
        "schema": SCHEMA,
        "rows": {
            "read": read,
            "used": used,
            "train": len(train),
            "eval": len(held_out),
            "rejected": dict(sorted(Counter(row.reason for row in rejected).items())),
        },
        "tokens": {"read": tokens_read, "trained": trained, "masked": masked, "cut": 0, "repeated": 0},
        "eval_tokens": sum(len(example.token_ids) for example in held_out),
        "sources": list(sources),
    }


def write(run: RunFolder, ledger: dict[str, Any], rejected: Sequence[Rejected], held_out: Sequence[Conversation]) -> None:
    """data/ledger.json, data/rejected.jsonl (each row verbatim, with its reason) and data/eval.jsonl (the held-out rows)."""
    files.make_folder(run.ledger.parent)
    files.write_json(run.ledger, ledger)
    files.write_lines(run.rejected, [rejected_row(row) for row in rejected])
    files.write_lines(run.held_out, [held_out_row(row) for row in held_out])


def rejected_row(row: Rejected) -> dict[str, Any]:
    return {"reason": row.reason, "detail": row.detail, "file": row.source.file, "line": row.source.line, "raw": row.raw}


def held_out_row(row: Conversation) -> dict[str, Any]:
    """A row of data/eval.jsonl. Roles tell what it was: system, user, assistant; prompt and completion; or text."""
    messages = [{"role": turn.role, "content": turn.content} for turn in row.turns]
    return {"messages": messages, "templated": row.templated, "source": {"file": row.source.file, "line": row.source.line}}


def read_held_out(run: RunFolder) -> list[Conversation]:
    """The held-out rows that a run keeps, as they were; none where it held none out. Raises RunError where the file is damaged."""
    if not run.held_out.exists():
        return []
    try:
        rows = [json.loads(line) for line in run.held_out.read_text(encoding="utf-8").split("\n") if line]
        return [_conversation(row) for row in rows]
    except (ValueError, KeyError) as error:
        raise RunError(f"cannot be read ({error!r})", where=str(run.held_out), next_step="give the rows as a file instead") from error


def _conversation(row: dict[str, Any]) -> Conversation:
    turns = tuple(Turn(message["role"], message["content"]) for message in row["messages"])
    return Conversation(turns, Source(row["source"]["file"], row["source"]["line"]), row["templated"])


def _fault(problem: str) -> LuthierError:
    return LuthierError(problem, where="ledger", next_step="this is a fault of ours: please report it, with the rows if you can")
