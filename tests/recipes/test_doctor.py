"""The doctor names what is wrong with this machine, and the command that mends it."""

import importlib.metadata
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch

from luthier.engine import probe
from luthier.plan.machine import stored_machine
from luthier.recipes import doctor
from luthier.records import Finding, Machine


@pytest.fixture(autouse=True)
def measured(monkeypatch: pytest.MonkeyPatch, known_machine: Machine) -> None:
    """Timing a bf16 product takes a second where it is emulated: the numbers are given."""
    monkeypatch.setattr(probe, "measure", lambda: known_machine)


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


def test_an_nvidia_card_with_a_cpu_torch_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    card = found("NVIDIA card")
    assert card.status == "warning"
    assert torch.__version__ in card.seen
    assert "a build with CUDA" in card.mend


def test_a_cuda_torch_that_sees_no_card_points_to_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    assert found("NVIDIA card").mend == "check the driver: nvidia-smi"


def test_without_a_card_nothing_is_said_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(os.path, "exists", lambda path: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not any(finding.subject == "NVIDIA card" for finding in doctor.examine())


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
