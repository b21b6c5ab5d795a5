"""How long the rows are, what of them the tokenizer does not know, and what padding would waste."""

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from luthier.data.quality.check import WORST, Concern, Finding, Given
from luthier.data.quality.limits import not_run, percent, verdict_of
from luthier.records import Conversation

PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
BINS = 20
PADDED_BATCHES = (8, 32)  # rows to a batch, drawn in random order


def length(rows: Iterable[Conversation], given: Given) -> Finding:
    """How the rows' lengths are spread: tokens where a tokenizer is at hand, else characters."""
    kept = rows if isinstance(rows, Sequence) else list(rows)
    unit = "characters" if given.token_counts is None else "tokens"
    counts = given.token_counts if given.token_counts is not None else [sum(len(turn.content) for turn in row.turns) for row in kept]
    if not len(kept):
        return not_run("length", "there are no rows")
    lengths = np.asarray(counts, dtype=np.int64)
    limit = given.max_length if unit == "tokens" else None
    over = np.flatnonzero(lengths > limit).tolist() if limit else []
    longest = np.argsort(-lengths, kind="stable")[:WORST].tolist()
    numbers = _numbers(lengths, unit, limit, len(over))
    median, high = numbers["percentiles"]["50"], numbers["percentiles"]["99"]
    said = f"rows are {median:,} {unit} long (median), {high:,} at the 99th percentile, {numbers['max']:,} at most"
    if limit:
        said += f"; {len(over):,} of {len(kept):,} ({percent(len(over), len(kept))}) are over max_length ({limit:,})"
    return Finding(
        check="length",
        verdict=verdict_of("length", len(over), len(kept)),
        said=f"{said}; padding to the longest of 8 would waste {numbers['padding_waste']['8']:.0%}",
        of=len(kept),
        places=over,
        worst=[Concern(kept[place].source, f"{lengths[place]:,} {unit}") for place in longest],
        cure=f"set data.max_length: {int(lengths.max())} where memory allows it, or data.too_long: split" if over else "",
        numbers=numbers,
        removable=False,  # data.too_long decides on these rows
    )


def _numbers(lengths: Any, unit: str, limit: int | None, over: int) -> dict[str, Any]:
    heights, edges = np.histogram(lengths, bins=_edges(lengths))
    return {
        "unit": unit,
        "rows": int(lengths.size),
        "total": int(lengths.sum()),
        "mean": round(float(lengths.mean()), 1),
        "min": int(lengths.min()),
        "max": int(lengths.max()),
        "percentiles": {str(rank): int(np.percentile(lengths, rank, method="higher")) for rank in PERCENTILES},
        "histogram": {"edges": edges.tolist(), "rows": heights.tolist()},
        "max_length": limit,
        "over_max_length": over,
        "padding_waste": {str(size): round(padding_waste(np.minimum(lengths, limit) if limit else lengths, size), 4) for size in PADDED_BATCHES},
    }


def _edges(lengths: Any) -> list[int]:
    """Round borders of at most BINS columns up to the 99th percentile; what is longer stands in one more, so that a giant hides nothing."""
    low, high = int(lengths.min()), int(np.percentile(lengths, 99, method="higher"))
    step = next(size for power in range(12) for digit in (1, 2, 5) if (high - low) // (size := digit * 10**power) + 2 <= BINS)
    edges = list(range(low // step * step, high + step + 1, step))
    return edges if edges[-1] > lengths.max() else [*edges, int(lengths.max()) + 1]


def padding_waste(lengths: Any, batch: int) -> float:
    """The share of positions that hold padding, when rows in random order are padded to the longest of each batch."""
    order = list(range(len(lengths)))
    random.Random(0).shuffle(order)
    padded = sum(
        len(part) * int(max(lengths[place] for place in part)) for part in (order[first : first + batch] for first in range(0, len(order), batch))
    )
    return 1 - float(lengths.sum()) / padded if padded else 0.0


def unknown_tokens(rows: Iterable[Conversation], given: Given) -> Finding:
    """Characters for which the tokenizer has no token of its own: it writes an unknown token, or their bytes."""
    if given.tokenizer is None:
        return not_run("unknown_tokens", "there is no tokenizer at hand (--model NAME gives one)")
    unknown: dict[str, bool] = {}
    places, concerns, characters = [], [], 0
    found: Counter[str] = Counter()
    of = 0
    for of, row in enumerate(rows, 1):
        text = "".join([turn.content for turn in row.turns])
        characters += len(text)
        distinct = set(text)
        for character in distinct.difference(unknown):
            unknown[character] = _is_unknown(character, given.tokenizer)
        if bad := [character for character in distinct if unknown[character]]:
            times = {character: text.count(character) for character in bad}
            found.update(times)
            places.append(of - 1)
            concerns.append((sum(times.values()) / len(text), Concern(row.source, f"{sum(times.values()):,} characters: {_shown(times)}")))
    concerns.sort(key=lambda pair: -pair[0])
    tokens = sum(given.token_counts) if given.token_counts is not None else 0
    share = f", {percent(found.total(), characters)} of all characters" if characters else ""
    return Finding(
        check="unknown_tokens",
        verdict=verdict_of("unknown_tokens", found.total(), characters),  # by characters: one rare sign in a book is nothing
        said=f"{len(places):,} of {of:,} rows ({percent(len(places), of)}) hold characters without a token of their own{share}",
        of=of,
        places=places,
        worst=[concern for _, concern in concerns[:WORST]],
        cure="choose a model made for this language, or train a tokenizer: luthier data tokenizer train FILE" if places else "",
        numbers={"characters": found.total(), "of_characters": characters, "of_tokens": tokens, "most_common": dict(found.most_common(WORST))},
        removable=False,  # the rows are right, the tokenizer is not
    )


def _is_unknown(character: str, tokenizer: Any) -> bool:
    if character in "\ufffd\n\r\t ":
        return False
    ids = tokenizer(character, add_special_tokens=False)["input_ids"]
    # A token that holds some of a character's bytes decodes to U+FFFD.
    return any(one == tokenizer.unk_token_id or "\ufffd" in tokenizer.decode([one]) for one in ids)


def _shown(times: dict[str, int]) -> str:
    most = sorted(times, key=lambda character: -times[character])[:5]
    return " ".join(character if character.isprintable() else f"U+{ord(character):04X}" for character in most)
