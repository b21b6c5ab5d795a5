"""Near duplicates: rows that share most of their word triples.

Candidates come from MinHash signatures cut into bands (Broder 1997; Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, 3.4);
each candidate pair is then compared exactly, so that no row is called a duplicate by chance.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from heapq import nlargest
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rensa import RMinHash

from luthier.data.quality.check import WORST, Concern, Finding, Given
from luthier.data.quality.words import Triples, exact_key, of_rows, spoken, triples, words
from luthier.records import Conversation, Source

_SIGNATURE = 128  # numbers in a signature
_MISSED = 1e-3  # chance that a pair just at the threshold is no candidate
_FORM_SHARE, _FORM_ROWS = 10, 20  # a triple in one of 10 texts (and in 20 at least) belongs to the form that the rows are written in
_NEIGHBORS = 4  # in a band that many texts share, each is compared with this many before it and with the first ones
_CHUNK_ROWS = 8192
_SHORT_ANSWER_WORDS = 5
_FIGURE = re.compile(r"\d+")

Pair = tuple[int, int, float]


def near_duplicate_groups(texts: Iterable[str], threshold: float) -> list[list[int]]:
    """Groups of texts that are equal or near duplicates, as their numbers in order; texts without a twin are in no group.

    `threshold` is the Jaccard similarity of word triples (0 to 1). Groups are closed: a text is in the group of each of its twins.
    """
    root: dict[int, int] = {}
    for first, second, _ in near_pairs(triples(texts), threshold):
        kept, joined = sorted((_root_of(first, root), _root_of(second, root)))
        if kept != joined:
            root[joined] = kept
    groups: dict[int, list[int]] = {}
    for number in sorted({*root, *root.values()}):
        groups.setdefault(_root_of(number, root), []).append(number)
    return list(groups.values())


def _root_of(number: int, root: dict[int, int]) -> int:
    while number in root:
        number = root[number]
    return number


def near_pairs(parts: Triples, threshold: float) -> Iterator[Pair]:
    """Pairs of texts with at least this Jaccard similarity: (earlier, later, similarity), by the later one.

    Triples that a tenth of the texts hold belong to the set's form (a shared instruction) and say nothing of a pair.
    """
    parts = _without_form(parts)
    triples_of = lru_cache(maxsize=8192)(parts.of)
    for first, second in _candidates(_signatures(parts), np.diff(parts.starts) > 0, threshold):
        here, there = triples_of(first), triples_of(second)
        if min(len(here), len(there)) < threshold * max(len(here), len(there)):
            continue
        shared = len(here & there)
        similarity = shared / (len(here) + len(there) - shared)
        if similarity >= threshold:
            yield first, second, similarity


def _without_form(parts: Triples) -> Triples:
    limit = max(_FORM_ROWS, len(parts) // _FORM_SHARE)
    distinct, numbers, times = np.unique(parts.hashes, return_inverse=True, return_counts=True)
    held = (times > limit)[numbers]
    if not held.any():
        return parts
    # A text that repeats itself holds a triple many times and is still one text.
    of_text = np.repeat(np.arange(len(parts)), np.diff(parts.starts))
    once = np.unique(of_text[held] * len(distinct) + numbers[held])
    is_form = np.bincount(once % len(distinct), minlength=len(distinct)) > limit
    return parts.only(~is_form[numbers])


def _signatures(parts: Triples) -> NDArray[np.uint32]:
    """One MinHash signature a text, as rows."""
    rows = np.empty((len(parts), _SIGNATURE), np.uint32)
    for start in range(0, len(parts), _CHUNK_ROWS):
        starts = parts.starts[start : start + _CHUNK_ROWS + 1]
        hashes = parts.hashes[starts[0] : starts[-1]]
        matrix = RMinHash.digest_matrix_from_flat_token_hashes(hashes, (starts - starts[0]).astype(np.uint64), _SIGNATURE, 0)
        rows[start : start + _CHUNK_ROWS] = matrix.to_rows()
    return rows


def band_rows(threshold: float) -> int:
    """How many numbers of a signature make a band: as many as let no more than _MISSED of the pairs at the threshold slip through."""
    fitting = [rows for rows in range(1, 17) if (1 - threshold**rows) ** (_SIGNATURE // rows) <= _MISSED]
    return max(fitting, default=1)


def _candidates(signatures: NDArray[np.uint32], worded: NDArray[np.bool_], threshold: float) -> list[tuple[int, int]]:
    """Pairs of texts that share a band, sorted by the later one."""
    width = band_rows(threshold)
    numbers = np.flatnonzero(worded)
    found = [np.zeros(0, np.int64)]
    for start in range(0, _SIGNATURE - width + 1, width):
        band = np.ascontiguousarray(signatures[numbers, start : start + width]).view(np.dtype((np.void, 4 * width))).ravel()
        found.append(_pairs_of_band(band, numbers, len(signatures)))
        if sum(map(len, found)) > 4_000_000:
            found = [np.unique(np.concatenate(found))]
    pairs = np.unique(np.concatenate(found))
    return list(zip((pairs % len(signatures)).tolist(), (pairs // len(signatures)).tolist(), strict=True)) if len(pairs) else []


def _pairs_of_band(band: NDArray[Any], numbers: NDArray[np.int64], texts: int) -> NDArray[np.int64]:
    """Pairs with equal bands, each as later * texts + earlier: with the first of the band and the ones just before."""
    order = np.argsort(band, kind="stable")
    ordered, members = band[order], numbers[order]
    begins = np.concatenate([[True], ordered[1:] != ordered[:-1]])
    group_start = np.flatnonzero(begins)[np.cumsum(begins) - 1]
    at = np.arange(len(members))
    found = []
    for step in range(1, _NEIGHBORS + 1):
        for other in (at - step, group_start + step - 1):
            inside = (other >= group_start) & (other < at)
            found.append(members[inside] * texts + members[other[inside]])
    return np.concatenate(found)


def near_duplicates(rows: Iterable[Conversation], given: Given) -> Finding:
    """Rows that are almost the same as an earlier one that stays. Exact copies are the duplicates check's."""
    sources, signs, texts = [], [], []
    seen: set[int] = set()
    copies: set[int] = set()
    for number, row in enumerate(rows):
        key = exact_key(row)
        if key in seen:
            copies.add(number)
        seen.add(key)
        sources.append(row.source)
        signs.append(hash((sign_of(row.answer), row.label)))
        texts.append(spoken(row))
    parts = triples(texts)
    del texts
    pairs = near_pairs(parts, given.settings.near_duplicate_threshold)
    return _finding(first_twins((pair for pair in pairs if pair[0] not in copies and pair[1] not in copies), signs), sources)


