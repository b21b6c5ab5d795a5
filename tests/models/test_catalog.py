"""The catalog: what it says is whole, and it is the truth about the model that is fetched."""

import dataclasses
import re
import subprocess
import sys
from datetime import date
from pathlib import Path

import pytest
from gguf.constants import MODEL_ARCH_NAMES

from luthier.models import catalog, facts, fetch, licenses, load, overview
from luthier.models.architectures import ARCHITECTURES
from luthier.reporting import Silent

CARDS = catalog.cards()
# What a wrong layer, width or vocabulary would exceed: authors round to three digits, and one layer of eighty is 1.2 %.
ROUNDED = 0.01
MAY_BE_UNVERIFIED = {"shape", "context", "languages", "released", "license", "open_data", "published"}
FAMILIES = {
    # family       sizes that must be there
    "Mistral 7B": {"mistral-7b-v0.1", "mistral-7b-v0.2", "mistral-7b-v0.3"},
    "Mistral Nemo": {"mistral-nemo-12b"},
    "Mixtral": {"mixtral-8x7b"},
    "Llama 2": {"llama-2-7b", "llama-2-13b", "llama-2-70b"},
    "Llama 3": {"llama-3-8b", "llama-3-70b"},
    "Llama 3.1": {"llama-3.1-8b", "llama-3.1-70b"},
    "Llama 3.2": {"llama-3.2-1b", "llama-3.2-3b"},
    "Gemma": {"gemma-2b", "gemma-7b"},
    "Gemma 2": {"gemma-2-2b", "gemma-2-9b", "gemma-2-27b"},
    "Gemma 3": {"gemma-3-270m", "gemma-3-1b", "gemma-3-4b", "gemma-3-12b", "gemma-3-27b"},
    "Phi-2": {"phi-2"},
    "Phi-3": {"phi-3-mini", "phi-3-medium"},
    "Phi-4": {"phi-4"},
    "TinyLlama": {"tinyllama-1.1b"},
    "OLMo": {"olmo-7b"},
    "OLMo 2": {"olmo-2-1b", "olmo-2-7b", "olmo-2-13b", "olmo-2-32b"},
    "Qwen2.5": {f"qwen2.5-{size}" for size in ("0.5b", "1.5b", "3b", "7b", "14b", "32b", "72b")},
    "Qwen3": {f"qwen3-{size}" for size in ("0.6b", "1.7b", "4b", "8b", "14b", "32b", "30b-a3b")},
    "SmolLM2": {"smollm2-135m", "smollm2-360m", "smollm2-1.7b"},
    "SmolLM3": {"smollm3-3b"},
    "gpt-oss": {"gpt-oss-20b"},
}


def published(text: str) -> float:
    return float(text[:-1]) * {"M": 1e6, "B": 1e9}[text[-1]]


def test_every_family_and_size_is_there():
    found = {family: {card.size for card in CARDS if card.family == family} for family in FAMILIES}
    assert found == FAMILIES


def test_every_card_is_whole_and_says_where_it_was_read():
    for card in CARDS:
        assert card.source, card.name
        assert date.fromisoformat(card.checked) <= date.today(), card.name
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", card.hub), card.name
        assert re.fullmatch(r"20\d\d-\d\d", card.released), card.name
        assert licenses.license_of(card.license) is not None, card.name
        assert card.languages == tuple(sorted(card.languages)), card.name
        assert card.engines, card.name
        assert card.facts.heads % card.facts.kv_heads == 0, card.name
        assert card.extended >= card.facts.context, card.name
        assert bool(card.template) <= (card.kind == "instruct"), card.name
        assert card.score is None or (card.score.source and 20 < card.score.mmlu < 100), card.name
        assert set(card.unverified) <= MAY_BE_UNVERIFIED, card.name


def test_the_parameters_counted_from_the_shape_are_those_that_are_published():
    for card in CARDS:
        assert card.facts.parameters == pytest.approx(published(card.published), rel=ROUNDED), card.name
        one_more = dataclasses.replace(card.facts, layers=card.facts.layers + 1)
        counted = facts.count_parameters(one_more, ARCHITECTURES[card.type])
        assert counted != pytest.approx(published(card.published), rel=ROUNDED), f"{card.name}: a wrong layer would not be seen"


def test_a_mixture_of_experts_uses_a_part_of_its_parameters():
    active = {card.size: (card.facts.active_parameters, published(card.published_active)) for card in CARDS if card.has_experts}
    assert set(active) == {"mixtral-8x7b", "qwen3-30b-a3b", "gpt-oss-20b"}
    embedding = 201_088 * 2880  # which OpenAI leaves out
    assert active["mixtral-8x7b"][0] == pytest.approx(12.9e9, rel=ROUNDED)
    assert active["qwen3-30b-a3b"][0] == pytest.approx(3.3e9, rel=0.02)
    assert active["gpt-oss-20b"][0] - embedding == pytest.approx(3.6e9, rel=ROUNDED)


