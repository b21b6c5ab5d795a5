"""A conversation as tokens, with a mark on those that are trained. The tokenizer is an argument; no model is known by name.

Trained is exactly what the model must say by itself: from the end of the generation prompt to the end-of-turn token. The
prompt's tokens are the same in training and in serving, or the row is set aside.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from luthier.data import too_long
from luthier.data.rendering import (
    Unfit,
    check_spelling,
    decode,
    encode,
    end_of_text,
    end_of_turn,
    knows_system,
    prompt_ids,
    render,
    special_ids,
    with_known_roles,
)
from luthier.data.spans import Written, write
from luthier.data.too_long import Turns
from luthier.records import Conversation, Rejected, TokenizedExample, Turn

__all__ = ["How", "Tokenized", "end_of_turn", "knows_system", "prompt_ids", "spell", "tokenize"]

ANSWERS = ("assistant", "completion", "text")


@dataclass(frozen=True, slots=True)
class How:
    """What a row may become: the longest example in tokens, what to do with longer ones, and what is trained."""

    max_length: int
    too_long: Literal["error", "drop", "split", "truncate"] = "error"
    loss_on: Literal["assistant", "last_assistant", "all"] = "assistant"


@dataclass(frozen=True, slots=True)
class Tokenized:
    """The examples of one row, and its books: read + repeated = trained + masked + cut, in tokens."""

    examples: tuple[TokenizedExample, ...]
    read: int  # the row written once
    cut: int  # of these, the tokens that stand in no example
    repeated: int  # tokens that stand in more than one example, beyond the first time

    @property
    def trained(self) -> int:
        return sum(example.trained_tokens for example in self.examples)


def tokenize(conversation: Conversation, tokenizer: Any, how: How) -> Tokenized | Rejected:
    """The row's examples; or why it cannot be trained (`raw` is left empty).

    One example, but for: a preference row (the better answer, the worse one), a row that is split, and a template that writes earlier
    answers otherwise (one for each answer). The very first token is never trained, since nothing stands before it.
    """
    try:
        return _tokenize(conversation, tokenizer, how)
    except Unfit as unfit:
        return Rejected(unfit.reason, unfit.detail, conversation.source, "")


def spell(example: TokenizedExample, tokenizer: Any) -> list[tuple[str, bool, bool]]:
    """The example in pieces of (text, trained, special), to be shown. Characters of several tokens stay whole."""
    special = special_ids(tokenizer)
    marks = [(on, token in special) for token, on in zip(example.token_ids, example.trained, strict=True)]
    runs = itertools.groupby(zip(example.token_ids, marks, strict=True), key=lambda pair: pair[1])
    return [(decode([token for token, _ in run], tokenizer), on, is_special) for (on, is_special), run in runs]


def _tokenize(conversation: Conversation, tokenizer: Any, how: How) -> Tokenized:
    check_spelling((*conversation.turns, *conversation.rejected), conversation.tools, tokenizer)
    sides = [_marked(turns, how.loss_on, shared) for turns, shared in _sides(conversation)]
    if conversation.templated:
        sides = [with_known_roles(side, tokenizer) for side in sides]
    if not all(any(turn.trained for turn in side) for side in sides):
        raise Unfit("nothing_trained", "no message of the row is to be trained (data.loss_on, or what the row says of its messages)")

    def examples(turns: Turns) -> list[Written]:
        return _chat(turns, conversation.tools, tokenizer, how.loss_on == "all") if conversation.templated else [_plain(turns, tokenizer)]

    found = [one for side in sides for one in examples(side)]
    read = _read(sides, found, conversation, tokenizer)
    if not too_long.fits(found, how.max_length):
        whole, found = found, _shortened(sides, found, conversation, examples, how)
        _check_nothing_is_lost(whole, found, how)
    if len(sides) > 1 and found[0] == found[1]:
        raise Unfit("same_answers", "chosen and rejected are the same tokens, so nothing is better; leave the row out")
    found = [one for one in found if any(one.trained[1:])]
    if len(found) < len(sides):
        raise Unfit("nothing_trained", "no token of the row is left to be trained")
    return _booked(found, read, conversation)


def _check_nothing_is_lost(before: Sequence[Written], after: Sequence[Written], how: How) -> None:
    """A row that is split teaches what it taught whole, once each. (Truncating may leave out the oldest answers, which the books count as cut.)"""
    taught = [sum(sum(one.trained[1:]) for one in examples) for examples in (before, after)]
    if how.too_long == "split" and how.loss_on != "all" and taught[0] != taught[1]:
        raise Unfit("mask_not_proved", f"{taught[0]} tokens of the row are to be trained, and {taught[1]} are once it is split")


def _sides(conversation: Conversation) -> list[tuple[Turns, int]]:
    """The turns of each example, with how many at their beginning only ask: a judgment is of the last answer alone."""
    turns, worse = conversation.turns, conversation.rejected
    if worse:
        # The worse answer takes the place of as many turns; where it has more or fewer, that of the last one.
        alike = len(turns) - len(worse)
        shared = alike if alike > 0 and turns[alike].role == worse[0].role else len(turns) - 1
        return [(turns, shared), ((*turns[:shared], *worse), shared)]
    return [(turns, len(turns) - 1 if conversation.label is not None else 0)]


def _marked(turns: Turns, loss_on: str, shared: int) -> Turns:
    """The turns, each with whether it is trained."""
    last = max((place for place, turn in enumerate(turns) if turn.role in ANSWERS), default=-1)

    def ruled(place: int, turn: Turn) -> bool:
        return loss_on == "all" or (turn.role in ANSWERS and (loss_on == "assistant" or place == last))

    return tuple(
        replace(turn, trained=place >= shared and (ruled(place, turn) if turn.trained is None else turn.trained)) for place, turn in enumerate(turns)
    )


def _chat(turns: Turns, tools: str, tokenizer: Any, everything: bool) -> list[Written]:
    """One example; or one for each trained answer, where the template writes earlier answers otherwise."""
    whole = write(turns, tools, tokenizer, everything=everything)
    if whole is not None:
        return [whole]
    found = []
    for place, turn in enumerate(turns):
        if turn.trained and turn.role == "assistant":
            context = tuple(replace(before, trained=False) for before in turns[:place])
            if (one := write((*context, turn), tools, tokenizer)) is None:
                raise Unfit("template_seam", f"the model's chat template writes the first {place} turns otherwise when more turns follow")
            found.append(one)
    return found


def _plain(turns: Turns, tokenizer: Any) -> Written:
    """Prompt and completion are cut into tokens apart, so that the prompt's are those of serving; a text is trained whole."""
    prompt = prompt_ids(turns[:-1], tokenizer)
    answer = [*encode(turns[-1].content, tokenizer)[0], end_of_text(tokenizer)]
    asked = any(turn.trained for turn in turns[:-1])
    return Written(prompt + answer, [asked] * len(prompt) + [bool(turns[-1].trained)] * len(answer))


