"""A tokenizer that cannot belong to its model is refused before any weights are loaded, with the file, the token and the next step."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from luthier.errors import ConfigError, ModelError
from luthier.models import alignment, load, vocabulary


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_model, tmp_path / "mine")


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def check(folder: Path) -> list[str]:
    return alignment.check_alignment(load.load_tokenizer(folder), folder)


def test_a_model_with_its_own_tokenizer_passes(tiny_model: Path):
    assert check(tiny_model) == [] or "may belong to another" in check(tiny_model)[0]


@pytest.mark.real_model
def test_the_default_model_passes_without_a_note(default_model: Path):
    assert check(default_model) == []


def test_tokens_beyond_the_embedding_are_named_and_the_setting_that_adds_rows(folder: Path):
    tokenizer = load.load_tokenizer(folder)
    tokenizer.add_tokens([f"<|more{number}|>" for number in range(400)], special_tokens=True)
    tokenizer.save_pretrained(folder)
    with pytest.raises(
        ModelError, match=r"tokenizer.json: \d+ tokens have ids beyond the embedding's 500 rows \(0 to 499\): <\|more\d+\|> is 500"
    ) as error:
        check(folder)
    assert "tokenizer.add_special_tokens: [<|more" in error.value.next_step


def test_a_tokenizer_without_an_end_token_is_refused(folder: Path):
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({name: value for name, value in json.loads(path.read_text()).items() if name not in ("eos_token", "pad_token")}))
    tokenizer = load.load_tokenizer(folder)
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match=r"tokenizer_config.json: the tokenizer has no end-of-text token \(eos_token\)"):
        alignment.check_alignment(tokenizer, folder)


def test_added_tokens_whose_ids_differ_between_files_are_shifted(folder: Path):
    (folder / "added_tokens.json").write_text(json.dumps({"<|im_end|>": 3}))
    tokenizer = load.load_tokenizer(folder)
    with pytest.raises(ModelError, match=r"the added token <\|im_end\|> is 2 in tokenizer.json and 3 in added_tokens.json: added tokens are shifted"):
        alignment.check_alignment(tokenizer, folder)


def test_another_models_end_token_is_noticed(folder: Path):
    for name in ("config.json", "generation_config.json"):
        if (folder / name).is_file():
            edit(folder / name, eos_token_id=40)
    with pytest.raises(
        ModelError, match=r"the model ends its texts with token 40 .*and this tokenizer with 2 \(<\|im_end\|>\): it is another model's"
    ):
        check(folder)


def test_a_begin_token_that_is_written_twice_is_refused(folder: Path):
    from tokenizers import processors

    tokenizer = load.load_tokenizer(folder)
    twice = processors.TemplateProcessing(single="<|im_start|> <|im_start|> $A", special_tokens=[("<|im_start|>", 1)])
    tokenizer.backend_tokenizer.post_processor = twice
    with pytest.raises(ModelError, match=r"two rules put <\|im_start\|> before a text"):
        alignment.check_alignment(tokenizer, folder)
    tokenizer = load.load_tokenizer(folder)
    tokenizer.chat_template = "{{ bos_token }}{{ bos_token }}{{ messages[0]['content'] }}"
    with pytest.raises(ModelError, match=r"the chat template writes <\|im_start\|> twice"):
        alignment.check_alignment(tokenizer, folder)


def test_a_template_of_another_model_is_said(folder: Path):
    tokenizer = load.load_tokenizer(folder)
    tokenizer.chat_template = "<|start_header_id|>{{ messages[0]['content'] }}<|eot_id|>"
    notes = alignment.check_alignment(tokenizer, folder)
    assert "the chat template writes <|eot_id|>, <|start_header_id|>, which this tokenizer cuts into pieces" in notes[-1]


def test_a_tokenizer_much_smaller_than_the_embedding_is_said(folder: Path):
    tokenizer = load.load_tokenizer(folder)
    assert alignment._odd(tokenizer, 10 * len(tokenizer))[0].endswith("it may belong to another model")


def test_a_fingerprint_tells_vocabularies_apart_and_does_not_look_at_names(tiny_model: Path, tmp_path: Path):
    tokenizer = load.load_tokenizer(tiny_model)
    copy = load.load_tokenizer(shutil.copytree(tiny_model, tmp_path / "another-name"))
    assert alignment.fingerprint(tokenizer) == alignment.fingerprint(copy)
    swapped = json.loads((tiny_model / "tokenizer.json").read_text())
    swapped["model"]["merges"] = swapped["model"]["merges"][:10]
    (tmp_path / "another-name" / "tokenizer.json").write_text(json.dumps(swapped))
    assert alignment.fingerprint(load.load_tokenizer(tmp_path / "another-name")) != alignment.fingerprint(tokenizer)


def test_a_known_tokenizer_beside_a_model_of_another_kind_is_called_by_its_real_name(folder: Path, monkeypatch: pytest.MonkeyPatch):
    real = alignment.fingerprint(load.load_tokenizer(folder))
    monkeypatch.setitem(alignment.FAMILIES, real, ("Mistral 7B v0.1", ("mistral",)))
    assert any("this is Mistral 7B v0.1's tokenizer" in note and "the model is a llama" in note for note in check(folder))
    monkeypatch.setitem(alignment.FAMILIES, real, ("Llama 2", ("llama",)))
    assert not any("tokenizer, whatever" in note for note in check(folder))


@pytest.mark.parametrize(("tokens", "words"), [([" "], "blank"), (["<|a|>", "<|a|>"], "named twice")])
def test_tokens_that_cannot_be_added_are_refused(tiny_model: Path, tokens: list[str], words: str):
    with pytest.raises(ConfigError, match=f"tokenizer.add_special_tokens: .* is {words}"):
        vocabulary.add_tokens(load.load_tokenizer(tiny_model), tokens)
