"""Rows over max_length: nothing of an answer is cut, no end is invented, and the books add up."""

import copy
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data.tokenize import How, Tokenized, prompt_ids, tokenize
from luthier.records import Conversation, Rejected, Source, Turn

HERE = Source("rows.jsonl", 3)
END = "<|im_end|>"
POLICIES = ["error", "drop", "split", "truncate"]


def chat(*contents: str, system: str = "") -> Conversation:
    turns = [Turn("system", system)] * bool(system) + [Turn(("user", "assistant")[place % 2], text) for place, text in enumerate(contents)]
    return Conversation(tuple(turns), HERE)


def text(content: str) -> Conversation:
    return Conversation((Turn("text", content),), HERE, templated=False)


def done(conversation: Conversation, tokenizer: Any, max_length: int, too_long: Any, **how: Any) -> Tokenized:
    result = tokenize(conversation, tokenizer, How(max_length, too_long, **how))
    assert isinstance(result, Tokenized), result
    add_up(result, max_length)
    return result


def add_up(result: Tokenized, max_length: int) -> None:
    lengths = [len(example.token_ids) for example in result.examples]
    assert max(lengths) <= max_length
    masked = sum(not on for example in result.examples for on in example.trained)
    assert result.read + result.repeated == result.trained + masked + result.cut
    assert min(result.read, result.cut, result.repeated) >= 0


def seen(result: Tokenized, tokenizer: Any) -> list[str]:
    return [tokenizer.decode([token for token, on in zip(example.token_ids, example.trained, strict=True) if on]) for example in result.examples]


@pytest.mark.parametrize("policy", ["error", "drop"])
def test_a_long_row_is_set_aside_whole(policy: Any, tokenizer: Any) -> None:
    result = tokenize(chat("a " * 100, "ho"), tokenizer, How(50, policy))
    assert isinstance(result, Rejected)
    assert result.reason == "too_long"
    tokens = int(result.detail.split()[0])
    assert result.detail == f"{tokens} tokens; max_length is 50"
    assert len(done(chat("a " * 100, "ho"), tokenizer, tokens, policy).examples[0].token_ids) == tokens


@pytest.mark.parametrize("length", [40, 59, 60, 61, 100])
def test_a_text_is_cut_into_windows_that_train_each_token_once(length: int, tokenizer: Any) -> None:
    content = " ".join(str(number) for number in range(60))
    whole = done(text(content), tokenizer, 10_000, "error").examples[0]
    result = done(text(content), tokenizer, length, "split")
    trained = [token for example in result.examples for token, on in zip(example.token_ids, example.trained, strict=True) if on]
    assert trained == whole.token_ids[1:]
    assert sum(example.token_ids.count(tokenizer.eos_token_id) for example in result.examples) == 1
    assert all(len(example.token_ids) == length for example in result.examples)
    assert result.cut == 0


def test_a_truncated_text_keeps_its_end(tokenizer: Any) -> None:
    result = done(text("one two three four five " * 20), tokenizer, 30, "truncate")
    assert len(result.examples[0].token_ids) == 30
    assert tokenizer.decode(result.examples[0].token_ids).endswith(f"four five {END}")
    assert result.cut == result.read - 30