def _read(sides: Sequence[Turns], found: Sequence[Written], conversation: Conversation, tokenizer: Any) -> int:
    """The tokens of the row written once: what both sides share counts once, and so does what several examples repeat."""
    if len(found) == len(sides) == 1:
        return len(found[0].token_ids)
    if not conversation.templated:
        lengths = [len(one.token_ids) for one in found]
        shared = [one.token_ids for one in found]
    else:
        shared = [encode(render(side, tokenizer, conversation.tools), tokenizer)[0] for side in sides]
        lengths = [len(ids) for ids in shared]
    if len(shared) == 1:
        return lengths[0]
    alike = next((place for place, (one, other) in enumerate(zip(*shared, strict=False)) if one != other), min(lengths))
    return sum(lengths) - alike


def _shortened(sides: Sequence[Turns], found: list[Written], conversation: Conversation, examples: too_long.Write, how: How) -> list[Written]:
    pair = len(sides) > 1
    if how.too_long in ("error", "drop"):
        raise too_long.too_long(found, how.max_length)
    if not conversation.templated and conversation.turns[0].role == "text":
        return too_long.windows(found[0], how.max_length) if how.too_long == "split" else [_right_end(found[0], how.max_length)]
    if how.too_long == "split":
        if pair or conversation.label is not None or not conversation.templated:
            raise too_long.too_long(found, how.max_length, "only plain texts and chats can be split")
        return too_long.split(sides[0], examples, how.max_length)
    if pair or len(found) == 1:
        needed = max(1, max(map(len, sides)) - _alike(sides))
        return too_long.truncate([too_long.parts(side, needed) for side in sides], examples, how.max_length)
    # One example an answer: each keeps as much of what stands before it as fits.
    answers = [place for place, turn in enumerate(sides[0]) if turn.trained]
    ends = [(*(replace(turn, trained=False) for turn in sides[0][:place]), sides[0][place]) for place in answers]
    return [one for end in ends for one in too_long.truncate([too_long.parts(end)], examples, how.max_length)]


def _alike(sides: Sequence[Turns]) -> int:
    return next((place for place, turns in enumerate(zip(*sides, strict=False)) if len(set(turns)) > 1), 0) if len(sides) > 1 else len(sides[0])


def _right_end(text: Written, limit: int) -> Written:
    """The last tokens of a text; those before are cut."""
    return Written(text.token_ids[-limit:], text.trained[-limit:])


def _booked(found: Sequence[Written], read: int, conversation: Conversation) -> Tokenized:
    examples = tuple(TokenizedExample(one.token_ids, [False, *one.trained[1:]], conversation.source) for one in found)
    total = sum(len(one.token_ids) for one in found)
    # A row is either shortened or repeated; where both happen (split, or one example an answer) only the difference is known.
    return Tokenized(examples, read, max(0, read - total), max(0, total - read))
