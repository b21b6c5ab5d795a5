"""Who may speak after whom; and what `strict: false` mends."""

from collections.abc import Sequence
from dataclasses import replace

from luthier.data.formats.book import Book
from luthier.data.formats.said import Said
from luthier.data.formats.unfit import Unfit

# who spoke -> who may be next. "calling" is an assistant that calls a tool.
NEXT = {
    "": ("user",),
    "user": ("assistant",),
    "assistant": ("user",),
    "calling": ("tool",),
    "tool": ("assistant", "tool"),
}
LOOSE = "data.strict: false"


def check(said: Sequence[Said]) -> None:
    """A system message first and at most once; then the speakers take turns, and the assistant has the last word."""
    spoken = said[1:] if said and said[0].role == "system" else said
    before = ""
    for one in spoken:
        if one.role == "system":
            what = "is a second system message" if len(spoken) < len(said) else "is a system message after others"
            raise Unfit("system_not_first", one.path, f"{what}; put one at the beginning, or set {LOOSE}, which moves it there")
        if one.role not in NEXT[before]:
            raise _out_of_turn(one, before)
        before = "calling" if one.calls else one.role
    if not spoken or spoken[-1].role != "assistant":
        last = f"ends with a {spoken[-1].role} turn, not with an assistant's answer" if spoken else "holds no turn to answer"
        loose = f", or set {LOOSE}, which leaves out what nothing answers" if any(one.role == "assistant" for one in spoken) else ""
        path = spoken[-1].path if spoken else ""
        raise Unfit("no_answer", path, f"the row {last}, so there is nothing to learn from it; add the answer{loose}")


def mend(said: Sequence[Said], book: Book) -> list[Said]:
    """Late system messages go first, turns of one speaker are joined, and what follows the last answer is left out. Each is noted."""
    systems = [one for one in said if one.role == "system"]
    rest = [one for one in said if one.role != "system"]
    if systems and (len(systems) > 1 or said[0].role != "system"):
        book.mended("system")
        systems = [replace(systems[0], content="\n\n".join(one.content for one in systems if one.content))]
    answers = [number for number, one in enumerate(rest, 1) if one.role == "assistant"]
    if answers and answers[-1] < len(rest):
        book.mended("trailing")
        rest = rest[: answers[-1]]
    joined: list[Said] = []
    for one in rest:
        if joined and _joins(joined[-1], one):
            book.mended("joined")
            content = "\n\n".join(text for text in (joined[-1].content, one.content) if text)
            joined[-1] = replace(joined[-1], content=content, extra=one.extra)
        else:
            joined.append(one)
    return systems + joined


def _joins(one: Said, other: Said) -> bool:
    """One speaker goes on, and joining loses nothing: neither a call, nor a name, nor what the row says of training."""
    same = one.role == other.role != "tool" and not one.calls and one.trained == other.trained
    return same and (not one.extra or one.extra == other.extra)


def _out_of_turn(one: Said, before: str) -> Unfit:
    wanted = " or ".join(NEXT[before])
    if before == "calling":
        return Unfit("tool_call_without_result", one.path, f"is {one.role}, but the tool call before it has no result; add a tool message with it")
    if one.role == "tool":
        return Unfit("tool_result_without_call", one.path, "is a tool's result, and no tool was called before it; put it behind its call")
    place = f"is {one.role} after {before}" if before else f"is {one.role}, and it begins"
    step = f"join the two, or set {LOOSE}, which does" if one.role == before else "add the missing turn, or leave the row out"
    return Unfit("roles_do_not_alternate", one.path, f"{place}; {wanted} should speak here: {step}")
