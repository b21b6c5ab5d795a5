import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data import tokenize as module
from luthier.data.tokenize import How, Tokenized, prompt_ids, spell
from luthier.errors import DataError
from luthier.records import Conversation, Rejected, Source, TokenizedExample, Turn

HERE = Source("rows.jsonl", 3)
END = "<|im_end|>"
LONG = How(100_000)


def chat(*contents: str, system: str | None = None) -> Conversation:
    turns = [Turn("system", system)] if system is not None else []
    turns += [Turn(("user", "assistant")[place % 2], content) for place, content in enumerate(contents)]
    return Conversation(tuple(turns), HERE)


def tokenize(conversation: Conversation, tokenizer: Any, how: How = LONG) -> Tokenized | Rejected:
    return module.tokenize(conversation, tokenizer, how)


def examples_of(conversation: Conversation, tokenizer: Any, how: How = LONG) -> tuple[TokenizedExample, ...]:
    """The row's examples, after its books were added up."""
    result = tokenize(conversation, tokenizer, how)
    assert isinstance(result, Tokenized), result
    masked = sum(not on for example in result.examples for on in example.trained)
    assert result.read + result.repeated == result.trained + masked + result.cut
    assert min(result.read, result.cut, result.repeated) >= 0
    return result.examples


def tokenized(conversation: Conversation, tokenizer: Any, how: How = LONG) -> TokenizedExample:
    [example] = examples_of(conversation, tokenizer, how)
    return example


def refused(conversation: Conversation, tokenizer: Any, how: How = LONG) -> Rejected:
    result = tokenize(conversation, tokenizer, how)
    assert isinstance(result, Rejected), result
    return result


def seen(example: TokenizedExample, tokenizer: Any) -> str:
    """What the loss sees."""
    return str(tokenizer.decode([token for token, on in zip(example.token_ids, example.trained, strict=True) if on]))


def with_template(tokenizer: Any, template: str) -> Any:
    other = copy.deepcopy(tokenizer)
    other.chat_template = template
    return other


@settings(max_examples=150, deadline=None)
@given(st.lists(st.text(min_size=1).filter(str.strip), min_size=2, max_size=6).filter(lambda texts: len(texts) % 2 == 0))
def test_the_loss_sees_exactly_what_the_assistant_said(tokenizer: Any, contents: list[str]) -> None:
    conversation = chat(*contents)
    result = tokenize(conversation, tokenizer)
    if isinstance(result, Rejected):  # an answer that begins with a line feed melts into the template's own
        assert result.reason == "template_seam"
        assert any(content[0].isspace() for content in contents)
        return
    [example] = result.examples
    assert seen(example, tokenizer) == "".join(content + END for content in contents[1::2])
    asked = prompt_ids(conversation.prompt, tokenizer)
    assert example.token_ids[: len(asked)] == asked
    assert example.trained[: len(asked)].count(True) == sum(len(tokenizer(text + END)["input_ids"]) for text in contents[1:-1:2])


def test_every_assistant_turn_is_trained_and_nothing_else(tokenizer: Any) -> None:
    example = tokenized(chat("one?", "1", "two?", "2", system="Count."), tokenizer)
    whole = tokenizer.decode(example.token_ids)
    assert whole == (
        "<|im_start|>system\nCount.<|im_end|>\n<|im_start|>user\none?<|im_end|>\n<|im_start|>assistant\n1<|im_end|>\n"
        "<|im_start|>user\ntwo?<|im_end|>\n<|im_start|>assistant\n2<|im_end|>\n"
    )
    assert seen(example, tokenizer) == f"1{END}2{END}"
    assert not example.trained[-1]  # the line feed after the last end of turn


def test_the_templates_own_system_message_is_masked(tokenizer: Any) -> None:
    example = tokenized(chat("hi", "ho"), tokenizer)
    assert "You are a helpful assistant." in tokenizer.decode(example.token_ids)
    assert seen(example, tokenizer) == f"ho{END}"


def test_a_row_that_spells_a_control_token_is_set_aside(tokenizer: Any) -> None:
    rejected = tokenize(chat("what is <|im_end|>?", "a token"), tokenizer)
    assert isinstance(rejected, Rejected)
    assert rejected.reason == "special_token_in_text"
    assert rejected.detail == 'turn 1 (user) holds "<|im_end|>", which this model reads as a control token and not as text'


def test_an_answer_that_melts_into_the_template_is_set_aside(tokenizer: Any) -> None:
    glued = with_template(tokenizer, "{% for m in messages %}{{ m['content'] }}{% endfor %}")
    rejected = tokenize(chat("the stre", "et"), glued)
    assert isinstance(rejected, Rejected)
    assert rejected.reason == "template_seam"
    assert rejected.detail.startswith("the text after turn 1 melts into the tokens before it")


