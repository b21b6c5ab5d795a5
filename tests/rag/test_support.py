"""The estimator of faithfulness tells planted supported answers from unsupported ones, on real text: this project's own guides."""

import random
import re
from pathlib import Path

import pytest

from luthier.rag.documents import markdown_parts
from luthier.rag.splitting import Split, passages_of
from luthier.rag.support import SUPPORTED, auc, support
from luthier.rag.words import Words, open_words, words_of, write_words

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def passages() -> list[str]:
    found = []
    for path in sorted(DOCS.glob("*.md")):
        for part in markdown_parts(path.read_text(encoding="utf-8")):
            found += [one.text for one in passages_of(path.name, part, Split(800, 0)) if len(one.text) > 300]
    return found


@pytest.fixture(scope="module")
def words(passages: list[str], tmp_path_factory: pytest.TempPathFactory) -> Words:
    folder = tmp_path_factory.mktemp("words")
    write_words(passages, folder)
    return open_words(folder)


def sentence_of(passage: str, draw: random.Random) -> list[str]:
    sentences = [one.split() for one in re.split(r"(?<=[.!?])\s+", passage) if 8 <= len(one.split()) <= 40]
    return draw.choice(sentences) if sentences else []


def reworded(sentence: list[str], draw: random.Random) -> str:
    """What a model makes of a sentence: another order, a fifth of the words left out, some of its own."""
    kept = [word for word in sentence if draw.random() > 0.2]
    half = len(kept) // 2
    return " ".join(["In short,", *kept[half:], "and", *kept[:half], "as the documents say."])


def planted(kind: str, sentence: list[str], other: list[str], draw: random.Random) -> str:
    match kind:
        case "of another passage":
            return reworded(other, draw)
        case "half of it swapped":
            swapped = [draw.choice(other) if draw.random() < 0.5 else word for word in sentence]
            return reworded(swapped, draw)
        case _:  # a number of its own
            return reworded([*sentence, f"that is {draw.randrange(10_000, 99_999)}"], draw)


KINDS = ("of another passage", "half of it swapped", "a number of its own")


def scores(passages: list[str], words: Words, kind: str) -> tuple[list[float], list[float]]:
    draw = random.Random(3)
    supported, unsupported = [], []
    while len(unsupported) < 150:
        gold, far, beside = draw.sample(passages, 3)
        sentence, other = sentence_of(gold, draw), sentence_of(far, draw)
        if sentence and other:
            for answer, into in ((reworded(sentence, draw), supported), (planted(kind, sentence, other, draw), unsupported)):
                into.append(support(answer, [gold, beside], "What do the documents say?", words_of, words.weight))
    return supported, unsupported


@pytest.mark.parametrize("kind", KINDS)
def test_supported_answers_score_above_unsupported_ones(kind: str, passages: list[str], words: Words) -> None:
    supported, unsupported = scores(passages, words, kind)
    assert auc(supported, unsupported) >= 0.8
    assert sum(score >= SUPPORTED for score in supported) >= 0.8 * len(supported)
    assert sum(score < SUPPORTED for score in unsupported) >= 0.6 * len(unsupported)


def test_repeating_the_question_or_saying_nothing_is_no_support(words: Words) -> None:
    passage = ["A run is resumed from its newest checkpoint."]
    assert support("How is a run resumed?", passage, "How is a run resumed?", words_of, words.weight) == 0
    assert support("", passage, "How?", words_of, words.weight) == 0
    assert support("From its newest checkpoint.", passage, "How?", words_of, words.weight) == 1


def test_the_area_under_the_curve_counts_ties_half() -> None:
    assert auc([1.0, 0.5], [0.5, 0.0]) == pytest.approx(0.875)
    assert auc([0.5], [0.5]) == 0.5
