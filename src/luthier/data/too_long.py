"""Rows over max_length: windows of a plain text, chats cut between turns, contexts cut from the left. An answer is never cut.

Each function is given `write`, which makes the examples of some turns, and `limit`, the longest example in tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from luthier.data.rendering import Unfit
from luthier.data.spans import Written
from luthier.records import Turn

Turns = tuple[Turn, ...]
Write = Callable[[Turns], list[Written]]
# How often the left of a user's text is cut anew: the first cut is nearly always right.
MOST_CUTS = 40


@dataclass(frozen=True, slots=True)
class Parts:
    """A chat in parts: the system message, whole exchanges (a user's message and all up to the next), and the end that is needed."""

    system: Turns
    exchanges: list[Turns]
    end: Turns


def parts(turns: Turns, needed: int = 0) -> Parts:
    """`needed`: at least so many turns at the end belong together (the answers of a preference row)."""
    system = turns[:1] if turns[0].role == "system" else ()
    exchanges: list[Turns] = []
    for turn in turns[len(system) :]:
        if turn.role == "user" or not exchanges:
            exchanges.append((turn,))
        else:
            exchanges[-1] = (*exchanges[-1], turn)
    end: Turns = ()
    while exchanges and (not end or len(end) < needed):
        end = (*exchanges.pop(), *end)
    return Parts(system, exchanges, end)


def too_long(examples: Sequence[Written], limit: int, why: str = "") -> Unfit:
    longest = max(len(example.token_ids) for example in examples)
    return Unfit("too_long", f"{longest} tokens; max_length is {limit}" + (f": {why}" if why else ""))


def fits(examples: Sequence[Written], limit: int) -> bool:
    return all(len(example.token_ids) <= limit for example in examples)


def windows(text: Written, limit: int) -> list[Written]:
    """A text in windows of `limit` tokens; each token is trained where it was, in one window only.

    A window begins with tokens of the one before, which are not trained again: one, and in the last window as many as there is room for.
    """
    total, found, done = len(text.token_ids), [], 0
    while done < total:
        start = max(0, min(done - 1, total - limit))
        end = min(start + limit, total)
        found.append(Written(text.token_ids[start:end], [False] * (done - start) + text.trained[done:end]))
        done = end
    return found


def split(turns: Turns, write: Write, limit: int) -> list[Written]:
    """Whole exchanges, as many to an example as fit, each example with the system message. Those without a trained turn are left out."""
    chat = parts(turns)
    found: list[Written] = []
    held: list[Turns] = []
    held_examples: list[Written] = []
    for exchange in [*chat.exchanges, chat.end]:
        more = _written(chat.system, [*held, exchange], write)
        if held and not fits(more, limit):
            found += held_examples
            held, more = [], _written(chat.system, [exchange], write)
        if not fits(more, limit):
            raise too_long(more, limit, "one question with its answer does not fit")
        held, held_examples = [*held, exchange], more
    return found + held_examples


def _written(system: Turns, exchanges: Sequence[Turns], write: Write) -> list[Written]:
    turns = tuple(turn for exchange in exchanges for turn in exchange)
    return write((*system, *turns)) if any(turn.trained for turn in turns) else []


def truncate(chats: Sequence[Parts], write: Write, limit: int) -> list[Written]:
    """The chats (two that share their exchanges, in a preference row) without their oldest exchanges, as few as needed.

    Where not even the end fits, the left of its user's text goes.
    """

    def without(dropped: int) -> list[Written]:
        return [one for chat in chats for one in write((*chat.system, *(turn for part in chat.exchanges[dropped:] for turn in part), *chat.end))]

    low, high = 0, len(chats[0].exchanges)
    if not fits(found := without(high), limit):
        return _with_shorter_question(chats, write, limit, found)
    while low < high:  # the fewest that are enough: found is what fits without `high`
        middle = (low + high) // 2
        if fits(tried := without(middle), limit):
            high, found = middle, tried
        else:
            low = middle + 1
    return found


def _with_shorter_question(chats: Sequence[Parts], write: Write, limit: int, found: list[Written]) -> list[Written]:
    asked = chats[0].end[0]
    if asked.role not in ("user", "prompt") or any(chat.end[0] != asked for chat in chats):
        raise too_long(found, limit, "it has no user's text that could be cut")

    def keeping(characters: int) -> list[Written]:
        turn = replace(asked, content=asked.content[len(asked.content) - characters :])
        return [one for chat in chats for one in write((*chat.system, turn, *chat.end[1:]))] if turn.content.strip() else []

    low, high = 0, len(asked.content)  # `low` characters fit, `high` do not
    best: list[Written] = []
    for _ in range(MOST_CUTS):
        if high - low <= 1:
            break
        middle = (low + high) // 2
        if fits(tried := keeping(middle), limit):
            low, best = middle, tried or best
        else:
            high = middle
    if not best:
        raise too_long(found, limit, "the answer with what must stand before it does not fit")
    return best
