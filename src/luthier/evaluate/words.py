"""Answers that are words: how far they are those that were expected, and what can be seen of them alone."""

import re
import string
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import regex

from luthier.data.quality.refusals import BOILERPLATE, OPENING
from luthier.errors import ConfigError

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)
LONGEST_SEARCH_S = 1.0
# Runs of so many words count as repeated.
REPEATED_WORDS = 4


def normalized(text: str) -> str:
    """SQuAD's normalization (Rajpurkar 2016, arXiv:1606.05250): lower case, no punctuation, no articles, single spaces."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def squad_em(expected: str, answer: str) -> float:
    """1 where both are the same once normalized as SQuAD does."""
    return float(normalized(expected) == normalized(answer))


def squad_f1(expected: str, answer: str) -> float:
    """SQuAD's F1: words in common, 2 * precision * recall / (precision + recall), of the normalized texts; two empty ones agree."""
    wanted, given = normalized(expected).split(), normalized(answer).split()
    if not wanted or not given:
        return float(wanted == given)
    common = sum((Counter(wanted) & Counter(given)).values())
    return 2 * common / (len(wanted) + len(given))


def label(text: str) -> str:
    """A label as it is compared: its case, the space around it and a last full stop do not count."""
    return " ".join(text.split()).rstrip(".").casefold()


def accuracy(expected: str, answer: str) -> float:
    """1 where the answer is the expected label."""
    return float(label(expected) == label(answer))


def rouge(kind: str) -> Callable[[str, str], float]:
    """F of ROUGE (Lin 2004) as rouge-score counts it, with stemming; `kind` is rouge1, rouge2 or rougeL."""

    def score(expected: str, answer: str) -> float:
        return float(_scorer(kind).score(expected, answer)[kind].fmeasure)

    return score


@cache
def _scorer(kind: str) -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise ConfigError("rouge-score is not installed", where=kind, next_step='pip install "luthier[eval]"') from error
    return RougeScorer([kind], use_stemmer=True)


def matches_expected(expected: str, answer: str) -> float:
    """1 where the expected answer, a regular expression, is found in the answer, within a second."""
    return _found(_pattern(expected), answer)


def matches(pattern: str, beside: Path) -> Callable[[str, str], float]:
    """1 where this regular expression is found in the answer, within a second, whatever was expected."""
    compiled = _pattern(pattern)
    return lambda expected, answer: _found(compiled, answer)


def _found(pattern: Any, answer: str) -> float:
    """0 too where the search does not end: some patterns take ages for an answer that they nearly fit."""
    try:
        return float(bool(pattern.search(answer, timeout=LONGEST_SEARCH_S)))
    except TimeoutError:
        return 0.0


@cache
def _pattern(pattern: str) -> Any:
    try:
        return regex.compile(pattern, regex.MULTILINE)
    except regex.error as error:
        next_step = "mend the pattern; without =PATTERN every expected answer is one"
        raise ConfigError(f"is no regular expression ({error}): {pattern[:60]!r}", where="regex", next_step=next_step) from error


def repetition(expected: str, answer: str) -> float:
    """The share of the answer's runs of 4 words that stood in it before: 0 for prose, near 1 for a model that goes round in circles."""
    words = answer.split()
    runs = [tuple(words[start : start + REPEATED_WORDS]) for start in range(len(words) - REPEATED_WORDS + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def refusal(expected: str, answer: str) -> float:
    """1 where the answer declines, or speaks of itself as a model, by the patterns that `luthier data check` looks for in rows."""
    return float(bool(OPENING.match(answer.lstrip()) or BOILERPLATE.search(answer)))
