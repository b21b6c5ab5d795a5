"""New rows start at the mean and old ones stay to the bit; another vocabulary keeps what both spell alike; all of it comes back from disk."""

from pathlib import Path

import peft
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from luthier.config.adapters import LoraSettings
from luthier.errors import ConfigError, ModelError
from luthier.models import adapters, load, lora, vocabulary

NEW = ["<|call|>", "<|result|>"]
SAVED = ["embed_tokens", "lm_head"]


def many(count: int) -> list[str]:
    return [f"<|new{number}|>" for number in range(count)]


def grown(folder: Path, tokens: list[str], precision: str = "fp32"):
    model, tokenizer = load.load_model(folder, precision, "cpu"), load.load_tokenizer(folder, added_tokens=tokens)
    return model, tokenizer, vocabulary.fit_embeddings(model, load.load_tokenizer(folder), tokenizer)


@pytest.mark.parametrize("count", [2, 400])
def test_tables_only_grow_old_rows_stay_and_new_ones_start_at_the_mean(tiny_model: Path, count: int):
    before = load.load_model(tiny_model, "fp32", "cpu").get_input_embeddings().weight.detach()
    own = load.load_tokenizer(tiny_model)
    model, tokenizer, change = grown(tiny_model, many(count))
    table = model.get_input_embeddings().weight
    assert len(change.new) == count
    assert len(table) == max(500, len(own) + count)  # never fewer: a padded embedding is not shrunk
    old = [token for token in range(500) if token not in change.new]
    assert torch.equal(table[old], before[old])
    mean = before[sorted(own.get_vocab().values())].mean(dim=0)
    assert torch.allclose(table[change.new], mean.expand(count, -1), atol=1e-6)
    assert model.get_output_embeddings().weight is table
    assert model.config.vocab_size == len(table)
    assert len(tokenizer) == len(own) + count


def test_a_token_that_is_there_already_keeps_its_row_and_can_be_trained(tiny_model: Path):
    tokenizer = load.load_tokenizer(tiny_model, added_tokens=["<|im_start|>"])
    change = vocabulary.between(load.load_tokenizer(tiny_model), tokenizer)
    assert change.new == []
    assert vocabulary.trained_ids(tokenizer, ["<|im_start|>"], change) == [1]


@pytest.mark.parametrize("saved", [[], SAVED], ids=["rows", "whole"])
@pytest.mark.parametrize("count", [2, 400])
def test_what_was_trained_comes_back_from_disk_here_in_plain_peft_and_merged(tiny_model: Path, tmp_path: Path, saved: list[str], count: int):
    model, tokenizer, change = grown(tiny_model, many(count))
    adapted = lora.add(model, LoraSettings(r=4, lora_alpha=8.0, modules_to_save=saved), trained_tokens=change.new)
    with torch.no_grad():
        for number, parameter in enumerate(p for p in adapted.parameters() if p.requires_grad):
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)) * 0.05)
    ids = torch.tensor([[5, change.new[0], 9, change.new[-1]]])
    with torch.no_grad():
        expected = adapted.eval()(ids).logits
    adapters.save_adapter(adapted, tmp_path / "adapter", "tiny", tokenizer)

    stored = load.load_tokenizer(tmp_path / "adapter")
    again = load.load_model(tiny_model, "fp32", "cpu")
    vocabulary.fit_embeddings(again, load.load_tokenizer(tiny_model), stored)
    with torch.no_grad():
        assert torch.equal(adapters.load_adapter(again, tmp_path / "adapter", trainable=False)(ids).logits, expected)

    plain = AutoModelForCausalLM.from_pretrained(str(tiny_model), dtype=torch.float32)
    known = len(AutoTokenizer.from_pretrained(str(tmp_path / "adapter")))
    if known > 500:
        plain.resize_token_embeddings(known)
    with torch.no_grad():
        assert torch.allclose(peft.PeftModel.from_pretrained(plain, str(tmp_path / "adapter")).eval()(ids).logits, expected, atol=1e-5)

    merged = adapted.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    stored.save_pretrained(tmp_path / "merged")
    reloaded = load.load_model(tmp_path / "merged", "fp32", "cpu")
    assert reloaded.get_output_embeddings().weight is reloaded.get_input_embeddings().weight  # tied it was, tied it stays
    with torch.no_grad():
        assert torch.allclose(reloaded(ids).logits, expected, atol=1e-4)


