"""A model behind an OpenAI-compatible endpoint as one more column: the same questions, as messages."""

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from luthier.data.endpoint import Callers, Endpoint, Question, Refused, Reply
from luthier.data.formats.write import openai_messages
from luthier.errors import CallError, LuthierError
from luthier.evaluate.asking import Column, Decoding
from luthier.evaluate.kept import Kept, key_of
from luthier.records import Answer, Conversation
from luthier.reporting import Bar, Reporter

CONCURRENCY = 4
# A server that refuses so many questions, and has answered none, refuses them all.
REFUSALS_IN_A_ROW = 3
# What an endpoint is told of a turn; a row without a template is one question.
ROLES = {"prompt": "user", "text": "user", "completion": "assistant"}


@dataclass(frozen=True, slots=True)
class Against:
    """Where to ask, whom, and what its tokens cost (in any currency). `key_env` names the environment variable that holds the key."""

    address: str
    model: str
    key_env: str | None = None
    requests_per_minute: float | None = None
    concurrency: int = CONCURRENCY


def ask(against: Against, rows: Sequence[Conversation], how: Decoding, kept: Kept, reporter: Reporter) -> Column:
    """The endpoint's answers to rows; those in `kept` are not asked (and paid) for again. One that it refuses to give is empty, and said; the
    same call asks for it again.

    Raises CallError without the key, and LuthierError where the endpoint cannot be asked or refuses everything: what it answered until then
    is kept.
    """
    endpoint = Endpoint(against.address, _key(against.key_env), requests_per_minute=against.requests_per_minute)
    if endpoint.shows_key:
        reporter.say(f"{endpoint.host}: the key is sent in clear text (http); https hides it")
    asked: dict[str, Any] = {"model": against.model, "max_tokens": how.max_new_tokens, "temperature": how.sampling.temperature}
    asked |= {"top_p": how.sampling.top_p} if how.sampling.top_p < 1 else {}
    messages = [openai_messages([replace(turn, role=ROLES.get(turn.role, turn.role)) for turn in row.prompt]) for row in rows]
    settings = [asked | ({"tools": json.loads(row.tools)} if row.tools else {}) for row in rows]
    keys = [
        [key_of(f"{endpoint.url} {against.model}", one, {**own, "sample": sample}) for sample in range(how.samples)]
        for one, own in zip(messages, settings, strict=True)
    ]
    missing = [(place, sample) for place in range(len(rows)) for sample in range(how.samples) if kept.answer(keys[place][sample]) is None]
    questions = {f"{keys[place][sample]}": Question(keys[place][sample], messages[place], settings[place]) for place, sample in missing}
    sources = {keys[place][sample]: (str(rows[place].source), sample) for place, sample in missing}
    whole = len(rows) * how.samples
    if len(missing) < whole:
        reporter.say(f"{against.model}: {whole - len(missing)} of {whole} answers are kept from before")
    if questions:
        with reporter.bar(f"asking {against.model}", len(questions)) as bar, Callers(endpoint, against.concurrency) as callers:
            refused = _ask(callers, questions, sources, against.model, kept, bar, answers_something=len(missing) < whole)
        if refused:
            reporter.say(f"{against.model}: {refused} questions were refused by the server, and count as answered with nothing")
    answers = [[kept.answer(key) or Answer("", 0, False) for key in of_row] for of_row in keys]
    there = [key for of_row in keys for key in of_row if kept.answer(key) is not None]
    counted = [kept.prompt_tokens(key) for key in there]
    known = [tokens for tokens in counted if tokens is not None]
    seconds = sum(kept.seconds(key) for key in there)
    return Column(against.model, answers, seconds=seconds, prompt_tokens=sum(known) if len(known) == len(counted) else None)


def _ask(
    callers: Callers,
    questions: dict[str, Question],
    sources: dict[str, tuple[str, int]],
    model: str,
    kept: Kept,
    bar: Bar,
    answers_something: bool,
) -> int:
    """Keep all callers busy until every question has its answer. Gives how many were refused; raises the server's reply where all are."""
    waiting, sent, done, refused = list(questions.values()), {}, 0, 0
    while waiting or callers.in_flight:
        while waiting and callers.in_flight < callers.concurrency:
            question = waiting.pop(0)
            sent[question.id] = time.perf_counter()
            callers.send(question)
        if (arrived := callers.next_reply()) is None:
            continue
        question, reply = arrived
        if isinstance(reply, LuthierError) and not isinstance(reply, Refused):
            callers.endpoint.stop()
            raise reply
        done += 1
        bar.advance(done)
        if isinstance(reply, LuthierError):
            refused += 1
            if not answers_something and refused >= min(REFUSALS_IN_A_ROW, len(questions)):
                callers.endpoint.stop()
                raise reply
            continue
        answers_something = True
        row, sample = sources[question.id]
        answer, prompt_tokens = _read(reply)
        seconds = time.perf_counter() - sent[question.id]
        kept.add(question.id, answer, seconds=seconds, prompt_tokens=prompt_tokens, model=model, row=row, sample=sample)
    return refused


def _read(reply: Reply) -> tuple[Answer, int | None]:
    # A server that counts nothing: words, which are fewer than tokens.
    tokens = reply.completion_tokens if reply.completion_tokens is not None else len(reply.text.split())
    return Answer(reply.text, tokens, not reply.cut), reply.prompt_tokens if reply.completion_tokens is not None else None


def _key(name: str | None) -> str:
    if name is None:
        return ""
    if not (key := os.environ.get(name, "").strip()):
        raise CallError("this environment variable is not set, or empty", where=f"--key-env {name}", next_step=f"export {name}=... before the call")
    return key
