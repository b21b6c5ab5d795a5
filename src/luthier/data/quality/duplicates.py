"""Rows that are there twice, rows that answer the same question differently, and rows that stand in the evaluation set too."""

import json
from collections.abc import Iterable

from luthier.data.quality.check import WORST, Concern, Finding, Given
from luthier.data.quality.limits import not_run
from luthier.data.quality.near import near_pairs, sign_of
from luthier.data.quality.words import exact_key, normalized, of_rows, spoken, triples
from luthier.records import Conversation, Source


def duplicates(rows: Iterable[Conversation], given: Given) -> Finding:
    """Rows that are the same as an earlier one, but for white space."""
    first: dict[int, Source] = {}
    times: dict[int, int] = {}
    copies: list[tuple[int, Source, int]] = []
    of = 0
    for place, row in enumerate(rows):
        key = exact_key(row)
        times[key] = times.get(key, 0) + 1
        if first.setdefault(key, row.source) is not row.source:
            copies.append((place, row.source, key))
        of = place + 1
    copies.sort(key=lambda copy: -times[copy[2]])
    return Finding(
        "duplicates",
        "look" if copies else "good",
        f"{of_rows(len(copies), of)} are exact copies of an earlier one",
        of=of,
        places=sorted(place for place, _, _ in copies),
        worst=[Concern(source, f"this row is there {times[key]} times", first[key]) for _, source, key in copies[:WORST]],
        cure="luthier data clean FILE keeps the first of each" if copies else "",
        numbers={"most_copies": max(times.values(), default=0)},
    )


def conflicting_answers(rows: Iterable[Conversation], given: Given) -> Finding:
    """Rows that ask the same (but for case, white space and the last punctuation mark) and answer differently."""
    asked: dict[int, dict[int, list[int]]] = {}
    sources = []
    for place, row in enumerate(rows):
        sources.append(row.source)
        # A judged or compared row has several answers to one question by design; a plain text has no question.
        if row.prompt and not row.rejected and row.label is None:
            key = hash((normalized(row.prompt).rstrip(" .?!:"), row.tools))
            asked.setdefault(key, {}).setdefault(_meaning(row), []).append(place)
    conflicts = sorted((answers for answers in asked.values() if len(answers) > 1), key=len, reverse=True)
    places = sorted(place for answers in conflicts for same in answers.values() for place in same)
    return Finding(
        "conflicting_answers",
        "look" if conflicts else "good",
        f"{of_rows(len(places), len(sources))} ask what another row asks and answer differently ({len(conflicts):,} questions)",
        of=len(sources),
        places=places,
        worst=[_concern(answers, sources) for answers in conflicts[:WORST]],
        cure="keep the right answer of each; where several are right (stories, names), leave them" if conflicts else "",
        numbers={"questions": len(conflicts), "most_answers": max(map(len, conflicts), default=0)},
        removable=False,  # which of the answers is right, only a person knows
    )


def _meaning(row: Conversation) -> int:
    """The same number for answers that say the same: without case, white space and outer punctuation; JSON whatever its order."""
    text = row.answer.strip()
    if text[:1] in {"{", "["}:
        try:
            return hash(json.dumps(json.loads(text), sort_keys=True))
        except (ValueError, RecursionError):
            pass
    return hash((" ".join(text.casefold().split()).strip(" .,;:!\"'`"), row.turns[-1].extra))


def _concern(answers: dict[int, list[int]], sources: list[Source]) -> Concern:
    places = sorted(same[0] for same in answers.values())
    return Concern(sources[places[1]], f"one question has {len(answers)} answers", sources[places[0]])


def overlap(rows: Iterable[Conversation], given: Given) -> Finding:
    """Training rows that ask what an evaluation row asks, or are near duplicates of one."""
    if not given.held_out:
        return not_run("overlap", "there are no evaluation rows to compare with")
    held_out = given.held_out
    asked = {_asked(row): number for number, row in enumerate(held_out)}
    sources, texts, signs = [], [spoken(row) for row in held_out], [sign_of(row.answer) for row in held_out]
    found: dict[int, tuple[int, float]] = {}
    exact = 0
    for place, row in enumerate(rows):
        sources.append(row.source)
        texts.append(spoken(row))
        signs.append(sign_of(row.answer))
        if (number := asked.get(_asked(row))) is not None:
            found[place], exact = (number, 1.0), exact + 1
    for first, second, similarity in near_pairs(triples(texts), given.settings.near_duplicate_threshold):
        if first < len(held_out) <= second and signs[first] == signs[second]:
            found.setdefault(second - len(held_out), (first, similarity))
    worst = sorted(found.items(), key=lambda pair: (-pair[1][1], pair[0]))[:WORST]
    return Finding(
        "overlap",
        "stop" if found else "good",
        f"{of_rows(len(found), len(sources))} stand in the evaluation rows too ({exact:,} ask the same, {len(found) - exact:,} nearly)",
        of=len(sources),
        places=sorted(found),
        worst=[Concern(sources[place], f"{like:.0%} the same as an evaluation row", held_out[number].source) for place, (number, like) in worst],
        cure="luthier data clean FILE takes them out of the training rows; otherwise the scores measure memory" if found else "",
        numbers={"exact": exact, "near": len(found) - exact, "evaluation_rows": len(held_out)},
    )


def _asked(row: Conversation) -> int:
    turns = [turn for turn in row.prompt if turn.role != "system"] or row.turns
    return hash(normalized(turns).rstrip(" .?!:"))