def test_an_adapter_with_more_rows_than_the_model_is_refused(tiny_model: Path, tmp_path: Path):
    model, tokenizer, change = grown(tiny_model, many(400))
    adapters.save_adapter(lora.add(model, LoraSettings(r=4, lora_alpha=8.0), trained_tokens=change.new), tmp_path / "a", "tiny", tokenizer)
    with pytest.raises(ModelError, match=r"it trains the row of token \d+, and the embedding has 500 rows"):
        adapters.load_adapter(load.load_model(tiny_model, "fp32", "cpu"), tmp_path / "a", trainable=False)


@pytest.mark.parametrize("names", [["norm"], ["q_proj"]])
def test_only_the_tables_are_saved_whole(tiny_model: Path, names: list[str]):
    with pytest.raises(ConfigError, match=r"lora.modules_to_save: only the embedding and the head .*\n.*\[embed_tokens, lm_head\]"):
        lora.add(load.load_model(tiny_model, "fp32", "cpu"), LoraSettings(r=4, lora_alpha=8.0, modules_to_save=names))


@pytest.fixture
def spaced() -> PreTrainedTokenizerFast:
    """A vocabulary of another kind: words with SentencePiece's mark, bytes as <0x0A>, and its own control tokens."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    text = ["the quick brown fox and the lazy dog", "the zip and the street of the city"] * 3
    backend.train_from_iterator(text, trainers.BpeTrainer(vocab_size=120, special_tokens=["<unk>", "<|im_end|>", "</stop>", "<0xC3>"]))
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</stop>")


def test_pieces_that_both_spell_keep_their_rows_and_others_start_at_the_mean_of_what_spells_them(tiny_model: Path, spaced: PreTrainedTokenizerFast):
    own = load.load_tokenizer(tiny_model)
    before = load.load_model(tiny_model, "fp32", "cpu").get_input_embeddings().weight.detach()
    model = load.load_model(tiny_model, "fp32", "cpu")
    assert vocabulary.fit_embeddings(model, own, spaced).replaced
    table = model.get_input_embeddings().weight
    assert len(table) == len(spaced)
    assert model.get_output_embeddings().weight is table
    vocab = spaced.get_vocab()
    pairs = {"▁the": own("x the", add_special_tokens=False)["input_ids"][1:], "<|im_end|>": [2], "z": own("z", add_special_tokens=False)["input_ids"]}
    for piece, rows in pairs.items():
        assert len(rows) == 1, piece
        assert torch.equal(table[vocab[piece]], before[rows[0]]), piece
    parts = own(" street", add_special_tokens=False)["input_ids"]
    if len(parts) > 1:
        assert torch.allclose(table[vocab["▁street"]], before[parts].mean(dim=0), atol=1e-6)
    # </stop> has the office of <|im_end|>, and <unk> none that the old vocabulary knows.
    assert torch.equal(table[vocab["</stop>"]], before[2])
    assert torch.isfinite(table).all()


def test_spellings_are_bytes_whatever_the_vocabulary_looks_like(tiny_model: Path, spaced: PreTrainedTokenizerFast):
    level = vocabulary.spellings(load.load_tokenizer(tiny_model))
    assert b" the" in level.values()
    assert all(bytes([byte]) in level.values() for byte in range(256))
    marked = vocabulary.spellings(spaced)
    assert marked[spaced.get_vocab()["▁the"]] == b" the"
    byte = spaced.get_vocab()["<0xC3>"]
    assert byte in vocabulary.byte_pieces(spaced)
    assert spaced.get_vocab()["▁the"] not in vocabulary.byte_pieces(spaced)