def sign_of(text: str) -> int:
    """What must be the same in two answers for one to repeat the other: short answers whole, long ones in their figures."""
    found = words(text)
    return hash(tuple(found) if len(found) <= _SHORT_ANSWER_WORDS else tuple(_FIGURE.findall(text)))


def first_twins(pairs: Iterable[Pair], signs: Sequence[int]) -> dict[int, tuple[int, float]]:
    """Of each row that repeats one that stays: the row that stays, and how alike they are."""
    twins: dict[int, tuple[int, float]] = {}
    for first, second, similarity in pairs:
        if second not in twins and first not in twins and signs[first] == signs[second]:
            twins[second] = first, similarity
    return twins


def _finding(twins: dict[int, tuple[int, float]], sources: Sequence[Source]) -> Finding:
    alikest = nlargest(WORST, twins.items(), key=lambda twin: (twin[1][1], -twin[0]))
    return Finding(
        "near_duplicates",
        "look" if twins else "good",
        f"{of_rows(len(twins), len(sources))} are near duplicates of an earlier one",
        of=len(sources),
        places=sorted(twins),
        worst=[Concern(sources[number], f"{like:.0%} of the wording is the same", sources[first]) for number, (first, like) in alikest],
        cure="luthier data clean FILE keeps the first of each; checks.near_duplicate_threshold says how alike they are" if twins else "",
        numbers={"similarities": [round(like, 3) for _, like in twins.values()][:10_000]},
    )
