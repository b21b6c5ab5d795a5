"""What the tuned model says: answers that loop, do not end, have another form, are empty, echo or are in another language."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from luthier.config.checks import CheckSettings
from luthier.data.quality.answers import start_repetition
from luthier.data.quality.check import Given, Look
from luthier.data.quality.languages import start_language
from luthier.diagnose.cures import longer
from luthier.diagnose.evidence import Answered, Evidence
from luthier.diagnose.finding import Cure, Finding, Severity
from luthier.records import Conversation, Turn

# A flaw is told that so many answers have, and this share of them, which the expected answers have not.
LEAST_ANSWERS, LEAST_SHARE = 2, 0.15
# Below this many questions nothing can be said.
LEAST_ASKED = 4
SHOWN = 5
ECHOED_CHARACTERS = 24
# Expected answers of at most so many kinds, each short, are labels.
MOST_LABELS, LABEL_CHARACTERS = 12, 40
NOT_ASKED = "the model was not asked (no question to ask, or the run has not ended)"

Flawed = Callable[[Answered, str], bool]

DECODING = "another way of drawing words: luthier chat RUN --temperature 0.7 --top-p 0.9"


def repetition(evidence: Evidence) -> list[Finding] | str:
    looks = start_repetition(Given(evidence.settings.checks))
    assert not isinstance(looks, str)  # it needs nothing that may be missing
    return _judged(
        evidence,
        "repetition",
        "answers that repeat themselves",
        "repeat the same words over and over",
        lambda one, text: bool(text.strip()) and _noted(looks, one, text),
        "greedy decoding falls into a loop where the model is unsure, most often after too little or too much training",
        [Cure(_of_grid(evidence)), Cure("look at the data: luthier data check (repetition, duplicates)"), longer(evidence.settings)],
    )


def no_stop(evidence: Evidence) -> list[Finding] | str:
    limit = evidence.settings.evaluation.max_new_tokens
    return _judged(
        evidence,
        "no_stop",
        "answers that do not end",
        f"did not end by themselves within twice evaluation.max_new_tokens ({limit}), nor twice the longest answer that is expected",
        lambda one, text: text == one.answer and not one.stopped,
        "an answer that goes on wastes time and adds what nobody asked for",
        [
            longer(evidence.settings),
            Cure("look at the rows: luthier data check (cut_answer), and luthier data show, where the last token of each answer is trained"),
            Cure(f"stop texts when asking: luthier chat RUN --stop TEXT; and {_of_grid(evidence)}"),
        ],
    )


def empty(evidence: Evidence) -> list[Finding] | str:
    return _judged(
        evidence,
        "empty_answers",
        "empty answers",
        "are empty",
        lambda one, text: not text.strip(),
        "the model ends its turn before it says anything",
        [Cure("look for rows with empty answers: luthier data check (empty_or_tiny_answer)"), longer(evidence.settings), Cure(_of_grid(evidence))],
    )


def echo(evidence: Evidence) -> list[Finding] | str:
    return _judged(
        evidence,
        "prompt_echoed",
        "the prompt echoed",
        "begin by repeating the question",
        _echoes,
        "the model goes on with the text it was given, as a base model does, and does not answer it",
        [
            Cure("check that the rows are chats with a template (luthier data show FILE) and that it is asked in the same form"),
            Cure("train answers only: data.loss_on=assistant", {"data.loss_on": "assistant"}),
            longer(evidence.settings),
        ],
    )


def off_format(evidence: Evidence) -> list[Finding] | str:
    form = _form([one.expected for one in evidence.probed.answers])
    if form is None:
        return "the expected answers have no common form (JSON, or a few labels)" if evidence.probed.answers else NOT_ASKED
    words, fits = form
    return _judged(
        evidence,
        "off_format",
        "answers of another form",
        f"are not {words}",
        lambda one, text: not fits(text),
        "a program that reads the answers fails on these",
        [
            longer(evidence.settings),
            Cure("the same form in every row: luthier data check (mixed_structure, invalid_json)"),
            Cure("more rows that show it, and the form in the system message"),
        ],
    )


def wrong_language(evidence: Evidence) -> list[Finding] | str:
    looks = start_language(Given(evidence.settings.checks))
    if isinstance(looks, str):
        return looks

    def language(one: Answered, text: str) -> str:
        note = looks(_row(one, text))
        return note.kind if note else ""

    wanted = Counter(found for one in evidence.probed.answers if (found := language(one, one.expected)))
    if not wanted:
        return "the expected answers are too short to tell their language" if evidence.probed.answers else NOT_ASKED
    return _judged(
        evidence,
        "wrong_language",
        "answers in another language",
        f"are not in {' or '.join(wanted)}",
        lambda one, text: language(one, text) not in ({"", "asked"} | set(wanted)),
        "the model falls back on the language that it knows best",
        [
            Cure("more rows in the language that is meant, and none in others: luthier data check (language), checks.languages"),
            Cure("say the language in the system message of every row, and when asking"),
        ],
    )


def end_of_turn(evidence: Evidence) -> list[Finding] | str:
    chances = evidence.probed.end_of_turn
    if len(chances) < LEAST_ASKED:
        return NOT_ASKED
    usual = sum(chances) / len(chances)
    run_on = sum(not one.stopped for one in evidence.probed.answers)
    # Where its own answers end, an end is only not expected after the words of another.
    if usual >= 0.5 or run_on < max(LEAST_ANSWERS, LEAST_SHARE * len(evidence.probed.answers)):
        return []
    return [
        Finding(
            "end_of_turn_not_learned",
            "severe",
            "the end of a turn was not learned",
            f"after the whole expected answer the model ends its turn with a probability of {usual:.0%} only ({len(chances)} rows)",
            "answers run on to the limit, into questions that the model asks itself",
            [
                longer(evidence.settings),
                Cure("see that the end of turn is trained: luthier data show FILE marks what is, luthier verify RUN --only masks proves it"),
                Cure("a template that ends turns with a token the model knows: template: auto", {"template": "auto"}),
            ],
            {"probability": round(usual, 4), "lowest": round(min(chances), 4)},
        )
    ]


def _judged(evidence: Evidence, name: str, title: str, words: str, flawed: Flawed, why: str, cures: Sequence[Cure]) -> list[Finding] | str:
    """A finding where enough answers have a flaw that the expected ones have not."""
    asked = evidence.probed.answers
    if len(asked) < LEAST_ASKED:
        return NOT_ASKED
    bad = [one for one in asked if flawed(one, one.answer)]
    usual = sum(flawed(one, one.expected) for one in asked)
    if len(bad) - usual < max(LEAST_ANSWERS, LEAST_SHARE * len(asked)):
        return []
    severity: Severity = "severe" if len(bad) > len(asked) / 2 else "warning"
    where = "held-out" if evidence.probed.held_out else "training"
    shown = [
        {"row": evidence.run.named(one.source), "prompt": _short(one.prompt), "expected": _short(one.expected), "answer": _short(one.answer)}
        for one in bad[:SHOWN]
    ]
    grid = [{"sampling": one.sampling, "flawed": one.flawed, "right": one.right} for one in evidence.probed.grid]
    numbers: dict[str, Any] = {"answers": len(bad), "asked": len(asked), "examples": shown}
    return [
        Finding(
            name,
            severity,
            title,
            f"{len(bad)} of {len(asked)} answers to {where} questions {words}",
            why,
            cures,
            numbers | ({"decoding": grid} if grid else {}),
        )
    ]


def is_flawed(answered: Answered) -> bool:
    """Whether an answer loops, does not end or is empty: what another way of drawing words may mend."""
    looks = start_repetition(Given(CheckSettings()))
    assert not isinstance(looks, str)
    return not answered.answer.strip() or not answered.stopped or _noted(looks, answered, answered.answer)


def _noted(looks: Look, one: Answered, text: str) -> bool:
    return looks(_row(one, text)) is not None


def _row(one: Answered, text: str) -> Conversation:
    return Conversation((Turn("user", one.prompt), Turn("assistant", text)), one.source)


def _echoes(one: Answered, text: str) -> bool:
    asked, said = " ".join(one.prompt.split()), " ".join(text.split())
    return len(asked) >= ECHOED_CHARACTERS and said.startswith(asked[: max(ECHOED_CHARACTERS, len(asked) // 2)])


def _form(expected: Sequence[str]) -> tuple[str, Callable[[str], bool]] | None:
    """The form that all expected answers have: its name, and whether a text has it."""
    if not expected:
        return None
    if all(_is_json(text) for text in expected):
        return "JSON", _is_json
    labels = {text.strip().casefold() for text in expected}
    if len(labels) <= min(MOST_LABELS, len(expected) // 2) and all(len(text) <= LABEL_CHARACTERS for text in labels):
        return f"one of the labels ({', '.join(sorted(labels))})", lambda text: text.strip().casefold() in labels
    return None


def _is_json(text: str) -> bool:
    if text.strip()[:1] not in ("{", "["):
        return False
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _of_grid(evidence: Evidence) -> str:
    """The way of decoding that was best on the questions, where a grid was tried and one was better than greedy."""
    if not evidence.probed.grid:
        return DECODING
    greedy, best = evidence.probed.grid[0], min(evidence.probed.grid, key=lambda one: (one.flawed, -one.right))
    if best is greedy:
        return f"no decoding that was tried is better than greedy ({len(evidence.probed.grid)} ways), so it is the training that must change"
    how = " ".join(f"--{name.replace('_', '-')} {value:g}" for name, value in best.sampling.items())
    return f"decode with {how}: {best.flawed:.0%} of the answers loop, do not end or are empty, and {greedy.flawed:.0%} without"


def _short(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:197]}..."
