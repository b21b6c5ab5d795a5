"""The books: rows read = used + set aside, and tokens read = trained + masked + cut. They are closed here, and must add up.

`repeated` counts tokens that stand in more than one example (a context that several answers share, a row of weight 2): read + repeated =
trained + masked + cut. Where nothing is repeated that is the plain sum.
"""

import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from luthier import files
from luthier.errors import DataError, LuthierError, RunError
from luthier.records import Conversation, Rejected, Source, Turn
from luthier.run_folder import SCHEMA, RunFolder

Numbers = np.ndarray[Any, np.dtype[np.int64]]


def close(sources: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]], tokens: Sequence[dict[str, int]], eval_tokens: int) -> dict[str, Any]:
    """The ledger as it is written: each source's books and their sums.

    `rows[s]`: read, train, eval and rejected {reason: n} of source s. `tokens[s]`: read, trained, masked, cut and repeated of its training rows.
    Raises LuthierError where a row or a token is unaccounted for: that would be a fault of this program.
    """
    for source, row_count, token_count in zip(sources, rows, tokens, strict=True):
        _check_rows(source["file"], row_count)
        _check_tokens(source["file"], token_count)
    reasons = sorted({reason for count in rows for reason in count["rejected"]})
    return {
        "schema": SCHEMA,
        "rows": {
            "read": sum(count["read"] for count in rows),
            "used": sum(count["train"] + count["eval"] for count in rows),
            "train": sum(count["train"] for count in rows),
            "eval": sum(count["eval"] for count in rows),
            "rejected": {reason: sum(count["rejected"].get(reason, 0) for count in rows) for reason in reasons},
        },
        "tokens": {name: sum(count[name] for count in tokens) for name in ("read", "trained", "masked", "cut", "repeated")},
        "eval_tokens": eval_tokens,
        "sources": [_source(*books) for books in zip(sources, rows, tokens, strict=True)],
    }


def _source(source: dict[str, Any], rows: dict[str, Any], tokens: dict[str, int]) -> dict[str, Any]:
    return {**source, "rows": rows["read"], "used": rows["train"] + rows["eval"], "rejected": rows["rejected"], "tokens": tokens}


def count_tokens(read: Numbers, cut: Numbers, repeated: Numbers, lengths: Numbers, trained: Numbers, examples: Numbers) -> dict[str, int]:
    """The tokens of some training examples, by their numbers; one that stands there again (weights above 1) counts as repeated."""
    once = np.unique(examples)
    total, total_once = int(lengths[examples].sum()), int(lengths[once].sum())
    trained_tokens = int(trained[examples].sum())
    return {
        "read": int(read[once].sum()),
        "trained": trained_tokens,
        "masked": total - trained_tokens,
        "cut": int(cut[once].sum()),
        "repeated": int(repeated[once].sum()) + total - total_once,
    }


def _check_rows(file: str, count: dict[str, Any]) -> None:
    set_aside = sum(count["rejected"].values())
    used = count["train"] + count["eval"]
    if count["read"] != used + set_aside:
        raise _fault(f"{file}: {count['read']} rows were read, but {used} used and {set_aside} set aside make {used + set_aside}")


def _check_tokens(file: str, count: dict[str, int]) -> None:
    there, told = count["read"] + count["repeated"], count["trained"] + count["masked"] + count["cut"]
    if there != told:
        raise _fault(
            f"{file}: {count['read']} tokens were read and {count['repeated']} repeated, "
            f"but {count['trained']} trained, {count['masked']} masked and {count['cut']} cut make {told}"
        )


def write(run: RunFolder, ledger: dict[str, Any], rejected: Iterable[Rejected], held_out: Iterable[Conversation]) -> None:
    """data/ledger.json, data/rejected.jsonl (each row verbatim, with its reason) and data/eval.jsonl (the held-out rows)."""
    files.make_folder(run.ledger.parent)
    files.write_json(run.ledger, ledger)
    files.write_lines(run.rejected, (rejected_row(row) for row in rejected))
    files.write_lines(run.held_out, (held_out_row(row) for row in held_out))


def check_same_sources(run: RunFolder, sources: Sequence[dict[str, Any]]) -> None:
    """Raises DataError where a file that the run was trained on is another one now."""
    kept = {source["path"]: source for source in files.read_json(run.ledger)["sources"] if "path" in source}
    now = {source["path"] for source in sources}
    if now != set(kept):
        changed = sorted(now ^ set(kept))[0]
        raise DataError(
            "is new since this run was trained" if changed in now else "is gone since this run was trained on it",
            where=changed,
            next_step="put the files back as they were, or train again",
        )
    for source in sources:
        before = kept[source["path"]]
        if before["sha256"] != source["sha256"]:
            raise DataError(
                f"has changed since this run was trained on it (sha256 {before['sha256'][:12]} then, {source['sha256'][:12]} now)",
                where=source["file"],
                next_step="put the file back as it was, or train again",
            )


def rejected_row(row: Rejected) -> dict[str, Any]:
    told = {"reason": row.reason, "detail": row.detail, "file": row.source.file, "line": row.source.line, "raw": row.raw}
    return told if row.rows == 1 else {**told, "rows": row.rows}


def held_out_row(row: Conversation) -> dict[str, Any]:
    """A row of data/eval.jsonl. Roles tell what it was: system, user, assistant, tool; prompt and completion; or text."""
    told = {"messages": [_message(turn) for turn in row.turns], "templated": row.templated}
    if row.tools:
        told["tools"] = json.loads(row.tools)
    if row.rejected:
        told["rejected"] = [_message(turn) for turn in row.rejected]
    if row.label is not None:
        told["label"] = row.label
    return {**told, "source": {"file": row.source.file, "line": row.source.line}}


def _message(turn: Turn) -> dict[str, Any]:
    trained = {} if turn.trained is None else {"train": turn.trained}
    return {"role": turn.role, "content": turn.content, **trained, **(json.loads(turn.extra) if turn.extra else {})}


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
    tools = json.dumps(row["tools"], ensure_ascii=False) if "tools" in row else ""
    source = Source(row["source"]["file"], row["source"]["line"])
    turns, rejected = (tuple(_turn(message) for message in row.get(side, ())) for side in ("messages", "rejected"))
    return Conversation(turns, source, row["templated"], tools, rejected, row.get("label"))


def _turn(message: dict[str, Any]) -> Turn:
    extra = {name: value for name, value in message.items() if name not in ("role", "content", "train")}
    return Turn(message["role"], message["content"], message.get("train"), json.dumps(extra, ensure_ascii=False) if extra else "")


def _fault(problem: str) -> LuthierError:
    return LuthierError(problem, where="ledger", next_step="this is a fault of ours: please report it, with the rows if you can")
