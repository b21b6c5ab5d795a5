"""From which share of rows on a finding is worth a look, and from which on training should wait. The one place of the rule."""

from collections.abc import Mapping
from typing import NamedTuple

from luthier.data.quality.check import Finding, Noted, Verdict


class Limit(NamedTuple):
    """Shares of the rows: `look` above the first, `stop` above the second."""

    look: float
    stop: float


NEVER = 1.0  # a share is never above 1
LIMITS = {
    #                        look    stop
    "empty_or_tiny_answer": Limit(0.000, 0.050),  # one in twenty teaches a model to stop at once
    "cut_answer":           Limit(0.000, 0.050),  # as above: it learns to stop in mid-sentence
    "special_tokens":       Limit(0.000, 0.010),  # a control token in the text ends answers early, or lets a user write system text
    "roles":                Limit(0.000, 0.010),  # the reader refuses such rows: more than a few mean that the format was read wrongly
    "mojibake":             Limit(0.000, 0.020),  # learned letter by letter, so a few per cent show in answers
    "control_characters":   Limit(0.000, 0.020),
    "html":                 Limit(0.010, 0.200),  # some answers are about pages, many are a scraper's left-overs
    "repetition":           Limit(0.000, 0.050),  # loops are catching
    "refusals":             Limit(0.000, 0.100),  # wanted in a few rows, a model that refuses when a tenth of its rows do
    "language":             Limit(0.000, NEVER),  # only the user knows which languages are wanted
    "pii":                  Limit(0.000, NEVER),  # a warning: phone books are trained on purpose
    "json_answers":         Limit(0.000, 0.010),  # a parser behind the model breaks on each of them
    "code_answers":         Limit(0.000, 0.050),
    "arithmetic":           Limit(0.000, 0.050),
    "validator":            Limit(0.000, 0.010),  # the user's own rule
    "length":               Limit(0.000, 0.010),  # above 1 % over max_length, the run stops by itself
    "unknown_tokens":       Limit(0.001, 0.050),  # of the characters: each is written in two to four tokens; one in twenty is the wrong tokenizer
}  # fmt: skip


def verdict_of(check: str, found: int, of: int) -> Verdict:
    """good, look or stop, by the share of rows that were found."""
    share = found / of if of else 0.0
    limit = LIMITS[check]
    return "stop" if share > limit.stop else "look" if share > limit.look else "good"


def counted(
    noted: Noted, fault: str, cure: str, *, of: int | None = None, removable: bool = True, numbers: Mapping[str, object] | None = None
) -> Finding:
    """The finding of a check that counts rows: "12 of 300 rows (4 %) FAULT". `of` is the number of rows looked at, by default all."""
    looked_at = len(noted.rows) if of is None else of
    found = len(noted.notes)
    verdict = verdict_of(noted.check, found, looked_at)
    return Finding(
        check=noted.check,
        verdict=verdict,
        said=f"{found:,} of {looked_at:,} rows ({percent(found, looked_at)}) {fault}",
        of=looked_at,
        places=[place for place, _ in noted.notes],
        worst=noted.worst(),
        cure=cure if found else "",
        numbers=numbers or {},
        removable=removable,
    )


def not_run(check: str, why: str) -> Finding:
    """What is said of a check that had nothing to work with."""
    return Finding(check, "good", f"not run: {why}", of=0)


def percent(part: int, whole: int) -> str:
    """A share for people: two digits that count, and never 0 % for a part that is there."""
    share = 100 * part / whole if whole else 0.0
    return f"{share:.2g} %" if 0 < share < 99.5 else f"{share:.0f} %"
