"""Turns as text with a tokenizer's own chat template, and text as tokens. The one place where both happen: training, evaluation, chat
and serving give the same tokens for the same turns. The tokenizer is an argument; no model is known by name.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from luthier.errors import DataError
from luthier.records import Turn

RAW_ROLES = ("prompt", "text")
# A template may wrap and repeat, but not without end: characters for each one of the row, and what a tool list or a preamble takes.
MOST_TIMES, MOST_BESIDE = 20, 1_000_000
PROBE_SYSTEM, PROBE_KEY = "Probe system 7351.", "probe_key_7351"


class Unfit(Exception):
    """The row cannot become tokens without a change: a short name and a sentence."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


def prompt_ids(turns: Sequence[Turn], tokenizer: Any, tools: str = "") -> list[int]:
    """What a model is asked with: the turns rendered up to where the assistant speaks, or the raw prompt of a completion.

    Training, evaluation, chat and serving all use this. Raises DataError where the template refuses the turns, or where a text spells
    a control token of the model: such rows are not trained either.
    """
    try:
        check_spelling(turns, tools, tokenizer)
        if turns and turns[0].role not in RAW_ROLES:
            return encode(render(with_known_roles(turns, tokenizer), tokenizer, tools, generation_prompt=True), tokenizer)[0]
    except Unfit as unfit:
        raise DataError(unfit.detail, where="prompt", next_step="ask in the form that the model was trained with") from unfit
    return beginning(tokenizer) + [token for turn in turns for token in encode(turn.content, tokenizer)[0]]


def render(turns: Sequence[Turn], tokenizer: Any, tools: str = "", generation_prompt: bool = False) -> str:
    """The turns as the template writes them, in Transformers' sandbox."""
    messages = [message_of(turn, tokenizer) for turn in turns]
    given = json.loads(tools) if tools else None
    try:
        text = str(tokenizer.apply_chat_template(messages, tools=given, tokenize=False, add_generation_prompt=generation_prompt))
    except Exception as error:  # a template is its author's program: it may raise anything
        raise Unfit("template_refused", f"the model's chat template refuses the row: {error}") from error
    if len(text) > MOST_BESIDE + MOST_TIMES * (len(tools) + sum(len(turn.content) + len(turn.extra) for turn in turns)):
        raise Unfit("template_refused", f"the model's chat template makes {len(text):,} characters of the row")
    return text


def message_of(turn: Turn, tokenizer: Any) -> dict[str, Any]:
    """The turn as the template gets it: role, content, and whatever else the row's message held."""
    if not turn.extra:
        return {"role": turn.role, "content": turn.content}
    extra: dict[str, Any] = json.loads(turn.extra)
    if calls := extra.get("tool_calls"):
        wanted = _reads_objects(tokenizer, _template_text(tokenizer))
        extra["tool_calls"] = [_with_arguments(call, wanted) for call in calls]
    return {**extra, "role": turn.role, "content": turn.content}


def with_known_roles(turns: Sequence[Turn], tokenizer: Any) -> tuple[Turn, ...]:
    """The turns as this template can express them: without a system role, system text stands before the first user message."""
    first, *others = turns
    if first.role != "system" or not others or knows_system(tokenizer):
        return tuple(turns)
    if others[0].role != "user":
        raise Unfit("no_system_role", "the model's chat template has no system role, and no user message follows that could hold the text")
    joined = f"{first.content}\n\n{others[0].content}" if first.content.strip() else others[0].content
    return (replace(others[0], content=joined), *others[1:])


def knows_system(tokenizer: Any) -> bool:
    """Whether the template writes system messages. Where it does not, their text is put before the first user message."""
    return _writes_system(tokenizer, _template_text(tokenizer))


def encode(text: str, tokenizer: Any) -> tuple[list[int], Any]:
    """The text's token ids, nothing added; and the library's own record of which characters each stands for (None without one)."""
    backend = tokenizer.backend_tokenizer if tokenizer.is_fast and not getattr(tokenizer, "split_special_tokens", False) else None
    if backend is None:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"]), None
    # What an earlier call asked for stays switched on in the library: nothing is cut or padded here.
    if backend.truncation is not None:
        backend.no_truncation()
    if backend.padding is not None:
        backend.no_padding()
    encoding = backend.encode(text, add_special_tokens=False)
    return encoding.ids, encoding


