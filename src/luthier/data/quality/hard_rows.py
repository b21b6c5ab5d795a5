"""Rows that the base model finds hard: often the ones worth most, sometimes the ones that are wrong."""

from collections.abc import Iterable

import numpy as np

from luthier.data.quality.check import WORST, Concern, Finding, Given
from luthier.data.quality.limits import not_run
from luthier.data.quality.words import of_rows
from luthier.records import Conversation

_TO_DEVIATION = 1.4826  # of the median absolute deviation, for it to be a normal distribution's standard deviation


def hard_rows(rows: Iterable[Conversation], given: Given) -> Finding:
    """Rows whose loss under the base stands far above the median. They are listed and kept."""
    if given.losses is None:
        return not_run("hard_rows", "the base model's losses were not measured")
    sources = [row.source for row in rows]
    losses = np.array(given.losses, np.float64)
    measured = losses[~np.isnan(losses)]  # a row that could not be tokenized has none
    if not len(measured):
        return not_run("hard_rows", "no row could be measured")
    middle = float(np.median(measured))
    deviation = _TO_DEVIATION * float(np.median(np.abs(measured - middle)))
    limit = middle + given.settings.hard_row_deviations * deviation
    places = np.flatnonzero(losses > limit)
    return Finding(
        "hard_rows",
        "look" if len(places) else "good",
        f"{of_rows(len(places), len(sources))} are hard for the base model: a loss above {limit:.2f}, where the median is {middle:.2f}",
        of=len(sources),
        places=places.tolist(),
        worst=[
            Concern(sources[place], f"loss {losses[place]:.2f} nats a token") for place in places[np.argsort(-losses[places], kind="stable")][:WORST]
        ],
        cure="read them: mend the wrong ones and keep the hard ones, which teach most" if len(places) else "",
        numbers={"median": round(middle, 4), "limit": round(limit, 4), "percentiles": np.percentile(measured, [5, 25, 75, 95]).round(4).tolist()},
        removable=False,
    )
