"""Finding passages: by words and by meaning, merged by rank, and how sure it is that they have to do with the question."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from luthier.rag.embedding import Embedder, embedder_of
from luthier.rag.index import Index
from luthier.rag.passage import Passage
from luthier.rag.vectors import Matrix, best
from luthier.rag.words import words_of
from luthier.reporting import Reporter

# Passages that each way may bring; more change nothing of the first ten.
DEPTH = 100
# Reciprocal rank fusion (Cormack 2009, SIGIR). Its constant is 60 there; 10 was at least as good as either way alone (docs/rag.md).
RRF = 10
# What a cross-encoder reads again.
RERANKED = 30
# Below this fit nothing of the documents has to do with the question (docs/rag.md says how it was measured).
LEAST_SCORE = 0.4
# Of so many passages the best fit counts.
JUDGED = 3

Rerank = Callable[[str, Sequence[str]], list[float]]
Ways = tuple[str, ...]
BOTH: Ways = ("words", "meaning")


@dataclass(frozen=True, slots=True)
class Found:
    """A passage that was found: its row in the index and what it scored in the merged ranking."""

    row: int
    passage: Passage
    score: float


@dataclass(frozen=True, slots=True)
class Retrieved:
    """Passages, best first. `fit`, 0 to 1, of the one that fits best: half the share of the question's words that stand in it (rarer ones
    weigh more), half the cosine of both vectors."""

    found: list[Found]
    fit: float

    def fits(self, least_score: float = LEAST_SCORE) -> bool:
        """Whether any of it has to do with the question."""
        return bool(self.found) and self.fit >= least_score


class Finder:
    """An index with its embedder, ready for questions."""

    def __init__(self, index: Index, embedder: Embedder, rerank: Rerank | None = None) -> None:
        index.check_embedder(embedder)
        self.index, self.embedder, self._rerank = index, embedder, rerank

    def find(self, question: str, most: int, *, without: Collection[int] = (), ways: Ways = BOTH) -> Retrieved:
        """The `most` best passages, none of the rows `without`."""
        [vector] = self.embedder.questions([question])
        rows, scores = self._merged(question, vector, max(DEPTH, most), without, ways)
        if self._rerank is not None and len(rows):
            rows, scores = self._again(question, rows[:RERANKED])
        rows, scores = rows[:most], scores[:most]
        passages = self.index.passages(rows.tolist())
        found = [Found(int(row), passage, float(score)) for row, passage, score in zip(rows, passages, scores, strict=True)]
        return Retrieved(found, self._fit(question, vector, found[:JUDGED]))

    def _merged(
        self, question: str, vector: Matrix, most: int, without: Collection[int], ways: Ways
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Rows and scores of reciprocal rank fusion: the sum of 1 / (RRF + rank) over the ways that found a passage."""
        banned = np.array(sorted(without), np.int64)
        found: dict[int, float] = {}
        for way in ways:
            rows = self._by_words(question, most, banned) if way == "words" else self._by_meaning(vector, most, banned)
            for rank, row in enumerate(rows.tolist(), start=1):
                found[row] = found.get(row, 0.0) + 1 / (RRF + rank)
        ordered = sorted(found, key=lambda row: (-found[row], row))
        return np.array(ordered, np.int64), np.array([found[row] for row in ordered], np.float32)

    def _by_words(self, question: str, most: int, banned: NDArray[np.int64]) -> NDArray[np.int64]:
        scores = np.array(self.index.words.scores(question))
        scores[banned] = 0
        return best(scores, most)

    def _by_meaning(self, vector: Matrix, most: int, banned: NDArray[np.int64]) -> NDArray[np.int64]:
        rows, _ = self.index.vectors.nearest(vector, most + len(banned))
        return rows[~np.isin(rows, banned)][:most] if len(banned) else rows

    def _again(self, question: str, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        assert self._rerank is not None
        scores = np.asarray(self._rerank(question, [passage.whole for passage in self.index.passages(rows.tolist())]), np.float32)
        order = np.argsort(-scores, kind="stable")
        return rows[order], scores[order]

    def _fit(self, question: str, vector: Matrix, found: Sequence[Found]) -> float:
        asked = set(words_of(question))
        weights = {word: self.index.words.weight(word) for word in asked}
        whole = sum(weights.values()) or 1.0
        fits = [0.0]
        for one in found:
            share = sum(weights[word] for word in asked & set(words_of(one.passage.whole))) / whole
            cosine = float(self.index.vectors.rows(one.row, one.row + 1)[0] @ vector)
            fits.append((share + max(0.0, cosine)) / 2)
        return max(fits)


def open_finder(index: Index, reporter: Reporter | None = None, embedder: str | None = None, reranker: str | None = None) -> Finder:
    """A finder with the embedder that the index was made with (or the one named, which must be the same), and a cross-encoder where one is named."""
    rerank: Rerank | None = None
    if reranker:
        from luthier.models import encoders, find
        from luthier.reporting import Silent

        rerank = encoders.load_cross_encoder(find.find_encoder(reranker, reporter or Silent())).scores
    return Finder(index, embedder_of(embedder or index.facts.embedder, reporter), rerank)