def decode(token_ids: Sequence[int], tokenizer: Any) -> str:
    return str(tokenizer.decode(list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def beginning(tokenizer: Any) -> list[int]:
    """The begin-of-text token where this tokenizer puts one before plain text, else nothing."""
    ids = list(tokenizer("")["input_ids"])
    return ids[:1] if ids and ids[0] == tokenizer.bos_token_id else []


def end_of_text(tokenizer: Any) -> int:
    if tokenizer.eos_token_id is None:
        raise Unfit("no_end_token", "the tokenizer has no end-of-text token, so the model could not learn to stop")
    return int(tokenizer.eos_token_id)


def end_of_turn(tokenizer: Any) -> int | None:
    """The token that closes an answer in this tokenizer's chat template, which must stop generation; None where it writes none."""
    return _end_of_turn(tokenizer, _template_text(tokenizer)) if tokenizer.chat_template is not None else None


def check_spelling(turns: Sequence[Turn], tools: str, tokenizer: Any) -> None:
    """A text that would be read as a control token is neither trained nor asked."""
    spelling = _special_spelling(tokenizer)
    for number, turn in enumerate(turns, 1):
        beside = json.dumps(json.loads(turn.extra), ensure_ascii=False) if turn.extra else ""
        if found := spelling.search(turn.content) or spelling.search(beside):
            raise Unfit(
                "special_token_in_text", f'turn {number} ({turn.role}) holds "{found[0]}", which this model reads as a control token and not as text'
            )
    if tools and (found := spelling.search(json.dumps(json.loads(tools), ensure_ascii=False))):
        raise Unfit("special_token_in_text", f'the list of tools holds "{found[0]}", which this model reads as a control token and not as text')


@lru_cache(maxsize=4)
def special_ids(tokenizer: Any) -> frozenset[int]:
    """Control tokens: those that the tokenizer calls special."""
    added = {token for token, spelling in tokenizer.added_tokens_decoder.items() if spelling.special}
    return frozenset(added | set(tokenizer.all_special_ids))


@lru_cache(maxsize=4)
def special_spellings(tokenizer: Any) -> list[str]:
    """How the control tokens are written, the longest first."""
    return sorted((tokenizer.convert_ids_to_tokens(token) for token in special_ids(tokenizer)), key=len, reverse=True)


@lru_cache(maxsize=4)
def _special_spelling(tokenizer: Any) -> re.Pattern[str]:
    return re.compile("|".join(re.escape(spelling) for spelling in special_spellings(tokenizer)) or r"(?!)")


def _template_text(tokenizer: Any) -> str:
    return str(tokenizer.chat_template)


def _with_arguments(call: dict[str, Any], as_objects: bool) -> dict[str, Any]:
    """A tool call whose arguments are JSON text or an object, as the template reads them. What they say stays the same."""
    function = call.get("function")
    if not isinstance(function, dict):
        return call
    arguments = function.get("arguments")
    if as_objects and isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            return call
    elif not as_objects and isinstance(arguments, dict):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return {**call, "function": {**function, "arguments": arguments}}


# These ask the template once what it can do; the text is a key, since a tokenizer may be given another template.


@lru_cache(maxsize=16)
def _writes_system(tokenizer: Any, template: str) -> bool:
    written = _tried(tokenizer, [{"role": "system", "content": PROBE_SYSTEM}, {"role": "user", "content": "Hi"}])
    return PROBE_SYSTEM in written or not _tried(tokenizer, [{"role": "user", "content": "Hi"}])


@lru_cache(maxsize=16)
def _reads_objects(tokenizer: Any, template: str) -> bool:
    """Whether the template wants a tool call's arguments as an object (most do) or as JSON text."""

    def written(arguments: object) -> str:
        call = {"type": "function", "id": "call00001", "function": {"name": "probe", "arguments": arguments}}
        return _tried(tokenizer, [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "", "tool_calls": [call]}])

    return PROBE_KEY in written({PROBE_KEY: "1"}) or PROBE_KEY not in written(json.dumps({PROBE_KEY: "1"}))


@lru_cache(maxsize=16)
def _end_of_turn(tokenizer: Any, template: str) -> int | None:
    written = _tried(tokenizer, [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": PROBE_KEY}])
    after = encode(written.rpartition(PROBE_KEY)[2], tokenizer)[0] if PROBE_KEY in written else []
    return next((token for token in after if token in special_ids(tokenizer)), None)


def _tried(tokenizer: Any, messages: list[dict[str, Any]]) -> str:
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False))
    except Exception:  # whatever it raises, it cannot write them
        return ""
