"""A conversation as tokens, with a mark on those that are trained. The tokenizer is an argument; no model is known by name.

Trained is exactly what the model must say by itself: from the end of the generation prompt to the end-of-turn token. The
prompt's tokens are the same in training and in serving, or the row is set aside.
"""

import itertools
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from luthier.records import Conversation, Rejected, TokenizedExample, Turn

RAW_ROLES = ("prompt", "text")


class _Unfit(Exception):
    """The row cannot become tokens without a change: a short name and a sentence."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


def tokenize(conversation: Conversation, tokenizer: Any) -> TokenizedExample | Rejected:
    """The row's token ids and which of them are trained; or why it cannot be trained (`raw` is left empty).

    The very first token is never trained, since nothing stands before it that could predict it.
    """
    try:
        for number, turn in enumerate(conversation.turns, 1):
            _check_spelling(turn, number, tokenizer)
        token_ids, trained = (_chat if conversation.templated else _plain)(conversation.turns, tokenizer)
    except _Unfit as unfit:
        return Rejected(unfit.reason, unfit.detail, conversation.source, "")
    return TokenizedExample(token_ids, [False, *trained[1:]], conversation.source)


def prompt_ids(turns: Sequence[Turn], tokenizer: Any) -> list[int]:
    """What a model is asked with: the turns rendered up to where the assistant speaks, or the raw prompt of a completion.

    Training, evaluation, chat and serving all use this. Raises ValueError where the template refuses the turns.
    """
    if turns and turns[0].role not in RAW_ROLES:
        try:
            return _ids(_render(turns, tokenizer, generation_prompt=True), tokenizer)
        except _Unfit as unfit:
            raise ValueError(unfit.detail) from unfit
    return _beginning(tokenizer) + [token for turn in turns for token in _ids(turn.content, tokenizer)]


def spell(example: TokenizedExample, tokenizer: Any) -> list[tuple[str, bool, bool]]:
    """The example in pieces of (text, trained, special), to be shown. Characters of several tokens stay whole."""
    special = _special_ids(tokenizer)
    marks = [(on, token in special) for token, on in zip(example.token_ids, example.trained, strict=True)]
    runs = itertools.groupby(zip(example.token_ids, marks, strict=True), key=lambda pair: pair[1])
    return [(_decode([token for token, _ in run], tokenizer), on, is_special) for (on, is_special), run in runs]


def _chat(turns: Sequence[Turn], tokenizer: Any) -> tuple[list[int], list[bool]]:
    whole = _render(turns, tokenizer)
    _check_nothing_lost(turns, whole)
    token_ids = _ids(whole, tokenizer)
    trained = [False] * len(token_ids)
    for place, turn in enumerate(turns):
        if turn.role != "assistant":
            continue
        start = len(_seam(_render(turns[:place], tokenizer, generation_prompt=True), whole, token_ids, tokenizer, place))
        is_last = place == len(turns) - 1
        end = len(token_ids) if is_last else len(_seam(_render(turns[: place + 1], tokenizer), whole, token_ids, tokenizer, place + 1))
        spoken = _spoken(token_ids[start:end], tokenizer)
        trained[start : start + spoken] = [True] * spoken
        if is_last and not _ends_turn(token_ids[start + spoken - 1], tokenizer):
            # The template closes no turn: without a last word of its own the model would never stop.
            return [*token_ids[: start + spoken], _end_of_text(tokenizer)], [*trained[: start + spoken], True]
    return token_ids, trained


def _plain(turns: Sequence[Turn], tokenizer: Any) -> tuple[list[int], list[bool]]:
    """Prompt and completion are cut into tokens apart, so that the prompt's are those of serving; a text is trained whole."""
    prompt = prompt_ids(turns[:-1], tokenizer)
    answer = [*_ids(turns[-1].content, tokenizer), _end_of_text(tokenizer)]
    return prompt + answer, [False] * len(prompt) + [True] * len(answer)


def _render(turns: Sequence[Turn], tokenizer: Any, generation_prompt: bool = False) -> str:
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation_prompt))
    except Exception as error:  # a template is its author's program: it may raise anything
        raise _Unfit("template_refused", f"the model's chat template refuses the row: {error}") from error


def _ids(text: str, tokenizer: Any) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _seam(prefix: str, whole: str, token_ids: list[int], tokenizer: Any, turns: int) -> list[int]:
    """The prefix's tokens, which must be how the whole begins: as text and as tokens."""
    if not whole.startswith(prefix):
        raise _Unfit("template_seam", f"the model's chat template writes the first {turns} turns otherwise when more turns follow")
    ids = _ids(prefix, tokenizer)
    if token_ids[: len(ids)] != ids:
        raise _Unfit("template_seam", f"the text after turn {turns} melts into the tokens before it, so serving would see other tokens")
    return ids


def _check_nothing_lost(turns: Sequence[Turn], whole: str) -> None:
    """Templates may trim white space at a turn's ends; nothing else may go."""
    at = 0
    for number, turn in enumerate(turns, 1):
        found = whole.find(turn.content.strip(), at)
        if found < 0:
            raise _Unfit("template_drops_text", f"the model's chat template does not write turn {number} ({turn.role}) as it is")
        at = found + len(turn.content.strip())


def _spoken(token_ids: list[int], tokenizer: Any) -> int:
    """How many of an assistant's tokens it says itself: all but the white space that the template puts after the end of turn."""
    end = len(token_ids)
    while end and not _ends_turn(token_ids[end - 1], tokenizer) and not _decode(token_ids[end - 1 : end], tokenizer).strip():
        end -= 1
    # Without an end-of-turn token, white space at the end may be the answer's own.
    return end if end and _ends_turn(token_ids[end - 1], tokenizer) else len(token_ids)


def _check_spelling(turn: Turn, number: int, tokenizer: Any) -> None:
    found = _special_spelling(tokenizer).search(turn.content)
    if found:
        detail = f'turn {number} ({turn.role}) holds "{found[0]}", which this model reads as a control token and not as text'
        raise _Unfit("special_token_in_text", detail)


def _decode(token_ids: list[int], tokenizer: Any) -> str:
    return str(tokenizer.decode(token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _ends_turn(token: int, tokenizer: Any) -> bool:
    return token in _special_ids(tokenizer)


def _end_of_text(tokenizer: Any) -> int:
    if tokenizer.eos_token_id is None:
        raise _Unfit("no_end_token", "the tokenizer has no end-of-text token, so the model could not learn to stop")
    return int(tokenizer.eos_token_id)


def _beginning(tokenizer: Any) -> list[int]:
    """The begin-of-text token where this tokenizer puts one before plain text, else nothing."""
    ids = list(tokenizer("")["input_ids"])
    return ids[:1] if ids and ids[0] == tokenizer.bos_token_id else []


@lru_cache(maxsize=4)
def _special_ids(tokenizer: Any) -> frozenset[int]:
    """Control tokens: those that the tokenizer calls special."""
    added = {token for token, spelling in tokenizer.added_tokens_decoder.items() if spelling.special}
    return frozenset(added | set(tokenizer.all_special_ids))


@lru_cache(maxsize=4)
def _special_spelling(tokenizer: Any) -> re.Pattern[str]:
    spellings = sorted((tokenizer.convert_ids_to_tokens(token) for token in _special_ids(tokenizer)), key=len, reverse=True)
    return re.compile("|".join(re.escape(spelling) for spelling in spellings) or r"(?!)")
