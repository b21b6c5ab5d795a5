"""How the rows are spread over classes, over ways to ask, and how many there are."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from luthier.data.quality.check import WORST, Concern, Finding, Given
from luthier.data.quality.limits import not_run, percent
from luthier.data.quality.vectors import are_there, vectors
from luthier.data.quality.words import of_rows, question, words
from luthier.records import Conversation

_MOST_CLASSES = 50
_ROWS_A_CLASS = 10  # answers are classes where there are at least this many rows for each distinct one
_LONGEST_CLASS = 60  # characters


@dataclass(frozen=True, slots=True)
class Purpose:
    """How many rows a fine-tune for one purpose needs: fewer than `least` rarely work; more than `enough` rarely help."""

    what: str
    least: int
    usual: int
    enough: int


PURPOSES = {
    # purpose    what                        least   usual   enough
    "style":   Purpose("a style",              100,    500,   1_000),
    "task":    Purpose("one task",             500,  2_000,  10_000),
    "domain":  Purpose("a domain",           1_000, 10_000,  50_000),
    "general": Purpose("general use",       10_000, 50_000, 100_000),
}  # fmt: skip


def balance(rows: Iterable[Conversation], given: Given) -> Finding:
    """How many rows each class has: the category column where there is one, else the answers where they are few."""
    sources, categories, answers = [], [], []
    for row in rows:
        sources.append(row.source)
        categories.append(row.category.strip() if row.category else "" if row.label is None else str(row.label).lower())
        answers.append(" ".join(row.answer.casefold().split()) if row.prompt and len(row.answer) <= _LONGEST_CLASS else "")
    classes, kind = (categories, "categories") if any(categories) else (answers, "answers")
    counts = Counter(classes)
    few = all(answers) and len(counts) <= min(_MOST_CLASSES, len(answers) // _ROWS_A_CLASS)
    if len(counts) < 2 or (kind == "answers" and not few):
        return not_run("balance", "the rows have no classes: there is no category column, and the answers are many")
    even = len(sources) / len(counts)
    small = {name for name, count in counts.items() if count < given.settings.balance_smallest * even}
    places = [place for place, name in enumerate(classes) if name in small]
    shares = np.array(list(counts.values())) / len(sources)
    entropy = float(-(shares * np.log(shares)).sum() / np.log(len(counts)))
    least, least_count = min(counts.items(), key=lambda item: item[1])
    return Finding(
        "balance",
        "look" if small else "good",
        f"{len(counts)} {kind}; the smallest ({least or 'none'}) has {of_rows(least_count, len(sources))}; {len(small)} are small",
        of=len(sources),
        places=places,
        worst=[Concern(sources[place], f"{classes[place] or 'no class'}: {counts[classes[place]]} rows") for place in places[:WORST]],
        cure="add rows of the small classes, or read their scores by themselves: accuracy over all rows hides them" if small else "",
        numbers={"counts": dict(counts.most_common(_MOST_CLASSES)), "entropy": round(entropy, 4), "smallest": least_count},
        removable=False,  # taking out the small classes would make it worse
    )


_SAMPLED = 5_000
_FEWEST = 50
_OPENING = 3  # words; rows that all open with the same ones are one task
_ONE_TASK = 0.9


def diversity(rows: Iterable[Conversation], given: Given) -> Finding:
    """How many ways there are to ask: the first words of the questions, distinct word pairs, and the spread of their vectors."""
    sources, firsts = [], []
    tasks: Counter[tuple[str, ...]] = Counter()
    asked = []
    for row in rows:
        text = question(row)
        found = words(text[:200])
        sources.append(row.source)
        firsts.append(found[0] if found else "")
        tasks[tuple(found[:_OPENING])] += 1
        asked.append(text[:200])
    of = len(sources)
    if of < _FEWEST:
        return not_run("diversity", f"{of} rows are too few to say ({_FEWEST} are needed)")
    counts = Counter(firsts)
    shares = np.array(list(counts.values())) / of
    openings = float(np.exp(-(shares * np.log(shares)).sum()))
    commonest, times = counts.most_common(1)[0]
    one_task = tasks.most_common(1)[0][1] >= _ONE_TASK * of
    narrow = openings < given.settings.diversity_openings and not one_task
    sampled = asked[:: -(-of // _SAMPLED)]
    return Finding(
        "diversity",
        "look" if narrow else "good",
        f"questions open with {len(counts):,} words, as varied as {openings:.1f} even ones ({commonest!r} opens {percent(times, of)})"
        + ("; nearly all begin alike, as the rows of one task do" if one_task else ""),
        of=of,
        places=[place for place, first in enumerate(firsts) if first == commonest] if narrow else [],
        worst=[Concern(sources[place], f"opens with {commonest!r}, as {times:,} rows do") for place in _places(firsts, commonest)] if narrow else [],
        cure="right for a narrow task; for an assistant, ask in more ways (luthier data synth, luthier data mix)" if narrow else "",
        numbers={"openings": round(openings, 2), "commonest": dict(counts.most_common(20)), **_variety(sampled)},
        removable=False,
    )


def _places(firsts: list[str], first: str) -> list[int]:
    return [place for place, found in enumerate(firsts) if found == first][:WORST]


def _variety(asked: list[str]) -> dict[str, float]:
    """The share of word pairs that are distinct (distinct-2: Li 2016, arXiv:1510.03055), and 1 - the mean cosine of two questions."""
    pairs = [pair for text in asked if (found := words(text)) for pair in pairwise(found)]
    variety = {"distinct_2": round(len(set(pairs)) / max(len(pairs), 1), 4)}
    if are_there():
        mean = vectors(asked).mean(axis=0)
        variety["spread"] = round(1 - float(mean @ mean), 4)
    return variety


def size(rows: Iterable[Conversation], given: Given) -> Finding:
    """Whether there are enough rows for what they should teach (checks.purpose; without it, where the number stands for each purpose)."""
    of = texts = 0
    for row in rows:
        of, texts = of + 1, texts + (row.turns[0].role == "text")
    if texts == of > 0:
        return not_run("size", "plain texts are counted in tokens, not in rows")
    numbers = {name: {"least": purpose.least, "usual": purpose.usual, "enough": purpose.enough} for name, purpose in PURPOSES.items()}
    wanted = given.settings.purpose
    if wanted:
        said, short = f"{of:,} rows: {_standing(of, PURPOSES[wanted])}", of < PURPOSES[wanted].least
    else:
        said, short = f"{of:,} rows: " + "; ".join(_standing(of, purpose) for purpose in PURPOSES.values()), of < PURPOSES["style"].least
    return Finding(
        "size", "look" if short else "good", said, of=of, cure="add rows: luthier data synth makes some from yours" if short else "", numbers=numbers
    )


def _standing(rows: int, purpose: Purpose) -> str:
    if rows < purpose.least:
        return f"too few for {purpose.what} (from {purpose.least:,})"
    if rows < purpose.usual:
        return f"a start for {purpose.what} (usual: {purpose.usual:,}-{purpose.enough:,})"
    return f"right for {purpose.what}" if rows <= purpose.enough else f"plenty for {purpose.what} (more than {purpose.enough:,} rarely help)"
