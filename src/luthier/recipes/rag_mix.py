"""`luthier data rag-mix`: rows that teach a model to answer from passages, and questions on documents that none of these rows shows."""

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from luthier import files
from luthier.data import portions
from luthier.data.conversations import rejected_row
from luthier.errors import DataError
from luthier.rag import raft
from luthier.rag.finding import Finder, open_finder
from luthier.rag.golden import golden
from luthier.rag.grounding import prompt
from luthier.rag.index import open_index
from luthier.rag.questions import Asked, group, read_questions
from luthier.rag.raft import Mixed, Question, Shares
from luthier.rag.support import support
from luthier.rag.words import words_of
from luthier.records import Rejected, Turn
from luthier.reporting import Reporter, Silent

HELD_OUT = "held_out"
# A passage that says so much of the answer distracts from nothing: it is an answer too.
ANSWERS_TOO = 0.95


@dataclass(frozen=True, slots=True)
class Written:
    """What was written: rows by kind, how many different sets of passages they have, and the questions that were kept out."""

    folder: str
    rows: int
    kinds: dict[str, int]
    prompts: int
    held_out: int
    held_out_documents: int
    rejected: dict[str, int]


@dataclass(frozen=True, slots=True)
class _Ready:
    """A question whose passages are known."""

    asked: Asked
    gold: tuple[int, ...]
    group: str


def rag_mix(
    questions: str, index: Path, to: Path, shares: Shares, *, hold_out: float = 0.1, seed: int = 0, reporter: Reporter | None = None
) -> Written:
    """Write train.jsonl, held_out.jsonl, rejected.jsonl and rag_mix.json to the new folder `to`.

    No passage of a held-out document stands in a row of train.jsonl. Raises CallError where `to` holds something, DataError where no question
    can be answered from the index.
    """
    reporter = reporter or Silent()
    files.refuse_existing(to)
    shares.check()
    finder = open_finder(open_index(index), reporter)
    asked, rejected = read_questions(questions, reporter)
    ready = _ready(asked, finder, rejected, reporter)
    if not ready:
        problem = f"the index {index} holds the answer to none of {len(asked):,} questions"
        raise DataError(problem, where=questions, next_step='name the passage of each: {"gold": "docs/a.md:10-20"}, or index other documents')
    held = _held_out([one.group for one in ready], hold_out, seed)
    training = [one for one in ready if one.group not in held]
    if not training:
        raise DataError(
            f"{len(ready):,} questions leave none to train on beside --hold-out", where=questions, next_step="a smaller --hold-out, or more documents"
        )
    mixed = raft.mix(_numbered(training), shares, lambda question: _near(question, finder, shares, held), seed)
    rows = [_row(one, training[one.question.number], finder, shares) for one in mixed]
    kept = [one for one in ready if one.group in held]
    told = Written(
        folder=str(to),
        rows=len(rows),
        kinds=dict(Counter(one.kind for one in mixed)),
        prompts=len({one.passages for one in mixed if one.passages}),
        held_out=len(kept),
        held_out_documents=len(held),
        rejected=dict(Counter(row.reason for row in rejected)),
    )
    files.build_folder(to, lambda staging: _write(staging, rows, [_held_row(one, finder) for one in kept], rejected, told, shares, seed))
    return told


def _ready(asked: Sequence[Asked], finder: Finder, rejected: list[Rejected], reporter: Reporter) -> list[_Ready]:
    """The questions whose passage is known; the others are set aside."""
    ready = []
    with reporter.bar("finding what answers each question", len(asked)) as bar:
        for number, one in enumerate(asked, start=1):
            if gold := golden(one.row, one.question, one.answer, finder):
                ready.append(_Ready(one, tuple(gold), group(finder.index, gold[0])))
            else:
                raw = json.dumps(one.row, ensure_ascii=False)
                rejected.append(Rejected("no_passage", "no passage of the index holds its answer", one.conversation.source, raw))
            bar.advance(number)
    return ready


def _held_out(groups: Sequence[str], share: float, seed: int) -> set[str]:
    """The documents whose questions are kept out of training."""
    if not share:
        return set()
    together = portions.groups_of([[name] for name in groups])
    parts = portions.divide(together, groups, [""] * len(groups), {HELD_OUT: Fraction(share).limit_denominator(10_000)}, seed)
    return {name for name, part in zip(groups, parts, strict=True) if part == HELD_OUT}


def _numbered(ready: Sequence[_Ready]) -> list[Question]:
    return [Question(number, one.asked.question, one.asked.answer, one.gold) for number, one in enumerate(ready)]


def _near(question: Question, finder: Finder, shares: Shares, held: set[str]) -> list[int]:
    """Passages that the question finds and that do not answer it, none of a held-out document."""
    found = finder.find(question.text, 4 * shares.passages + len(question.gold), without=question.gold).found
    weight = finder.index.words.weight
    return [
        one.row
        for one in found
        if group(finder.index, one.row) not in held and support(question.answer, [one.passage.whole], "", words_of, weight) < ANSWERS_TOO
    ]


def _row(mixed: Mixed, ready: _Ready, finder: Finder, shares: Shares) -> dict[str, Any]:
    """A row of train.jsonl, as messages."""
    passages = finder.index.passages(mixed.passages)
    texts = dict(zip(mixed.passages, (passage.whole for passage in passages), strict=True))
    *before, asked = ready.asked.conversation.prompt
    content = prompt([passage.whole for passage in passages], asked.content) if passages else asked.content
    answer = raft.answer_of(mixed, lambda row: texts[row], shares, finder.index.words.weight)
    turns = [*before, Turn("user", content), Turn("assistant", answer)]
    messages = [{"role": "user" if turn.role == "prompt" else turn.role, "content": turn.content} for turn in turns]
    told = {"kind": mixed.kind, "from": [passage.place for passage in passages], "question": str(ready.asked.conversation.source)}
    return {"messages": messages, "provenance": told}


def _held_row(ready: _Ready, finder: Finder) -> dict[str, Any]:
    """A question as it stood, with the place of the passage that answers it; plain text is made a chat, as in train.jsonl."""
    [passage] = finder.index.passages(ready.gold[:1])
    asked = ready.asked
    row = asked.row if asked.conversation.templated else {"question": asked.question, "answer": asked.answer}
    return {**row, "gold": passage.place}


def _write(
    staging: Path, rows: list[dict[str, Any]], held: list[dict[str, Any]], rejected: Sequence[Rejected], told: Written, shares: Shares, seed: int
) -> None:
    files.write_lines(staging / "train.jsonl", rows)
    files.write_lines(staging / "held_out.jsonl", held)
    if rejected:
        files.write_lines(staging / "rejected.jsonl", [rejected_row(row) for row in rejected])
    files.write_json(staging / "rag_mix.json", {"schema": 1, **dataclasses.asdict(told), "shares": dataclasses.asdict(shares), "seed": seed})
