"""Rows to train on for answering from passages (RAFT: Zhang 2024, arXiv:2403.10131). Everything is drawn by a seed.

Questions that are about the same things share their passages, in the same order: the passage that one is about distracts the others, and the
engine runs what their prompts begin with once.
"""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from luthier.errors import CallError
from luthier.rag.grounding import ANSWER, EVIDENCE, NOT_THERE
from luthier.rag.support import support
from luthier.rag.words import words_of

SENTENCES = re.compile(r"(?<=[.!?])\s+|\n+|(?<=[。！？])")
LONGEST_EVIDENCE = 300


@dataclass(frozen=True, slots=True)
class Shares:
    """How rows are made: `passages` in each prompt; the share of questions without the passage that answers them (RAFT's 1 - P), and of
    questions that are asked plainly; how many questions share their passages; whether answers quote their evidence first."""

    passages: int = 4
    without_gold: float = 0.2
    plain: float = 0.0
    together: int = 4
    quote: bool = True
    answer_without_gold: bool = False  # RAFT's own way: learn the answer by heart; else the answer says that it is not there

    def check(self) -> None:
        """Raises CallError for shares that make no rows."""
        if not (0 <= self.without_gold <= 1 and 0 <= self.plain <= 1 and self.without_gold + self.plain <= 1):
            problem = f"{self.without_gold:g} without the passage and {self.plain:g} plain are no shares of one whole"
            raise CallError(problem, where="--without-gold, --plain", next_step="--without-gold 20% --plain 10%")
        if self.passages < 2 or not 1 <= self.together <= self.passages:
            problem = f"{self.together} questions cannot share {self.passages} passages"
            raise CallError(problem, where="--together, --passages", next_step="2 passages or more, and at most as many questions together")


@dataclass(frozen=True, slots=True)
class Question:
    """A question, its answer, and the rows of the index that hold it (the first is quoted)."""

    number: int
    text: str
    answer: str
    gold: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Mixed:
    """A row to be trained: a question with these passages before it (none: asked plainly). `kind` is gold, without_gold or plain."""

    question: Question
    passages: tuple[int, ...]
    kind: str


def mix(questions: Sequence[Question], shares: Shares, near: Callable[[Question], Sequence[int]], seed: int) -> list[Mixed]:
    """A row for each question, those that share their passages one after the other. `near` gives passages that a question finds, best first,
    among which the distractors are: they are the harder the better they are found."""
    draw = random.Random(seed)
    kinds = _kinds(len(questions), shares, draw)
    order = list(range(len(questions)))
    draw.shuffle(order)
    waiting = {place: None for place in order if kinds[place] != "plain"}
    of_gold: dict[int, list[int]] = {}
    for place in waiting:
        for row in questions[place].gold:
            of_gold.setdefault(row, []).append(place)
    rows = [Mixed(questions[place], (), "plain") for place in order if kinds[place] == "plain"]
    while waiting:
        first = next(iter(waiting))
        found = [row for row in near(questions[first]) if row not in questions[first].gold]
        members = [first]
        for place in (place for row in found for place in of_gold.get(row, [])):
            if len(members) < shares.together and place in waiting and place not in members and _agree(questions, kinds, [*members, place]):
                members.append(place)
        for place in members:
            del waiting[place]
        passages = _passages([questions[place] for place in members], [kinds[place] for place in members], found, shares.passages)
        draw.shuffle(passages)
        rows += [Mixed(questions[place], tuple(passages), kinds[place]) for place in members]
    return rows


def _kinds(count: int, shares: Shares, draw: random.Random) -> list[str]:
    without = round(count * shares.without_gold)
    plain = min(round(count * shares.plain), count - without)
    kinds = ["without_gold"] * without + ["plain"] * plain + ["gold"] * (count - without - plain)
    draw.shuffle(kinds)
    return kinds


def _agree(questions: Sequence[Question], kinds: Sequence[str], members: Sequence[int]) -> bool:
    """Whether no passage that one question needs answers another too, which must do without it or has its own."""
    own = {place: {questions[place].gold[0]} if kinds[place] == "gold" else set() for place in members}
    needed = set[int]().union(*own.values())
    return not any((needed - own[place]) & set(questions[place].gold) for place in members)


def _passages(members: Sequence[Question], kinds: Sequence[str], found: Sequence[int], most: int) -> list[int]:
    """The passages that the members share: the first of each member that keeps its own, then distractors that answer none of them."""
    missing = {row for question, kind in zip(members, kinds, strict=True) if kind == "without_gold" for row in question.gold}
    kept = [question.gold[0] for question, kind in zip(members, kinds, strict=True) if kind == "gold"]
    answering = missing.union(*(question.gold for question in members))
    chosen = dict.fromkeys([*kept, *(row for row in found if row not in answering)])
    return list(chosen)[: max(most, len(dict.fromkeys(kept)))]


def answer_of(mixed: Mixed, text_of: Callable[[int], str], shares: Shares, weight: Callable[[str], float]) -> str:
    """What the model should say: the evidence, quoted, with the passage's number, then the answer; that it is not there, where it is not."""
    question = mixed.question
    if mixed.kind == "plain" or (mixed.kind == "without_gold" and shares.answer_without_gold):
        return question.answer
    if mixed.kind == "without_gold":
        return NOT_THERE
    number = mixed.passages.index(question.gold[0]) + 1
    if not shares.quote:
        return f"{question.answer} [{number}]"
    return f'{EVIDENCE} "{evidence(text_of(question.gold[0]), question, weight)}" [{number}]\n{ANSWER} {question.answer}'


def evidence(text: str, question: Question, weight: Callable[[str], float]) -> str:
    """The sentence of a passage that says most of the answer, verbatim, cut at a word where it is long."""
    sentences = [sentence.strip() for sentence in SENTENCES.split(text) if sentence.strip()]
    scored = [(support(question.answer, [sentence], "", words_of, weight), -place) for place, sentence in enumerate(sentences)]
    best = sentences[-max(scored)[1]]
    return best if len(best) <= LONGEST_EVIDENCE else best[:LONGEST_EVIDENCE].rpartition(" ")[0] or best[:LONGEST_EVIDENCE]
