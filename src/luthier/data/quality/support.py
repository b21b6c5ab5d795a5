"""Answers that say more than the text they were given: figures and names that it does not hold."""

import calendar
import re
from functools import cache

from luthier.data.quality.check import Finding, Given, Look, Note, Noted
from luthier.data.quality.parts import without_code
from luthier.data.quality.words import of_rows
from luthier.records import Conversation

_CONTEXT_WORDS = 25  # a paragraph of fewer words is an instruction, and no text that the answer should keep to
_FIGURE = re.compile(r"(?<![^\W_])\d+(?:[.,]\d+)*")  # the 2 of SO2 is no figure
_LISTED = re.compile(r"^\s*\d+[.)]\s", re.MULTILINE)
# A capital after a small letter, a comma or a figure: the beginning of a sentence says nothing about a name.
_NAME = re.compile(r"(?<=[^\W\d_A-Z][ ,;] )[A-Z][\w'-]{2,}|(?<=[^\W\d_A-Z,;] )[A-Z][\w'-]{2,}|(?<=[a-z,;]\s)[A-Z][\w'-]{2,}")
_NUMBER_WORDS = {
    "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8", "nine": "9",
    "ten": "10", "eleven": "11", "twelve": "12", "thirteen": "13", "fourteen": "14", "fifteen": "15", "sixteen": "16", "seventeen": "17",
    "eighteen": "18", "nineteen": "19", "twenty": "20", "thirty": "30", "forty": "40", "fifty": "50", "sixty": "60", "seventy": "70",
    "eighty": "80", "ninety": "90", "hundred": "100", "dozen": "12",
}  # fmt: skip
_WORD = re.compile(r"[^\W\d_]+")
_STEM = 4  # letters that German and Germany, or Paris and Parisian, have in common
_CALENDAR = frozenset(name.casefold() for name in (*calendar.day_name, *calendar.month_name))
# A task that asks for more than the text holds: its answer may bring anything.
_FREE = re.compile(
    r"\b(?:translate|write|compose|imagine|story|poem|brainstorm|calculate|compute|how (?:many|much)|solve|total|sum|average|convert"
    r"|difference|explain|suggest|recommend|continue|create|generate|add|complete|edit|rewrite|rephrase|classify|analy[sz]e|evaluate|claim"
    r"|true or false|design|develop|provide|longest|shortest|count|number of)\b",
    re.IGNORECASE,
)


def start_unsupported(given: Given) -> Look | str:
    """Looks for figures and names of an answer that its prompt, where it holds a text, does not hold."""
    return _look


def _look(row: Conversation) -> Note | None:
    asked = row.prompt[-1].content if row.prompt else ""
    instruction, text = _parted(asked)
    answer = _LISTED.sub("", without_code(row.answer))
    # An answer that is longer than the text brings more than the text by design.
    if not instruction or not text or _FREE.search(instruction) or len(answer.split()) > len(text.split()):
        return None
    prompt = "\n".join(turn.content for turn in row.prompt)
    known, written = _words(prompt), _figures(prompt)
    figures = [figure for figure in _FIGURE.findall(answer) if _plain(figure) not in written]
    names = [name for name in _NAME.findall(answer) if not name.startswith("I'") and not _is_known(name.casefold().removesuffix("'s"), known)]
    if figures or names:
        shown = ", ".join(dict.fromkeys([*figures, *names]))
        return Note(f"not in the text it was given: {shown[:80]}", float(len(figures) + len(names)))
    return None


def _parted(asked: str) -> tuple[str, str]:
    """The short paragraphs of a question, which are the instruction, and the long ones, which are the text beside it."""
    short: list[str] = []
    long: list[str] = []
    for line in asked.splitlines():
        (long if len(line.split()) >= _CONTEXT_WORDS else short).append(line)
    return "\n".join(short).strip(), "\n".join(long)


def _words(text: str) -> frozenset[str]:
    return frozenset(_WORD.findall(text.casefold()))


def _figures(text: str) -> frozenset[str]:
    written = {_NUMBER_WORDS[word] for word in _words(text) if word in _NUMBER_WORDS}
    return frozenset({_plain(figure) for figure in _FIGURE.findall(text)} | written)


@cache
def _plain(figure: str) -> str:
    """1,200 and 1200 are one figure, and so are 3.50 and 3.5."""
    plain = figure.replace(",", "")
    return plain.rstrip("0").rstrip(".") if "." in plain else plain.lstrip("0") or "0"


def _is_known(name: str, known: frozenset[str]) -> bool:
    parts = _WORD.findall(name)
    return all(part in known or part in _CALENDAR or any(word[:_STEM] == part[:_STEM] for word in known) for part in parts)


def conclude_unsupported(noted: Noted, given: Given) -> Finding:
    found = len(noted.notes)
    return Finding(
        "unsupported",
        "look" if found else "good",
        f"{of_rows(found, len(noted.rows))} answer with figures or names that their text does not hold",
        of=len(noted.rows),
        places=[place for place, _ in noted.notes],
        worst=noted.worst(),
        cure="read them: a model learns to make things up from answers that do" if found else "",
    )
