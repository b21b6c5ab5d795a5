"""What an artifact may be made of, where it goes, and what stands beside it: the tables of the export, without a model."""

import re
import tomllib
from pathlib import Path

import pytest

from luthier import files
from luthier.config.methods import METHODS
from luthier.errors import CallError, MachineError, RunError, VerificationFailed
from luthier.export import bundle, commands, deployment, room, staging, targets
from luthier.export.commands import Artifact


def test_the_table_and_the_help_name_the_same_targets() -> None:
    from luthier.cli import exporting

    assert {one.value for one in exporting.Artifact} == set(targets.ALL)
    assert {one.value for one in exporting.Quantize} == set(targets.GGUF)
    assert {one.value for one in exporting.Use} == set(deployment.USES)
    assert commands.LINES.keys() == targets.TARGETS.keys()
    assert "onnx" not in targets.ALL  # it has no certificate


@pytest.mark.parametrize("target", targets.TARGETS.values(), ids=lambda one: one.name)
def test_what_each_method_allows(target: targets.Target) -> None:
    for method in METHODS.values():
        possible = method.leaves == "adapter" if target.of == targets.ADAPTER else method.leaves == "model" or method.merges
        if target.name == "gguf-lora":
            possible = method.name in ("lora", "qlora")
        if possible:
            targets.check_method(target, method)
        else:
            with pytest.raises(CallError):
                targets.check_method(target, method)


@pytest.mark.parametrize(
    ("libraries", "said"),
    [
        ({"not_there_at_all": "its-name-for-pip>=2"}, "its-name-for-pip>=2, which is not installed"),
        ({"torch": "torch>=99"}, r"torch>=99, and \S+ is installed"),
    ],
)
def test_a_library_that_is_missing_or_too_old_is_named_with_the_line_that_installs_it(
    libraries: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(targets.LIBRARIES, "gguf", libraries)
    with pytest.raises(MachineError, match=rf'--to gguf: needs {said}\n  Try: pip install "luthier\[gguf\]"'):
        targets.check_libraries(targets.TARGETS["gguf"])
    targets.check_libraries(targets.TARGETS["merged"])


@pytest.mark.parametrize("extra", [extra for extra in targets.LIBRARIES if extra])
def test_what_a_target_needs_stands_in_its_extra(extra: str) -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    assert set(targets.LIBRARIES[extra].values()) <= set(project["project"]["optional-dependencies"][extra])


def test_a_number_format_belongs_to_its_target() -> None:
    assert [targets.stored(one, None) for one in targets.TARGETS.values()][:3] == ["fp32", "bf16", "f16"]
    with pytest.raises(CallError, match=r"--quantize: no such number format: q3_k_s\n  Try: one of: f16, bf16, q8_0"):
        targets.stored(targets.TARGETS["gguf"], "q3_k_s")
    with pytest.raises(CallError, match="--precision has no effect on gguf"):
        targets.chosen("gguf", {"--precision": "bf16", "--quantize": None})
    with pytest.raises(CallError, match="--quantize has no effect on merged"):
        targets.chosen("merged", {"--precision": None, "--quantize": "q8_0"})
    assert targets.chosen("ollama", {"--precision": None, "--quantize": "q8_0"}) == "q8_0"


def test_a_disk_that_is_too_small_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "free_bytes", lambda path: 1_000_000)
    with pytest.raises(MachineError, match=r"the export needs about 525 MB on this disk, and 1 MB are free\n  Try: free some space") as refused:
        staging.check_room(tmp_path / "out", 500_000_000)
    assert refused.value.exit_code == 5
    staging.check_room(tmp_path / "out", 900_000)


def test_what_is_needed_grows_with_the_parts_that_stand_beside_it(tiny_model: Path) -> None:
    needed = {
        name: room.needed_bytes(tiny_model, targets.TARGETS[target], stored) - room.BESIDE_BYTES
        for name, target, stored in (
            ("bf16", "merged", "bf16"),
            ("fp32", "merged", "fp32"),
            ("f16", "gguf", "f16"),
            ("q4_k_m", "gguf", "q4_k_m"),
            ("gptq", "gptq", "int4"),
        )
    }
    assert needed["fp32"] == 2 * needed["bf16"]
    assert needed["f16"] == 3 * needed["bf16"]  # with the merged model in fp32
    assert needed["q4_k_m"] > needed["f16"]  # with a whole file beside it
    assert needed["bf16"] < needed["gptq"] < needed["f16"]


def test_what_is_put_aside_takes_no_place_that_is_not_its_own(tmp_path: Path) -> None:
    def fail(text: str) -> Path:
        with staging.staged(tmp_path / "mine") as staged:
            files.write_text(staged / staging.CERTIFICATE, text)
            return staging.put_aside(staged, tmp_path / "mine")

    (tmp_path / "mine.failed").mkdir()
    (tmp_path / "mine.failed" / "thesis.txt").write_text("years of work")
    assert fail("first").name == "mine.failed-2"
    assert fail("second").name == "mine.failed-2"
    assert (tmp_path / "mine.failed-2" / staging.CERTIFICATE).read_text() == "second"
    assert (tmp_path / "mine.failed" / "thesis.txt").read_text() == "years of work"


