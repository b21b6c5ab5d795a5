"""A conversation remembers its turns, and nothing that was not said."""

from collections.abc import Iterator

import pytest

from luthier.records import Turn
from luthier.serve.session import Session


def echo(turns: list[Turn]) -> Iterator[str]:
    """Answers with what it was asked: roles, and the last words."""
    yield from [",".join(turn.role for turn in turns), ": ", turns[-1].content]


def test_each_question_sees_the_turns_before_it() -> None:
    session = Session(system="Be brief.")
    assert list(session.ask("one", echo)) == ["system,user", ": ", "one"]
    assert "".join(session.ask("two", echo)) == "system,user,assistant,user: two"
    assert [turn.content for turn in session.turns] == ["Be brief.", "one", "system,user: one", "two", "system,user,assistant,user: two"]


@pytest.mark.parametrize("system", [None, ""])
def test_no_system_message_is_no_turn(system: str | None) -> None:
    assert "".join(Session(system=system).ask("one", echo)) == "user: one"


def test_without_a_template_each_question_stands_by_itself() -> None:
    session = Session(system=None, templated=False)
    assert ["".join(session.ask(text, echo)) for text in ("one", "two")] == ["prompt: one", "prompt: two"]
    assert session.turns == []


def test_an_answer_that_fails_or_is_broken_off_is_not_remembered() -> None:
    session = Session(system="Be brief.")
    pieces = session.ask("one", echo)
    next(pieces)
    pieces.close()  # type: ignore[attr-defined]

    def failing(turns: list[Turn]) -> Iterator[str]:
        yield "Well"
        raise ValueError("the template refuses")

    with pytest.raises(ValueError, match="refuses"):
        list(session.ask("two", failing))
    assert "".join(session.ask("three", echo)) == "system,user: three"