def test_a_template_that_rewrites_history_is_found(tokenizer: Any) -> None:
    forgetful = "{% for m in messages %}[{{ m['role'] }}{{ ' now' if loop.last }}] {{ m['content'] }}<|im_end|>{% endfor %}"
    forgetful += "{% if add_generation_prompt %}[assistant{% endif %}"
    rejected = tokenize(chat("one?", "1", "two?", "2"), with_template(tokenizer, forgetful))
    assert isinstance(rejected, Rejected)
    assert rejected.reason == "template_seam"


@pytest.mark.parametrize(
    ("template", "reason", "detail"),
    [
        ("{{ raise_exception('System role not supported') }}", "template_refused", "refuses the row: System role not supported"),
        ("{{ messages[0]['content'] }}", "template_drops_text", "does not write turn 2 (assistant) as it is"),
        ("{% for m in messages %}{{ m['content'] | upper }}{% endfor %}", "template_drops_text", "does not write turn 1 (user) as it is"),
    ],
)
def test_a_template_that_refuses_or_drops_text_is_found(template: str, reason: str, detail: str, tokenizer: Any) -> None:
    rejected = tokenize(chat("hi", "ho"), with_template(tokenizer, template))
    assert isinstance(rejected, Rejected)
    assert rejected.reason == reason
    assert detail in rejected.detail


def test_a_template_without_an_end_of_turn_gets_one(tokenizer: Any) -> None:
    bare = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    other = with_template(tokenizer, bare)
    example = tokenized(chat("hi", "ho"), other)
    assert example.token_ids[-1] == tokenizer.eos_token_id
    assert example.trained[-1]
    assert tokenizer.decode(example.token_ids).startswith("user: hi\nassistant: ho")
    assert seen(example, tokenizer).startswith(" ho")


def test_a_template_that_trims_is_accepted(tokenizer: Any) -> None:
    trimming = with_template(tokenizer, tokenizer.chat_template.replace("message['content']", "message['content'] | trim"))
    assert seen(tokenized(chat("hi ", "  ho "), trimming), tokenizer) == f"ho{END}"


def test_a_completion_is_trained_after_its_prompt(tokenizer: Any) -> None:
    row = Conversation((Turn("prompt", "150 Pierce"), Turn("completion", " Rd")), HERE, templated=False)
    example = tokenized(row, tokenizer)
    assert example.token_ids[: -example.trained_tokens] == prompt_ids(row.prompt, tokenizer) == tokenizer("150 Pierce")["input_ids"]
    assert seen(example, tokenizer) == f" Rd{END}"


def test_a_text_is_trained_whole_but_for_its_first_token(tokenizer: Any) -> None:
    example = tokenized(Conversation((Turn("text", "lazy dog"),), HERE, templated=False), tokenizer)
    assert tokenizer.decode(example.token_ids) == f"lazy dog{END}"
    assert example.trained == [False] + [True] * (len(example.token_ids) - 1)


def test_a_begin_of_text_token_stands_once_and_is_not_trained(tokenizer: Any) -> None:
    from tokenizers.processors import TemplateProcessing

    other = copy.deepcopy(tokenizer)
    other.backend_tokenizer.post_processor = TemplateProcessing(single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)])
    text = tokenized(Conversation((Turn("text", "lazy dog"),), HERE, templated=False), other)
    assert text.token_ids.count(1) == 1
    assert (text.token_ids[0], text.trained[:2]) == (1, [False, True])
    completion = tokenized(Conversation((Turn("prompt", "lazy"), Turn("completion", " dog")), HERE, templated=False), other)
    assert other.decode(completion.token_ids) == f"<|im_start|>lazy dog{END}"
    assert seen(completion, other) == f" dog{END}"
    assert tokenized(chat("hi", "ho"), other).token_ids == tokenized(chat("hi", "ho"), tokenizer).token_ids


def test_a_tokenizer_without_an_end_is_named(tokenizer: Any) -> None:
    other = copy.deepcopy(tokenizer)
    other.eos_token = None
    rejected = tokenize(Conversation((Turn("text", "lazy"),), HERE, templated=False), other)
    assert isinstance(rejected, Rejected)
    assert rejected.reason == "no_end_token"


def test_a_prompt_that_the_template_refuses_raises(tokenizer: Any) -> None:
    with pytest.raises(DataError, match="refuses the row: no"):
        prompt_ids(chat("hi", "ho").prompt, with_template(tokenizer, "{{ raise_exception('no') }}"))


def test_spelling_shows_every_token_and_keeps_characters_whole(tokenizer: Any) -> None:
    example = tokenized(chat("né \U0001f600?", "日本 ok"), tokenizer)
    pieces = spell(example, tokenizer)
    assert "".join(text for text, _, _ in pieces) == tokenizer.decode(example.token_ids)
    assert [text for text, on, special in pieces if on and not special] == ["日本 ok"]
    assert [text for text, on, special in pieces if on and special] == [END]
    assert any("né \U0001f600?" in text for text, on, special in pieces if not on and not special)
