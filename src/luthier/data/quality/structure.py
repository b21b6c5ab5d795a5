"""Answers to one task that are not all built alike: prose among JSON, a list among sentences, a key that only one answer has."""

import json
import re
from collections import Counter
from collections.abc import Iterable

from luthier.data.quality.check import WORST, Concern, Finding, Given
from luthier.data.quality.words import of_rows, words
from luthier.records import Conversation

_TASK_WORDS = 4  # rows whose system message and first words of the question agree give the same task
_FEWEST = 20  # rows of a task, below which nothing is usual
_USUAL = 0.7  # share of a task's answers that are built alike, from which on the others are odd
_LIST_LINE = re.compile(r"\s*(?:[-*•]|\d+[.)])\s+\S")
_SHORT_WORDS = 4

Built = tuple[str, frozenset[str]]  # the structure of an answer, and the keys where it is a JSON object


def mixed_structure(rows: Iterable[Conversation], given: Given) -> Finding:
    """Answers whose structure, or whose JSON keys, differ from nearly all other answers to the same task."""
    sources = []
    tasks: dict[int, list[tuple[int, Built]]] = {}
    for place, row in enumerate(rows):
        sources.append(row.source)
        if row.prompt:
            tasks.setdefault(_task(row), []).append((place, _built(row.answer)))
    odd: dict[int, str] = {}
    for answers in tasks.values():
        if len(answers) >= _FEWEST:
            odd.update(_odd_structures(answers))
            odd.update(_odd_keys([(place, keys) for place, (kind, keys) in answers if kind == "a JSON object"], given.settings.structure_rare))
    kinds = Counter(kind for answers in tasks.values() for _, (kind, _) in answers)
    return Finding(
        "mixed_structure",
        "look" if odd else "good",
        f"{of_rows(len(odd), len(sources))} are built differently from the other answers to their task",
        of=len(sources),
        places=sorted(odd),
        worst=[Concern(sources[place], odd[place]) for place in sorted(odd)[:WORST]],
        cure="write them like the others, or take them out: a model learns both ways and mixes them" if odd else "",
        numbers={"structures": dict(kinds.most_common())},
    )


def _task(row: Conversation) -> int:
    system = [turn.content for turn in row.prompt if turn.role == "system"]
    asked = next((turn.content for turn in row.prompt if turn.role != "system"), "")
    return hash((*system, *words(asked[:200])[:_TASK_WORDS]))


def _built(answer: str) -> Built:
    text = answer.strip()
    if text[:1] in {"{", "["}:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = None
        if value is not None:
            return ("a JSON object", frozenset(value)) if isinstance(value, dict) else ("a JSON array", frozenset())
    if text.startswith("```"):
        return "a code block", frozenset()
    lines = [line for line in text.splitlines() if line.strip()]
    listed = sum(1 for line in lines if _LIST_LINE.match(line))
    if listed >= 2 and 2 * listed >= len(lines):
        return "a list", frozenset()
    return ("a few words" if len(text) <= 60 and len(text.split()) <= _SHORT_WORDS else "prose"), frozenset()


def _odd_structures(answers: list[tuple[int, Built]]) -> dict[int, str]:
    counts = Counter(kind for _, (kind, _) in answers)
    usual, times = counts.most_common(1)[0]
    if times < _USUAL * len(answers):
        return {}
    # A short sentence and a few words are one way to answer; only what a reader would parse is another.
    loose = {"prose", "a few words"}
    return {
        place: f"{kind}, where {times:,} of {len(answers):,} answers to this task are {usual}"
        for place, (kind, _) in answers
        if kind != usual and not {kind, usual} <= loose
    }


def _odd_keys(answers: list[tuple[int, frozenset[str]]], rare: float) -> dict[int, str]:
    """Objects with a key that hardly any other has, or without one that nearly all have. Keys in between are optional."""
    if len(answers) < _FEWEST:
        return {}
    counts = Counter(key for _, keys in answers for key in keys)
    few = max(1, int(rare * len(answers)))
    odd = {}
    for place, keys in answers:
        extra = sorted(key for key in keys if counts[key] <= few)
        missing = sorted(key for key, times in counts.items() if key not in keys and len(answers) - times <= few)
        if extra or missing:
            parts = [f"the key {key!r} is in {counts[key]} of {len(answers):,}" for key in (*extra, *missing)]
            odd[place] = "; ".join(parts[:3]) + (" and missing here" if missing and not extra else "")
    return odd
