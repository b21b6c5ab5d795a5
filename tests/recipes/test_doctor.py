"""The doctor names what is wrong with this machine, and the command that mends it."""

import importlib.metadata
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from conftest_runs import Write, chat_row

from luthier import files
from luthier.config.load import Config, load_config
from luthier.engine import fp8, probe
from luthier.plan import cuda, room
from luthier.plan.machine import stored_machine
from luthier.recipes import doctor
from luthier.recipes.planning import make_plan
from luthier.records import Finding, Machine
from luthier.run_folder import RunFolder

REAL_NF4_ERROR = probe.nf4_error


@pytest.fixture(autouse=True)
def measured(monkeypatch: pytest.MonkeyPatch, known_machine: Machine) -> None:
    """Timing a bf16 product takes a second where it is emulated: the numbers are given."""
    monkeypatch.setattr(probe, "measure", lambda: known_machine)
    monkeypatch.setattr(probe, "nf4_error", lambda device: 0.09)


def found(subject: str, **how: bool) -> Finding:
    return next(finding for finding in doctor.examine(**how) if finding.subject == subject)


def hide(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """As if these packages were not installed."""
    honest = importlib.metadata.version

    def version(name: str) -> str:
        if name in names:
            raise importlib.metadata.PackageNotFoundError(name)
        return honest(name)

    monkeypatch.setattr(importlib.metadata, "version", version)


def test_this_machine_is_examined_without_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: pytest.fail("the network was asked"))
    findings = doctor.examine()
    assert {finding.status for finding in findings} <= {"ok", "warning"}
    subjects = [finding.subject for finding in findings]
    assert subjects[:2] == ["Python", "system"]
    assert set(subjects) >= {"torch", "transformers", "peft", "gguf", "disk", "write access", "device", "number formats"}
    assert all(finding.mend for finding in findings if finding.status != "ok")


def test_what_was_measured_is_kept_for_the_plans(luthier_home: Path, known_machine: Machine) -> None:
    (luthier_home / "machine.json").unlink()
    doctor.examine()
    assert stored_machine(luthier_home) == known_machine
    assert json.loads((luthier_home / "machine.json").read_text())["fp32_gflops"] == 40.0


def test_a_missing_library_is_named_with_what_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "peft")
    assert found("peft") == Finding("error", "peft", "not installed (needed for adapters)", 'pip install "luthier[train]"')


def test_without_torch_the_rest_is_examined(monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "torch")
    subjects = {finding.subject: finding.status for finding in doctor.examine()}
    assert subjects["torch"] == "error"
    assert subjects["disk"] == "ok"
    assert "device" not in subjects


def test_a_torch_that_cannot_be_imported_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    """A build for another CUDA, or one that lacks a system library."""
    monkeypatch.setitem(sys.modules, "luthier.engine.probe", None)
    monkeypatch.delattr("luthier.engine.probe", raising=False)
    broken = next(finding for finding in doctor.examine() if finding.subject == "device")
    assert broken.status == "error"
    assert "cannot be loaded" in broken.seen
    assert "pip install --force-reinstall torch" in broken.mend


def nvidia_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, answer: str, code: int = 0, *, knows_capability: bool = True) -> None:
    """A program of that name which answers as a recorded one did."""
    refusal = "" if knows_capability else 'case "$*" in *compute_cap*) echo "Field is not a valid field to query."; exit 2;; esac\n'
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{refusal}cat <<'END'\n{answer}\nEND\nexit {code}\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)


H100 = "580.159.04, NVIDIA H100 80GB HBM3, 81559, 9.0"


def test_an_nvidia_card_with_a_cpu_torch_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvidia_smi(tmp_path, monkeypatch, H100)
    monkeypatch.setattr(torch.version, "cuda", None)
    findings = {finding.subject: finding for finding in doctor.examine()}
    assert findings["NVIDIA driver"].status == "warning"
    assert torch.__version__ in findings["NVIDIA driver"].seen
    assert "a build with CUDA" in findings["NVIDIA driver"].mend
    assert "NVIDIA H100 80GB HBM3, 86 GB, compute capability 9.0: bf16 yes, fp8 yes" in findings["card"].seen


def test_a_cuda_torch_that_is_too_new_for_the_driver_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvidia_smi(tmp_path, monkeypatch, "535.104.05, NVIDIA GeForce RTX 4090, 24564, 8.9")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    finding = found("NVIDIA driver")
    assert (finding.status, "needs driver 580 or newer" in finding.seen) == ("error", True)


def test_a_driver_that_knows_no_compute_capability_is_asked_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvidia_smi(tmp_path, monkeypatch, "470.57.02, Tesla V100-SXM2-16GB, 16160", knows_capability=False)
    assert found("card").seen == "Tesla V100-SXM2-16GB, 17 GB (the driver does not tell its compute capability)"


def test_an_nvidia_smi_that_fails_is_an_error_with_its_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvidia_smi(tmp_path, monkeypatch, "Failed to initialize NVML: Driver/library version mismatch", code=18)
    finding = found("NVIDIA driver")
    assert finding.status == "error"
    assert "Driver/library version mismatch" in finding.seen
    assert "restart the machine" in finding.mend


def test_a_driver_is_judged_without_torch_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvidia_smi(tmp_path, monkeypatch, H100)
    hide(monkeypatch, "torch")
    assert found("NVIDIA driver").seen.endswith("for builds of torch up to CUDA 13.x")


def test_a_driver_without_nvidia_smi_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(os.path, "exists", lambda path: True)
    assert "--gpus all" in found("NVIDIA driver").mend


