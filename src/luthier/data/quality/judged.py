"""Answers that another model calls wrong: a second opinion on a sample of the rows."""

import hashlib
from collections.abc import Iterable

from luthier.data.quality.check import WORST, Concern, Finding, Given
from luthier.data.quality.limits import not_run, percent
from luthier.data.quality.parts import answers_of, prompt_of
from luthier.records import Conversation


def judge(rows: Iterable[Conversation], given: Given) -> Finding:
    """Of `checks.judge_rows` rows, drawn by what they hold, those whose last answer the judge calls wrong."""
    if given.judge is None:
        return not_run("judge", "no checks.judge_endpoint is set")
    answered = [(place, row.source, prompt_of(row), answers[-1].content) for place, row in enumerate(rows) if (answers := answers_of(row))]
    drawn = sorted(answered, key=lambda one: hashlib.sha256(f"{one[2]}\0{one[3]}".encode("utf-8", "surrogatepass")).digest())
    sample = sorted(drawn[: given.settings.judge_rows])
    verdicts = given.judge([(prompt, answer) for _, _, prompt, answer in sample])
    read = [(place, source, verdict) for (place, source, _, _), verdict in zip(sample, verdicts, strict=True) if verdict is not None]
    wrong = [(place, source, verdict) for place, source, verdict in read if verdict]
    unread = len(sample) - len(read)
    tail = f"; {unread:,} replies of the judge could not be read" if unread else ""
    return Finding(
        "judge",
        "look" if wrong or unread > len(sample) / 2 else "good",
        f"{len(wrong):,} of {len(read):,} rows ({percent(len(wrong), len(read))}) that {given.settings.judge_model} judged are wrong{tail}",
        of=len(read),
        places=[place for place, _, _ in wrong],
        worst=[Concern(source, verdict) for _, source, verdict in wrong[:WORST]],
        cure="read them: a judge errs as well; mend the wrong ones" if wrong else "",
        numbers={"judged": len(read), "wrong": len(wrong), "unread": unread},
        removable=False,  # a sample: the rest was not looked at, and the judge may be wrong
    )
