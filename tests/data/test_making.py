"""What a model is asked, what is read from its answer, and what of that is kept."""

import random

import pytest

from luthier.data import making
from luthier.data.making import Form, Known, Pair, Seed
from luthier.records import Conversation, Source, Turn

ANY = Form(None)
SEEDS = [Seed(f"What is number {number} good for?", f"It is good for counting to {number}.", "", f"s:{number}") for number in range(1, 9)]


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("Question: Who?\nAnswer: Me.", [("Who?", "Me.")]),
        ("**Question:** Who?\n**Answer:** Me.", [("Who?", "Me.")]),
        ("Sure! Here is one.\n\n1. Question: Who?\n   Answer: Me.\n2. Question: How?\n   Answer: So.", [("Who?", "Me."), ("How?", "So.")]),
        ("Q: Who?\nA: Me.", [("Who?", "Me.")]),
        ("### Instruction:\nSort this.\n### Input:\nb a\n### Response:\na b", [("Sort this.\n\nb a", "a b")]),
        ("Question 1: Who?\nAnswer 1: Me.\n\nQuestion 2: How?", [("Who?", "Me.")]),
        ("<think>Question: no\nAnswer: no</think>Question: Who?\nAnswer: Me.", [("Who?", "Me.")]),
        ("Question: Code?\nAnswer: Run it.\nOutput: 3", [("Code?", "Run it.\nOutput: 3")]),
        ('Question: JSON?\nAnswer:\n```json\n{"a": 1}\n```', [("JSON?", '{"a": 1}')]),
        (
            '[{"question": "Who?", "answer": "Me."}, {"instruction": "Sort", "input": "b a", "output": ["a", "b"]}]',
            [("Who?", "Me."), ("Sort\n\nb a", '["a", "b"]')],
        ),
        ("Plain talk: no pair here.", []),
        ("Question: Who?", []),
        ("Answer: Me.", [("", "Me.")]),
        ("", []),
        ("{" * 5000, []),
    ],
)  # fmt: skip
def test_pairs_are_found_in_many_dresses(text: str, pairs: list[tuple[str, str]]) -> None:
    assert making.pairs_in(text) == [Pair(*pair) for pair in pairs]


PASSAGE = "The bridge was built in 1894 by Lucy Hale. It carries two railway tracks across the river."


@pytest.mark.parametrize(
    ("question", "answer", "passage", "reason"),
    [
        ("Who built it?", "Lucy Hale built the bridge.", PASSAGE, None),
        ("Who built it?", "The engineer Gustave Eiffel, near Paris.", PASSAGE, "not_grounded"),
        ("When was it built?", "In 1895.", PASSAGE, "not_grounded"),
        ("Who?", "Me.", "", "tiny_question"),
        ("Who are you?", "", "", "empty_answer"),
        ("Who are you?", "I am <|im_end|>", "", "template_text"),
        ("Write to [insert name].", "Dear you.", "", "template_text"),
        ("Who are you?", "As an AI language model, I am nobody.", "", "refusal"),
        ("Who are you?", "I'm sorry, but no.", "", "refusal"),
        ("Who are you?", "who are YOU", "", "echo"),
        ("Who are you?", "a thing that is " * 10, "", "looped"),
        ("Who are you?", "A luthier, who is sorry for nothing.", "", None),
    ],
)
def test_content_is_judged_strictly(question: str, answer: str, passage: str, reason: str | None) -> None:
    found = making.flaw(Pair(question, answer), ANY, passage, cut=False)
    assert (found and found[0]) == reason


def test_an_answer_that_was_cut_is_not_kept() -> None:
    assert (making.flaw(Pair("Who are you?", "I am the"), ANY, "", cut=True) or ("",))[0] == "cut_answer"


