"""Whether an engine does what a run's contract promises, asked through the engine's own API: the template, prompts to the token, stop tokens."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.errors import RunError
from luthier.serve import dialects
from luthier.serve.asked import CompletionAsked
from luthier.serve.contract import turns_of
from luthier.serve.dialects import Body, Dialect, Forwarded, Post
from luthier.serve.faults import Fault
from luthier.serve.messages import all_written

# Two system messages: a template that knows the role writes them differently.
PROBES = ("Probe system 7351.", "Another one, which is 20480.")
FORCED = 100.0  # added to a token's logit: no model says another one


@dataclass(frozen=True, slots=True)
class Asking:
    """An engine that can be asked before it is served: how it is spoken to, and a call that posts to it."""

    dialect: Dialect
    post: Post
    base: Forwarded
    adapters: int
    template: Callable[[], str | None]  # what the engine says of its chat template; None: nothing

    def ids(self, asked: Sequence[Body] | str, tools: Any = None) -> list[int]:
        """The tokens that the engine makes of messages, or of a text."""
        return self.dialect.tokens(self.post, asked, tools)


def knows_system(asking: Asking) -> bool:
    """Whether the engine's template writes system messages."""
    user = {"role": "user", "content": "Hi"}
    try:
        one, other = ([{"role": "system", "content": probe}, user] for probe in PROBES)
        return asking.ids(one) != asking.ids(other)
    except Fault:
        return False


def check(asking: Asking, promised: Body, where: str) -> tuple[int, ...]:
    """The ids of the contract's stop tokens, after all that it promises was found to hold. Raises RunError for the first that does not."""
    template = asking.template()
    if template is not None and _hash(template) != promised["template_sha256"]:
        raise _differs(asking, "has another chat template than the training", where)
    for number, golden in enumerate(promised["golden"], 1):
        found = _golden(asking, golden)
        # A template that writes today's date gives other tokens each day.
        if found != golden["ids"] and "strftime_now" not in str(promised.get("template")):
            raise _differs(asking, f"makes other tokens of golden prompt {number} ({_first_difference(found, golden['ids'])})", where)
    return tuple(_stop_id(asking, spelling, where) for spelling in promised["stop_tokens"])


def _golden(asking: Asking, golden: Body) -> list[int]:
    turns = turns_of(golden)
    if turns[0].role in ("prompt", "text"):
        return asking.ids("".join(turn.content for turn in turns))
    try:
        messages = all_written(turns, knows_system(asking))
        return asking.ids(messages, dialects.tools_of(golden.get("tools", "")))
    except Fault:
        return []


def _first_difference(found: list[int], wanted: list[int]) -> str:
    place = next((place for place, pair in enumerate(zip(found, wanted, strict=False)) if pair[0] != pair[1]), min(len(found), len(wanted)))
    return f"token {place}: {found[place : place + 1] or 'none'} for {wanted[place : place + 1] or 'none'}"


def _stop_id(asking: Asking, spelling: str, where: str) -> int:
    """The id of a stop token in the engine; an answer that is made to say it has to end there."""
    ids = asking.ids(spelling)
    if not ids or len(ids) > 2:  # a begin-of-text token may stand before it
        raise _differs(asking, f"does not know the stop token {spelling}", where)
    forced = CompletionAsked(model=asking.base.served.name, prompt="a", max_tokens=3, temperature=0.0, logit_bias={str(ids[-1]): FORCED})
    answer = asking.post("/v1/completions", dialects.body_of(asking.dialect, forced, [], asking.base, asking.adapters, ""))
    if answer["choices"][0].get("finish_reason") != "stop":
        raise _differs(asking, f"goes on after the stop token {spelling}", where)
    return ids[-1]


def _differs(asking: Asking, problem: str, where: str) -> RunError:
    step = "export the run again with this version, or luthier serve --engine transformers"
    return RunError(f"{asking.dialect.name} {problem}: it would not answer as the run was trained", where=where, next_step=step)


def _hash(template: str) -> str:
    return hashlib.sha256(template.encode()).hexdigest()
