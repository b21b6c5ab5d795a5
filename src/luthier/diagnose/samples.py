"""Sample answers side by side, with what is not as expected marked."""

import difflib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from luthier.diagnose.page import folded, pre, text
from luthier.diagnose.scores import model_name
from luthier.errors import RunError
from luthier.run_folder import RunFolder

SHOWN_SAMPLES = 20
# So many are open; the rest open on demand.
OPEN_SAMPLES = 5
# A beginning that all prompts share is shown once if it is longer than a line.
LEAST_SHARED_CHARACTERS = 80
# Answers that share less than this with the expected one are another text: marks would be noise.
LEAST_ALIKE = 0.4
# Comparing takes the square of the pieces.
MOST_PIECES = 2_000
PIECES = re.compile(r"\w+|\s+|[^\w\s]")
KEY = (
    '<p class="quiet"><small>Marked in an answer: <ins>said and not expected</ins>, <del>expected and not said</del>. '
    "Where an answer has little in common with the expected one, nothing is marked.</small></p>"
)


def samples_html(run: RunFolder) -> str:
    """Up to SHOWN_SAMPLES answers of each model beside the expected one."""
    if not run.samples.exists():
        return ""
    rows = list(_read_lines(run.samples))[:SHOWN_SAMPLES]
    if not rows:
        return ""
    shared = _shared_beginning([row["prompt"] for row in rows])
    once = folded("Every prompt begins with", pre(shared)) if shared else ""
    cards = [_sample(row, len(shared)) for row in rows]
    rest = "".join(cards[OPEN_SAMPLES:])
    more = f"<details><summary>{len(cards) - OPEN_SAMPLES} more answers</summary>{rest}</details>" if rest else ""
    return KEY + once + "".join(cards[:OPEN_SAMPLES]) + more


def _read_lines(path: Path) -> Iterator[Any]:
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if line:
            try:
                yield json.loads(line)
            except ValueError as error:
                raise RunError("is not whole JSON", where=f"{path}:{number}", next_step="delete the file and run luthier eval again") from error


def _shared_beginning(prompts: list[str]) -> str:
    """What all prompts begin with, up to the end of a line; "" where that is too little to be worth taking out."""
    first, last = min(prompts), max(prompts)  # in dictionary order: what these two share, all share
    length = next((index for index, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), 0)
    shared = first[: first.rfind("\n", 0, length) + 1]
    return shared if len(shared) >= LEAST_SHARED_CHARACTERS else ""


def _sample(row: dict[str, Any], start: int) -> str:
    expected = row["expected"].strip()
    answers = [_answer("expected", text(row["expected"]), "")]
    for model, answer in row["answers"].items():
        same = answer.strip() == expected
        answers.append(_answer(model_name(model) + (": as expected" if same else ""), marked(row["expected"], answer), " same" if same else ""))
    source = f"{row['source']['file']}:{row['source']['line']}"
    return (
        f'<article class="card"><p class="quiet"><small>{text(source)}</small></p>{pre(row["prompt"][start:])}'
        f'<div class="answers">{"".join(answers)}</div></article>'
    )


def marked(expected: str, answer: str) -> str:
    """An answer as HTML: <ins> around what is not expected, <del> around what is and was not said; word by word."""
    wanted, given = PIECES.findall(expected.strip()), PIECES.findall(answer.strip())
    if wanted == given or max(len(wanted), len(given)) > MOST_PIECES:
        return text(answer)
    matcher = difflib.SequenceMatcher(None, wanted, given, autojunk=False)
    if matcher.ratio() < LEAST_ALIKE:
        return text(answer)
    parts = []
    for kind, from_wanted, to_wanted, from_given, to_given in matcher.get_opcodes():
        lost, said = "".join(wanted[from_wanted:to_wanted]), "".join(given[from_given:to_given])
        if kind == "equal":
            parts.append(text(said))
            continue
        parts.append(f"<del>{text(lost)}</del>" * bool(lost) + f"<ins>{text(said)}</ins>" * bool(said))
    return "".join(parts)


def _answer(title: str, html: str, kind: str) -> str:
    return f'<div class="answer{kind}"><h3>{text(title)}</h3><pre>{html}</pre></div>'
