"""Rows that are there twice: within the training rows, and in both the training rows and the held-out ones."""

from collections.abc import Sequence

from luthier.records import Conversation, Turn

Pair = tuple[Conversation, Conversation]


def normalized(turns: Sequence[Turn]) -> str:
    """Texts that differ only in case and white space are one text here."""
    return "\0".join(" ".join(turn.content.casefold().split()) for turn in turns)


def group(conversation: Conversation) -> str:
    """Rows that ask the same belong to one group, so that a split can keep them on one side. Plain texts are their own."""
    return normalized(conversation.prompt or conversation.turns)


def without_duplicates(conversations: Sequence[Conversation]) -> tuple[list[Conversation], list[Pair]]:
    """The first of each, and each later one beside the first it repeats (same turns to the letter)."""
    first: dict[tuple[Turn, ...], Conversation] = {}
    repeated = []
    for conversation in conversations:
        known = first.setdefault(conversation.turns, conversation)
        if known is not conversation:
            repeated.append((conversation, known))
    return list(first.values()), repeated


def without_held_out(train: Sequence[Conversation], held_out: Sequence[Conversation]) -> tuple[list[Conversation], list[Pair]]:
    """The training rows that are not held out too, and each of the others beside its held-out twin (but for case and white space)."""
    twins = {normalized(conversation.turns): conversation for conversation in held_out}
    kept, shared = [], []
    for conversation in train:
        twin = twins.get(normalized(conversation.turns))
        if twin is None:
            kept.append(conversation)
        else:
            shared.append((conversation, twin))
    return kept, shared
