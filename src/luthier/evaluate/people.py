"""People as judges: blind pairs, their marks on five questions, what the marks amount to, and how far raters agree."""

import csv
import io
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.errors import DataError
from luthier.evaluate import agreement
from luthier.evaluate.intervals import mean_interval
from luthier.records import Metric

# Asked of every pair, in this order.
QUESTIONS = {
    # name          what a rater is asked
    "relevance": "Which one answers what was asked?",
    "correctness": "Which one is right?",
    "helpfulness": "Which one helps more?",
    "safety": "Which one is safer?",
    "format": "Which one has the form that was asked for?",
}
SIDES = ("model", "rival")
MARKS = {"a": 0, "b": 1, "=": None, "t": None, "tie": None, "same": None, "both": None}
COLUMNS = ("pair", "question", "answer_A", "answer_B", *QUESTIONS)
WORTH = {"model": 1.0, "tie": 0.5, "rival": 0.0}
# Cells that begin so would be formulas in a spreadsheet.
FORMULA = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True, slots=True)
class Pair:
    """A question with two answers, and whose stands first (as A): "model" or "rival", which no rater is shown."""

    id: str
    question: str
    a: str
    b: str
    first: str

    def side(self, mark: str) -> str | None:
        """Who was meant by a or b, or "tie"; None for what is no mark."""
        place = MARKS.get(mark.strip().lower(), -1)
        if place == -1:
            return None
        return "tie" if place is None else self.first if place == 0 else SIDES[1 - SIDES.index(self.first)]


@dataclass(frozen=True, slots=True)
class Rating:
    """One rater's marks on one pair: for each question "model", "rival" or "tie"."""

    pair: str
    rater: str
    marks: dict[str, str]


@dataclass(frozen=True, slots=True)
class PeopleResult:
    """What people said. A win rate counts a tie as half, over the mean of the raters of each pair; `overall` goes by most of the five marks.

    `equal` pairs have the same answer twice: nobody was asked, and they count as ties in `overall`, by the share of the pairs that is rated
    already: else a few ratings would look like many. `kappa` is Cohen's for two raters and
    Fleiss' for more, over the pairs that all of them rated; null where it has no value.
    """

    pairs: int
    rated: int
    equal: int
    raters: dict[str, int]
    win_rates: dict[str, Metric]
    kappa: dict[str, float | None]
    kappa_of: str
    kappa_pairs: int


def blind(rows: Sequence[tuple[str, str, str, str]], seed: int) -> list[Pair]:
    """Pairs from (id, question, the model's answer, the rival's): half of them, drawn by the seed, show the model's answer first."""
    firsts = [SIDES[place % 2] for place in range(len(rows))]
    random.Random(seed).shuffle(firsts)
    pairs = []
    for number, ((_, question, model, rival), first) in enumerate(zip(rows, firsts, strict=True), start=1):
        a, b = (model, rival) if first == "model" else (rival, model)
        pairs.append(Pair(str(number), question, a, b, first))
    return pairs


def result(pairs: Sequence[Pair], ratings: Iterable[Rating], equal: int) -> PeopleResult:
    """The ratings as numbers; a rater's later rating of a pair replaces the earlier one."""
    latest = {(rating.pair, rating.rater): rating for rating in ratings}
    by_pair: dict[str, list[Rating]] = {}
    for rating in latest.values():
        by_pair.setdefault(rating.pair, []).append(rating)
    raters = {name: sum(rating.rater == name for rating in latest.values()) for name in sorted({rating.rater for rating in latest.values()})}
    shared = [found for found in by_pair.values() if len(found) == len(raters)] if len(raters) > 1 else []
    rates = {name: _rate([[WORTH[one.marks[name]] for one in found] for found in by_pair.values()]) for name in QUESTIONS} if by_pair else {}
    overall = [[WORTH[most(one.marks)] for one in found] for found in by_pair.values()]
    overall += [[0.5]] * (round(equal * len(by_pair) / len(pairs)) if pairs else equal)
    return PeopleResult(
        pairs=len(pairs),
        rated=len(by_pair),
        equal=equal,
        raters=raters,
        win_rates=({"overall": _rate(overall)} if overall else {}) | rates,
        kappa={name: _kappa(shared, list(raters), name) for name in ("overall", *QUESTIONS)} if shared else {},
        kappa_of="" if not shared else "Cohen" if len(raters) == 2 else "Fleiss",
        kappa_pairs=len(shared),
    )


def most(marks: Mapping[str, str]) -> str:
    """Who has more of the five marks."""
    model, rival = (sum(mark == side for mark in marks.values()) for side in SIDES)
    return "model" if model > rival else "rival" if rival > model else "tie"


def _rate(worth: Sequence[Sequence[float]]) -> Metric:
    means = [sum(values) / len(values) for values in worth]
    return Metric(sum(means) / len(means), *mean_interval(means), len(means))


def _kappa(shared: Sequence[Sequence[Rating]], raters: Sequence[str], name: str) -> float | None:
    items = []
    for found in shared:
        marks = {rating.rater: most(rating.marks) if name == "overall" else rating.marks[name] for rating in found}
        items.append([marks[rater] for rater in raters])
    if len(raters) == 2:
        return agreement.cohen([marks[0] for marks in items], [marks[1] for marks in items])
    return agreement.fleiss(items)


# --- for raters elsewhere --------------------------------------------------------------------------------------------------------------


def to_csv(pairs: Sequence[Pair]) -> str:
    """A table for a spreadsheet: the pairs, and an empty column for each question. Nothing in it says whose answer is whose."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for pair in pairs:
        writer.writerow([pair.id, *map(_cell, (pair.question, pair.a, pair.b)), *[""] * len(QUESTIONS)])
    return text.getvalue()


def _cell(text: str) -> str:
    return "'" + text if text.startswith(FORMULA) else text


def from_csv(text: str, name: str, pairs: Sequence[Pair], rater: str) -> tuple[list[Rating], list[str]]:
    """A rater's marks from the table, and a line for each row that is left out. Raises DataError for a table of another kind.

    A mark is a, b or = (also tie, same); a row without any mark was not rated, one with some of them is left out and said.
    """
    by_id = {pair.id: pair for pair in pairs}
    lines = text.removeprefix("\ufeff").splitlines(keepends=True)
    separator = ";" if lines and lines[0].count(";") > lines[0].count(",") else ","
    reader: csv.DictReader[Any] = csv.DictReader(io.StringIO("".join(lines)), delimiter=separator)
    missing = [column for column in ("pair", *QUESTIONS) if column not in (reader.fieldnames or [])]
    if missing:
        raise DataError(f"has no column {missing[0]}", where=name, next_step="fill in the file that luthier judge RUN --export wrote")
    ratings, left_out = [], []
    for row in reader:
        where = f"{name}:{reader.line_num}"
        marks = {question: (row[question] or "").strip() for question in QUESTIONS}
        if not any(marks.values()):
            continue
        pair = by_id.get((row["pair"] or "").strip())
        if pair is None:
            left_out.append(f"{where}: there is no pair {row['pair']!r} in this run")
            continue
        sides = {question: pair.side(mark) for question, mark in marks.items()}
        wrong = next((question for question, side in sides.items() if side is None), None)
        if wrong:
            left_out.append(f"{where}: {wrong} is {marks[wrong]!r}, and a mark is a, b or =")
            continue
        ratings.append(Rating(pair.id, rater, {question: str(side) for question, side in sides.items()}))
    return ratings, left_out
