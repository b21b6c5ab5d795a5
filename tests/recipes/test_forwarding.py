"""`luthier serve --engine gguf`: llama.cpp itself behind our doors, with a run's model and its adapter as GGUF."""

import json
import re
import signal
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import openai
import pytest
from conftest_runs import SYSTEM, chat_row
from typer.testing import CliRunner
from warm import Warm

from luthier.cli.app import _build
from luthier.run_folder import RunFolder


def refused(*arguments: object) -> str:
    done = CliRunner().invoke(_build(), ["serve", *map(str, arguments), "--port", "0"])
    assert done.exception is not None
    return str(done.exception)


def test_what_is_no_gguf_is_refused_with_the_line_that_makes_one(learned: RunFolder, tmp_path: Path) -> None:
    assert f"luthier export {learned.path} --to gguf makes one" in refused(learned.path, "--engine", "gguf")
    (tmp_path / "no.gguf").write_bytes(b"none at all")
    assert "is no GGUF file" in refused(tmp_path / "no.gguf", "--engine", "gguf")
    assert "no .gguf file, no folder with one and no run" in refused(tmp_path / "nowhere", "--engine", "gguf")
    assert "--precision has no effect on a GGUF file" in refused(tmp_path / "no.gguf", "--engine", "gguf", "--precision", "fp32")
    assert "--vllm-python is for --engine vllm" in refused(learned.path, "--engine", "gguf", "--vllm-python", "python")
    assert "for other engines" in refused(learned.path, "--context", "128")
    assert "--max-adapters are for our own engine" in refused(learned.path, "--engine", "gguf", "--max-adapters", "2")


def test_an_export_that_was_put_aside_is_never_taken_and_a_hidden_folder_above_is_no_hindrance(tmp_path: Path) -> None:
    from gguf import GGUFWriter

    from luthier.recipes import forwarding

    run = tmp_path / ".kept" / "run"
    for folder in ("gguf-f16", "gguf-f16.failed", "gguf-f16.failed-2"):
        (run / folder).mkdir(parents=True)
        writer = GGUFWriter(run / folder / "model.gguf", "llama")
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    assert forwarding._gguf(str(run), "model") == run / "gguf-f16" / "model.gguf"


def test_an_adapter_that_llama_cpp_does_not_read_is_told_who_does(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    assert f"luthier serve {tmp_path} takes it as it is" in refused(tmp_path, "--engine", "gguf")


def test_a_file_that_is_no_contract_is_named(tmp_path: Path) -> None:
    from gguf import GGUFWriter

    writer = GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (tmp_path / "contract.json").write_text('{"abi": []}', encoding="utf-8")  # of another program
    assert "is no contract of a run (without golden, " in refused(tmp_path / "model.gguf", "--engine", "gguf")


def test_what_has_no_contract_is_said_to_be_unchecked() -> None:
    from luthier.recipes import forwarding
    from luthier.reporting import Silent
    from luthier.serve.dialects import Forwarded
    from luthier.serve.registry import Served

    lines: list[str] = []

    class Listener(Silent):
        def say(self, line: str) -> None:
            lines.append(line)

    names = {name: Forwarded(Served(name)) for name in ("mine", "checked")}
    forwarding._say_unchecked(forwarding.Plan(names, {"checked": Path("contract.json")}, lambda: pytest.fail("never"), []), Listener())
    assert [line.partition(":")[0] for line in lines] == ["mine"]


def test_an_engine_that_dies_while_its_contract_is_checked_is_ended_and_named() -> None:
    from luthier.errors import MachineError
    from luthier.recipes import forwarding
    from luthier.serve.dialects import Forwarded
    from luthier.serve.registry import Served
    from luthier.serve.upstream import Backend, Upstream

    class Dead:
        url, running, closed = "http://127.0.0.1:9", False, False

        def wait(self) -> None: ...

        def last_words(self) -> list[str]:
            return []

        def close(self) -> None:
            self.closed = True

    dead = Dead()
    plan = forwarding.Plan({"base": Forwarded(Served("base"))}, {}, lambda: Backend(dead), [])
    with pytest.raises(MachineError, match=r"does not answer what the contract is checked by \(ConnectError"):
        Upstream("vLLM", plan.launch, partial(forwarding._check, plan, "vllm"), lambda: None).begin()
    assert dead.closed


@pytest.mark.slow
def test_llama_cpp_answers_as_the_run_was_trained(copied: RunFolder, tiny_model: Path, warm: Warm, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    from luthier.engine import Engine
    from luthier.export import gguf, merged
    from luthier.recipes import retrieval

    whole = merged.write_merged(Engine.open(str(tiny_model)), tmp_path / "merged", "fp32")
    base = gguf.write_gguf(whole, tmp_path, quantize="f16")
    place = copied.path / "gguf"
    place.mkdir()
    gguf.write_lora(copied.adapter, place, base=tiny_model, quantize="f16")  # its contract is the run's
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "elgin.md").write_text("# Elgin\n\nThe postman of Elgin goes to Pierce Rd.\n", encoding="utf-8")
    retrieval.index([str(tmp_path / "docs")], tmp_path / "index")
    named = [f"base={base}", f"support={copied.path}", "--rag", tmp_path / "index"]
    call = warm.begin(tmp_path, tmp_path / "home", "serve", "--engine", "gguf", *named, "--port", 0, "--slots", 2)
    assert call.wait_for("serving on", 120), call.said()
    assert "support: its contract holds in llama.cpp" in call.said()
    assert SYSTEM in call.said()
    url = re.search(r"http://[\d.:]+", call.said())
    assert url
    client = openai.OpenAI(base_url=f"{url[0]}/v1", api_key="none", max_retries=0)

    def ask(asked: tuple[str, int]) -> str:
        name, row = asked
        messages = chat_row(row)["messages"][1:2]
        answer = client.chat.completions.create(model=name, messages=messages, temperature=0, max_tokens=40, extra_body={"rag": False})
        return answer.choices[0].message.content or ""

    wanted = [(name, row) for row in range(6) for name in ("support", "base")]
    with ThreadPoolExecutor(4) as pool:  # both at once, and from slot to slot
        said = dict(zip(wanted, pool.map(ask, wanted), strict=True))
    trained = [chat_row(row)["messages"][2]["content"] for row in range(6)]
    assert [said["support", row] for row in range(6)] == trained
    assert not {said["base", row] for row in range(6)} & {*trained}
    question = {"role": "user", "content": "Where does the postman of Elgin go to?"}
    grounded = client.chat.completions.create(model="base", messages=[question], max_tokens=8)
    assert [one["source"] for one in grounded.model_dump()["passages"]] == [f"{tmp_path}/docs/elgin.md:3"]
    assert grounded.usage
    assert grounded.usage.prompt_tokens > 60
    call.kill(signal.SIGTERM)
    assert call.wait().code == 0
    kept = json.loads(copied.contract.read_text())
    copied.contract.write_text(json.dumps(kept | {"template_sha256": "0" * 64}))
    assert "has another chat template than the training" in refused("--engine", "gguf", f"base={base}", copied.path)
    kept["golden"][1]["ids"][-1] += 1
    copied.contract.write_text(json.dumps(kept))
    assert "makes other tokens of golden prompt 2" in refused("--engine", "gguf", f"base={base}", copied.path)
