"""Which tokens of a rendered conversation are trained: found by rendering it piece by piece, and proved a second way.

First way: an answer begins where the text that asks for it ends, and ends where the text with it ends; the token ids before each seam
must be those of the shorter text. Second way: each message's content is looked up in the whole text, and the tokens of its characters
must be trained or not as the message is; the trained tokens must spell the same text; and where a template marks its answers itself
({% generation %}), its mask must be ours. A row on which they disagree is set aside.
"""

import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from luthier.data.rendering import Unfit, decode, encode, end_of_text, message_of, render, special_ids, special_spellings
from luthier.records import Turn

GENERATION_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")
OPENS_THOUGHT = re.compile(r"think|thought|reasoning steps", re.IGNORECASE)
# A short text stands in many places; one of the first must be the right one.
MOST_PLACES = 200


@dataclass(frozen=True, slots=True)
class Written:
    """One example: token ids, and which are trained."""

    token_ids: list[int]
    trained: list[bool]


@dataclass(frozen=True, slots=True)
class _Text:
    """A rendered conversation and its tokens. `encoding` knows the characters of each token (None: the tokenizer does not say)."""

    text: str
    token_ids: list[int]
    encoding: Any


@dataclass(frozen=True, slots=True)
class _Span:
    """A trained answer: its turn, its tokens, and its characters."""

    turn: int
    tokens: range
    characters: tuple[int, int]


def write(turns: Sequence[Turn], tools: str, tokenizer: Any, *, everything: bool = False) -> Written | None:
    """The conversation as one example. `turn.trained` must be set for every turn; `everything` trains also what the template adds.

    None where the template writes an earlier answer otherwise once more turns follow: then each answer needs an example of its own.
    """
    whole = render(turns, tokenizer, tools)
    whole_text = _Text(whole, *encode(whole, tokenizer))
    _check_beginning(whole_text, tokenizer)
    spans = [] if everything else _spans(turns, tools, whole_text, tokenizer)
    if spans is None:
        return None
    trained = [everything] * len(whole_text.token_ids)
    for span in spans:
        trained[span.tokens.start : span.tokens.stop] = [True] * len(span.tokens)
    _mark_others(turns, whole_text, trained, everything, tokenizer)
    _prove(turns, tools, whole_text, trained, spans, everything, tokenizer)
    return _closed(turns, whole_text, trained, spans, everything, tokenizer)


def _spans(turns: Sequence[Turn], tools: str, whole: _Text, tokenizer: Any) -> list[_Span] | None:
    spans = []
    for place, turn in enumerate(turns):
        if turn.role != "assistant" or not turn.trained:
            continue
        last = place == len(turns) - 1
        if not place:
            raise Unfit("no_question", "the row begins with an answer: nothing asks for it")
        prompt = render(turns[:place], tokenizer, tools, generation_prompt=True)
        after = whole.text if last else _common(render(turns[: place + 1], tokenizer, tools), whole.text, tokenizer)
        if not whole.text.startswith(prompt) or len(after) < len(prompt):
            if last:
                raise _rewritten(prompt, place)
            return None
        start = _seam(prompt, whole, tokenizer)
        end = len(whole.token_ids) if last else _seam(after, whole, tokenizer)
        if start is None:
            raise _melts(prompt, place)
        if end is None:
            return None
        spoken = _spoken(whole.token_ids[start:end], tokenizer)
        if not last and whole.token_ids[start + spoken - 1] not in special_ids(tokenizer):
            return None  # nothing closes this turn here: alone, it is given an end
        spans.append(_Span(place, range(start, start + spoken), (len(prompt), len(after))))
    return spans


def _common(after: str, whole: str, tokenizer: Any) -> str:
    """The text that ends with an answer, less the control tokens that only stand where the conversation ends (Phi-3); "" if no beginning."""
    while not whole.startswith(after):
        ends = [spelling for spelling in special_spellings(tokenizer) if after.rstrip().endswith(spelling)]
        if not ends:
            return ""
        after = after.rstrip().removesuffix(ends[0])
    return after


def _seam(prefix: str, whole: _Text, tokenizer: Any) -> int | None:
    """How many tokens the prefix has, which must be how the whole begins; None where the text after it melts into its last one."""
    if (count := _proved_seam(prefix, whole, tokenizer)) is not None:
        return count
    ids, _ = encode(prefix, tokenizer)
    return len(ids) if whole.token_ids[: len(ids)] == ids else None


def _melts(prompt: str, turns: int) -> Unfit:
    return Unfit(
        "template_seam", f"the text after turn {turns} melts into the tokens before it, so serving would see other tokens{_of_thoughts(prompt)}"
    )


def _rewritten(prompt: str, turns: int) -> Unfit:
    detail = f"the model's chat template writes the first {turns} turns otherwise when more turns follow{_of_thoughts(prompt)}"
    return Unfit("template_seam", detail)


def _of_thoughts(prompt: str) -> str:
    """What most refusals of reasoning models come from."""
    if not OPENS_THOUGHT.search(prompt[-60:]):
        return ""
    return ': it asks with an open or empty thought, and this answer is not written so (give its "reasoning_content", or a template: FILE.jinja)'


