"""How far raters agree beyond chance: Cohen's kappa for two, Fleiss' for more. Pure arithmetic on lists."""

from collections import Counter
from collections.abc import Hashable, Sequence


def cohen(first: Sequence[Hashable], second: Sequence[Hashable]) -> float | None:
    """Cohen's kappa of two raters (Cohen 1960): (observed - expected) / (1 - expected); None where both gave one and the same mark only.

    Both have one mark for each item, in the same order. 1: they always agree; 0: as often as by chance.
    """
    n = len(first)
    observed = sum(one == other for one, other in zip(first, second, strict=True)) / n
    mine, theirs = Counter(first), Counter(second)
    expected = sum(mine[mark] * theirs[mark] for mark in mine) / n**2
    return None if expected == 1 else (observed - expected) / (1 - expected)


def fleiss(items: Sequence[Sequence[Hashable]]) -> float | None:
    """Fleiss' kappa (Fleiss 1971) of several raters: `items` holds the marks of each item, as many for each; None where all marks are one."""
    raters, n = len(items[0]), len(items)
    totals: Counter[Hashable] = Counter()
    agreeing = 0.0
    for marks in items:
        if len(marks) != raters:
            raise ValueError(f"an item has {len(marks)} marks and the first one has {raters}")
        counts = Counter(marks)
        totals += counts
        agreeing += (sum(count * count for count in counts.values()) - raters) / (raters * (raters - 1))
    observed = agreeing / n
    expected = sum((count / (n * raters)) ** 2 for count in totals.values())
    return None if expected == 1 else (observed - expected) / (1 - expected)
