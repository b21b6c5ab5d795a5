"""`luthier serve` as a process: a run and its adapters, its contract, its end; and what is refused before anything listens."""

import json
import re
import shutil
import signal
import socket
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from conftest_runs import SYSTEM, chat_row
from typer.testing import CliRunner
from warm import Call, Warm

from luthier.cli.app import _build
from luthier.engine import opening
from luthier.errors import RunError
from luthier.export import bundle, merged
from luthier.recipes import serving
from luthier.reporting import Silent
from luthier.run_folder import RunFolder


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


def url_of(call: Call) -> str:
    assert call.wait_for("serving on", 60), call.said()
    found = re.search(r"http://[\d.:]+", call.said())
    assert found
    return found[0]


def ask(url: str, model: str, content: str, **more: Any) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": content}], "temperature": 0, **more}
    return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)


def test_a_run_is_served_as_it_was_trained(learned: RunFolder, warm: Warm, tmp_path: Path, home: Path) -> None:
    registry = tmp_path / "adapters"
    registry.mkdir()
    call = warm.begin(tmp_path, home, "serve", f"support={learned.path}", "--adapters", registry, "--port", 0)
    url = url_of(call)
    row = chat_row(0)["messages"]
    answer = ask(url, "support", row[1]["content"])  # no system message: the contract's is put before it
    assert answer.json()["choices"][0]["message"]["content"] == row[2]["content"]
    assert SYSTEM in call.said()
    shutil.copytree(learned.adapter, registry / "late")  # served as soon as it lies there
    late = httpx.post(f"{url}/v1/chat/completions", json={"model": "late", "messages": row[:2], "temperature": 0}, timeout=60)
    assert late.json()["choices"][0]["message"]["content"] == row[2]["content"]
    shutil.copy(learned.contract, registry / "late")
    assert ask(url, "late", row[1]["content"]).json()["choices"][0]["message"]["content"] == row[2]["content"]  # with its system message
    contract = json.loads(learned.contract.read_text())
    (shutil.copytree(registry / "late", registry / "other") / "contract.json").write_text(json.dumps(contract | {"stop_tokens": []}))
    assert [ask(url, "other", "Hi").status_code, "now stop at" in ask(url, "other", "Hi").text] == [422, True]
    base = httpx.get(f"{url}/v1/models").json()["data"][0]["id"]
    assert ask(url, base, row[1]["content"], max_tokens=30).json()["choices"][0]["message"]["content"] != row[2]["content"]

    found: list[str] = []

    def stream() -> None:
        long = {"model": base, "messages": row[1:2], "max_tokens": 300, "stream": True, "logit_bias": {"0": -100, "2": -100}}
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=long, timeout=60) as answered:
            for line in answered.iter_lines():
                found.append(line)
                begun.set()

    begun = threading.Event()
    reading = threading.Thread(target=stream)
    reading.start()
    assert begun.wait(30)
    assert httpx.get(f"{url}/ready").status_code == 200
    call.kill(signal.SIGTERM)
    reading.join(30)
    assert found[-2:] == ["data: [DONE]", ""]  # what was being answered is answered
    assert json.loads(found[-4].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
    ended = call.wait()
    assert [ended.code, "every request was answered" in ended.said] == [0, True]
    log = [json.loads(line) for line in ended.said.splitlines() if line.startswith("{")]
    assert {"request_id", "status", "path", "seconds"} <= log[0].keys()
    assert row[1]["content"] not in ended.said  # no prompt in the log


def refused(*arguments: object) -> str:
    done = CliRunner().invoke(_build(), ["serve", *map(str, arguments)])
    assert done.exception is not None
    return str(done.exception)


def test_what_cannot_be_served_is_refused_before_anything_listens(learned: RunFolder, copied: RunFolder, tmp_path: Path, tiny_model: Path) -> None:
    assert "names nothing" in refused()
    assert "--keys" in refused(learned.path, "--host", "0.0.0.0")
    assert "no folder" in refused(learned.path, "--adapters", tmp_path / "nowhere")
    assert "is not a size such as" in refused(learned.path, "--memory", "much")
    assert "go together" in refused(learned.path, "--tls-cert", tmp_path / "cert.pem")
    assert "cannot be used for TLS" in refused(learned.path, "--tls-cert", tmp_path / "cert.pem", "--tls-key", tmp_path / "key.pem")
    assert "--memory and --max-adapters are for our own engine" in refused(learned.path, "--engine", "gguf", "--memory", "1GiB")
    assert "two models would be called" in refused(f"a={learned.path}", f"a={learned.path}", "--port", 0)
    assert "cannot be the name" in refused(f"a b={learned.path}")
    assert "no run with an adapter" in refused(learned.path, tmp_path, "--port", 0)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert "cannot listen" in refused(learned.path, "--port", taken.getsockname()[1])
    kept = json.loads(copied.contract.read_text())
    kept["golden"][0]["ids"][3] += 1
    copied.contract.write_text(json.dumps(kept))
    assert "chat template has changed" in refused(copied.path, "--port", 0)


def test_a_merged_folder_keeps_the_contract_of_the_run_that_it_lies_in(copied: RunFolder) -> None:
    whole = merged.write_merged(opening.open_trained(copied, Silent()), copied.path / "whole", "fp32")
    wanted = serving.Wanted([str(whole)], precision="fp32")
    assert serving._open(wanted, Silent()).base.system == SYSTEM
    kept = json.loads(copied.contract.read_text())
    copied.contract.write_text(json.dumps(kept | {"stop_tokens": ["</s>"]}))
    with pytest.raises(RunError, match="was trained to stop at </s>"):
        serving._open(wanted, Silent())
    copied.contract.write_text("[]")
    with pytest.raises(RunError, match="is no contract of a run"):
        serving._open(wanted, Silent())
    copied.contract.unlink()
    assert serving._open(wanted, Silent()).base.system is None


def test_an_adapters_folder_brings_its_base_and_its_contract(learned: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = shutil.copytree(learned.adapter, tmp_path / "support")
    shutil.copy(learned.contract, folder)
    opened = serving._open(serving.Wanted(["~/support"], precision="fp32"), Silent())
    assert [opened.base.system, not opened.engine.adapted] == [None, True]
    assert [(one.name, one.system) for one, _ in opened.adapters] == [("support", SYSTEM)]


def test_a_bundle_is_served_by_its_own_name(learned: RunFolder, tmp_path: Path) -> None:
    shutil.copytree(learned.adapter, tmp_path / "support" / "adapter")
    bundle.fill(tmp_path / "support", learned, "the card")
    opened = serving._open(serving.Wanted([str(tmp_path / "support")], precision="fp32"), Silent())
    assert [(one.name, one.system) for one, _ in opened.adapters] == [("support", SYSTEM)]


def test_a_runs_adapter_is_served_in_the_number_format_of_the_run(learned: RunFolder) -> None:
    formats = {serving._open(serving.Wanted([str(place)]), Silent()).engine.model.dtype for place in (learned.path, learned.adapter)}
    assert formats == {torch.float32}


def test_a_key_is_shown_once_and_kept_as_its_hash(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    made = CliRunner().invoke(_build(), ["serve", "--new-key", "alice", "--keys", str(path), "--key-model", "support"])
    key = made.stdout.strip().splitlines()[-1]
    assert len(key) > 32
    assert key not in path.read_text()
    assert json.loads(path.read_text())["keys"][0]["models"] == ["support"]
    assert "there is a key called alice" in refused("--new-key", "alice", "--keys", path)
    assert "is not a file of keys" in refused("x", "--keys", _written(tmp_path / "other.json", "[]"))


def _written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path