def test_without_a_card_nothing_is_said_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(os.path, "exists", lambda path: False)
    findings = doctor.examine()
    assert not any(finding.subject in ("NVIDIA driver", "card") for finding in findings)
    assert next(finding for finding in findings if finding.subject == "flash attention").seen.startswith("none is needed")


def test_fp8_is_said_of_the_cards_that_the_engine_takes() -> None:
    capability = ".".join(map(str, fp8.FIRST_CAPABILITY))
    assert cuda.judge_card(cuda.Card("a card", 0, capability)).details["fp8"] is True
    assert cuda.judge_card(cuda.Card("a card", 0, "8.8")).details["fp8"] is False


def test_bitsandbytes_is_tried_and_not_only_found(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("bitsandbytes")
    assert found("bitsandbytes works").status == "ok"
    monkeypatch.setattr(probe, "nf4_error", lambda device: 1.0)
    broken = found("bitsandbytes works")
    assert (broken.status, "0.09 is usual" in broken.seen) == ("warning", True)
    assert "--no-deps" in broken.mend

    def fails(device: str) -> float:
        raise RuntimeError("named symbol not found")

    monkeypatch.setattr(probe, "nf4_error", fails)
    assert "named symbol not found" in found("bitsandbytes works").seen
    hide(monkeypatch, "bitsandbytes")
    assert "not installed" in found("bitsandbytes").seen


def test_the_product_in_four_bits_works_here() -> None:
    pytest.importorskip("bitsandbytes")
    assert 0.05 < REAL_NF4_ERROR("cpu") < doctor.LARGEST_NF4_ERROR


@pytest.mark.parametrize(
    ("version", "status", "words"),
    [("0.17.9", "error", "needs 0.18 or newer"), ("0.19.0", "ok", "works; 0.21.2 is tested"), ("9.0", "ok", "newer than 0.21.2, which is tested")],
)
def test_versions_are_compared_with_the_tested_ones(version: str, status: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version if name == "peft" else honest(name))
    finding = found("peft")
    assert (finding.status, words in finding.seen) == (status, True)
    assert finding.mend == ("" if status == "ok" else 'pip install "peft==0.21.2"')


def test_a_control_group_that_allows_little_memory_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "memory_bytes", lambda: 1_000_000_000)
    finding = found("memory")
    assert finding.status == "warning"
    assert finding.seen.startswith("1.0 GB, the limit of this control group (the machine has ")


def of_run(config: Config) -> dict[str, Finding]:
    return {finding.subject: finding for finding in doctor.examine(config)}


def test_a_run_that_fits_is_said_to_fit(write: Write) -> None:
    findings = of_run(write([chat_row(place) for place in range(6)]))
    assert (findings["memory of the run"].status, findings["disk of the run"].status) == ("ok", "ok")


def test_a_disk_that_will_not_hold_the_checkpoints_is_a_warning_and_one_that_holds_not_one_an_error(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write([chat_row(place) for place in range(6)], "training.save_total_limit=3", "training.save_steps=1")
    monkeypatch.setattr(files, "free_bytes", lambda path: 300_000)
    few = of_run(config)["disk of the run"]
    assert few.status == "warning"
    assert "training.save_total_limit=1" in few.mend
    monkeypatch.setattr(files, "free_bytes", lambda path: 10_000)
    assert of_run(config)["disk of the run"].status == "error"


def test_the_expected_checkpoint_is_what_a_run_writes(learned: RunFolder) -> None:
    """Of the arithmetic without torch, beside the file that the run left."""
    plan = make_plan(load_config(learned.config))
    written = files.folder_bytes(next(learned.checkpoints.iterdir()))
    assert written == pytest.approx(room.checkpoint_bytes(plan.settings, plan.facts), rel=0.3)


def test_settings_that_cannot_be_planned_are_a_finding_beside_the_others(write: Write) -> None:
    config = write([chat_row(0)])
    (config.file.parent / "train.jsonl").unlink()
    findings = of_run(config)
    assert findings["plan of the run"].status == "error"
    assert "train.jsonl" in findings["plan of the run"].seen
    assert findings["disk"].status == "ok"


@pytest.mark.parametrize(
    ("bf16", "status", "used"), [(10.0, "warning", "fp32"), (39.0, "ok", "fp32"), (200.0, "ok", "bf16")], ids=["emulated", "as fast", "faster"]
)
def test_bf16_that_is_emulated_is_a_warning(bf16: float, status: str, used: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "measure", lambda: Machine("cpu", "a machine", 2, 8_000_000_000, bf16, 40.0))
    finding = found("number formats")
    assert finding.status == status
    assert f"{used} is used" in finding.seen


def test_a_full_disk_and_a_cache_that_cannot_be_written_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**10, 10**10, 10**6))  # type: ignore[attr-defined]
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    findings = {finding.subject: finding for finding in doctor.examine()}
    assert findings["disk"].status == "warning"
    assert "LUTHIER_HOME" in findings["disk"].mend
    assert findings["cache folder"].status == "error"


def test_a_cache_in_the_way_of_a_file_is_a_finding(luthier_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_HOME", str(luthier_home / "machine.json"))
    statuses = {finding.subject: finding.status for finding in doctor.examine()}
    assert statuses["cache folder"] == "error"
    assert statuses["device"] == "ok"  # what was measured is shown, though it cannot be kept


def test_a_hub_that_does_not_answer_is_a_warning_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "HUB", "http://127.0.0.1:9")
    finding = found("model hub", network=True)
    assert finding.status == "warning"
    assert "the default model needs no hub" in finding.mend
