"""A model as a judge of answers: what it is asked, what it said, and what that amounts to.

Pairs are shown in both orders. A win counts where both orders name the same answer; where they do not, that is a disagreement, and half a
win for each. Judge's replies are kept as they came, and read again from the journal each time.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from luthier.data.endpoint import Callers, Question, Refused
from luthier.data.journal import Journal
from luthier.errors import LuthierError
from luthier.evaluate import judge_prompts
from luthier.evaluate.intervals import mean_interval, paired_difference
from luthier.evaluate.judge_prompts import HIGHEST, LOWEST, How, JudgePrompt
from luthier.evaluate.judge_questions import JudgeQuestion
from luthier.evaluate.length_control import Difficulties, length_controlled
from luthier.records import Metric
from luthier.stopping import Stop

REFUSALS_IN_A_ROW = 3
OTHER = {"A": "B", "B": "A"}
WORTH = {"won": 1.0, "tied": 0.5, "equal": 0.5, "disagreed": 0.5, "lost": 0.0}


@dataclass(frozen=True, slots=True)
class Task:
    """One request to the judge. `key` is "QUESTION|TURN|order" (ab: the model's answer is A; ba) or "QUESTION|TURN|MODEL"."""

    key: str
    prompt: str
    messages: list[dict[str, str]]


@dataclass(frozen=True, slots=True)
class Answered:
    """A question with what the model and its rival answered, a text a turn."""

    question: JudgeQuestion
    model: tuple[str, ...]
    rival: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Pairing:
    """What came of one question and turn: won, lost, tied, equal (the same text: not asked), disagreed or unreadable."""

    question: str
    turn: int
    outcome: str
    orders: tuple[str, str] = ("", "")  # the verdict in each order, as shown: A, B, C or "" (unreadable)


@dataclass(frozen=True, slots=True)
class PairResult:
    """All pairings as numbers. `win_rate` is over questions; `first_shown` the share of disagreements that went to the answer shown first."""

    win_rate: Metric | None
    length_controlled_win_rate: Metric | None
    counts: dict[str, int]
    by_category: dict[str, float]
    first_shown: float | None


@dataclass(frozen=True, slots=True)
class GradeResult:
    """Mean grades (1 to 10) of the model and its rival, and their difference over the questions that both have a grade for."""

    model: Metric | None
    rival: Metric | None
    difference: Metric | None
    by_turn: dict[str, dict[str, float]]
    by_category: dict[str, dict[str, float]]
    unreadable: int


def tasks(how: How, rows: Sequence[Answered], prompts: Mapping[str, JudgePrompt]) -> list[Task]:
    """Everything that the judge is asked, in order. Pairs of equal texts are not asked about."""
    found = []
    for row in rows:
        for turn in range(1, len(row.question.turns) + 1):
            sides = _shown(how, row, turn)
            for name, answers in sides.items():
                found.append(Task(f"{row.question.id}|{turn}|{name}", *judge_prompts.messages(prompts, how, row.question, turn, answers)))
    return found


def _shown(how: How, row: Answered, turn: int) -> dict[str, dict[str, tuple[str, ...]]]:
    if how == "single":
        return {"model": {"": row.model}, "rival": {"": row.rival}}
    if _same(row, turn):
        return {}
    return {"ab": {"a": row.model, "b": row.rival}, "ba": {"a": row.rival, "b": row.model}}


def _same(row: Answered, turn: int) -> bool:
    return [text.strip() for text in row.model[:turn]] == [text.strip() for text in row.rival[:turn]]


@dataclass(slots=True)
class Asked:
    """What the judge said to each task so far, and what the server counted."""

    said: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    unmetered: int = 0


def read_journal(entries: Iterable[Mapping[str, Any]]) -> Asked:
    """What stands in a journal."""
    asked = Asked()
    for entry in entries:
        _count(asked, entry)
    return asked


def _count(asked: Asked, entry: Mapping[str, Any]) -> None:
    if entry["kind"] == "refused":
        asked.refused[entry["task"]] = entry["problem"]
    elif entry["kind"] == "answered":
        asked.said[entry["task"]] = entry["text"]
        counts = (entry["usage"]["prompt_tokens"], entry["usage"]["completion_tokens"])
        asked.prompt_tokens += counts[0] or 0
        asked.completion_tokens += counts[1] or 0
        asked.unmetered += None in counts


def ask(
    wanted: Sequence[Task], settings: Mapping[str, Any], journal: Journal, callers: Callers, stop: Stop, on_reply: Callable[[int], None]
) -> Asked:
    """Ask what the journal has no answer to. Every answer is on the disk before the next one is counted.

    Ends early where `stop` says so. Raises LuthierError for what the endpoint refuses altogether; what was answered is kept.
    """
    asked = read_journal(journal.entries)
    asked.refused.clear()  # whoever calls again wants it tried again
    waiting = [task for task in wanted if task.key not in asked.said]
    by_id = {f"{journal.call['id']}-{number}": task for number, task in enumerate(wanted)}
    ids = {task.key: name for name, task in by_id.items()}
    failure: LuthierError | None = None
    while True:
        ending = bool(stop.signal or failure)
        while waiting and not ending and callers.in_flight < callers.concurrency:
            task = waiting.pop(0)
            callers.send(Question(ids[task.key], task.messages, dict(settings)))
        if not callers.in_flight:
            break
        if ending and not callers.endpoint.stopped:
            callers.endpoint.stop()
        if (arrived := callers.next_reply()) is None:
            continue
        question, reply = arrived
        task = by_id[question.id]
        if isinstance(reply, Refused):
            entry: dict[str, Any] = {"kind": "refused", "task": task.key, "problem": reply.problem}
            failure = failure or (reply if len(asked.refused) + 1 >= REFUSALS_IN_A_ROW and not asked.said else None)
        elif isinstance(reply, LuthierError):
            failure = failure or reply
            continue
        else:
            usage = {"prompt_tokens": reply.prompt_tokens, "completion_tokens": reply.completion_tokens}
            entry = {"kind": "answered", "task": task.key, "prompt": task.prompt, "messages": task.messages, "text": reply.text, "usage": usage}
        journal.add(entry)
        _count(asked, entry)
        on_reply(len(asked.said) + len(asked.refused))
    if failure and not stop.signal:
        raise failure
    return asked


# --- what it amounts to ----------------------------------------------------------------------------------------------------------------


def pairings(rows: Sequence[Answered], asked: Asked) -> list[Pairing]:
    """The outcome of each question and turn."""
    found = []
    for row in rows:
        for turn in range(1, len(row.question.turns) + 1):
            if _same(row, turn):
                found.append(Pairing(row.question.id, turn, "equal"))
                continue
            first, second = (judge_prompts.verdict(asked.said.get(f"{row.question.id}|{turn}|{order}", "")) for order in ("ab", "ba"))
            found.append(Pairing(row.question.id, turn, _outcome(first, second), (first, second)))
    return found


def _outcome(first: str, second: str) -> str:
    """`first` is the verdict with the model as A, `second` with the model as B."""
    if not first or not second:
        return "unreadable"
    if first == "C" and second == "C":
        return "tied"
    if first != "C" and second == OTHER[first]:
        return "won" if first == "A" else "lost"
    return "disagreed"


def preference(pairing: Pairing) -> float:
    """From 0 (the rival's answer was preferred) to 1 (the model's was): the mean over both orders, a tie counts half."""
    if pairing.outcome == "equal":
        return 0.5
    first, second = pairing.orders
    return ({"A": 1.0, "B": 0.0, "C": 0.5}[first] + {"A": 0.0, "B": 1.0, "C": 0.5}[second]) / 2


def pair_result(rows: Sequence[Answered], found: Sequence[Pairing], difficulties: Difficulties | None = None) -> PairResult:
    """Pairings as numbers. Unreadable ones are counted, and stand in no rate. `difficulties` go by the place of a question in `rows`."""
    readable = [pairing for pairing in found if pairing.outcome != "unreadable"]
    counts = {name: sum(pairing.outcome == name for pairing in found) for name in (*WORTH, "unreadable")}
    worth: dict[str, list[float]] = defaultdict(list)
    for pairing in readable:
        worth[pairing.question].append(WORTH[pairing.outcome])
    means = {question: sum(values) / len(values) for question, values in worth.items()}
    by_id = {row.question.id: row for row in rows}
    place = {row.question.id: number for number, row in enumerate(rows)}
    controlled = length_controlled(
        [preference(pairing) for pairing in readable],
        [len(by_id[pairing.question].model[pairing.turn - 1]) for pairing in readable],
        [len(by_id[pairing.question].rival[pairing.turn - 1]) for pairing in readable],
        [place[pairing.question] for pairing in readable],
        difficulties,
    )
    split = [pairing.orders for pairing in readable if pairing.outcome == "disagreed" and "C" not in pairing.orders]
    return PairResult(
        win_rate=_mean(list(means.values())) if means else None,
        length_controlled_win_rate=controlled,
        counts=counts,
        by_category=_by_category(rows, means),
        first_shown=sum(orders == ("A", "A") for orders in split) / len(split) if split else None,
    )


def _by_category(rows: Sequence[Answered], values: Mapping[str, float]) -> dict[str, float]:
    gathered: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        if row.question.category and row.question.id in values:
            gathered[row.question.category].append(values[row.question.id])
    return {name: sum(found) / len(found) for name, found in sorted(gathered.items())}


def _mean(shares: Sequence[float]) -> Metric:
    return Metric(sum(shares) / len(shares), *mean_interval(shares), len(shares))


def grade_result(rows: Sequence[Answered], asked: Asked) -> GradeResult:
    """Grades as numbers: means over questions (each the mean of its turns), with 95 % intervals."""
    turns: dict[str, dict[str, list[float]]] = {"model": defaultdict(list), "rival": defaultdict(list)}
    grades: dict[str, dict[str, float]] = {"model": {}, "rival": {}}
    unreadable: Counter[str] = Counter()
    for row in rows:
        for who, by_turn in turns.items():
            given = []
            for turn in range(1, len(row.question.turns) + 1):
                grade = judge_prompts.rating(asked.said.get(f"{row.question.id}|{turn}|{who}", ""))
                if grade is None:
                    unreadable[who] += 1
                    continue
                given.append(grade)
                by_turn[f"turn {turn}"].append(grade)
            if given:
                grades[who][row.question.id] = sum(given) / len(given)
    both = [question for question in grades["model"] if question in grades["rival"]]
    return GradeResult(
        model=_mean_grade(list(grades["model"].values())),
        rival=_mean_grade(list(grades["rival"].values())),
        difference=_difference([grades["rival"][one] for one in both], [grades["model"][one] for one in both]) if both else None,
        by_turn={who: {turn: sum(values) / len(values) for turn, values in found.items()} for who, found in turns.items()},
        by_category={who: _by_category(rows, found) for who, found in grades.items()},
        unreadable=sum(unreadable.values()),
    )


def _mean_grade(grades: Sequence[float]) -> Metric | None:
    """The interval is made on the scale from 0 to 1, which is what intervals are made for."""
    if not grades:
        return None
    low, high = mean_interval(_from_0_to_1(grades))
    return Metric(sum(grades) / len(grades), LOWEST + low * (HIGHEST - LOWEST), LOWEST + high * (HIGHEST - LOWEST), len(grades))


def _difference(before: Sequence[float], after: Sequence[float]) -> Metric:
    found, scale = paired_difference(_from_0_to_1(before), _from_0_to_1(after)), HIGHEST - LOWEST
    return Metric(found.value * scale, found.low * scale, found.high * scale, found.n)


def _from_0_to_1(grades: Sequence[float]) -> list[float]:
    return [(grade - LOWEST) / (HIGHEST - LOWEST) for grade in grades]
