"""Every chat template of llama.cpp and TRL with every tokenizer family: the properties hold, or the row is set aside with a reason.

docs/templates.md has the table that this makes.
"""

from collections import Counter
from typing import Any

import pytest
from template_families import FAMILIES, breaches, conversations, template_files, tokenizer_of
from turns import in_turns

from luthier.data.tokenize import How, Tokenized, tokenize
from luthier.records import Conversation, Source, Turn

# A family's own template (both from packages), which must take every conversation named, and not only refuse it.
OWN = {
    # family       template                                        conversations it must take
    "Llama 3.1": ("llama.cpp/meta-llama-Llama-3.1-8B-Instruct", {"question", "system", "turns", "code"}),
    "Llama 3": ("trl/llama3", {"question", "system", "turns", "code"}),
    "Gemma 3": ("trl/gemma3", {"question", "system", "turns", "code"}),
    "Phi-3": ("trl/phi3", {"question", "system", "turns", "code"}),
    "Qwen 2.5": ("llama.cpp/Qwen-Qwen2.5-7B-Instruct", {"question", "system", "turns", "code", "tools"}),
    "Qwen 3": ("llama.cpp/Qwen-Qwen3-0.6B", {"question", "system", "turns", "code", "tools", "reasoning"}),
    "gpt-oss": ("llama.cpp/openai-gpt-oss-120b", {"question", "turns", "code"}),
    "DeepSeek V3": ("llama.cpp/deepseek-ai-DeepSeek-V3.1", {"question", "system", "turns", "code"}),
}
REASONS = {
    "template_seam",
    "template_refused",
    "template_drops_text",
    "template_drops_tools",
    "mask_not_proved",
    "double_begin_token",
    "no_end_token",
}


@pytest.mark.parametrize("family", in_turns(FAMILIES, 3))
def test_the_properties_hold_or_the_row_is_set_aside(family: str) -> None:
    tokenizer = tokenizer_of(family)
    counts: Counter[str] = Counter()
    for name, path in template_files().items():
        tokenizer.chat_template = path.read_text(encoding="utf-8")
        for kind, conversation in conversations().items():
            found = breaches(conversation, tokenizer)
            refused = found[:1] and found[0].startswith("refused: ")
            assert not found or (refused and found[0].removeprefix("refused: ") in REASONS), (name, kind, found)
            counts["refused" if refused else "trained"] += 1
    assert counts["trained"] > 350, counts


@pytest.mark.parametrize("family", in_turns(OWN, 3))
def test_a_familys_own_template_takes_its_rows(family: str) -> None:
    tokenizer = tokenizer_of(family)
    template, kinds = OWN[family]
    tokenizer.chat_template = template_files()[template].read_text(encoding="utf-8")
    found = {kind: breaches(conversation, tokenizer) for kind, conversation in conversations().items() if kind in kinds}
    assert found == {kind: [] for kind in kinds}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "template"), [("Qwen 3", "trl/qwen3_training"), ("Qwen 2.5", "trl/qwen2_5_training"), ("gpt-oss", "trl/gptoss_training")]
)
def test_trls_own_marks_agree(family: str, template: str) -> None:
    tokenizer = tokenizer_of(family)
    tokenizer.chat_template = template_files()[template].read_text(encoding="utf-8")
    assert breaches(conversations()["question"], tokenizer) == []
    assert breaches(conversations()["code"], tokenizer) == []


@pytest.mark.parametrize("family", in_turns(FAMILIES, 3))
def test_texts_and_completions_have_one_beginning(family: str) -> None:
    tokenizer: Any = tokenizer_of(family)
    for turns in ((Turn("text", "Lazy dog, 12."),), (Turn("prompt", "Lazy"), Turn("completion", " dog"))):
        result = tokenize(Conversation(turns, Source("rows.jsonl", 1), templated=False), tokenizer, How(1000))
        assert isinstance(result, Tokenized)
        ids = result.examples[0].token_ids
        assert ids[-1] == tokenizer.eos_token_id
        assert tokenizer.bos_token == tokenizer.eos_token or ids.count(tokenizer.bos_token_id) <= 1
