"""How far passages support an answer: a named estimator, without a model.

"word support": of the answer's words, each weighted by how much it tells passages apart (the idf of BM25), the share that the passages say
too; one number of the answer that they do not say halves it. What only the question says counts for nothing either way, so that repeating
it is no support. It cannot see a "not", nor words in another order: docs/rag.md has how well it tells apart.
"""

import re
from collections.abc import Callable, Sequence

ESTIMATOR = "word support"
# From here on an answer counts as supported.
SUPPORTED = 0.7
NUMBER = re.compile(r"\d")


def support(answer: str, passages: Sequence[str], question: str, words: Callable[[str], list[str]], weight: Callable[[str], float]) -> float:
    """0 (nothing of it stands in the passages) to 1 (all of it does). An answer that says nothing of its own is not supported.

    `words` cuts a text into words, `weight` says how much a word tells.
    """
    asked, there = set(words(question)), {word for passage in passages for word in words(passage)}
    own = [word for word in dict.fromkeys(words(answer)) if word not in asked]
    weights = {word: weight(word) for word in own}
    whole = sum(weights.values())
    if not whole:
        return 0.0
    share = sum(value for word, value in weights.items() if word in there) / whole
    strange_numbers = [word for word in own if NUMBER.search(word) and word not in there]
    return share / 2 if strange_numbers else share


def auc(supported: Sequence[float], unsupported: Sequence[float]) -> float:
    """How often a supported answer scores above an unsupported one, ties counting half: the area under the ROC curve (Hanley 1982)."""
    wins = sum((one > other) + (one == other) / 2 for one in supported for other in unsupported)
    return wins / (len(supported) * len(unsupported))
