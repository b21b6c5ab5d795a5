"""Rows that judge: a better and a worse answer (preference), or an answer with a verdict (KTO)."""

import json
import re
from collections.abc import Callable, Sequence

from luthier.data.formats import rows, tools
from luthier.data.formats.book import Book
from luthier.data.formats.message import refuse_media
from luthier.data.formats.rows import not_read, one_or_more, settled
from luthier.data.formats.said import Draft, Said
from luthier.data.formats.unfit import Unfit, Value, answer, judgment, need, question, shown, text
from luthier.records import Turn

SPEAKERS = {"Human": "user", "Assistant": "assistant"}
TRANSCRIPT = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):[ \t]*")
TRANSCRIBED = '"Human:" and "Assistant:" at the beginning of a paragraph were read as the turns of a chat'
# Columns that may hold what was asked; the first that does is read.
CONTEXTS = ("prompt", "question", "messages", "conversations")
ASKING = ("instruction", "input", "history")
RAW = "prompts and answers are used as plain text, without a chat template (for a chat: data.columns: {question: prompt})"


def preference(value: Value, book: Book) -> list[Draft]:
    """The better answer in `turns`, the worse one in `rejected`; what both begin with is the prompt.

    `chosen` and `rejected` are texts, messages or lists of messages; the prompt is a column of its own or the beginning of both lists.
    Where the prompt is plain text in `prompt`, all three are used as they stand. Texts without a prompt must be transcripts
    ("Human: ... Assistant: ...", as Anthropic's HH has them), and become chats.
    """
    refuse_media(value)
    sides = [side if side in value else next((name for name in (f"{side}_messages",) if name in value), side) for side in ("chosen", "rejected")]
    given = [need(value, side) for side in sides]
    if "prompt" in value and all(isinstance(part, str) for part in (value["prompt"], *given)):
        return [_plain(value, given, book)]
    context = _context(value, given[0], book)
    column, known = tools.tools_of(value)
    chosen, rejected = (_turns(context, side, value, column, known, book) for side in sides)
    shared = _shared(chosen, rejected)
    _check_worse(chosen, rejected, shared)
    return [Draft(chosen, tools=json.dumps(known, ensure_ascii=False) if known else "", rejected=rejected[shared:])]


def kto(value: Value, book: Book) -> list[Draft]:
    """A conversation of any of the simple formats, with `label` (or `kto_tag`): whether its last answer is a good one."""
    column = "label" if "label" in value or "kto_tag" not in value else "kto_tag"
    label = judgment(need(value, column), column)
    read = next((read for given, read in KTO_BASES.items() if given in value), rows.completion)
    [draft] = read(value, book)
    return [Draft(draft.turns, draft.templated, draft.tools, label=label)]


def is_judged(value: Value) -> bool:
    """Whether the row's label is a verdict and no category: true, false or a number, or a text that spells one (which is then refused)."""
    if "label" not in value:
        return "kto_tag" in value
    label = value["label"]
    return isinstance(label, bool | int | float) or (isinstance(label, str) and label.strip().casefold() in ("true", "false", "0", "1"))


KTO_BASES: dict[str, Callable[[Value, Book], list[Draft]]] = {
    "messages": rows.messages,
    "conversations": rows.sharegpt,
    "instruction": rows.alpaca,
    "question": rows.question_answer,
    "prompt": rows.completion,
}


def _plain(value: Value, given: Sequence[object], book: Book) -> Draft:
    not_read(value, [*CONTEXTS[1:], *ASKING, *tools.COLUMNS, "system"], book)
    prompt = Turn("prompt", question(value["prompt"], "prompt"))
    chosen, rejected = (Turn("completion", answer(one, side)) for one, side in zip(given, ("chosen", "rejected"), strict=True))
    _check_worse((prompt, chosen), (prompt, rejected), 2 if chosen == rejected else 1)
    book.remark(RAW)
    return Draft((prompt, chosen), templated=False, rejected=(rejected,))


def _context(value: Value, chosen: object, book: Book) -> list[Said]:
    """What was asked: the first of the columns that hold it. UltraFeedback's `messages` are the chosen side once more, and no context."""
    again = chosen if isinstance(chosen, list) else None
    found = next((column for column in CONTEXTS if value.get(column) is not None and value[column] != again), None)
    asks = found is None and value.get("instruction") is not None
    not_read(value, [column for column in CONTEXTS if column != found] + ([] if asks else [*ASKING]), book)
    if found:
        return one_or_more(value[found], found, "user", book)
    return rows.asked(value, book) if asks else []


def _turns(context: Sequence[Said], side: str, value: Value, column: str, known: Sequence[object], book: Book) -> tuple[Turn, ...]:
    given = value[side]
    if isinstance(given, str) and not context:
        book.remark(TRANSCRIBED)
        said = _transcript(given, side)
    else:
        said = one_or_more(given, side, "assistant", book)
    # UltraFeedback's lists begin with the prompt that stands in a column, too.
    begins = bool(context) and [(one.role, one.content) for one in said[: len(context)]] == [(one.role, one.content) for one in context]
    return settled(said if begins else [*context, *said], value, column, known, book)


def _transcript(value: str, path: str) -> list[Said]:
    pieces = TRANSCRIPT.split(text(value, path))
    if len(pieces) < 5 or pieces[0].strip():
        problem = f'is {shown(value)}, and the row has no prompt; add a "prompt" (or question, messages), or write "Human: ... Assistant: ..."'
        raise Unfit("no_prompt", path, problem)
    turns = ((SPEAKERS[who], said.strip()) for who, said in zip(pieces[1::2], pieces[2::2], strict=True))
    return [Said(path, role, (answer if role == "assistant" else question)(said, path)) for role, said in turns]


def _shared(chosen: Sequence[Turn], rejected: Sequence[Turn]) -> int:
    """How many turns both begin with."""
    return next((place for place, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), min(len(chosen), len(rejected)))


def _check_worse(chosen: Sequence[Turn], rejected: Sequence[Turn], shared: int) -> None:
    for side, turns in (("chosen", chosen), ("rejected", rejected)):
        if shared == len(turns):
            other = "are the same" if len(chosen) == len(rejected) else f"differ only in that {side} ends earlier"
            raise Unfit(
                "same_answers", "rejected", f"chosen and rejected {other} ({shown(turns[-1].content)}), so nothing is better; leave the row out"
            )
    if chosen[shared].role not in ("assistant", "completion") or chosen[shared].role != rejected[shared].role:
        asked = f"{shown(chosen[shared].content)} and {shown(rejected[shared].content)}"
        raise Unfit("different_prompts", "rejected", f"answers another prompt than chosen ({asked}); pair answers to the same prompt")
    for side, turns in (("chosen", chosen), ("rejected", rejected)):
        if shared != len(turns) - 1:
            problem = f"goes on for {len(turns) - shared} turns after what both share; pair single answers to one prompt"
            raise Unfit("answers_of_several_turns", side, problem)