def test_made_answers_have_the_form_that_all_seeds_have() -> None:
    form = making.form_of([Seed("a", '{"city": "A", "zip": "1"}', "", "s:1"), Seed("b", '{"zip": "2", "city": "B"}', "", "s:2")])
    assert making.flaw(Pair("Another one?", '{"city": "C", "zip": "3"}'), form, "", cut=False) is None
    assert (making.flaw(Pair("Another one?", '{"town": "C"}'), form, "", cut=False) or ("", ""))[
        1
    ] == "the answer has the keys town; every seed's has city, zip"
    assert (making.flaw(Pair("Another one?", "C 3"), form, "", cut=False) or ("",))[0] == "other_form"
    assert making.form_of(SEEDS).keys is None


def test_what_repeats_a_known_question_is_found() -> None:
    known = Known(0.8)
    known.add("What is the capital of the large country in the north of Europe?", "s:1")
    assert known.twin("what is the capital of the large country, in the north of europe") == ("duplicate", "asks the same as s:1")
    assert known.twin("What is the capital of the large country in the north of Europe today?") == ("near_duplicate", "asks nearly the same as s:1")
    assert known.twin("Which river runs through the capital of the large country?") is None


def test_a_bootstrap_prompt_shows_seeds_and_one_made_row_as_a_chat() -> None:
    made = [Seed("What is zero good for?", "Nothing at all.", "", "request 4")]
    asked = making.bootstrap(SEEDS, made, random.Random(1))
    assert asked == making.bootstrap(SEEDS, made, random.Random(1))
    assert asked.messages != making.bootstrap(SEEDS, made, random.Random(2)).messages
    assert len(asked.made_of) == making.EXAMPLES
    assert "request 4" in asked.made_of
    assert [message["role"] for message in asked.messages] == ["system", *["user", "assistant"] * 4, "user"]
    shown = {seed.place: f"Question: {seed.question}\nAnswer: {seed.answer}" for seed in [*SEEDS, *made]}
    assert [message["content"] for message in asked.messages if message["role"] == "assistant"] == [shown[place] for place in asked.made_of]


def test_examples_of_a_prompt_stand_under_one_system_message() -> None:
    seeds = [Seed(f"Who is {number}?", "Me.", f"Be {number % 2}.", f"s:{number}") for number in range(8)]
    for number in range(20):
        asked = making.bootstrap(seeds, [], random.Random(number))
        assert {seed.system for seed in seeds if seed.place in asked.made_of} == {asked.system}
        assert asked.system in asked.messages[0]["content"]


def test_long_seeds_make_short_lists_of_examples() -> None:
    seeds = [Seed("word " * 800, "Me.", "", f"s:{number}") for number in range(4)]
    assert len(making.bootstrap(seeds, [], random.Random(0)).made_of) == 1


def test_passages_are_whole_paragraphs_with_their_lines() -> None:
    text = "# Head\n\n" + "First sentence here. " * 30 + "\n\n" + "Second one is this. " * 60 + "\n\nshort\n"
    passages = making.passages_of(text, "doc.md")
    assert [passage.place for passage in passages] == ["doc.md:1-3", "doc.md:5-7"]
    assert passages[0].text.startswith("# Head\n\nFirst sentence")
    assert passages[1].text.endswith("short")


def test_a_long_paragraph_is_cut_between_sentences_and_nothing_is_lost() -> None:
    text = " ".join(f"This is sentence number {number} of the long paragraph." for number in range(100))
    passages = making.passages_of(text, "doc.txt", 10)
    assert all(len(passage.text) <= making.LONGEST_PASSAGE_CHARACTERS and passage.text.endswith(".") for passage in passages)
    assert " ".join(passage.text for passage in passages) == text
    assert {passage.place for passage in passages} == {"doc.txt:10-10"}


def test_a_seed_is_one_question_with_one_answer() -> None:
    turns = [Turn("system", "Be kind."), Turn("user", " Who? "), Turn("assistant", "Me.")]
    assert making.seed_of(Conversation(tuple(turns), Source("s", 3))) == Seed("Who?", "Me.", "Be kind.", "s:3")
    assert making.seed_of(Conversation((*turns, *turns[1:]), Source("s", 3))) is None
    assert making.seed_of(Conversation((Turn("text", "Once."),), Source("s", 3), templated=False)) is None
