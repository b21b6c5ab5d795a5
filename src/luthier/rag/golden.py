"""Which passages hold the answer to a question: as its row says, or by the answer's own words."""

import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from luthier.rag.finding import Finder
from luthier.rag.index import Index
from luthier.rag.support import support
from luthier.rag.words import words_of

# Columns that name the passage or document, or hold its text.
NAMED = ("source", "document", "gold", "passage", "context")
SPAN = re.compile(r"(?P<name>.+):(?P<first>\d+)(?:-(?P<last>\d+))?$")
# So much of the answer at least stands in a passage that is found to be about it.
LEAST_SUPPORT = 0.75
LOOKED_AT = 20


def golden(row: Mapping[str, Any], question: str, answer: str, finder: Finder) -> list[int]:
    """The rows of the index that answer a question: those its row names (a place such as docs/a.md:10-20, a document, or the passage's text;
    `data synth` writes provenance.from), else the one found that supports the answer best. None where there is none."""
    provenance = row.get("provenance")
    named = provenance.get("from") if isinstance(provenance, Mapping) else None
    for told in [*(named if isinstance(named, list) else []), *(row.get(column) for column in NAMED)]:
        if isinstance(told, str) and told.strip() and (found := _at(told.strip(), finder.index)):
            return _best_first(found, answer, finder.index)
    return _by_answer(question, answer, finder)


def _best_first(rows: list[int], answer: str, index: Index) -> list[int]:
    """The passage first that says most of the answer."""
    scores = {
        row: support(answer, [passage.whole], "", words_of, index.words.weight) for row, passage in zip(rows, index.passages(rows), strict=True)
    }
    return sorted(rows, key=lambda row: (-scores[row], row))


def _at(told: str, index: Index) -> list[int]:
    """The passages at a place, of a document, or with a text."""
    if "\n" not in told and (found := _at_place(told, index)):
        return found
    if len(words_of(told)) < 4:
        return []
    texts = index.words.scores(told)
    best = int(texts.argmax())
    [passage] = index.passages([best])
    plain, other = " ".join(words_of(told)), " ".join(words_of(passage.text))
    return [best] if plain in other or other in plain else []


def _at_place(told: str, index: Index) -> list[int]:
    span = SPAN.fullmatch(told)
    name = span["name"] if span else told
    documents = [one.name for one in index.facts.documents if _same(one.name, name)]
    if len(documents) != 1:
        return []
    rows = index.rows_of(documents[0])
    if span is None:
        return list(rows)
    first, last = int(span["first"]), int(span["last"] or span["first"])
    firsts, lasts = (index.table.column(name).slice(rows.start, len(rows)).to_numpy() for name in ("first", "last"))
    return [rows.start + int(place) for place in ((firsts <= last) & (lasts >= first)).nonzero()[0]]


def _same(document: str, told: str) -> bool:
    """Whether two names end alike: docs/a.md is told of as a.md, or by its whole path."""
    one, other = PurePath(document).parts, PurePath(told).parts
    shorter = min(len(one), len(other))
    return one[-shorter:] == other[-shorter:]


def _by_answer(question: str, answer: str, finder: Finder) -> list[int]:
    found = finder.find(f"{question} {answer}", LOOKED_AT).found
    scores = [support(answer, [one.passage.whole], "", words_of, finder.index.words.weight) for one in found]
    if not scores or max(scores) < LEAST_SUPPORT:
        return []
    return [found[scores.index(max(scores))].row]
