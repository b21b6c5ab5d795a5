"""How a judge is asked, and what it said: pairs ([[A]], [[B]], [[C]]) and grades ([[1]] to [[10]]), in the protocol of MT-Bench
(Zheng et al. 2023, arXiv:2306.05685). The prompts stand in judge_prompts.jsonl, in the form of MT-Bench's own file, which can be given instead."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal

from luthier.errors import DataError
from luthier.evaluate.judge_questions import JudgeQuestion, read_values

How = Literal["pairwise", "single"]
# (how, with right answers, second turn) -> the names of such prompts, MT-Bench's among them.
NAMES: dict[tuple[How, bool, bool], tuple[str, ...]] = {
    ("pairwise", False, False): ("pair-v2", "pair"),
    ("pairwise", False, True): ("pair-v2-multi-turn", "pair-turns"),
    ("pairwise", True, False): ("pair-math-v1", "pair-right"),
    ("pairwise", True, True): ("pair-math-v1-multi-turn", "pair-right-turns"),
    ("single", False, False): ("single-v1", "single"),
    ("single", False, True): ("single-v1-multi-turn", "single-turns"),
    ("single", True, False): ("single-math-v1", "single-right"),
    ("single", True, True): ("single-math-v1-multi-turn", "single-right-turns"),
}
VERDICT = re.compile(r"\[\[\s*([ABC])\s*\]\]")
# The fallbacks are those of MT-Bench's own reader.
RATINGS = (re.compile(r"\[\[(\d+\.?\d*)\]\]"), re.compile(r"\[(\d+\.?\d*)\]"), re.compile(r"Rating: (\d+)"))
LOWEST, HIGHEST = 1.0, 10.0


@dataclass(frozen=True, slots=True)
class JudgePrompt:
    """One way of asking: `template` has the fields that MT-Bench's templates have (question, answer_a, ref_answer_1 ...)."""

    name: str
    system: str
    template: str


def read_prompts(path: Path | None = None) -> dict[str, JudgePrompt]:
    """Luthier's prompts, or those of a file like MT-Bench's judge_prompts.jsonl."""
    source = path or Path(str(resources.files("luthier.evaluate").joinpath("judge_prompts.jsonl")))
    prompts = {}
    for place, value in read_values(source):
        if not all(isinstance(value.get(key), str) for key in ("name", "system_prompt", "prompt_template")):
            raise DataError("is no prompt of a judge", where=place, next_step="name, system_prompt and prompt_template are texts")
        prompts[value["name"]] = JudgePrompt(value["name"], value["system_prompt"], value["prompt_template"])
    return prompts


def messages(
    prompts: Mapping[str, JudgePrompt], how: How, question: JudgeQuestion, turn: int, answers: Mapping[str, tuple[str, ...]]
) -> tuple[str, list[dict[str, str]]]:
    """The prompt's name and the messages that ask about `turn` (1 or 2). `answers` has the texts of "a" and "b", or of "" alone.

    Raises DataError where the file of prompts lacks the one that is needed.
    """
    known = len(question.references) >= turn and all(question.references[:turn])
    names = NAMES[how, known, turn > 1]
    prompt = next((prompts[name] for name in names if name in prompts), None)
    if prompt is None:
        raise DataError(f"none of the prompts is called {' or '.join(names)}", where="--judge-prompts", next_step="add it, or leave the option out")
    fields: dict[str, str] = {"question": question.shown[0]}
    for number in range(1, turn + 1):
        fields[f"question_{number}"] = question.shown[number - 1]
        if known:
            fields[f"ref_answer_{number}"] = question.references[number - 1]
        for side, texts in answers.items():
            name = f"answer_{side}" if side else "answer"
            fields[name] = texts[0]
            fields[f"{name}_{number}"] = texts[number - 1]
    try:
        asked = prompt.template.format(**fields)
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        where = f"--judge-prompts: {prompt.name}"
        raise DataError(f"its template cannot be filled ({error})", where=where, next_step=f"it may name {', '.join(fields)}") from error
    return prompt.name, [{"role": "system", "content": prompt.system}, {"role": "user", "content": asked}]


def verdict(text: str) -> str:
    """ "A", "B" or "C" (a tie) as the judge's last verdict says, or "" where it gives none."""
    found = VERDICT.findall(text)
    return found[-1] if found else ""


def rating(text: str) -> float | None:
    """The grade from 1 to 10 that a judge gives, or None."""
    for pattern in RATINGS:
        if found := pattern.search(text):
            grade = float(found[1])
            return grade if LOWEST <= grade <= HIGHEST else None
    return None
