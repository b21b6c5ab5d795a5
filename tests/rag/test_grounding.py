"""Passages before a question, within a budget; answers with the passages they name."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from luthier.errors import CallError, DataError
from luthier.rag import grounding
from luthier.rag.finding import Finder, Retrieved
from luthier.rag.grounding import Grounder, Grounding, Reading, cited, grounded, refuses, said, within
from luthier.records import Turn

QUESTION = "After how many days does a refund arrive?"


def count_words(text: str) -> int:
    return len(text.split())


def count_prompt(turns: Sequence[Turn], tools: str) -> int:
    """A template that adds two words to each turn."""
    return sum(2 + count_words(turn.content) for turn in turns) + count_words(tools)


@pytest.fixture
def counted(finder: Finder) -> Callable[[int | None], Grounder]:
    return lambda context: Grounder(finder, Grounding(4, 60), Reading(count_words, count_prompt, ["<|end|>"]), context)


def test_passages_come_numbered_before_the_question_best_first(finder: Finder) -> None:
    turns = [Turn("system", "Be brief."), Turn("user", "Hi"), Turn("assistant", "Hello"), Turn("user", QUESTION)]
    made = grounded(turns, finder.find(QUESTION, 3), Grounding(3, 500), count_words)
    assert made.turns[:3] == turns[:3]
    assert made.turns[3].content.startswith(grounding.TASK + "\n\n[1] Returns > Refunds\nA refund arrives after 5 working days")
    assert made.turns[3].content.endswith(f"\n\nQuestion: {QUESTION}")
    assert [one["number"] for one in made.passages] == [1, 2, 3]
    assert made.passages[0]["source"] == "docs/returns.md:7"


def test_two_questions_about_the_same_passages_begin_alike(finder: Finder) -> None:
    retrieved = finder.find(QUESTION, 3)
    one, other = (grounded([Turn("user", text)], retrieved, Grounding(), count_words).turns[0].content for text in (QUESTION, "And on which card?"))
    shared = one[: one.index("Question: ")]
    assert other.startswith(shared)
    assert "card that paid" in shared


@pytest.mark.parametrize("budget", [30, 45, 70, 200])
def test_the_budget_holds_and_only_the_last_passage_is_cut(budget: int, finder: Finder) -> None:
    used = within(finder.find(QUESTION, 8).found, budget, count_words)
    assert used
    assert sum(count_words(one.text) for one in used) <= budget
    assert not any(one.cut for one in used[:-1])
    assert all(one.found.passage.whole.startswith(one.text) for one in used)


def test_a_text_without_spaces_is_cut_between_letters(finder: Finder) -> None:
    [first] = finder.find(QUESTION, 1).found
    chinese = replace(first, passage=replace(first.passage, title="", text="退款需要五个工作日" * 20))
    [used] = within([chinese], 30, len)
    assert (used.text, used.cut) == (chinese.passage.text[:30], True)


def test_a_passage_longer_than_all_room_gives_its_beginning(finder: Finder) -> None:
    [first] = finder.find("When does the shop in Elgin open?", 1).found
    [used] = within([first], 24, count_words)
    assert used.cut
    assert count_words(used.text) == 24
    assert used.told(1)["cut"] is True


def test_nothing_that_fits_is_no_question_for_a_model(finder: Finder) -> None:
    turns = [Turn("user", "Who was the first emperor of Rome?")]
    made = grounded(turns, finder.find(turns[0].content, 3), Grounding(), count_words)
    assert (made.turns, made.used, made.passages) == (turns, [], [])
    assert grounded(turns, Retrieved([], 0.0), Grounding(least_score=0.0), count_words).used == []


def test_the_context_leaves_room_for_the_question_and_the_answer(counted: Callable[[int | None], Grounder]) -> None:
    turns = [Turn("user", QUESTION)]
    free = counted(None)(turns, 30)
    tight = counted(150)(turns, 30)
    tokens = sum(2 + count_words(turn.content) for turn in tight.turns)
    assert tokens + 30 <= 150
    assert 0 < sum(count_words(one.text) for one in tight.used) <= sum(count_words(one.text) for one in free.used) <= 60
    with pytest.raises(DataError, match="leaves no room for passages in the model's context of 100"):
        counted(100)(turns, 30)


def test_the_tools_of_a_request_take_room_too(counted: Callable[[int | None], Grounder]) -> None:
    turns, tools = [Turn("user", QUESTION)], "word " * 25
    made = counted(150)(turns, 30, tools=tools)
    assert count_prompt(made.turns, tools) + 30 <= 150
    with pytest.raises(DataError, match="leaves no room"):
        counted(150)(turns, 30, tools=tools * 2)


def test_a_passage_that_spells_a_control_token_is_left_out(counted: Callable[[int | None], Grounder], finder: Finder) -> None:
    """The model would read it as one, and such prompts are refused."""
    first, *others = finder.find(QUESTION, 3).found
    spelled = replace(first, passage=replace(first.passage, text=f"A refund <|end|> {first.passage.text}"))
    told: list[str] = []
    grounder = replace(counted(None), say=told.append)
    _, made = [grounder([Turn("user", QUESTION)], 30, Retrieved([spelled, *others], 0.9)) for _ in range(2)]
    assert told == [f"{first.passage.place} is left out: it spells <|end|>, which the model would read as a control token"]
    assert made.used
    assert "<|end|>" not in made.turns[0].content


def test_numbers_that_ground_nothing_are_refused() -> None:
    for how in (Grounding(passages=0), Grounding(budget_tokens=5)):
        with pytest.raises(CallError, match="hold nothing"):
            how.check()


def test_what_an_answer_names_and_says() -> None:
    answer = 'Evidence: "A refund arrives after 5 working days" [2]\nAnswer: After 5 days [2] [9].'
    assert cited(answer, 3) == [2]
    assert said(answer) == "After 5 days."
    assert said("After 5 days [1].") == "After 5 days."
    assert refuses(grounding.NOT_THERE)
    assert refuses("that's NOT in the documents")
    assert not refuses("It is in the documents.")
