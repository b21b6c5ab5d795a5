"""Rows that are about something else than the evaluation rows, or than what the settings say the rows are about."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from luthier.data.quality.check import WORST, Concern, Finding, Given
from luthier.data.quality.limits import not_run
from luthier.data.quality.vectors import vectors
from luthier.data.quality.words import of_rows, question
from luthier.records import Conversation

_NEAREST = 3  # a row belongs to the domain if it is like a few reference rows, not like their mean: domains have many subjects
_MOST_REFERENCES = 2000
_SURE_SHARE = 5  # with a description only, the fifth of the rows that is nearest to it stands for the domain
_BLOCK = 4096


def off_domain(rows: Iterable[Conversation], given: Given) -> Finding:
    """Rows unlike the evaluation rows (cosine of static word vectors; mean of the three nearest), or unlike the description's nearest rows."""
    sources, texts = [], []
    for row in rows:
        sources.append(row.source)
        texts.append(_subject(row))
    description = given.settings.domain_description
    if not (given.held_out or description) or not texts:
        return not_run("off_domain", "there are no evaluation rows and no checks.domain_description to compare with")
    placed = vectors(texts)
    scores = _scores(placed, _references(placed, given))
    worded = np.abs(placed).max(axis=1) > 0
    places = np.flatnonzero((scores < given.settings.domain_similarity) & worded)
    return Finding(
        "off_domain",
        "look" if len(places) else "good",
        f"{of_rows(len(places), len(sources))} are about something else than {'the description' if description else 'the evaluation rows'}",
        of=len(sources),
        places=places.tolist(),
        worst=[Concern(sources[place], f"alike by {scores[place]:.2f} of 1") for place in places[np.argsort(scores[places], kind="stable")][:WORST]],
        cure="take them out if the model should know its field only; some general rows (5-10 %) keep what it knew" if len(places) else "",
        numbers={"scores": np.percentile(scores, [1, 5, 25, 50, 75, 95]).round(3).tolist()},
    )


def _subject(row: Conversation) -> str:
    return f"{question(row)} {row.answer}" if row.prompt else row.answer


def _references(placed: NDArray[np.float32], given: Given) -> NDArray[np.float32]:
    if given.settings.domain_description:
        told = vectors([given.settings.domain_description])
        nearest = np.argsort(-(placed @ told[0]), kind="stable")[: max(_NEAREST, min(len(placed) // _SURE_SHARE, _MOST_REFERENCES))]
        return placed[nearest]
    every = max(1, -(-len(given.held_out) // _MOST_REFERENCES))
    return vectors([_subject(row) for row in given.held_out[::every]])


def _scores(placed: NDArray[np.float32], references: NDArray[np.float32]) -> NDArray[np.float32]:
    """The mean cosine with the nearest reference rows; a reference row that is the row itself does not count."""
    scores = np.empty(len(placed), np.float32)
    for start in range(0, len(placed), _BLOCK):
        alike = placed[start : start + _BLOCK] @ references.T
        alike[alike > 0.9999] = -1
        nearest = np.partition(alike, -min(_NEAREST, alike.shape[1]), axis=1)[:, -_NEAREST:]
        scores[start : start + _BLOCK] = np.where(nearest > -1, nearest, 0).sum(axis=1) / np.maximum((nearest > -1).sum(axis=1), 1)
    return scores
