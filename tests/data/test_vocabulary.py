"""Tokenizers that are trained here: no text is lost, the same text gives the same pieces, and what is said of them is counted right."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from luthier.data import vocabulary
from luthier.data.vocabulary import Control
from luthier.errors import DataError

CONTROL = Control(["<unk>", "<|im_start|>", "<|im_end|>"], "<unk>")
STREETS = ["Pierce Rd", "Main Street", "Elm Avenue", "Oak Lane"]
TEXTS = [f"{n} {STREETS[n % 4]}, Springfield, IL {60000 + n}: Straße nach München, 東京 {n % 7}" for n in range(400)]
KINDS = ["bpe", "unigram"]
HARD = [
    "",
    " ",
    "  two  spaces \n\n\ttab\r\n end ",
    "SentencePiece's own mark ▁ and ▁▁x",
    "<0x41> is not A, <0x0A>",
    "🎸🎻 e\u0301 \u200b\ufeff\x00\x85\u2028",
    "हिन्दी العربية 한국어 Ελλάδα",
    "<|im_start|>user\nHi<|im_end|>",
]


@pytest.fixture(scope="module")
def trained() -> dict[str, Tokenizer]:
    return {kind: vocabulary.train(lambda: TEXTS, kind, 600, CONTROL) for kind in KINDS}  # type: ignore[arg-type]


def round_trip(tokenizer: Tokenizer, text: str) -> str:
    return tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids, skip_special_tokens=False)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", HARD)
def test_hard_texts_come_back_as_they_were(trained: dict[str, Tokenizer], kind: str, text: str):
    assert round_trip(trained[kind], text) == text


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=300, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_every_text_comes_back_as_it_was(trained: dict[str, Tokenizer], kind: str, text: str):
    assert round_trip(trained[kind], text) == text


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_texts_give_the_same_tokenizer(trained: dict[str, Tokenizer], kind: str):
    for _ in range(3):
        assert vocabulary.train(lambda: TEXTS, kind, 600, CONTROL).to_str() == trained[kind].to_str()  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_are_learned_and_the_size_is_kept(trained: dict[str, Tokenizer], kind: str):
    tokenizer = trained[kind]
    assert tokenizer.get_vocab_size() <= 600
    assert len(tokenizer.encode(" Springfield").ids) == 1
    assert [tokenizer.token_to_id(token) for token in CONTROL.tokens] == [0, 1, 2]
    # Never unknown: what is rare is spelled in bytes.
    assert 0 not in tokenizer.encode("🎻 ŧ").ids


def test_a_begin_token_stands_before_every_text_where_the_base_has_one():
    control = Control(["<unk>", "<s>", "</s>"], "<unk>", before="<s>")
    tokenizer = vocabulary.train(lambda: TEXTS, "bpe", 600, control)
    assert tokenizer.encode("a").ids[0] == 1
    assert tokenizer.encode("a", add_special_tokens=False).ids[0] != 1


def test_transformers_loads_it_and_loses_nothing(trained: dict[str, Tokenizer], tmp_path: Path):
    (tmp_path / "tokenizer.json").write_text(trained["unigram"].to_str(), encoding="utf-8")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, "eos_token": "<|im_end|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = AutoTokenizer.from_pretrained(str(tmp_path))
    for text in HARD:
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


@pytest.mark.parametrize(("texts", "size", "words"), [(TEXTS, 300, "leave no room"), ([], 600, "no text to learn from"), ([""], 600, "no text")])
def test_what_cannot_be_trained_is_said(texts: list[str], size: int, words: str):
    with pytest.raises(DataError, match=words):
        vocabulary.train(lambda: texts, "bpe", size, CONTROL)


def test_more_letters_than_pieces_go_to_bytes():
    letters = "".join(chr(0x4E00 + place) for place in range(2000))
    for kind in KINDS:
        tokenizer = vocabulary.train(lambda: [letters], kind, 500, CONTROL)  # type: ignore[arg-type]
        assert tokenizer.get_vocab_size() <= 500
        assert round_trip(tokenizer, letters) == letters


def test_a_fit_counts_words_letters_unknown_and_bytes():
    ids = {"one two": [5, 6], "é": [9, 9], "?": [0]}
    fit = vocabulary.measure(ids, ids.__getitem__, 0, {9})
    assert (fit.words, fit.letters, fit.tokens, fit.unknown, fit.bytes) == (4, 9, 5, 1, 2)
    assert fit.tokens_per_word == pytest.approx(5 / 4)
    assert fit.fitting(1) == 1
    assert fit.as_json(1)["byte_share"] == pytest.approx(0.4)
