"""What certainly ruins training. Matters of taste are not judged here."""

from luthier.records import Conversation, Turn

ANSWERS = ("assistant", "completion", "text")


def flaw(conversation: Conversation) -> tuple[str, str] | None:
    """Why a row must not be trained, as (short name, sentence); None where it may be."""
    for number, turn in enumerate(conversation.turns, 1):
        if found := _flaw_of_turn(turn):
            return found[0], f"turn {number} ({turn.role}) {found[1]}"
    return None


def _flaw_of_turn(turn: Turn) -> tuple[str, str] | None:
    calls_a_tool = '"tool_calls"' in turn.extra
    if turn.role in ANSWERS and not turn.content.strip() and not calls_a_tool:
        return "empty_answer", "has no text, so there is nothing to learn"
    # An empty system turn is a choice: it keeps a template from putting in its own. A tool may give back nothing.
    if turn.role not in ("system", "tool") and not turn.content.strip() and not calls_a_tool:
        return "empty_prompt", "has no text"
    if "\0" in turn.content:
        return "nul_character", "holds a NUL character, a sign of a damaged file"
    return None