def test_a_chat_is_split_between_its_turns(tokenizer: Any) -> None:
    talk = chat("one?", "1", "two?", "2", "three?", "3", "four?", "4", system="Count.")
    whole = done(talk, tokenizer, 1000, "error").examples[0]
    result = done(talk, tokenizer, len(whole.token_ids) * 2 // 3, "split")
    assert len(result.examples) == 2
    assert all(tokenizer.decode(example.token_ids).startswith("<|im_start|>system\nCount.") for example in result.examples)
    assert "".join(seen(result, tokenizer)) == f"1{END}2{END}3{END}4{END}"
    assert result.repeated > 0
    too_big = tokenize(chat("one?", "1", "two? " * 60, "2"), tokenizer, How(60, "split"))
    assert isinstance(too_big, Rejected)
    assert too_big.reason == "too_long"
    assert int(too_big.detail.split()[0]) > 60


def test_truncating_drops_the_oldest_turns_and_keeps_the_system_message(tokenizer: Any) -> None:
    talk = chat("one?", "1", "two?", "2", "three?", "3", system="Count.")
    whole = done(talk, tokenizer, 1000, "error")
    result = done(talk, tokenizer, whole.read - 1, "truncate")
    assert tokenizer.decode(result.examples[0].token_ids).startswith("<|im_start|>system\nCount.<|im_end|>\n<|im_start|>user\ntwo?")
    assert seen(result, tokenizer) == [f"2{END}3{END}"]
    assert result.cut > 0
    assert result.repeated == 0


def test_truncating_then_cuts_the_left_of_the_question_and_never_an_answer(tokenizer: Any) -> None:
    talk = chat("word " * 100 + "the end?", "An answer that stays whole.", system="Count.")
    result = done(talk, tokenizer, 80, "truncate")
    written = tokenizer.decode(result.examples[0].token_ids)
    assert "the end?<|im_end|>" in written
    assert written.startswith("<|im_start|>system\nCount.<|im_end|>\n<|im_start|>user\n")
    assert seen(result, tokenizer) == [f"An answer that stays whole.{END}"]
    assert len(result.examples[0].token_ids) >= 75  # as much is kept as fits
    asked = written.partition("<|im_start|>user\n")[2].partition(END)[0]
    prompt = prompt_ids([Turn("system", "Count."), Turn("user", asked)], tokenizer)
    assert result.examples[0].token_ids[: len(prompt)] == prompt


def test_an_answer_that_does_not_fit_is_refused(tokenizer: Any) -> None:
    result = tokenize(chat("hi", "word " * 100), tokenizer, How(60, "truncate"))
    assert isinstance(result, Rejected)
    assert "the answer with what must stand before it does not fit" in result.detail


def test_a_completion_keeps_its_answer_and_cannot_be_split(tokenizer: Any) -> None:
    row = Conversation((Turn("prompt", "zero one two three four " * 20), Turn("completion", "five")), HERE, templated=False)
    result = done(row, tokenizer, 40, "truncate")
    assert seen(result, tokenizer) == [f"five{END}"]
    assert tokenizer.decode(result.examples[0].token_ids).endswith(f"three four five{END}")
    split = tokenize(row, tokenizer, How(40, "split"))
    assert isinstance(split, Rejected)
    assert "only plain texts and chats can be split" in split.detail


def test_a_pair_is_truncated_alike_on_both_sides(tokenizer: Any) -> None:
    talk = chat("one?", "1", "word " * 60 + "last?", "good")
    pair = Conversation(talk.turns, HERE, rejected=(Turn("assistant", "a much worse answer"),))
    better, worse = done(pair, tokenizer, 70, "truncate").examples
    seam = better.trained.index(True)
    assert better.token_ids[:seam] == worse.token_ids[:seam]
    assert worse.trained.index(True) == seam


def test_rewritten_history_is_shortened_for_each_answer(tokenizer: Any) -> None:
    other = copy.deepcopy(tokenizer)
    other.chat_template = tokenizer.chat_template.replace(
        "message['content'] +", "('<t>' if loop.last and message['role'] == 'assistant' else '') + message['content'] +"
    )
    talk = chat("one?", "1", "two?", "2", "three?", "3")
    whole = done(talk, other, 1000, "error")
    assert seen(whole, other) == [f"<t>1{END}", f"<t>2{END}", f"<t>3{END}"]
    result = done(talk, other, len(whole.examples[-1].token_ids) - 1, "truncate")
    assert seen(result, other) == seen(whole, other)


contents = st.lists(st.text("abc de\n", min_size=1, max_size=60).map(str.strip).filter(bool), min_size=2, max_size=8).filter(
    lambda found: len(found) % 2 == 0
)


@settings(max_examples=150, deadline=None)
@given(contents, st.integers(20, 120), st.sampled_from(POLICIES), st.sampled_from(["assistant", "last_assistant", "all"]), st.booleans())
def test_the_books_of_any_row_add_up(tokenizer: Any, turns: list[str], limit: int, policy: Any, loss_on: Any, system: bool) -> None:
    talk = chat(*turns, system="Be brief." if system else "")
    result = tokenize(talk, tokenizer, How(limit, policy, loss_on))
    if isinstance(result, Rejected):
        assert result.reason in ("too_long", "template_seam")
        return
    add_up(result, limit)
    said = Counter("".join(seen(result, tokenizer)).split(END))
    if loss_on != "all" and policy in ("error", "drop", "split"):
        wanted = turns[1::2] if loss_on == "assistant" else turns[-1:]
        assert said == Counter([*wanted, ""])
