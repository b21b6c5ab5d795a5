"""Runs with added tokens and with another tokenizer go the whole road; tokenizers are trained and compared."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest_runs import Listener, Write, chat_row, write_rows

from luthier.engine import opening
from luthier.errors import CallError, ConfigError, DataError, ModelError
from luthier.models import load, vocabulary
from luthier.recipes import data_check, evaluation, handover, sft, tokenizing
from luthier.reporting import Silent
from luthier.run_folder import RunFolder
from luthier.train import checkpoint

ADD = "tokenizer.add_special_tokens=['<|call|>', '<|result|>']"
ROWS = [chat_row(place) for place in range(6)]


@pytest.fixture
def own_tokenizer(tiny_model: Path, tmp_path: Path) -> Path:
    """A tokenizer that was trained on the rows."""
    file = write_rows(tmp_path / "texts.jsonl", [chat_row(place) for place in range(60)])
    return tokenizing.train([str(file)], "bpe", 400, tmp_path / "own", str(tiny_model)).folder


def trained_rows(run: RunFolder) -> torch.Tensor:
    engine = opening.open_trained(run, Silent())
    ids = engine.tokenizer.convert_tokens_to_ids(["<|call|>", "<|result|>"])
    return engine.model.get_base_model().get_input_embeddings().weight[ids].detach()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_added_tokens_are_trained_saved_exported_and_gone_on_from(write: Write, tmp_path: Path):
    run = sft.fit(write(ROWS, ADD, "training.num_train_epochs=2"))
    engine = opening.open_trained(run, Silent())
    assert engine.tokenizer("<|call|>", add_special_tokens=False)["input_ids"] == engine.tokenizer.convert_tokens_to_ids(["<|call|>"])
    assert engine.plain_reason == ""
    assert json.loads((run.adapter / "adapter_config.json").read_text())["trainable_token_indices"]
    path, certificate = handover.export(run, "merged", folder=tmp_path / "merged")
    assert certificate.passed
    exported = load.load_tokenizer(path)
    assert exported.convert_tokens_to_ids("<|result|>") == engine.tokenizer.convert_tokens_to_ids("<|result|>")
    assert len(load.load_model(path, "fp32", "cpu").get_input_embeddings().weight) >= len(exported)
    assert handover.export(run, "adapter", folder=tmp_path / "adapter")[1].passed

    again = sft.fit(write(ROWS, f"init_from={run.path}", name="again"))
    assert not torch.equal(trained_rows(run), trained_rows(again))
    with pytest.raises(ConfigError, match=r"tokenizer.add_special_tokens: <\|other\|> is not a token of the adapter that init_from names"):
        sft.fit(write(ROWS, f"init_from={run.path}", "tokenizer.add_special_tokens=['<|other|>']", name="third"))


def test_added_tokens_stand_in_rows_and_are_learned_as_one_token(write: Write):
    rows = [
        {"messages": [{"role": "user", "content": f"q{place} ->"}, {"role": "assistant", "content": "<|call|> x <|result|>"}]} for place in range(6)
    ]
    config = write(rows, ADD, "training.num_train_epochs=20", "training.learning_rate=0.02")
    assert data_check.check(config, "luthier.yaml").ledger["rows"]["rejected"] == {}
    run = sft.fit(config)
    engine = opening.open_trained(run, Silent())
    call = engine.tokenizer.convert_tokens_to_ids("<|call|>")
    example = engine.tokenize([rows[0]])[0]
    assert example.trained[example.token_ids.index(call)]
    assert "<|call|>" in engine.sample("q1 ->", max_new_tokens=8)


def test_a_token_that_the_template_writes_is_a_control_token(write: Write, tmp_path: Path):
    template = tmp_path / "own.jinja"
    template.write_text(
        "{% for m in messages %}{{ m.role + ':\\n' + m.content + '<|result|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant:\\n' }}{% endif %}"
    )
    held = {"messages": [{"role": "user", "content": "<|result|>"}, {"role": "assistant", "content": "no"}]}
    config = write([*ROWS, held], ADD, f"template={template}", "training.max_steps=1")
    report = data_check.check(config, "luthier.yaml")
    assert report.ledger["rows"]["rejected"] == {"special_token_in_text": 1}
    engine = opening.open_trained(sft.fit(config), Silent())
    assert engine.tokenizer.convert_tokens_to_ids("<|result|>") in engine.stop_ids


def test_another_tokenizer_needs_saved_tables_and_then_goes_the_whole_road(write: Write, own_tokenizer: Path, tmp_path: Path):
    path = f"tokenizer.path={own_tokenizer}"
    with pytest.raises(
        ConfigError, match=r"another tokenizer needs an embedding and a head that are trained and saved.*\n.*modules_to_save: \[embed_tokens"
    ):
        sft.fit(write(ROWS, path, name="refused"))
    rows = write_rows(tmp_path / "held.jsonl", [chat_row(place, "Another system message.") for place in range(2)])
    saved = "lora.modules_to_save=[embed_tokens, lm_head]"
    run = sft.fit(write(ROWS, path, saved, "training.num_train_epochs=40", f"data.eval={rows}", "training.save_steps=20"))
    engine = opening.open_trained(run, Silent())
    assert engine.plain_reason == ""
    assert vocabulary.vocabulary_of(engine.tokenizer) == vocabulary.vocabulary_of(load.load_tokenizer(own_tokenizer))
    first, *_, last = [json.loads(line) for line in run.metrics.read_text().splitlines() if '"train"' in line]
    assert last["loss"] < 0.2 * first["loss"]
    merged, certificate = handover.export(run, "merged", folder=tmp_path / "merged")
    assert certificate.passed
    assert len(load.load_tokenizer(merged)) == len(engine.tokenizer)
    assert "tuned" in evaluation.evaluate(run).models


def test_a_resumed_run_with_saved_tables_is_the_straight_one_to_the_bit(write: Write, own_tokenizer: Path):
    asked = [
        f"tokenizer.path={own_tokenizer}",
        "lora.modules_to_save=[embed_tokens, lm_head]",
        "training.num_train_epochs=4",
        "training.save_steps=2",
    ]
    straight = sft.fit(write(ROWS, *asked, "training.save_total_limit=9"))
    cut = RunFolder(Path(shutil.copytree(straight.path, straight.path.with_name("cut"))))
    for path in checkpoint.list_checkpoints(cut)[1:]:
        shutil.rmtree(path)
    shutil.rmtree(cut.adapter)
    from luthier.config.load import load_config

    sft.fit(load_config(cut.config), resume=cut)
    assert (cut.adapter / "adapter_model.safetensors").read_bytes() == (straight.adapter / "adapter_model.safetensors").read_bytes()


def test_a_tokenizer_folder_that_is_none_is_named(write: Write, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"empty: tokenizer.path: holds no tokenizer.json\n.*luthier data tokenizer train"):
        sft.fit(write(ROWS, f"tokenizer.path={tmp_path / 'empty'}"))


def test_a_text_is_shown_in_pieces_that_spell_it(tiny_model: Path):
    found = tokenizing.tokens("<|im_start|>the street, naïve 🎻", str(tiny_model))
    assert found.pieces[0].special
    assert found.pieces[0].text == "<|im_start|>"
    assert not any(piece.special for piece in found.pieces[1:])
    assert "".join(piece.text for piece in found.pieces[1:]).startswith("the street, na")
    assert found.context == 512
    assert "\\x" in found.pieces[-1].text  # a part of a character


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_tokenizer_is_trained_on_rows_and_fits_them_better(tiny_model: Path, tmp_path: Path, kind: str):
    file = write_rows(tmp_path / "rows.jsonl", [chat_row(place) for place in range(200)])
    listener = Listener()
    trained = tokenizing.train([str(file)], kind, 450, tmp_path / "mine", str(tiny_model), listener)  # type: ignore[arg-type]
    assert trained.held_out
    assert trained.fit.letters == trained.base_fit.letters
    # Eight different words are too few for the unigram trainer's first guess; it still learns pieces longer than a letter.
    assert trained.fit.tokens < (1.2 * trained.base_fit.tokens if kind == "bpe" else 0.75 * trained.fit.letters)
    tokenizer = load.load_tokenizer(trained.folder)
    base = load.load_tokenizer(tiny_model)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (base.bos_token, base.eos_token, base.pad_token)
    assert tokenizer.chat_template == base.chat_template
    with pytest.raises(CallError, match="nothing is overwritten"):
        tokenizing.train([str(file)], kind, 450, tmp_path / "mine", str(tiny_model))  # type: ignore[arg-type]


def test_two_tokenizers_are_compared_on_the_same_text(tiny_model: Path, own_tokenizer: Path, tmp_path: Path):
    text = tmp_path / "text.txt"
    text.write_text("100 Pierce Rd, Itasca\n101 Pierce Rd, Elgin\n東京\n101 Pierce Rd, Elgin\n", encoding="utf-8")
    found = tokenizing.compare(str(tiny_model), str(own_tokenizer), [str(text)], 12)
    assert len(found.fits[0].lengths) == 3  # a text that stands twice is one
    assert found.fits[0].letters == found.fits[1].letters == 46
    assert found.fits[1].bytes >= 6  # two characters of three bytes
    assert 0 < found.shared <= min(found.sizes)
    same = tokenizing.compare(str(tiny_model), str(tiny_model), [str(text)], 12)
    assert same.shared == len(set(vocabulary.spellings(load.load_tokenizer(tiny_model)).values()))


def test_texts_that_cannot_be_read_are_named(tmp_path: Path):
    (tmp_path / "bad.txt").write_bytes(b"good\nbad \xff\n")
    with pytest.raises(DataError, match=r"bad.txt:\d: is not UTF-8"):
        list(tokenizing.texts_of(str(tmp_path / "bad.txt")))
    with pytest.raises(DataError, match="there is no such file"):
        list(tokenizing.texts_of(str(tmp_path / "none.txt")))