def _proved_seam(prefix: str, whole: _Text, tokenizer: Any) -> int | None:
    """The same without cutting the whole prefix again: what follows a control token is cut by itself. None where that shows nothing."""
    last = whole.encoding.char_to_token(len(prefix) - 1) if whole.encoding is not None and prefix else None
    if last is None:
        return None
    splitting = _splitting_ids(tokenizer)
    first = next((place for place in range(last, -1, -1) if whole.token_ids[place] in splitting), None)
    if first is None:
        return None
    start, _ = whole.encoding.token_to_chars(first)
    return last + 1 if _tail_ids(prefix[start:], tokenizer) == whole.token_ids[first : last + 1] else None


@lru_cache(maxsize=4096)
def _tail_ids(text: str, tokenizer: Any) -> list[int]:
    return encode(text, tokenizer)[0]


@lru_cache(maxsize=4)
def _splitting_ids(tokenizer: Any) -> frozenset[int]:
    """Control tokens that are found in the raw text, before anything else is cut: they part it."""
    return frozenset(token for token, added in tokenizer.added_tokens_decoder.items() if added.special and not added.normalized)


def _spoken(token_ids: list[int], tokenizer: Any) -> int:
    """How many of an assistant's tokens it says itself: all but the white space that the template puts after the end of turn."""
    special, end = special_ids(tokenizer), len(token_ids)
    while end and token_ids[end - 1] not in special and not decode(token_ids[end - 1 : end], tokenizer).strip():
        end -= 1
    # Without an end-of-turn token, white space at the end may be the answer's own.
    return end if end and token_ids[end - 1] in special else len(token_ids)


def _closed(turns: Sequence[Turn], whole: _Text, trained: list[bool], spans: list[_Span], everything: bool, tokenizer: Any) -> Written:
    """The example, with an end where the template closes no turn: without a last word of its own the model would never stop."""
    last = len(turns) - 1
    end = spans[-1].tokens.stop if spans and spans[-1].turn == last else None
    if everything and turns[last].trained:
        end = _spoken(whole.token_ids, tokenizer)
    if not end or whole.token_ids[end - 1] in special_ids(tokenizer):
        return Written(whole.token_ids, trained)
    return Written([*whole.token_ids[:end], end_of_text(tokenizer)], [*trained[:end], True])


def _check_beginning(whole: _Text, tokenizer: Any) -> None:
    start = tokenizer.bos_token_id
    if start is not None and whole.token_ids[:2] == [start, start]:
        raise Unfit("double_begin_token", "the model's chat template writes the begin-of-text token twice")


def _mark_others(turns: Sequence[Turn], whole: _Text, trained: list[bool], everything: bool, tokenizer: Any) -> None:
    """Messages that differ from the rule: a user's that is trained, or one that is not although everything else is."""
    if all(turn.trained == (everything or turn.role == "assistant") or (turn.role == "assistant" and not everything) for turn in turns):
        return
    at = 0
    for number, turn in enumerate(turns, 1):
        found = next(_places(turn, whole, at), None)
        if found is None:
            raise _dropped(turn, number)
        at = found[1]
        if bool(turn.trained) == everything or (turn.role == "assistant" and not everything) or found[0] == found[1]:
            continue
        tokens = _tokens_of(found, whole)
        if tokens is None:
            raise Unfit("mask_not_proved", f"the tokenizer does not say which tokens turn {number} ({turn.role}) has")
        end = tokens.stop
        if not turn.trained:  # its end of turn goes with it
            end = next((place + 1 for place in range(end, len(trained)) if whole.token_ids[place] in special_ids(tokenizer)), end)
        trained[tokens.start : end] = [bool(turn.trained)] * (end - tokens.start)


def _prove(turns: Sequence[Turn], tools: str, whole: _Text, trained: list[bool], spans: list[_Span], everything: bool, tokenizer: Any) -> None:
    """Raises Unfit where the second way disagrees, or the template does not write what the row says."""
    at = 0
    for number, turn in enumerate(turns, 1):
        place = next((place for place in _places(turn, whole, at) if _is_marked(place, bool(turn.trained), whole, trained)), None)
        if place is None:
            if next(_places(turn, whole, at), None) is None:
                raise _dropped(turn, number)
            state = "trained" if turn.trained else "masked"
            raise Unfit("mask_not_proved", f"the tokens of turn {number} ({turn.role}) are not all {state}, as the text that they stand for says")
        at = place[1]
    for span in spans:
        _check_spelled(span, whole, tokenizer)
        _check_extra(turns[span.turn], span.turn + 1, whole.text[slice(*span.characters)])
    for number, turn in enumerate(turns, 1):
        if turn.extra and not turn.trained:
            _check_calls(turn, number, whole.text)
    if tools and not any(name in whole.text for name in _tool_names(tools)):
        raise Unfit("template_drops_tools", "the model's chat template does not write the list of tools")
    if not everything and GENERATION_MARK.search(str(tokenizer.chat_template)):
        _check_template_mask(turns, tools, whole, trained, spans, tokenizer)


