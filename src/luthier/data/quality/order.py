"""Who speaks when: system first, then user and assistant in turn, and an answer at the end."""

from luthier.data.quality.check import Finding, Given, Look, Note, Noted
from luthier.data.quality.limits import counted
from luthier.records import Conversation, Turn

FOLLOWS = {
    #  speaker     who may have spoken before; "" is the beginning
    "system":    {""},
    "user":      {"", "system", "assistant", "tool"},
    "assistant": {"user", "tool"},
    "tool":      {"assistant", "tool"},
}  # fmt: skip


def start_roles(given: Given) -> Look | str:
    def look(row: Conversation) -> Note | None:
        return _out_of_order(row.turns) if row.templated else None

    return look


def _out_of_order(turns: tuple[Turn, ...]) -> Note | None:
    before = ""
    for number, turn in enumerate(turns, 1):
        if turn.role not in FOLLOWS:
            return Note(f"turn {number} is of {turn.role!r}, which no template knows", 2.0)
        if before not in FOLLOWS[turn.role]:
            return Note(f"turn {number} is of {turn.role} after {before or 'nobody'}", 1.0)
        if turn.role == "tool" and before == "assistant" and '"tool_calls"' not in turns[number - 2].extra:
            return Note(f"turn {number} is a tool's result that nobody called for", 1.0)
        before = turn.role
    return None if before == "assistant" else Note(f"it ends with {before or 'nothing'}: there is no answer to learn", 1.5)


def conclude_roles(noted: Noted, given: Given) -> Finding:
    return counted(noted, "have speakers out of order", "mend them where the file is made, or take the rows out: luthier data clean FILE")
