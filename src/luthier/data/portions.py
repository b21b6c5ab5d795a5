"""The arithmetic of splits and mixes: numbers in, numbers out. Everything is drawn by a hash or a seed, so that the same call gives the same."""

import hashlib
import random
from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from fractions import Fraction

REST = "train"


def groups_of(keys: Sequence[Sequence[Hashable]]) -> list[int]:
    """A number for each row, the same for rows that share any of their keys, directly or through others."""
    parent = list(range(len(keys)))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    first: dict[Hashable, int] = {}
    for row, of_row in enumerate(keys):
        for key in of_row:
            here, there = sorted((root(row), root(first.setdefault(key, row))))
            parent[there] = here
    return [root(row) for row in range(len(keys))]


def divide(groups: Sequence[int], names: Sequence[str], strata: Sequence[str], shares: dict[str, Fraction], seed: int) -> list[str]:
    """Which part each row goes to: one of `shares` (name -> 0..1), or REST. A group stays whole; each stratum is divided alike.

    `names` is what a group's place in the draw is hashed from, so that rows that are added later do not shuffle the others.
    """
    members: defaultdict[int, list[int]] = defaultdict(list)
    for row, group in enumerate(groups):
        members[group].append(row)
    of_stratum: defaultdict[str, list[int]] = defaultdict(list)
    for group in members:
        of_stratum[strata[group]].append(group)
    parts = [REST] * len(groups)
    given = dict.fromkeys(shares, 0)
    rows_so_far = 0
    for stratum in sorted(of_stratum):
        waiting = sorted(of_stratum[stratum], key=lambda group: hashlib.sha256(f"{seed}:{names[group]}".encode("utf-8", "surrogatepass")).digest())
        rows_so_far += sum(len(members[group]) for group in waiting)
        for name, share in shares.items():
            # What rounding or a large group kept from one stratum is made up in the next.
            room = round(rows_so_far * share) - given[name]
            passed = []
            for group in waiting:
                if len(members[group]) > room:
                    passed.append(group)
                    continue
                room -= len(members[group])
                given[name] += len(members[group])
                for row in members[group]:
                    parts[row] = name
            waiting = passed
    return parts


def apportion(total: int, weights: Sequence[Fraction]) -> list[int]:
    """`total` rows by weight, whole rows only: the largest remainders get what rounding down left."""
    whole = sum(weights)
    exact = [total * weight / whole for weight in weights]
    counts = [int(value) for value in exact]
    by_remainder = sorted(range(len(weights)), key=lambda place: (counts[place] - exact[place], place))
    for place in by_remainder[: total - sum(counts)]:
        counts[place] += 1
    return counts


def largest_total(rows: Sequence[int], weights: Sequence[Fraction]) -> int:
    """How many rows a mix can have before it would use some row twice."""
    whole = sum(weights)
    return min(int(count * whole / weight) for count, weight in zip(rows, weights, strict=True))


def drawn(rows: int, wanted: int, seed: int, place: int) -> Iterator[list[bool]]:
    """For each pass over a source's rows, which of them are taken: all of them as often as it goes, the rest drawn by the seed."""
    whole, rest = divmod(wanted, rows) if rows else (0, 0)
    for _ in range(whole):
        yield [True] * rows
    if rest:
        chosen = set(random.Random(f"{seed}:{place}").sample(range(rows), rest))
        yield [row in chosen for row in range(rows)]


def interleaved(counts: Sequence[int]) -> Iterator[int]:
    """The order of sources in a mix: at each place the source that is furthest behind its share."""
    total = sum(counts)
    given = [0] * len(counts)
    for number in range(1, total + 1):
        behind = [number * count - total * done if done < count else -total * total for count, done in zip(counts, given, strict=True)]
        place = max(range(len(counts)), key=behind.__getitem__)
        given[place] += 1
        yield place


def share_of(text: str) -> Fraction | None:
    """5% or 0.05 as a number; None where it is neither, or not above 0."""
    try:
        value = Fraction(text[:-1]) / 100 if text.endswith("%") else Fraction(text)
    except (ValueError, ZeroDivisionError):
        return None
    return value if value > 0 else None
