"""Semantic duplicates: rows that say the same in other words."""

import re
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from luthier.data.quality.check import WORST, Concern, Finding, Given
from luthier.data.quality.vectors import vectors
from luthier.data.quality.words import of_rows, question
from luthier.records import Conversation

_FIGURE = re.compile(r"\d+")
_ROWS, _COLUMNS = 512, 16384  # of one matrix product: 32 MB

Vectors = NDArray[np.float32]


def semantic_duplicates(rows: Iterable[Conversation], given: Given) -> Finding:
    """Rows whose question and whose answer mean what those of an earlier row mean, and that hold the same figures."""
    sources, questions, answers, figures = [], [], [], []
    for row in rows:
        sources.append(row.source)
        questions.append(question(row))
        answers.append(row.answer)
        figures.append(hash((row.label, *sorted(_FIGURE.findall(f"{questions[-1]} {row.answer}")))))
    threshold = given.settings.semantic_duplicate_threshold
    twins = _twins(vectors(questions), vectors(answers), np.array(figures, np.int64), threshold) if sources else {}
    alikest = sorted(twins.items(), key=lambda twin: (-twin[1][1], twin[0]))[:WORST]
    return Finding(
        "semantic_duplicates",
        "look" if twins else "good",
        f"{of_rows(len(twins), len(sources))} say in other words what an earlier one says",
        of=len(sources),
        places=sorted(twins),
        worst=[Concern(sources[place], f"alike in meaning by {like:.2f} of 1", sources[first]) for place, (first, like) in alikest],
        cure="read some; luthier data clean FILE keeps the first of each; checks.semantic_duplicate_threshold says how alike" if twins else "",
        numbers={"similarities": [round(like, 3) for _, like in twins.values()][:10_000]},
    )


def _twins(questions: Vectors, answers: Vectors, figures: NDArray[np.int64], threshold: float) -> dict[int, tuple[int, float]]:
    """Of each row that repeats one that stays: that row, and the smaller of both cosines."""
    twins: dict[int, tuple[int, float]] = {}
    kept = np.zeros(0, np.int64)

    def likeness(here: NDArray[np.int64], there: NDArray[np.int64]) -> Vectors:
        alike: Vectors = np.minimum(questions[here] @ questions[there].T, answers[here] @ answers[there].T)
        alike[figures[here, None] != figures[None, there]] = -1
        return alike

    for start in range(0, len(figures), _ROWS):
        block = np.arange(start, min(start + _ROWS, len(figures)))
        for column in range(0, len(kept), _COLUMNS):
            before = kept[column : column + _COLUMNS]
            alike = likeness(block, before)
            for number in np.flatnonzero(alike.max(axis=1) >= threshold):
                nearest = int(alike[number].argmax())
                twins.setdefault(int(block[number]), (int(before[nearest]), float(alike[number, nearest])))
        inside = likeness(block, block)
        for number in np.flatnonzero((np.tril(inside, -1) >= threshold).any(axis=1)):
            earlier = [other for other in range(number) if inside[number, other] >= threshold and int(block[other]) not in twins]
            if earlier:
                twins.setdefault(int(block[number]), (int(block[earlier[0]]), float(inside[number, earlier[0]])))
        kept = np.concatenate([kept, [place for place in block if int(place) not in twins]]).astype(np.int64)
    return twins
