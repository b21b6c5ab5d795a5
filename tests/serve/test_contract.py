"""The contract notices when the same messages would give other tokens than in training."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from luthier.errors import RunError
from luthier.models.load import load_tokenizer
from luthier.records import Conversation, Source, Turn
from luthier.run_folder import RunFolder
from luthier.serve import contract


def rows(systems: Sequence[str | None]) -> list[Conversation]:
    """A question and an answer for each system message."""
    found = []
    for number, system in enumerate(systems, 1):
        turns = [Turn("system", system or "")] * bool(system) + [Turn("user", f"{number} Pierce Rd"), Turn("assistant", "Itasca")]
        found.append(Conversation(tuple(turns), Source("rows.jsonl", number)))
    return found


@pytest.fixture
def tokenizer(tiny_model: Path) -> Any:
    return load_tokenizer(tiny_model)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


def test_an_unchanged_template_keeps_the_promise(run: RunFolder, tokenizer: Any) -> None:
    contract.write(run, tokenizer, {2, 0}, rows(["Be brief."] * 5))
    promised = contract.read_checked(run, tokenizer, {0, 2})
    assert promised == json.loads(run.contract.read_text(encoding="utf-8"))
    assert promised["system"] == "Be brief."
    assert promised["templated"] is True
    assert promised["stop_tokens"] == ["<|endoftext|>", "<|im_end|>"]
    assert len(promised["golden"]) == 3
    assert tokenizer.decode(promised["golden"][0]["ids"]).endswith("1 Pierce Rd<|im_end|>\n<|im_start|>assistant\n")


CHANGES = {
    "another word": ("<|im_start|>assistant", "<|im_start|>model"),
    "another default system message": ("You are a helpful assistant.", "You are SmolLM."),
    "a line less": ("'<|im_end|>' + '\n'", "'<|im_end|>'"),
    "it refuses": ("{% for", "{{ raise_exception('no') }}{% for"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_template_breaks_it(change: str, run: RunFolder, tokenizer: Any) -> None:
    contract.write(run, tokenizer, {2}, rows([None] * 3))
    before = tokenizer.chat_template
    tokenizer.chat_template = before.replace(*CHANGES[change])
    assert tokenizer.chat_template != before
    with pytest.raises(RunError, match=r"the same messages give other tokens\n  Try: restore the base model"):
        contract.read_checked(run, tokenizer, {2})


def test_a_template_that_is_only_written_otherwise_keeps_it(run: RunFolder, tokenizer: Any) -> None:
    contract.write(run, tokenizer, {2}, rows([None] * 3))
    tokenizer.chat_template = "{# a remark #}" + tokenizer.chat_template
    contract.read_checked(run, tokenizer, {2})


def test_other_stop_tokens_break_it(run: RunFolder, tokenizer: Any) -> None:
    contract.write(run, tokenizer, {2, 0}, rows([None] * 3))
    with pytest.raises(RunError, match=r"trained to stop at <\|endoftext\|>, <\|im_end\|> and would now stop at <\|endoftext\|>"):
        contract.read_checked(run, tokenizer, {0})


def test_another_vocabulary_breaks_it(run: RunFolder, tokenizer: Any) -> None:
    contract.write(run, tokenizer, {2}, rows(["Be brief."] * 3))
    tokenizer.add_tokens(["Pierce"])
    with pytest.raises(RunError, match="tokenizer or chat template has changed"):
        contract.read_checked(run, tokenizer, {2})


def test_rows_without_a_template_promise_their_raw_prompts(run: RunFolder, tokenizer: Any) -> None:
    bare = [Conversation((Turn("prompt", f"{n} Rd: "), Turn("completion", "Itasca")), Source("rows.jsonl", n), templated=False) for n in range(3)]
    contract.write(run, tokenizer, {2}, bare)
    promised = contract.read_checked(run, tokenizer, {2})
    assert promised["templated"] is False
    assert promised["system"] is None
    assert tokenizer.decode(promised["golden"][2]["ids"]) == "2 Rd: "
    text = [Conversation((Turn("text", "A luthier."),), Source("rows.jsonl", 1), templated=False)]
    contract.write(run, tokenizer, {2}, text)
    assert contract.read_checked(run, tokenizer, {2})["golden"] == []


@pytest.mark.parametrize(
    ("systems", "shared"),
    [
        (["A"] * 10, "A"),
        (["A"] * 9 + ["B"], "A"),
        (["A"] * 8 + ["B", "B"], None),
        ([None] * 10, None),
        (["A"] * 5 + [None] * 5, None),
    ],
    ids=["all", "nine of ten", "eight of ten", "none has one", "half have none"],
)
def test_the_system_message_that_nearly_all_rows_share(systems: list[str | None], shared: str | None) -> None:
    assert contract.shared_system(rows(systems)) == shared
