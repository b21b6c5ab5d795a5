"""Questions for a judge: MT-Bench's question.jsonl, AlpacaEval's file, answers that others gave to them, and held-out rows."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from luthier.errors import DataError
from luthier.records import Conversation, Turn

# MT-Bench's prompts hold two turns.
MOST_TURNS = 2
# MT-Bench judges by its reference answers in these categories only; questions without a category have one where it is given.
RIGHT_OR_WRONG = {"math", "reasoning", "coding", ""}
READABLE = "MT-Bench's (question_id, turns) or AlpacaEval's (instruction)"


@dataclass(frozen=True, slots=True)
class JudgeQuestion:
    """What is asked, turn by turn, after the turns of `before`. `references` are right answers, one a turn; `rival` is an answer to beat."""

    id: str
    turns: tuple[str, ...]
    category: str = ""
    references: tuple[str, ...] = ()
    rival: str = ""
    rival_name: str = ""
    before: tuple[Turn, ...] = ()
    templated: bool = True

    @property
    def shown(self) -> tuple[str, ...]:
        """The questions as a judge reads them: with what was said before."""
        before = "".join(f"[{turn.role}] {turn.content}\n\n" for turn in self.before)
        return (before + self.turns[0], *self.turns[1:])


def read_questions(path: Path, references: Path | None = None) -> list[JudgeQuestion]:
    """The questions of a file, in order. `references` is MT-Bench's file of reference answers, used as
    MT-Bench does: for math, reasoning and coding. Raises DataError with the place of what is wrong."""
    questions = [_question(value, place, number) for number, (place, value) in enumerate(read_values(path), start=1)]
    if not questions:
        raise DataError("holds no question", where=str(path), next_step=f"questions are {READABLE}")
    often, count = Counter(one.id for one in questions).most_common(1)[0]
    if count > 1:
        raise DataError(f"question_id {often} is there {count} times", where=str(path), next_step="give each question an id of its own")
    right = read_answers(references).by_id if references else {}
    return [replace(one, references=right.get(one.id, one.references)) if one.category in RIGHT_OR_WRONG else one for one in questions]


def of_rows(rows: Sequence[Conversation]) -> list[JudgeQuestion]:
    """Held-out rows as questions: the last thing that was asked is the question, and the row's own answer is the reference."""
    return [
        JudgeQuestion(
            id=str(row.source),
            turns=(row.prompt[-1].content,),
            category=row.category,
            references=(row.answer,),
            rival=row.answer,
            rival_name="reference",
            before=row.prompt[:-1],
            templated=row.templated,
        )
        for row in rows
    ]


@dataclass(frozen=True, slots=True)
class GivenAnswers:
    """Answers that a file holds, a text for each turn, by question_id (MT-Bench) and by instruction (AlpacaEval)."""

    name: str
    by_id: dict[str, tuple[str, ...]]
    by_instruction: dict[str, tuple[str, ...]]

    def to(self, question: JudgeQuestion) -> tuple[str, ...]:
        """The answers to a question. Raises DataError where the file has none, or too few."""
        found = self.by_id.get(question.id) or self.by_instruction.get(question.turns[0], ())
        if len(found) < len(question.turns):
            missing = "no answer" if not found else f"{len(found)} of {len(question.turns)} answers"
            raise DataError(f"has {missing} to question {question.id}", where=self.name, next_step="give a file that answers every question")
        return found[: len(question.turns)]


def read_answers(path: Path) -> GivenAnswers:
    """MT-Bench's model_answer or reference_answer (.jsonl), or AlpacaEval's model_outputs (.json)."""
    names: list[str] = []
    by_id: dict[str, tuple[str, ...]] = {}
    by_instruction: dict[str, tuple[str, ...]] = {}
    for place, value in read_values(path):
        if isinstance(value.get("choices"), list):
            by_id[str(value.get("question_id"))] = _texts(_first(value["choices"]).get("turns"), f"{place}:choices[0].turns")
            names.append(str(value.get("model_id", "")))
        elif isinstance(value.get("instruction"), str) and isinstance(value.get("output"), str):
            by_instruction[_instruction(value)] = (value["output"],)
            names.append(str(value.get("generator", "")))
        else:
            raise DataError("is no answer", where=place, next_step="MT-Bench's (question_id, choices[0].turns) or AlpacaEval's (instruction, output)")
    return GivenAnswers(names[0] if names and names[0] else path.stem, by_id, by_instruction)


def read_values(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Each JSON object of a file with its place: one a line, or all in one list. Raises DataError for what is not readable."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot be read ({error})", where=str(path), next_step="name a .jsonl or .json file in UTF-8") from error
    if text.lstrip().startswith("["):
        values = list(enumerate(_json(text, str(path)), start=1))
    else:
        values = [(number, _json(line, f"{path}:{number}")) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    found = []
    for number, value in values:
        if not isinstance(value, dict):
            raise DataError("is no JSON object", where=f"{path}:{number}", next_step="one object for each question or answer")
        found.append((f"{path}:{number}", value))
    return found


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"is not JSON ({error})", where=where, next_step="one JSON object a line, or one list of them") from error


def _question(value: Mapping[str, Any], place: str, number: int) -> JudgeQuestion:
    if "turns" in value:
        turns = _texts(value["turns"], f"{place}:turns")
        if not 1 <= len(turns) <= MOST_TURNS:
            raise DataError(f"{len(turns)} turns", where=f"{place}:turns", next_step=f"1 to {MOST_TURNS} turns can be judged")
        right = _texts(value.get("reference", []), f"{place}:reference")
        return JudgeQuestion(str(value.get("question_id", number)), turns, str(value.get("category", "")), right)
    if isinstance(value.get("instruction"), str):
        rival = value.get("output", "")
        return JudgeQuestion(
            id=str(value.get("question_id", number)),
            turns=(_instruction(value),),
            category=str(value.get("dataset", "")),
            rival=rival if isinstance(rival, str) else "",
            rival_name=str(value.get("generator", "reference")),
        )
    raise DataError(f"is no question ({', '.join(list(value)[:6]) or 'empty'})", where=place, next_step=f"questions are {READABLE}")


def _instruction(value: Mapping[str, Any]) -> str:
    """Alpaca rows may have an input beside their instruction."""
    more = value.get("input")
    return f"{value['instruction']}\n\n{more}" if isinstance(more, str) and more else str(value["instruction"])


def _first(values: list[Any]) -> dict[str, Any]:
    return values[0] if values and isinstance(values[0], dict) else {}


def _texts(values: object, where: str) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise DataError("is no list of texts", where=where, next_step=f"questions are {READABLE}")
    return tuple(values)
