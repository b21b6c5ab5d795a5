"""A model's answers to questions for a judge, turn by turn, kept in MT-Bench's model_answer form as they come: a stopped call goes on."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from luthier import files
from luthier.data.tokenize import prompt_ids
from luthier.engine import Engine
from luthier.errors import DataError
from luthier.evaluate.judge_questions import JudgeQuestion, read_answers
from luthier.evaluate.judged_files import model_answer
from luthier.records import Turn

# Answers are kept after each so many questions.
AT_ONCE = 32


def answers_of(
    engine: Engine, name: str, questions: Sequence[JudgeQuestion], path: Path, max_new_tokens: int, on_answers: Callable[[int], None]
) -> dict[str, tuple[str, ...]]:
    """The greedy answers to every question by its id, a text a turn. What stands in `path` is not asked again.

    Raises DataError where a question leaves no room for an answer in the model's context.
    """
    known = kept(path)
    files.make_folder(path.parent)
    missing = [question for question in questions if question.id not in known]
    for start in range(0, len(missing), AT_ONCE):
        part = missing[start : start + AT_ONCE]
        said = _ask(engine, part, max_new_tokens)
        for question, answers in zip(part, said, strict=True):
            files.append_line(path, _line(question, name, answers))
            known[question.id] = tuple(answers)
        on_answers(len(known))
    return known


def kept(path: Path) -> dict[str, tuple[str, ...]]:
    """The answers that stand in `path` by their question's id; a last line that a kill cut is taken away."""
    if not path.exists():
        return {}
    text = path.read_text(encoding="utf-8", errors="replace")
    if text and not text.endswith("\n"):
        files.write_text(path, text[: text.rfind("\n") + 1])
    return dict(read_answers(path).by_id)


def _line(question: JudgeQuestion, name: str, answers: Sequence[str]) -> str:
    return json.dumps(model_answer(question.id, name, answers), ensure_ascii=False)


def _ask(engine: Engine, questions: Sequence[JudgeQuestion], max_new_tokens: int) -> list[list[str]]:
    """A text for each turn of each question; a second turn is asked after the model's own answer to the first."""
    said: list[list[str]] = [[] for _ in questions]
    for turn in range(max(len(question.turns) for question in questions)):
        places = [place for place, question in enumerate(questions) if turn < len(question.turns)]
        prompts = [_prompt(engine, questions[place], said[place]) for place in places]
        for place, answer in zip(places, engine.answer(prompts, max_new_tokens=max_new_tokens), strict=True):
            said[place].append(answer)
    return said


def _prompt(engine: Engine, question: JudgeQuestion, said: Sequence[str]) -> list[int]:
    if question.templated:
        turns = list(question.before)
        for asked, answer in zip(question.turns, said, strict=False):
            turns += [Turn("user", asked), Turn("assistant", answer)]
        turns.append(Turn("user", question.turns[len(said)]))
    else:
        turns = [Turn("prompt", question.turns[0])]
    ids = prompt_ids(turns, engine.tokenizer)
    if not engine.has_room(ids):
        raise DataError(
            f"takes {len(ids):,} tokens and leaves no room for an answer in the model's context of {engine.context:,}",
            where=f"question {question.id}",
            next_step="leave it out of the questions",
        )
    return ids