def _places(turn: Turn, whole: _Text, at: int) -> Iterator[tuple[int, int]]:
    """Where the message's content may stand in the text from `at` on: first and last character + 1. Templates may trim white space."""
    for form in _forms(turn):
        found, seen = whole.text.find(form, at), 0
        if found >= 0:
            while found >= 0 and seen < MOST_PLACES:
                yield found, found + len(form)
                found, seen = whole.text.find(form, found + 1), seen + 1
            return


def _forms(turn: Turn) -> Iterator[str]:
    text = turn.content.strip()
    yield text
    if turn.role == "assistant" and not turn.trained and "</think>" in text:
        yield text.rpartition("</think>")[2].strip()  # thoughts of earlier answers are left out by their templates
    if turn.role == "tool":
        yield json.dumps(turn.content, ensure_ascii=False)[1:-1]
        try:
            yield json.dumps(json.loads(text), ensure_ascii=False)
        except ValueError:
            return


def _tokens_of(place: tuple[int, int], whole: _Text) -> range | None:
    if whole.encoding is None:
        return None
    first = next((token for at in range(*place) if (token := whole.encoding.char_to_token(at)) is not None), None)
    last = next((token for at in range(place[1] - 1, place[0] - 1, -1) if (token := whole.encoding.char_to_token(at)) is not None), None)
    return range(first, last + 1) if first is not None and last is not None else range(0)


def _is_marked(place: tuple[int, int], wanted: bool, whole: _Text, trained: list[bool]) -> bool:
    """Whether all of its tokens are trained, or none is. The row's first token is never trained."""
    tokens = _tokens_of(place, whole) if place[0] < place[1] else None
    return tokens is None or trained[tokens.start : tokens.stop].count(wanted) == len(tokens)


def _check_spelled(span: _Span, whole: _Text, tokenizer: Any) -> None:
    spelled = _plainly(decode(whole.token_ids[span.tokens.start : span.tokens.stop], tokenizer))
    if spelled != _plainly(whole.text[slice(*span.characters)]):
        raise Unfit("mask_not_proved", f"the trained tokens of turn {span.turn + 1} spell another text than the answer: {spelled[:40]!r}")


def _plainly(text: str) -> str:
    """Without what tokenizers change on purpose: the form of characters, and how space is written."""
    return "".join(unicodedata.normalize("NFKC", text).replace("\u2581", " ").split())


def _check_extra(turn: Turn, number: int, said: str) -> None:
    """Reasoning and tool calls of a trained answer must be in it."""
    if not turn.extra:
        return
    _check_calls(turn, number, said)
    reasoning = json.loads(turn.extra).get("reasoning_content")
    if isinstance(reasoning, str) and reasoning.strip() not in said:
        raise Unfit("template_drops_text", f"the model's chat template does not write the reasoning of turn {number}")


def _check_calls(turn: Turn, number: int, said: str) -> None:
    for call in json.loads(turn.extra).get("tool_calls") or []:
        name = (call.get("function") or call).get("name", "")
        if name not in said:
            raise Unfit("template_drops_text", f"the model's chat template does not write the call of {name} in turn {number}")


def _check_template_mask(turns: Sequence[Turn], tools: str, whole: _Text, trained: list[bool], spans: list[_Span], tokenizer: Any) -> None:
    """The template's own mask may also hold what generation sends already, white space after an answer, and answers that the row leaves out."""
    messages = [message_of(turn, tokenizer) for turn in turns]
    given = json.loads(tools) if tools else None
    found = tokenizer.apply_chat_template(messages, tools=given, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    sent = {token for span in spans for token in _sent_tokens(turns, tools, whole, span, tokenizer)}
    leaves_out = any(turn.role == "assistant" and not turn.trained for turn in turns)
    trains_others = any(turn.trained and turn.role != "assistant" for turn in turns)
    for place, (ours, theirs) in enumerate(zip(trained, found["assistant_masks"], strict=True)):
        piece = decode(whole.token_ids[place : place + 1], tokenizer)
        if ours == bool(theirs) or (theirs and (leaves_out or place in sent or not piece.strip())) or (ours and trains_others):
            continue
        raise Unfit(
            "mask_not_proved", f"the template's own {{% generation %}} mark {'has' if theirs else 'leaves out'} token {place + 1} ({piece!r})"
        )


def _sent_tokens(turns: Sequence[Turn], tools: str, whole: _Text, span: _Span, tokenizer: Any) -> range:
    """The tokens of the generation prompt before an answer."""
    before = render(turns[: span.turn], tokenizer, tools)
    pairs = enumerate(zip(before, whole.text, strict=False))
    header = next((place for place, (one, other) in pairs if one != other), min(len(before), len(whole.text)))
    first = whole.encoding.char_to_token(header) if whole.encoding is not None else None
    return range(span.tokens.start if first is None else first, span.tokens.start)


def _tool_names(tools: str) -> list[str]:
    return [str((tool.get("function") or tool).get("name", "")) for tool in json.loads(tools) if isinstance(tool, dict)]


def _dropped(turn: Turn, number: int) -> Unfit:
    return Unfit("template_drops_text", f"the model's chat template does not write turn {number} ({turn.role}) as it is")
