"""A language model behind an OpenAI-compatible endpoint as a judge of answers: right, wrong and why, or nothing that can be read."""

import os
from collections.abc import Sequence
from typing import Any

from luthier.config.checks import CheckSettings
from luthier.data.endpoint import Callers, Endpoint, Question, Refused
from luthier.errors import ConfigError, LuthierError

CONCURRENCY = 4
MAX_TOKENS = 120
PROMPT = (
    "You check the rows of a training set. Decide whether the answer to the question is right and complete.\n\n"
    "### Question\n{prompt}\n\n### Answer\n{answer}\n\n"
    "Reply with one line: RIGHT, or WRONG: and in a few words what is wrong."
)


def judge(pairs: Sequence[tuple[str, str]], settings: CheckSettings) -> list[str | None]:
    """What the judge says of each (prompt, answer): "" for right, what is wrong, or None where its reply cannot be read.

    Raises ConfigError where the key is missing, and LuthierError where the endpoint cannot be asked.
    """
    key = os.environ.get(settings.judge_key_env or "", "").strip()
    if settings.judge_key_env and not key:
        where = f"checks.judge_key_env: {settings.judge_key_env}"
        raise ConfigError("this environment variable is not set, or empty", where=where, next_step=f"export {settings.judge_key_env}=...")
    with Callers(Endpoint(str(settings.judge_endpoint), key), CONCURRENCY) as callers:
        return _verdicts(pairs, {"model": settings.judge_model, "max_tokens": MAX_TOKENS, "temperature": 0}, callers)


def _verdicts(pairs: Sequence[tuple[str, str]], asked: dict[str, Any], callers: Callers) -> list[str | None]:
    for number, (prompt, answer) in enumerate(pairs):
        callers.send(Question(str(number), [{"role": "user", "content": PROMPT.format(prompt=prompt, answer=answer)}], asked))
    verdicts: list[str | None] = [None] * len(pairs)
    while callers.in_flight:
        if reply := callers.next_reply():
            question, said = reply
            if isinstance(said, Refused):
                continue  # this one question: too long, or against the server's rules
            if isinstance(said, LuthierError):
                callers.endpoint.stop()
                raise said
            verdicts[int(question.id)] = verdict(said.text)
    return verdicts


def verdict(text: str) -> str | None:
    """ "" where a reply says that the answer is right, what it says is wrong, or None where it says neither."""
    line = next((line.strip(" *`#-\t") for line in text.splitlines() if line.strip(" *`#-\t")), "")
    if line.upper().startswith("RIGHT"):
        return ""
    if line.upper().startswith("WRONG"):
        return line[len("WRONG") :].strip(" *:.-") or "the judge does not say what"
    return None
