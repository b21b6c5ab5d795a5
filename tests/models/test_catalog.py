"""The catalog: what it says is whole, and it is the truth about the model that is fetched."""

import re
import subprocess
import sys
from datetime import date
from pathlib import Path

import pytest

from luthier.models import catalog, facts, fetch, load
from luthier.reporting import Silent


def test_every_card_names_its_license_source_and_pins():
    for card in catalog.cards():
        assert card.license
        assert card.obligations
        assert card.source
        assert date.fromisoformat(card.checked) <= date.today()
        assert re.fullmatch(r"[0-9a-f]{64}", card.package.wheel_sha256)
        assert re.fullmatch(r"[0-9a-f]{64}", card.package.file_sha256)
        assert card.facts.heads % card.facts.kv_heads == 0


def test_a_name_that_is_not_in_the_catalog_has_no_card():
    assert catalog.card("smollm3") is None


def test_catalog_facts_finding_and_caches_work_without_torch():
    code = "import sys; from luthier.models import catalog, facts, fetch, find, cache; catalog.cards(); print('torch' in sys.modules)"
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