def test_what_tables_in_circulation_have_wrong_is_right_here():
    """Phi-2 as 3B, Gemma under Apache, Mixtral as 56B or as if all of it ran, Gemma 7B as 7 billion."""
    known = {card.name: card for card in CARDS}
    assert known["phi-2"].facts.parameters == 2_779_683_840
    assert {card.license for card in CARDS if card.family.startswith("Gemma")} == {"gemma"}
    mixtral = known["mixtral-8x7b"].facts
    assert (mixtral.parameters, mixtral.active_parameters) == (46_702_792_704, 12_879_925_248)
    assert known["gemma-7b"].facts.parameters == 8_537_680_896
    assert (known["qwen2.5-3b"].license, known["qwen2.5-7b"].license, known["qwen2.5-72b"].license) == ("qwen-research", "Apache-2.0", "qwen")


def test_the_one_model_that_comes_through_pip_is_pinned():
    pinned = [card for card in CARDS if card.package]
    assert [card.name for card in pinned] == ["smollm2-135m-instruct"]
    for card in pinned:
        assert card.package is not None
        assert re.fullmatch(r"[0-9a-f]{64}", card.package.wheel_sha256)
        assert re.fullmatch(r"[0-9a-f]{64}", card.package.file_sha256)


def test_base_and_instruct_versions_differ_in_name_and_hub_id_alone():
    assert len({card.hub for card in CARDS}) == len(CARDS)
    by_size = {size: [card for card in CARDS if card.size == size] for size in {card.size for card in CARDS}}
    assert all(len({card.facts for card in versions}) == 1 for versions in by_size.values())
    assert all(len(versions) == len({card.kind for card in versions}) for versions in by_size.values())


def test_llama_cpp_has_every_architecture_that_is_said_to_run_there():
    names = set(MODEL_ARCH_NAMES.values())
    spelled = {"mistral": "llama", "mixtral": "llama", "phi": "phi2", "qwen3_moe": "qwen3moe", "gpt_oss": "gpt-oss", "gemma3_text": "gemma3"}
    assert {spelled.get(card.type, card.type) for card in CARDS if "llama.cpp" in card.engines} <= names


def test_what_no_source_confirms_is_shown():
    assert overview.describe("phi-2")["unverified"] == ("open_data",)
    assert overview.describe("llama-3.1-8b")["unverified"] == ()


def test_a_hub_id_is_found():
    found = catalog.of_hub("meta-llama/llama-3.2-1b-instruct")
    assert found is not None
    assert found.name == "llama-3.2-1b-instruct"
    assert catalog.of_hub("nobody/nothing") is None


def test_a_name_that_is_not_in_the_catalog_has_no_card():
    assert catalog.card("smollm3") is None


def test_catalog_facts_finding_and_caches_work_without_torch():
    rooms = "audit, cache, catalog, facts, fetch, find, overview, selection"
    code = f"import sys; from luthier.models import {rooms}; from luthier.plan import candidates; catalog.cards(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.real_model
def test_the_default_model_is_what_the_catalog_says(default_model: Path):
    card = catalog.card("smollm2-135m-instruct")
    assert card is not None
    assert fetch.damage(default_model, card, verify=True) == ""
    assert facts.from_folder(default_model) == card.facts
    assert sorted(path.name for path in default_model.parent.iterdir() if path.suffix == ".whl" or path.name.startswith(".")) == []


@pytest.mark.real_model
def test_the_default_model_is_there_at_once_and_offline(default_model: Path, monkeypatch: pytest.MonkeyPatch):
    card = catalog.card("smollm2-135m-instruct")
    assert card is not None
    monkeypatch.setenv("LUTHIER_HOME", str(default_model.parent.parent))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert fetch.fetch(card, Silent()) == default_model


@pytest.mark.real_model
def test_the_default_tokenizer_has_a_real_limit_a_pad_of_its_own_and_single_digits(default_model: Path):
    tokenizer = load.load_tokenizer(default_model)
    assert tokenizer.model_max_length == 8192
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<|endoftext|>", "<|im_end|>")
    # As the model's authors publish it: spaces stand apart from the digits that follow.
    assert tokenizer.convert_ids_to_tokens(tokenizer("a  12").input_ids) == ["a", "ĠĠ", "1", "2"]


@pytest.mark.real_model
def test_the_default_model_answers(default_model: Path):
    tokenizer, model = load.load_tokenizer(default_model), load.load_model(default_model, "fp32", "cpu")
    question = [{"role": "user", "content": "What is the capital of France?"}]
    asked = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**asked, max_new_tokens=10, do_sample=False)[0, asked["input_ids"].shape[1] :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"
