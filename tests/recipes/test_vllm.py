"""`luthier serve --engine vllm`: with a stand-in for vLLM's process, and (nightly) with vLLM itself, whose Python LUTHIER_TEST_VLLM names."""

import json
import os
import re
import shutil
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from conftest_runs import SYSTEM, chat_row, make_config
from typer.testing import CliRunner
from warm import Call, Warm

from luthier.cli.app import _build
from luthier.engine import opening
from luthier.recipes import forwarding, sft
from luthier.reporting import Silent
from luthier.run_folder import RunFolder

STAND_IN = Path(__file__).parents[1] / "serve" / "stand_in.py"


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """The Python of an environment with a vLLM that is none."""
    path = tmp_path / "python"
    path.write_text(f'#!/bin/sh\nif [ "$1" = -c ]; then echo 0.32.0+cpu; else shift 2; exec {sys.executable} {STAND_IN} "$@"; fi\n')
    path.chmod(0o755)
    return path


def told(tmp_path: Path, run: RunFolder) -> dict[str, str]:
    """The stand-in's environment: it makes the contract's own tokens of its golden prompts."""
    contract = json.loads(run.contract.read_text())
    tokens = {json.dumps(golden["messages"]): golden["ids"] for golden in contract["golden"]}
    tokens |= {spelling: [2] for spelling in contract["stop_tokens"]}
    (tmp_path / "stand_in.json").write_text(json.dumps({"tokens": tokens, "started": str(tmp_path / "started.json")}))
    return {"STAND_IN": str(tmp_path / "stand_in.json")}


def url_of(call: Call, seconds: float = 60) -> str:
    assert call.wait_for("serving on", seconds), call.said()
    found = re.search(r"http://[\d.:]+", call.said())
    assert found
    return found[0]


def test_a_run_is_served_through_vllm(learned: RunFolder, warm: Warm, tmp_path: Path, python: Path) -> None:
    environment = told(tmp_path, learned)
    arguments = ["--engine", "vllm", "--vllm-python", python, "--port", 0, "--context", 256]
    call = warm.begin(tmp_path, tmp_path / "home", "serve", f"support={learned.path}", *arguments, **environment)
    url = url_of(call)
    started = json.loads((tmp_path / "started.json").read_text())
    line = started["arguments"]
    assert line[line.index("--lora-modules") + 1] == f"support={learned.adapter.resolve()}"
    assert line[line.index("--max-lora-rank") + 1] == "16"
    assert "its contract holds in vLLM" in call.said()
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    answer = client.chat.completions.create(model="support", messages=[{"role": "user", "content": "Hi"}])
    assert answer.choices[0].message.content == f"support under {SYSTEM}: Hi"
    os.kill(started["process"], signal.SIGKILL)
    assert call.wait_for("answers again", 30), call.said()
    assert client.chat.completions.create(model="support", messages=[{"role": "user", "content": "Hi"}]).choices[0].message.content
    call.kill(signal.SIGTERM)
    ended = call.wait()
    assert [ended.code, "every request was answered" in ended.said] == [0, True]
    process = json.loads((tmp_path / "started.json").read_text())["process"]
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)  # the engine has ended with us


def refused(*arguments: object) -> str:
    done = CliRunner().invoke(_build(), ["serve", "--engine", "vllm", *map(str, arguments), "--port", "0"])
    assert done.exception is not None
    return str(done.exception)


def test_what_vllm_would_answer_otherwise_does_not_start(copied: RunFolder, tmp_path: Path, python: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in told(tmp_path, copied).items():
        monkeypatch.setenv(name, value)
    kept = json.loads(copied.contract.read_text())
    kept["golden"][0]["ids"][3] += 1
    copied.contract.write_text(json.dumps(kept))
    assert "makes other tokens of golden prompt 1 (token 3: " in refused(copied.path, "--vllm-python", python)
    config = json.loads((copied.adapter / "adapter_config.json").read_text())
    (copied.adapter / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))
    assert "do not read the column lengths of use_dora" in refused(copied.path, "--vllm-python", python)
    (copied.adapter / "adapter_config.json").write_text(json.dumps(config | {"peft_type": "IA3"}))
    assert "this one is IA3" in refused(copied.path, "--vllm-python", python)
    monkeypatch.setenv("STAND_IN_FLAGS", "--fails")
    (copied.adapter / "adapter_config.json").write_text(json.dumps(config))
    assert "the model's head size is not supported" in refused(copied.path, "--vllm-python", python)
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert "pip install vllm" in refused(copied.path)


@pytest.mark.nightly
@pytest.mark.real_model
@pytest.mark.skipif("LUTHIER_TEST_VLLM" not in os.environ, reason="LUTHIER_TEST_VLLM names the Python of an environment with vLLM")
def test_vllm_itself_answers_as_the_trained_models_do(default_model: Path, warm: Warm, tmp_path: Path) -> None:
    runs = {name: _trained(tmp_path / name, default_model, answers) for name, answers in (("first", "Town {}"), ("second", "City {}"))}
    arguments = ["--engine", "vllm", "--vllm-python", os.environ["LUTHIER_TEST_VLLM"], "--port", 0, "--context", 256, "--precision", "fp32"]
    call = warm.begin(tmp_path, tmp_path / "home", "serve", *(f"{name}={run.path}" for name, run in runs.items()), *arguments)
    url = url_of(call, 1200)
    assert call.said().count("its contract holds in vLLM") == 2
    base = httpx.get(f"{url}/v1/models").json()["data"][0]["id"]
    asked: list[list[dict[str, Any]]] = [chat_row(place)["messages"][:2] for place in range(4)]

    def ask(wanted: tuple[str, int]) -> str:
        body = {"model": wanted[0], "messages": asked[wanted[1]], "temperature": 0, "max_tokens": 24}
        return str(httpx.post(f"{url}/v1/chat/completions", json=body, timeout=600).json()["choices"][0]["message"]["content"])

    wanted = [(name, place) for place in range(4) for name in (base, *runs)]
    with ThreadPoolExecutor(8) as pool:  # in one batch: what one adapter does reaches no other name
        said = dict(zip(wanted, pool.map(ask, wanted), strict=True))
    engines = {name: opening.open_trained(run, Silent(), "fp32") for name, run in runs.items()}
    engines[base] = opening.open_base_of(runs["first"], Silent(), "fp32")
    for name, engine in engines.items():
        for place in range(4):
            assert said[name, place] == engine.sample(asked[place], max_new_tokens=24)
    call.kill(signal.SIGTERM)
    assert call.wait().code == 0


def _trained(folder: Path, model: Path, answers: str) -> RunFolder:
    folder.mkdir()
    rows = [chat_row(place) for place in range(4)]
    for place, row in enumerate(rows):
        row["messages"][2]["content"] = answers.format(place)
    return sft.fit(make_config(folder, model, rows, "training.num_train_epochs=4", "training.precision=fp32", "lora.r=8"))


def test_an_adapters_folder_brings_its_base(learned: RunFolder, tiny_model: Path, tmp_path: Path, python: Path) -> None:
    folder = shutil.copytree(learned.adapter, tmp_path / "support")
    shutil.copy(learned.contract, folder)
    with ExitStack() as left:
        plan = forwarding._plan_vllm(forwarding.Wanted("vllm", [str(folder)], vllm_python=python), Silent(), left)
    assert [(one.served.name, one.served.folder) for one in plan.names.values()] == [(tiny_model.name, tiny_model.resolve()), ("support", folder)]
    assert list(plan.contracts) == ["support"]
