"""Which rank runs which examples of an update: each about the same work, and what shares a beginning in one place.

Longest processing time first (Graham 1969): the dearest unit goes to the rank that has least so far. Every rank deals by itself, to the same
result. Plain numbers; no tensors.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from luthier.engine.batches import beginnings
from luthier.records import TokenizedExample


@dataclass(frozen=True, slots=True)
class Unit:
    """Examples that run on one rank, by their places, with the work of what is their own; `beginning` names what they share with other
    units, which a rank runs once for all of its units: `shared` is the work of that. -1 and 0: nothing."""

    places: tuple[int, ...]
    work: float
    beginning: int = -1
    shared: float = 0.0


def deal(
    examples: Sequence[TokenizedExample], ranks: int, *, share_prefixes: bool, quadratic_tokens: int, together: Sequence[Sequence[int]] | None = None
) -> list[list[int]]:
    """The places of each rank's examples, in their order; a rank may have none.

    Work is counted in tokens, and t tokens of one row cost t + t^2 / `quadratic_tokens` (attention). `together` are groups of examples that
    a loss compares, which stay on one rank; none given: each by itself. Rows with one beginning stay on one rank, unless they are more than
    a rank's share: then each rank that has some runs the beginning.
    """

    def work(tokens: int) -> float:
        return tokens + tokens * tokens / quadratic_tokens

    found = beginnings(list(examples)) if share_prefixes else [(-1, 0)] * len(examples)
    units = []
    for group in together or [[place] for place in range(len(examples))]:
        beginning, shared = found[group[0]] if len({found[place][0] for place in group}) == 1 else (-1, 0)
        own = sum(work(len(examples[place].token_ids)) for place in group) - len(group) * work(shared)
        units.append(Unit(tuple(group), own, beginning, work(shared)))
    return [sorted(places) for places in _longest_first(_united(units, ranks), ranks)]


def _united(units: list[Unit], ranks: int) -> list[Unit]:
    """The same with all units of one beginning as one, where together they are no more than a rank's share."""
    by_beginning: dict[int, list[Unit]] = defaultdict(list)
    for unit in units:
        by_beginning[unit.beginning].append(unit)
    alone = by_beginning.pop(-1, [])
    share = (sum(unit.work for unit in units) + sum(group[0].shared for group in by_beginning.values())) / ranks
    united = list(alone)
    for beginning, group in by_beginning.items():
        own = sum(unit.work for unit in group)
        if own + group[0].shared <= share:
            united.append(Unit(tuple(place for unit in group for place in unit.places), own, beginning, group[0].shared))
        else:
            united += group
    return united


def _longest_first(units: list[Unit], ranks: int) -> list[list[int]]:
    dealt: list[list[int]] = [[] for _ in range(ranks)]
    load, begun = [0.0] * ranks, [set[int]() for _ in range(ranks)]
    for unit in sorted(units, key=lambda unit: (-unit.work, unit.places)):
        added = [unit.work + (0.0 if unit.beginning < 0 or unit.beginning in begun[rank] else unit.shared) for rank in range(ranks)]
        chosen = min(range(ranks), key=lambda rank: (load[rank] + added[rank], rank))
        dealt[chosen] += unit.places
        load[chosen] += added[chosen]
        begun[chosen].add(unit.beginning)
    return dealt
