"""Finding by words: BM25 through the package bm25s, as files that are mapped into memory."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luthier.errors import LuthierError

# Chinese and Japanese letters stand for words by themselves; elsewhere a word is a run of letters and digits.
_CJK = "\u3040-\u30ff\u3400-\u9fff"
WORD = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+")


def words_of(text: str) -> list[str]:
    """The words of a text, in lower case. No language's rules: what is said everywhere weighs little in BM25 by itself."""
    return WORD.findall(text.casefold())


class Words:
    """BM25 scores of passages (Robertson 1994, with Lucene's idf): k1 1.5, b 0.75."""

    def __init__(self, bm25: Any) -> None:
        self._bm25 = bm25
        self._rows = int(bm25.scores["num_docs"])
        self._begins: NDArray[Any] = bm25.scores["indptr"]

    def scores(self, question: str) -> NDArray[np.float32]:
        """A score for each passage, `passages`; 0 where none of the question's words stands in it."""
        known = [word for word in words_of(question) if word in self._bm25.vocab_dict]
        if not known:
            return np.zeros(self._rows, np.float32)
        found: NDArray[np.float32] = self._bm25.get_scores(known)
        return found

    def weight(self, word: str) -> float:
        """How much a word tells passages apart: log(1 + (N - n + 0.5) / (n + 0.5)), of the n among N passages that hold it."""
        number = self._bm25.vocab_dict.get(word)
        holding = 0 if number is None else int(self._begins[number + 1] - self._begins[number])
        return float(np.log1p((self._rows - holding + 0.5) / (holding + 0.5)))


def write_words(texts: Iterable[str], folder: Path) -> None:
    """Count the words of passages and write what `open_words` reads."""
    bm25 = _library().BM25()
    counted: Sequence[list[str]] = [words_of(text) or [""] for text in texts]
    bm25.index(list(counted), show_progress=False)
    bm25.save(folder, show_progress=False)


def open_words(folder: Path) -> Words:
    """What `write_words` wrote; nothing of it is read before it is needed but the words themselves."""
    return Words(_library().BM25.load(folder, mmap=True, load_corpus=False))


def _library() -> Any:
    try:
        import bm25s
    except ImportError as error:
        raise LuthierError("needs the package bm25s", where="luthier rag", next_step='pip install "luthier[rag]"') from error
    return bm25s
