"""vLLM's command line, and the process that runs it: no vLLM is needed for these."""

import os
import sys
import time
from pathlib import Path

import pytest

from luthier.errors import CallError, ModelError
from luthier.serve.backends.vllm import Vllm, Wanted, command, environment, python_of, version_of

MODEL = Path("/models/base")


def after(line: list[str], flag: str) -> str:
    return line[line.index(flag) + 1]


def test_the_line_for_a_model_alone() -> None:
    line = command(Wanted(MODEL, "base"), 8001, cpu=False)
    assert line[:4] == ["serve", "/models/base", "--served-model-name", "base"]
    assert [after(line, "--host"), after(line, "--port")] == ["127.0.0.1", "8001"]  # behind our doors only
    assert not {"--enable-lora", "--enforce-eager", "--dtype", "--chat-template", "--max-model-len"} & {*line}


@pytest.mark.parametrize(("ranks", "given"), [((1,), "1"), ((8, 12), "16"), ((64,), "64"), ((65,), "128"), ((300,), "320")])
def test_the_largest_rank_is_rounded_up_to_one_that_vllm_takes(ranks: tuple[int, ...], given: str) -> None:
    adapters = {f"a{place}": Path(f"/runs/{place}") for place in range(3)}
    line = command(Wanted(MODEL, "base", adapters, ranks, Path("t.jinja"), "bfloat16", 1024, slots=2), 1, cpu=True)
    assert after(line, "--max-lora-rank") == given
    assert line[line.index("--lora-modules") + 1 :] == ["a0=/runs/0", "a1=/runs/1", "a2=/runs/2"]
    assert [after(line, "--max-loras"), after(line, "--max-cpu-loras")] == ["4", "4"]  # the last place stays empty on CPUs
    on_gpu = command(Wanted(MODEL, "base", adapters, ranks, slots=2), 1, cpu=False)
    assert [after(on_gpu, "--max-loras"), after(on_gpu, "--max-cpu-loras")] == ["2", "3"]
    assert [after(line, "--dtype"), after(line, "--max-model-len"), after(line, "--chat-template")] == ["bfloat16", "1024", "t.jinja"]
    assert "--enforce-eager" in line


def test_a_rank_beyond_all_is_refused() -> None:
    with pytest.raises(CallError, match="rank 513"):
        command(Wanted(MODEL, "base", {"a": Path("a")}, (513,)), 1, cpu=False)


def test_its_environment_is_its_own_and_fetches_nothing() -> None:
    found = environment({"PYTHONPATH": "ours", "PATH": "p", "VLLM_CPU_KVCACHE_SPACE": "4"}, "secret", cpu=True)
    assert "PYTHONPATH" not in found
    assert [found["VLLM_CPU_KVCACHE_SPACE"], found["VLLM_API_KEY"], found["HF_HUB_OFFLINE"], found["PATH"]] == ["4", "secret", "1", "p"]
    assert "VLLM_CPU_KVCACHE_SPACE" not in environment({}, "secret", cpu=False)


def test_where_it_is_missing_the_line_that_installs_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CallError, match="pip install vllm"):
        python_of(None)
    with pytest.raises(CallError, match="no such program"):
        python_of(tmp_path / "python")
    with pytest.raises(CallError, match="has no vLLM"):
        version_of(Path(sys.executable))
    (tmp_path / "python").write_text("")
    (tmp_path / "vllm").write_text("#!/bin/sh\n")
    (tmp_path / "vllm").chmod(0o755)
    assert python_of(None) == tmp_path / "python"


def stub(folder: Path, script: str) -> Path:
    """A program in the place of the other environment's Python."""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_a_start_that_fails_says_why(tmp_path: Path) -> None:
    lines = "Traceback; (EngineCore pid=3) ValueError: head size 7 is not supported; RuntimeError: Engine core initialization failed"
    python = stub(tmp_path, "\n".join(f"echo '{line.strip()}'" for line in lines.split(";")) + "\nexit 1")
    engine = Vllm(Wanted(MODEL, "base"), python, "0.32.0+cpu")
    with pytest.raises(ModelError, match="ValueError: head size 7 is not supported"):
        engine.wait(30)
    engine.close()


def test_what_it_says_takes_no_more_room_however_long_it_runs(tmp_path: Path) -> None:
    python = stub(tmp_path, "for i in $(seq 30000); do echo line $i; done\nprintf '%0100000d' 1\necho the last")
    engine = Vllm(Wanted(MODEL, "base"), python, "0.32.0+cpu")
    with pytest.raises(ModelError, match="the last"):
        engine.wait(30)
    words = engine.last_words()
    engine.close()
    assert [len(words), words[0] > "line 29000", max(map(len, words)) <= 2000] == [400, True, True]


def test_it_ends_with_all_of_its_processes(tmp_path: Path) -> None:
    python = stub(tmp_path, f"sleep 60 & echo $! > {tmp_path}/child\nwait")
    engine = Vllm(Wanted(MODEL, "base"), python, "0.32.0+cpu")
    child, latest = tmp_path / "child", time.monotonic() + 30
    while not (child.exists() and child.read_text().strip()) and time.monotonic() < latest:
        time.sleep(0.02)
    assert engine.running
    arguments = Path(f"/proc/{engine._process.pid}/cmdline")  # which everyone on the machine can read
    assert not arguments.exists() or engine.key not in arguments.read_text()
    engine.close()
    engine.close()  # once more does no harm
    assert not engine.running
    state = Path(f"/proc/{child.read_text().strip()}/stat")
    assert not state.exists() or state.read_text().split()[2] == "Z" or not os.path.exists("/proc")
