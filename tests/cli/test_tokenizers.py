"""luthier data tokens, data tokenizer train and data tokenizer compare, as a user calls them."""

import json
from pathlib import Path

import pytest

ROWS = [{"messages": [{"role": "user", "content": f"{n} Pierce Rd, Itasca"}, {"role": "assistant", "content": f"Itasca {n}"}]} for n in range(120)]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def test_tokens_shows_pieces_ids_marks_and_the_count_against_the_context(call, tiny_model: Path, tmp_path: Path):  # type: ignore[no-untyped-def]
    shown = call("data", "tokens", "<|im_start|>the street", "--model", tiny_model)
    assert shown.code == 0
    first, *_, last = shown.out.splitlines()
    assert first.split() == ["1", "*", '"<|im_start|>"']
    count = len(shown.out.splitlines()) - 1
    assert last == f"{count} tokens = {count / 512:.1%} of the model's context (512), 1 of them control tokens (marked *)"
    (tmp_path / "text.txt").write_text("<|im_start|>the street")
    from_file = call("data", "tokens", "--file", "text.txt", "--model", tiny_model, "--json").json
    assert from_file["tokens"] == count == len(from_file["ids"])
    assert from_file["context"] == 512
    assert from_file["pieces"][0] == {"text": "<|im_start|>", "id": 1, "special": True}


def test_tokens_wants_one_text(call, tmp_path: Path):  # type: ignore[no-untyped-def]
    assert "give either a text or --file FILE" in call("data", "tokens").problem
    assert "none.txt: cannot be read" in call("data", "tokens", "--file", "none.txt").problem


def test_a_tokenizer_is_trained_and_compared(call, tiny_model: Path, rows: Path):  # type: ignore[no-untyped-def]
    trained = call("data", "tokenizer", "train", rows, "--vocab-size", "400", "--model", "unigram", "--to", "mine", "--base", tiny_model)
    assert trained.code == 0, trained.err
    assert "tokens a word" in trained.out
    assert "held out" in trained.out
    assert "lora: {modules_to_save: [embed_tokens, lm_head]}" in trained.out
    compared = call("data", "tokenizer", "compare", tiny_model, "mine", "--data", rows, "--max-length", "8", "--json").json
    assert compared["b"]["unknown_share"] == 0
    assert compared["a"]["texts"] == compared["b"]["texts"] == 240
    assert compared["b"]["tokens_per_word"] == pytest.approx(compared["b"]["tokens"] / compared["b"]["words"], abs=1e-4)
    assert "text fits into the same tokens" in call("data", "tokenizer", "compare", tiny_model, "mine", "--data", rows).out


def test_train_says_what_is_wrong(call, tiny_model: Path, rows: Path):  # type: ignore[no-untyped-def]
    small = call("data", "tokenizer", "train", rows, "--vocab-size", "100", "--to", "mine", "--base", tiny_model)
    assert "100 pieces leave no room beside" in small.problem
    assert not Path("mine").exists()
    Path("there").mkdir()
    assert "nothing is overwritten" in call("data", "tokenizer", "train", rows, "--to", "there", "--base", tiny_model).problem
