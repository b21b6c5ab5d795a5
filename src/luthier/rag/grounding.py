"""A question with passages before it, and an answer with the passages that it names."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from luthier.data.rendering import special_spellings
from luthier.data.tokenize import prompt_ids
from luthier.errors import CallError, DataError
from luthier.rag.finding import LEAST_SCORE, Finder, Found, Retrieved
from luthier.rag.passage import Passage
from luthier.records import Turn

NOT_THERE = "That is not in the documents."
TASK = f"Answer the question from these passages alone, and name the passage, such as [1]. If none of them holds the answer, say: {NOT_THERE}"
EVIDENCE, ANSWER = "Evidence:", "Answer:"
CITED = re.compile(r"\s*\[(\d{1,3})\]")
# So much of a passage at least, or it is left out.
LEAST_TOKENS = 24

Count = Callable[[str], int]


@dataclass(frozen=True, slots=True)
class Grounding:
    """How questions are grounded: how many passages at most, how many tokens they may have, and from which fit on they are used."""

    passages: int = 5
    budget_tokens: int = 1024
    least_score: float = LEAST_SCORE

    def check(self) -> None:
        """Raises CallError for numbers that ground nothing."""
        if self.passages < 1 or self.budget_tokens < LEAST_TOKENS:
            raise CallError(
                f"{self.passages} passages in {self.budget_tokens} tokens hold nothing",
                where="--passages, --budget",
                next_step=f"1 passage and {LEAST_TOKENS} tokens, or more",
            )


@dataclass(frozen=True, slots=True)
class Used:
    """A passage as it stands in the prompt. `cut`: only its beginning had room."""

    found: Found
    text: str
    cut: bool

    def told(self, number: int) -> dict[str, object]:
        """The same for a reader of the answer."""
        passage = self.found.passage
        told: dict[str, object] = {"number": number, "source": passage.place, "title": passage.title, "text": self.text, "score": self.found.score}
        return {**told, "cut": True} if self.cut else told


@dataclass(frozen=True, slots=True)
class Grounded:
    """A question, grounded. Where nothing of the documents has to do with it `used` is empty, and the answer is NOT_THERE."""

    turns: list[Turn]
    used: list[Used]
    fit: float

    @property
    def passages(self) -> list[dict[str, object]]:
        """The passages of the prompt, numbered as in it."""
        return [one.told(number) for number, one in enumerate(self.used, start=1)]


@dataclass(frozen=True, slots=True)
class Reading:
    """How a model reads: the tokens of a text, those of a conversation with its list of tools (JSON, or "") as the chat template writes them, and
    what it takes for control tokens."""

    text_tokens: Count
    prompt_tokens: Callable[[Sequence[Turn], str], int]
    control: Sequence[str] = ()


def reading_of(tokenizer: Any) -> Reading:
    """As a model with this tokenizer reads."""
    return Reading(
        lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"]),
        lambda turns, tools: len(prompt_ids(turns, tokenizer, tools)),
        special_spellings(tokenizer),
    )


@dataclass(frozen=True, slots=True)
class Grounder:
    """Puts passages before questions for one model, within its context. A passage that spells one of its control tokens is left out, which
    `say` is told once."""

    finder: Finder
    how: Grounding
    reading: Reading
    context: int | None
    say: Callable[[str], None] = lambda line: None
    _told: set[str] = field(default_factory=set)

    def __call__(self, turns: Sequence[Turn], answer_tokens: int, retrieved: Retrieved | None = None, tools: str = "") -> Grounded:
        """The last turn's question with the passages that fit it, in a prompt that leaves room for an answer.

        `retrieved` are passages that were found already. Raises DataError where even the question leaves no room.
        """
        question = turns[-1].content
        retrieved = retrieved or self.finder.find(question, self.how.passages)
        readable = [one for one in retrieved.found if self._is_readable(one.passage)]
        room = self._room(turns, answer_tokens, tools)
        return grounded(turns, replace(retrieved, found=readable), self.how, self.reading.text_tokens, room)

    def _is_readable(self, passage: Passage) -> bool:
        spelled = next((spelling for spelling in self.reading.control if spelling in passage.whole), None)
        if spelled and passage.place not in self._told:
            self._told.add(passage.place)
            self.say(f"{passage.place} is left out: it spells {spelled}, which the model would read as a control token")
        return spelled is None

    def _room(self, turns: Sequence[Turn], answer_tokens: int, tools: str) -> int | None:
        if self.context is None:
            return None
        around = self.reading.text_tokens(prompt([""] * self.how.passages, "")) + LEAST_TOKENS
        room = self.context - self.reading.prompt_tokens(turns, tools) - around - answer_tokens
        if room < LEAST_TOKENS:
            raise DataError(
                f"with {answer_tokens:,} tokens for the answer it leaves no room for passages in the model's context of {self.context:,}",
                where="question",
                next_step="a shorter question, or a shorter answer (--max-new-tokens)",
            )
        return room


def grounded(turns: Sequence[Turn], retrieved: Retrieved, how: Grounding, count: Count, room_tokens: int | None = None) -> Grounded:
    """The same with passages that were found already."""
    if not retrieved.fits(how.least_score):
        return Grounded(list(turns), [], retrieved.fit)
    budget = how.budget_tokens if room_tokens is None else min(how.budget_tokens, room_tokens)
    used = within(retrieved.found, budget, count)
    if not used:
        return Grounded(list(turns), [], retrieved.fit)
    asked = replace(turns[-1], content=prompt([one.text for one in used], turns[-1].content))
    return Grounded([*turns[:-1], asked], used, retrieved.fit)


def within(found: Sequence[Found], budget_tokens: int, count: Count) -> list[Used]:
    """As many passages, best first, as the budget has room for; the last one perhaps its beginning only."""
    used: list[Used] = []
    left = budget_tokens
    for one in found:
        text = one.passage.whole
        tokens = count(text)
        if tokens <= left:
            used.append(Used(one, text, False))
            left -= tokens
            continue
        if left >= LEAST_TOKENS and (beginning := _beginning(text, left, count)):
            used.append(Used(one, beginning, True))
        break
    return used


def _beginning(text: str, tokens: int, count: Count) -> str:
    """The longest run of whole words from the text's beginning that has at most so many tokens; of letters, where not one word fits
    (Chinese and Japanese have no spaces)."""
    words = [found.end() for found in re.finditer(r"\S+", text)]
    return _longest(text, words, tokens, count) or _longest(text, range(1, len(text) + 1), tokens, count)


def _longest(text: str, ends: Sequence[int], tokens: int, count: Count) -> str:
    low, high = 0, len(ends)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if count(text[: ends[middle - 1]]) <= tokens else (low, middle - 1)
    return text[: ends[low - 1]] if low else ""


def prompt(passages: Sequence[str], question: str) -> str:
    """What a model is asked. The passages stand first: questions about the same ones begin alike, and the engine runs that once."""
    numbered = "\n\n".join(f"[{number}] {text}" for number, text in enumerate(passages, start=1))
    return f"{TASK}\n\n{numbered}\n\nQuestion: {question}"


def cited(answer: str, passages: int) -> list[int]:
    """The numbers of passages that an answer names, in order, without those that there are not."""
    numbers = dict.fromkeys(int(found[1]) for found in CITED.finditer(answer))
    return [number for number in numbers if 1 <= number <= passages]


def said(answer: str) -> str:
    """What an answer says, without the evidence it quotes before and the numbers of passages."""
    _, marked, rest = answer.rpartition(ANSWER)
    return CITED.sub("", rest if marked else answer).strip()


def refuses(answer: str) -> bool:
    """Whether an answer says that the documents do not hold it."""
    plain = " ".join(re.findall(r"\w+", answer.casefold()))
    return "not in the documents" in plain
