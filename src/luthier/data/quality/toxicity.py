"""Insults, threats and obscenities: by a short list of phrases, and by a classifier of your own where you name one."""

import re
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from importlib.resources import files

from luthier.data.quality.check import WORST, Concern, Finding, Given
from luthier.data.quality.imported import imported
from luthier.data.quality.words import of_rows
from luthier.errors import ConfigError
from luthier.records import Conversation, Source

_BATCH = 256  # texts that a classifier gets at once


def toxicity(rows: Iterable[Conversation], given: Given) -> Finding:
    """Rows with an insulting, threatening or obscene turn. The classifier sees what the list does not find."""
    path, threshold = given.settings.toxicity_classifier, given.settings.toxicity_threshold
    score = imported("checks.toxicity_classifier", path, "a list of texts") if path else None
    found: dict[int, tuple[float, str]] = {}
    sources: list[Source] = []
    waiting: list[tuple[int, str]] = []
    for place, row in enumerate(rows):
        sources.append(row.source)
        text = "\n".join(turn.content for turn in (*row.turns, *row.rejected))
        if match := _phrases().search(text.casefold()):
            found[place] = 1.0, f"says {match.group()[:40]!r}"
        elif score:
            waiting.append((place, text))
            if len(waiting) == _BATCH:
                found.update(_judged(waiting, score, threshold, path or ""))
                waiting.clear()
    if score and waiting:
        found.update(_judged(waiting, score, threshold, path or ""))
    worst = sorted(found.items(), key=lambda item: (-item[1][0], item[0]))[:WORST]
    return Finding(
        "toxicity",
        "look" if found else "good",
        f"{of_rows(len(found), len(sources))} insult, threaten or curse",
        of=len(sources),
        places=sorted(found),
        worst=[Concern(sources[place], detail) for place, (_, detail) in worst],
        cure="read them; luthier data clean FILE takes them out; keep them where the model should judge such texts" if found else "",
    )


@cache
def _phrases() -> re.Pattern[str]:
    lines = files("luthier.data.quality").joinpath("toxic_phrases.txt").read_text("utf-8").splitlines()
    return re.compile(r"\b(?:" + "|".join(line for line in lines if line and not line.startswith("#")) + r")\b")


Scorer = Callable[[list[str]], Sequence[float]]


def _judged(waiting: list[tuple[int, str]], score: Scorer, threshold: float, path: str) -> dict[int, tuple[float, str]]:
    """The rows that the classifier scores at the threshold or above."""
    try:
        scores = [float(one) for one in score([text for _, text in waiting])]
    except Exception as error:  # the user's own code may raise anything
        raise ConfigError(
            f"it raised {type(error).__name__}: {error}", where=f"checks.toxicity_classifier: {path}", next_step="mend it, or take the setting out"
        ) from None
    if len(scores) != len(waiting):
        problem = f"it gave {len(scores)} scores for {len(waiting)} texts"
        raise ConfigError(problem, where=f"checks.toxicity_classifier: {path}", next_step="give one score from 0 to 1 for each text")
    judged = zip(waiting, scores, strict=True)
    return {place: (one, f"the classifier gives {one:.2f}") for (place, _), one in judged if one >= threshold}
