"""A template for a model that has none: chosen by rule, named, or a user's file; and it stays with the tokenizer."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from luthier.data.tokenize import How, Tokenized, end_of_turn, prompt_ids, tokenize
from luthier.errors import ConfigError
from luthier.models import load, templates
from luthier.records import Conversation, Rejected, Source, Turn

TALK = (Turn("system", "Count."), Turn("user", "one?"), Turn("assistant", "1"), Turn("user", "two?"), Turn("assistant", "2"))
WRITTEN = {
    "alpaca": "### Instruction:\nCount.\n\n### Input:\none?\n\n### Response:\n1<|endoftext|>\n\n### Input:\ntwo?\n\n### Response:\n2<|endoftext|>",
    "chatml": "<|im_start|>system\nCount.<|im_end|>\n<|im_start|>user\none?<|im_end|>\n<|im_start|>assistant\n1<|im_end|>\n"
    "<|im_start|>user\ntwo?<|im_end|>\n<|im_start|>assistant\n2<|im_end|>\n",
    "zephyr": "<|system|>\nCount.<|endoftext|>\n<|user|>\none?<|endoftext|>\n<|assistant|>\n1<|endoftext|>\n"
    "<|user|>\ntwo?<|endoftext|>\n<|assistant|>\n2<|endoftext|>\n",
    "inst": "[INST] Count.\n\none? [/INST] 1<|endoftext|>[INST] two? [/INST] 2<|endoftext|>",
}


@pytest.fixture
def base(tiny_model: Path) -> Any:
    """The tokenizer of a base model: no chat template, and text ends with <|endoftext|>."""
    tokenizer = copy.deepcopy(load.load_tokenizer(tiny_model))
    tokenizer.chat_template, tokenizer.eos_token = None, "<|endoftext|>"
    return tokenizer


@pytest.mark.parametrize("name", templates.NAMES)
def test_ours_write_what_they_should_and_are_masked_exactly(name: str, base: Any) -> None:
    assert templates.install(base, name, Path()) == templates.Chosen(name, "as given")
    result = tokenize(Conversation(TALK, Source("rows", 1)), base, How(1000))
    assert isinstance(result, Tokenized), result
    [example] = result.examples
    assert base.decode(example.token_ids) == WRITTEN[name]
    end = "<|im_end|>" if name == "chatml" else "<|endoftext|>"
    seen = base.decode([token for token, on in zip(example.token_ids, example.trained, strict=True) if on])
    assert seen.replace(" ", "") == f"1{end}2{end}"
    asked = prompt_ids(TALK[:-1], base)
    assert example.token_ids[: len(asked)] == asked
    assert base.eos_token == end
    assert end_of_turn(base) == base.eos_token_id


def test_alpaca_without_a_system_message_is_the_guides_text(base: Any) -> None:
    templates.install(base, "alpaca", Path())
    assert base.decode(prompt_ids([Turn("user", "Sort: b a")], base)) == "### Instruction:\nSort: b a\n\n### Response:\n"


@pytest.mark.parametrize("name", templates.NAMES)
def test_a_role_that_ours_do_not_know_is_named(name: str, base: Any) -> None:
    templates.install(base, name, Path())
    turns = (Turn("user", "Time?"), Turn("tool", "12:30"), Turn("assistant", "Noon."))
    rejected = tokenize(Conversation(turns, Source("rows", 1)), base, How(1000))
    assert isinstance(rejected, Rejected)
    assert rejected.reason == "template_refused"
    assert f"the {name} template has no tool message" in rejected.detail


def test_the_rule_takes_the_tokenizers_own_then_chatml_then_alpaca(base: Any) -> None:
    assert templates.install(copy.deepcopy(base), "auto", Path()).name == "chatml"
    from tokenizers import Tokenizer

    rules = json.loads(base.backend_tokenizer.to_str())
    for token in rules["added_tokens"]:
        token["content"] = token["content"].replace("im_", "am_")
    rules["model"]["vocab"] = {name.replace("|im_", "|am_"): token for name, token in rules["model"]["vocab"].items()}
    plain = type(base)(tokenizer_object=Tokenizer.from_str(json.dumps(rules)), eos_token="<|endoftext|>")
    chosen = templates.install(plain, "auto", Path())
    assert chosen.name == "alpaca"
    assert "no chat template" in chosen.why
    assert templates.install(plain, "auto", Path()).name == "the tokenizer's own"


def test_the_beginning_is_that_of_plain_text(base: Any) -> None:
    from tokenizers.processors import TemplateProcessing

    base.backend_tokenizer.post_processor = TemplateProcessing(single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)])
    templates.install(base, "alpaca", Path())
    result = tokenize(Conversation(TALK, Source("rows", 1)), base, How(1000))
    assert isinstance(result, Tokenized)
    assert result.examples[0].token_ids.count(1) == 1
    assert result.examples[0].token_ids[0] == 1


FILE = "{% for m in messages %}<{{ m.role }}> {{ m.content }}<|im_end|>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"


def test_a_file_is_taken_and_its_end_stops_answers(base: Any, tmp_path: Path) -> None:
    (tmp_path / "mine.jinja").write_text(FILE)
    chosen = templates.install(base, "mine.jinja", tmp_path)
    assert chosen == templates.Chosen(str(tmp_path / "mine.jinja"), "as given")
    assert base.chat_template == FILE
    assert base.eos_token == "<|im_end|>"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "mine.jinja: there is no such file"),
        ("", "mine.jinja: is empty"),
        (b"\xff\xfe\x00", "mine.jinja: cannot be read"),
        ("a\n{% for m in messages %}\n{{ m.content }\n{% endfor %}", "mine.jinja:3: is no Jinja template"),
        ("{% for m in messages %}{{ m.content }}", "mine.jinja:1: is no Jinja template"),
        ("{{ raise_exception('never') }}", "refuses a question and its answer: never"),
        ("{{ messages[0].content }}", "does not write what the assistant says"),
        ("{{ 1 / 0 }}", "fails on a question and its answer: division by zero"),
        ("{{ ''.__class__.__mro__ }}{{ messages[1].content }}", "refuses|fails"),
    ],
)
def test_a_file_that_is_no_template_is_named_with_its_line(content: str | bytes | None, words: str, base: Any, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "mine.jinja").write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ConfigError, match=words):
        templates.install(base, "mine.jinja", tmp_path)


def test_an_unknown_name_is_named_with_the_nearest(base: Any) -> None:
    with pytest.raises(ConfigError, match=r"template: 'alpacca' is no template\n  Try: alpaca"):
        templates.install(base, "alpacca", Path())


def test_chatml_needs_its_tokens(base: Any) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    plain = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE({"a": 0, "</s>": 1}, [])), eos_token="</s>")
    with pytest.raises(ConfigError, match=r"needs the token <\|im_start\|>.*\n  Try: template: alpaca"):
        templates.install(plain, "chatml", Path())


def test_the_template_is_kept_with_the_tokenizer(tiny_model: Path, tmp_path: Path) -> None:
    said: list[str] = []
    tokenizer = load.load_tokenizer(tiny_model, "zephyr", say=said.append)
    assert said == ["template: zephyr (as given)"]
    load.save_tokenizer(tokenizer, tmp_path)
    assert (tmp_path / "chat_template.jinja").read_text() == tokenizer.chat_template
    again = load.load_tokenizer(tmp_path, say=said.append)
    assert again.chat_template == tokenizer.chat_template
    assert len(said) == 1
    assert again.model_max_length == 512
