import pytest

from luthier.data.quality.flaws import flaw
from luthier.records import Conversation, Source, Turn


def conversation(*turns: tuple[str, str]) -> Conversation:
    return Conversation(tuple(Turn(*turn) for turn in turns), Source("rows.jsonl", 1))


@pytest.mark.parametrize(
    ("turns", "reason", "sentence"),
    [
        ((("user", "u"), ("assistant", "")), "empty_answer", "turn 2 (assistant) has no text, so there is nothing to learn"),
        ((("user", "u"), ("assistant", " \n\t")), "empty_answer", "turn 2 (assistant)"),
        ((("prompt", "u"), ("completion", "")), "empty_answer", "turn 2 (completion)"),
        ((("text", " "),), "empty_answer", "turn 1 (text)"),
        ((("user", " "), ("assistant", "a")), "empty_prompt", "turn 1 (user) has no text"),
        ((("user", "u\0"), ("assistant", "a")), "nul_character", "turn 1 (user) holds a NUL"),
    ],
)
def test_what_ruins_training_is_named(turns: tuple[tuple[str, str], ...], reason: str, sentence: str) -> None:
    found = flaw(conversation(*turns))
    assert found is not None
    assert found[0] == reason
    assert sentence in found[1]


def test_what_is_only_unusual_passes() -> None:
    assert flaw(conversation(("system", ""), ("user", "what is \ufffd?"), ("assistant", "\ufffd é \U0001f600 \u200b ok"))) is None
