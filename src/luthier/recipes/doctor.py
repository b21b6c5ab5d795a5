"""Examine this machine: Python, libraries, devices, disk, and how fast it multiplies. Each line is ok, a warning with its mend, or an error."""

import importlib.metadata
import os
import platform
import shutil
import sys
import urllib.request
from pathlib import Path

from luthier import files
from luthier.errors import RunError
from luthier.plan.machine import store_machine
from luthier.records import Finding, Machine

LIBRARIES = {
    # package        needed for
    "torch": "training and answering",
    "transformers": "models and tokenizers",
    "peft": "adapters",
    "safetensors": "weights on disk",
    "tokenizers": "tokens",
    "gguf": "unpacking the default model",
    "huggingface_hub": "models of the hub",
}
# The default model unpacked, its download, a run and a merged model.
WANTED_FREE_BYTES = 2_000_000_000
HUB = "https://huggingface.co"


def examine(*, network: bool = False) -> list[Finding]:
    """All findings. The network is asked only if `network` is set. Stores machine.json in the cache folder for the plans."""
    findings = [_python(), _system(), *map(_library, LIBRARIES), _disk(), _writable()]
    findings += _devices() if _installed("torch") else []
    return findings + ([_network()] if network else [])


def _python() -> Finding:
    return Finding("ok", "Python", f"{platform.python_version()} ({sys.executable})")


def _system() -> Finding:
    name = f"{platform.system()} {platform.machine()}"
    if platform.system() == "Windows":
        return Finding("warning", "system", name, "use WSL (wsl --install): Luthier runs on Linux and macOS")
    if platform.system() == "Darwin":
        return Finding("ok", "system", f"{name}: the CPU is used; Apple's GPU has not been tried (device: mps chooses it)")
    return Finding("ok", "system", name)


def _installed(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _library(name: str) -> Finding:
    version = _installed(name)
    if not version:
        return Finding("error", name, f"not installed (needed for {LIBRARIES[name]})", 'pip install "luthier[train]"')
    return Finding("ok", name, version)


def _disk() -> Finding:
    home = files.home()
    free = shutil.disk_usage(files.existing_parent(home)).free
    seen = f"{free / 1e9:.1f} GB free for {home}"
    if free < WANTED_FREE_BYTES:
        return Finding("warning", "disk", seen, f"free {WANTED_FREE_BYTES / 1e9:.0f} GB, or set LUTHIER_HOME to another disk")
    return Finding("ok", "disk", seen)


def _writable() -> Finding:
    for folder, name in ((files.existing_parent(files.home()), "cache folder"), (files.existing_parent(Path.cwd()), "this folder")):
        if not os.access(folder, os.W_OK):
            return Finding("error", name, f"{folder} is not writable", "set LUTHIER_HOME, or go to a folder of your own")
    return Finding("ok", "write access", "the cache folder and this folder are writable")


def _devices() -> list[Finding]:
    # Imported here: everything above must work where torch is missing or broken.
    try:
        from luthier.engine import probe
    except (ImportError, OSError) as error:  # OSError: a library of the system that torch needs
        seen = f"torch, or a library beside it, cannot be loaded: {error}"
        return [Finding("error", "device", seen, "pip install --force-reinstall torch, then luthier doctor")]
    measured = probe.measure()
    return [_device(measured), _formats(measured), *_unseen_card(), *_keep(measured)]


def _keep(machine: Machine) -> list[Finding]:
    """Store what was measured, for the plans."""
    try:
        store_machine(files.home(), machine)
    except RunError as error:
        return [Finding("error", "cache folder", f"{error.where}: {error.problem}", "set LUTHIER_HOME to a folder of your own")]
    return []


def _device(machine: Machine) -> Finding:
    return Finding("ok", "device", f"{machine.device}: {machine.name}, {machine.cores} cores, {machine.memory_bytes / 1e9:.1f} GB")


def _formats(machine: Machine) -> Finding:
    ratio = machine.bf16_gflops / machine.fp32_gflops
    seen = f"bf16 {machine.bf16_gflops:,.0f} GFLOP/s, fp32 {machine.fp32_gflops:,.0f} GFLOP/s (timed): {machine.faster_precision} is used"
    if ratio < 0.5:
        return Finding("warning", "number formats", seen, "this processor emulates bf16: leave training.precision on auto")
    return Finding("ok", "number formats", seen, details={"bf16_over_fp32": round(ratio, 2)})


def _unseen_card() -> list[Finding]:
    """An NVIDIA card that this torch cannot use."""
    import torch

    if torch.cuda.is_available() or not (shutil.which("nvidia-smi") or os.path.exists("/proc/driver/nvidia/version")):
        return []
    build = torch.__version__
    mend = (
        "pip install --force-reinstall torch (a build with CUDA), then luthier doctor"
        if torch.version.cuda is None
        else "check the driver: nvidia-smi"
    )
    return [Finding("warning", "NVIDIA card", f"there is one, and this torch ({build}) cannot use it", mend)]


def _network() -> Finding:
    try:
        with urllib.request.urlopen(HUB, timeout=10) as answer:
            return Finding("ok", "model hub", f"{HUB} answers ({answer.status})")
    except OSError as error:
        return Finding("warning", "model hub", f"{HUB} does not answer ({error})", "the default model needs no hub; behind a proxy set HTTPS_PROXY")
