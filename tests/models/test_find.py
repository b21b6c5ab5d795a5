"""One door: catalog names, folders and hub ids. Whatever is not a whole model is named, with a next step."""

import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from luthier.errors import ModelError
from luthier.evaluate.targets import target_of
from luthier.models import find, overview
from luthier.reporting import Silent


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may break."""
    return shutil.copytree(tiny_model, tmp_path / "mine")


def refusal(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        find.find(str(folder), Silent())
    assert caught.value.next_step
    return str(caught.value)


def test_a_folder_is_found_from_here_and_from_beside_the_settings(folder: Path, monkeypatch: pytest.MonkeyPatch):
    assert find.find(str(folder), Silent()) == folder
    assert find.find("./mine", Silent(), base=folder.parent) == folder.parent / "mine"
    monkeypatch.chdir(folder.parent)
    assert find.find("mine", Silent()).resolve() == folder


def test_an_existing_folder_wins_over_a_hub_id_of_the_same_spelling(folder: Path, tmp_path: Path):
    shutil.copytree(folder, tmp_path / "org" / "name")
    assert find.find("org/name", Silent(), base=tmp_path) == tmp_path / "org" / "name"


@pytest.mark.parametrize(
    ("name", "near"),
    [("smolm2-135m", "smollm2-135m"), ("smollm2-135m-instruct-", "smollm2-135m-instruct"), ("SmolLM2-135M-Instruct", "smollm2-135m-instruct")],
)
def test_an_unknown_name_gets_the_nearest_of_the_catalog(name: str, near: str):
    with pytest.raises(ModelError, match=f"Try: {near} "):
        find.find(name, Silent())


def test_the_folder_that_a_name_means_is_the_one_that_is_opened(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder.parent)
    monkeypatch.setenv("HOME", str(folder.parent))
    assert find.folder_of("~/mine") == find.find("~/mine", Silent()) == target_of("~/mine").folder == folder
    shutil.copytree(folder, "smollm2-135m-instruct")  # the catalog's comes through pip, and is first
    assert [find.folder_of("smollm2-135m-instruct"), target_of("smollm2-135m-instruct").folder] == [None, None]
    assert find.folder_of("./smollm2-135m-instruct") == Path("smollm2-135m-instruct")


def test_a_folder_that_is_called_like_a_model_on_the_hub_is_the_folder(folder: Path):
    mine = folder.rename(folder.parent / "gemma-2-9b")
    assert find.find("gemma-2-9b", Silent(), base=mine.parent) == mine
    assert find.of_catalog("gemma-2-9b", mine.parent) is None
    assert find.of_catalog("gemma-2-9b", mine) is not None


def test_a_path_that_is_not_there_is_no_hub_id():
    with pytest.raises(ModelError, match=r"models/mine: no such folder"):
        find.find("./models/mine", Silent(), base=Path("/nowhere"))


def test_a_file_or_an_adapter_in_place_of_a_model_is_named(folder: Path):
    assert "is a file" in refusal(folder / "config.json")
    (folder / "config.json").rename(folder / "adapter_config.json")
    assert "is an adapter" in refusal(folder)


@pytest.mark.parametrize(("content", "words"), [(None, "config.json: is missing"), ("{", "config.json: is not whole JSON"), ("[]", "holds a list")])
def test_a_broken_config_is_named(folder: Path, content: str | None, words: str):
    (folder / "config.json").unlink()
    if content is not None:
        (folder / "config.json").write_text(content)
    assert words in refusal(folder)


def test_pickled_weights_alone_are_refused(folder: Path):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "pytorch_model.bin: pickled" in refusal(folder)


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ({"weight_map": {"a": "model-00002-of-00002.safetensors"}}, "names model-00002-of-00002.safetensors, which is missing"),
        ({"weight_map": {"a": "../model.safetensors"}}, "outside the folder"),
        ({}, "no weight_map"),
    ],
)
def test_an_index_that_names_what_is_not_there_is_refused(folder: Path, index: dict[str, object], words: str):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert words in refusal(folder)


def test_a_tensor_that_is_not_where_the_index_says_is_named(folder: Path):
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    (folder / "model.safetensors").rename(folder / names[0])
    (folder / names[1]).write_bytes(struct.pack("<Q", 2) + b"{}")
    index = {"weight_map": {"model.norm.weight": names[1], "model.embed_tokens.weight": names[0]}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert f"index.json: says that model.norm.weight lies in {names[1]}, which does not hold it" in refusal(folder)


def test_a_file_that_the_index_does_not_name_is_no_part_of_the_model(folder: Path):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    weight_map = {"model.norm.weight": "model-00001-of-00001.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "model-00002-of-00002.safetensors").write_bytes(b"half of a download")
    find.check_folder(folder)


def break_weights(path: Path, how: str) -> None:
    content = path.read_bytes()
    broken = {
        "cut": content[:-10],
        "long": content + b"\0",
        "empty": b"",
        "header": struct.pack("<Q", 1 << 40) + content[8:],
        "html": b"<html>" + b" " * 200,
        "json": struct.pack("<Q", 2) + b"[]",
    }
    path.write_bytes(broken[how])


@pytest.mark.parametrize("how", ["cut", "long", "empty", "header", "html", "json"])
def test_damaged_weights_are_named_before_they_are_loaded(folder: Path, how: str):
    break_weights(folder / "model.safetensors", how)
    assert "model.safetensors: cut or damaged" in refusal(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_git_lfs_pointers_are_recognized(folder: Path, name: str):
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    assert f"{name}: is a Git LFS pointer" in refusal(folder)


def test_a_model_without_a_tokenizer_is_refused(folder: Path):
    (folder / "tokenizer.json").unlink()
    assert "has no tokenizer" in refusal(folder)


def test_code_that_comes_with_a_model_is_refused_only_where_it_is_needed(folder: Path):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModelForCausalLM": "modeling.Own"}}))
    assert find.find(str(folder), Silent()) == folder
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": {}, "model_type": "own"}))
    assert "such code is never run" in refusal(folder)


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as a download needs: one open model, one gated, and nothing else."""

    model: Path

    def do_GET(self) -> None:
        parts = self.path.split("?")[0].strip("/").split("/")
        repository = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        if repository == "org/gated":
            self.answer(403, b"{}", {"X-Error-Code": "GatedRepo"})
        elif repository == "org/odd":
            self.answer(400, b"{}")
        elif repository != "org/open":
            self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif parts[0] == "api":
            there = [str(path.relative_to(self.model)) for path in self.model.rglob("*") if path.is_file()]
            names = [*there, "modeling_own.py", "pytorch_model.bin", "original/model.safetensors"]
            tree = [{"type": "file", "path": name, "size": 0, "oid": name} for name in names]
            card = {"id": repository, "sha": "0" * 40, "siblings": [{"rfilename": name} for name in names]}
            listing = tree if "tree" in parts else card
            self.answer(200, json.dumps(listing).encode(), {"Content-Type": "application/json"})
        else:
            content = self.model.joinpath(*parts[4:]).read_bytes()  # org/name/resolve/revision/...
            digest = hashlib.sha256(content).hexdigest()
            self.answer(200, content, {"ETag": f'"{digest}"', "X-Repo-Commit": "0" * 40})

    do_HEAD = do_GET

    def answer(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""


@pytest.fixture
def hub(tiny_model: Path) -> Iterator[str]:
    Hub.model = tiny_model
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


ASK = """
import os, sys
from luthier.errors import ModelError
from luthier.models import find, overview
from luthier.reporting import Silent
look = find.find_encoder if "LUTHIER_TEST_ENCODER" in os.environ else find.find
for name in sys.argv[1:]:
    try:
        print(look(name, Silent()))
    except ModelError as error:
        print(str(error).replace(chr(10), " "))
"""


def ask(home: Path, endpoint: str, *names: str) -> list[str]:
    """What `find` answers for each name, in a process that knows the hub by this address."""
    hub = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", "HF_HUB_DISABLE_XET": "1"}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    done = subprocess.run([sys.executable, "-c", ASK, *names], capture_output=True, text=True, check=True, env=kept | hub, cwd=home)
    return done.stdout.splitlines()


def test_the_hub_gives_a_model_or_a_reason(hub: str, tmp_path: Path):
    found, again, gated, missing, odd = ask(tmp_path, hub, "org/open", "org/open", "org/gated", "org/typo", "org/odd")
    assert found == again
    assert found.startswith(str(tmp_path))
    assert "model.safetensors" in os.listdir(found)
    assert {name for name in os.listdir(found) if name.endswith((".py", ".bin")) or name == "original"} == set()
    assert "asks you to accept its license" in gated
    assert f"accept it on {hub}/org/gated" in gated
    assert "org/typo: is not on the hub" in missing
    assert "org/odd: could not be fetched from the hub (Bad request" in odd


def test_the_hub_gives_an_encoder_with_the_file_that_says_how_its_vectors_are_made(
    hub: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    Hub.model = shutil.copytree(tiny_model, tmp_path / "encoder")
    (Hub.model / "1_Pooling").mkdir()
    (Hub.model / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    monkeypatch.setenv("LUTHIER_TEST_ENCODER", "1")
    (tmp_path / "home").mkdir()
    (found,) = ask(tmp_path / "home", hub, "org/open")
    assert {"model.safetensors", "tokenizer.json"} <= set(os.listdir(found))
    assert json.loads((Path(found) / "1_Pooling" / "config.json").read_text()) == {"pooling_mode_mean_tokens": True}


def test_without_a_network_a_model_in_the_hub_s_cache_is_used(hub: str, tmp_path: Path):
    (online,) = ask(tmp_path, hub, "org/open")
    cached, absent = ask(tmp_path, "http://127.0.0.1:9", "org/open", "org/other")
    assert cached == online
    assert "org/other: could not be fetched from the hub" in absent


def test_a_name_of_the_catalog_is_its_hub_id_to_other_tools():
    assert find.hub_name("qwen3-4b") == "Qwen/Qwen3-4B"
    assert find.hub_name("smollm2-135m-instruct") == "smollm2-135m-instruct", "what comes through pip is not the hub's to the bit"
    assert find.hub_name("./mine") == "./mine"


def test_what_the_hub_says_of_a_model_is_shown_without_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = {"model_type": "qwen2", "vocab_size": 500, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512}
    (tmp_path / "config.json").write_text(json.dumps({**config, **heads}))
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    monkeypatch.setattr(find, "_download", lambda model, path, wanted: tmp_path)
    known = overview.describe("org/small")
    # Two tables, two blocks of attention with its biases, MLP and norms, and the last norm.
    block = 2 * 64 * (64 + 32) + 64 + 2 * 32 + 3 * 64 * 128 + 2 * 64
    assert (known["parameters"], known["license"]) == (2 * 500 * 64 + 2 * block + 64, "Apache-2.0")


def test_a_file_has_no_facts_and_no_license(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ModelError, match="is a file, and a model is a folder"):
        overview.describe(str(tmp_path / "notes.txt"))