def test_what_is_not_finished_leaves_nothing(tmp_path: Path) -> None:
    def stopped() -> None:
        with staging.staged(tmp_path / "out" / "mine") as staged:
            files.write_text(staged / "half", "of it")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(("size", "found"), [("2GB", 2_000_000_000), ("500MB", 500_000_000), ("1.5 gb", 1_500_000_000)])
def test_a_size_is_read(size: str, found: int) -> None:
    assert staging.shard_bytes(size) == found


@pytest.mark.parametrize("size", ["2", "GB", "-1GB", "0MB", "two GB"])
def test_a_size_that_is_none_is_refused(size: str) -> None:
    with pytest.raises(CallError, match="--shard-size"):
        staging.shard_bytes(size)


@pytest.mark.parametrize(("rank", "needed"), [(1, 8), (8, 8), (12, 16), (64, 64), (200, 256)])
def test_a_rank_between_those_that_servers_have_needs_the_next(rank: int, needed: int) -> None:
    text = commands.text(Artifact("support", "adapter", "org/base", rank=rank, engines=("peft", "vllm", "sglang", "lorax")))
    assert f"vllm serve org/base --enable-lora --max-lora-rank {needed} --lora-modules support=./support" in text
    assert f"--max-lora-rank {needed} --port 8000" in text
    assert "lorax-launcher --model-id org/base" in text
    assert "luthier serve org/base support=./support" in text


def test_a_command_line_survives_any_name() -> None:
    import shlex

    text = commands.text(Artifact("my model's", "merged", "org/base", context=512))
    (line,) = [line for line in text.splitlines() if line.startswith("vllm ")]
    assert shlex.split(line) == ["vllm", "serve", "./my model's", "--served-model-name", "my model's", "--max-model-len", "512"]
    (request,) = [line for line in text.splitlines() if line.startswith("curl ")]
    assert "my model's" in shlex.split(request)[-1]


def test_an_adapter_that_only_luthier_reads_names_no_other_server() -> None:
    text = commands.text(Artifact("support", "adapter", "org/base"))
    assert re.findall(r"^(\S+):$", text, re.MULTILINE) == ["luthier"]


@pytest.mark.parametrize(
    ("use", "method", "gpu", "to", "stored"),
    [
        ("low-latency", "lora", True, "merged", "bf16"),
        ("low-latency", "lora", False, "gguf", "q8_0"),
        ("memory", "lora", True, "awq", ""),
        ("memory", "full", False, "gguf", "q4_k_m"),
        ("multi-task", "lora", True, "adapter", ""),
        ("multi-task", "full", True, "merged", "bf16"),
        ("multi-task", "dora", True, "merged", "bf16"),
        ("multi-task", "prefix", False, "adapter", ""),
        ("production", "qlora", True, "merged", "bf16"),
        ("production", "bottleneck", False, "adapter", ""),
    ],
)
def test_what_a_use_asks_for(use: str, method: str, gpu: bool, to: str, stored: str) -> None:
    choice = deployment.choose(use, METHODS[method], gpu)
    assert (choice.to, choice.stored) == (to, stored)
    assert len(choice.why) > 30


@pytest.mark.parametrize("use", deployment.USES)
@pytest.mark.parametrize("gpu", [True, False])
def test_what_is_chosen_can_be_written(use: str, gpu: bool) -> None:
    for method in METHODS.values():
        choice = deployment.choose(use, method, gpu)
        target = targets.TARGETS[choice.to]
        if method.merges or method.leaves == "model" or choice.to == "adapter":
            targets.check_method(target, method)
        assert targets.stored(target, choice.stored or None) in target.stored


def bundle_of(folder: Path) -> Path:
    (folder / "adapter").mkdir(parents=True)
    (folder / "adapter" / "weights").write_bytes(b"12345")
    (folder / "README.md").write_text("a card")
    bundle.seal(folder)
    return folder


def test_a_bundle_is_checked_by_anyone(tmp_path: Path) -> None:
    import subprocess

    folder = bundle_of(tmp_path / "bundle")
    assert bundle.check(folder) == 2
    subprocess.run(["sha256sum", "--check", "--quiet", bundle.SUMS], cwd=folder, check=True)
    (folder / "adapter" / "weights").write_bytes(b"12346")
    (folder / "README.md").unlink()
    (folder / "more").write_text("")
    with pytest.raises(VerificationFailed, match=r"README.md is missing; adapter/weights is changed; more is none of it") as refused:
        bundle.check(folder)
    assert refused.value.exit_code == 3
    (folder / bundle.SUMS).write_bytes(b"\xff\xfe" + (folder / bundle.SUMS).read_bytes())
    with pytest.raises(VerificationFailed, match="is changed"):  # the list itself was damaged: no fault of ours
        bundle.check(folder)


def test_a_folder_without_checksums_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no SHA256SUMS"):
        bundle.check(tmp_path)
