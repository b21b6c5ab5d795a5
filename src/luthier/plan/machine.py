"""What this machine is: as `luthier doctor` measured it, or a cautious guess where nothing was measured."""

import dataclasses
import functools
import os
import platform
import time
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

from luthier import files
from luthier.errors import ConfigError, RunError
from luthier.records import Machine

LOADED = time.monotonic()
MACHINE_FILE = "machine.json"
BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # x86 names, then ARM's


@functools.cache
def rules() -> dict[str, Any]:
    """The tables of hyperparameters.toml."""
    return tomllib.loads(resources.files("luthier.plan").joinpath("hyperparameters.toml").read_text(encoding="utf-8"))


def stored_machine(home: Path) -> Machine | None:
    """The machine as measured, from `home`/machine.json; None where it was never measured.

    Raises RunError where the file does not hold what a Machine needs.
    """
    path = home / MACHINE_FILE
    if not path.is_file():
        return None
    stored = files.read_json(path)
    wanted = {field.name for field in dataclasses.fields(Machine) if field.default is dataclasses.MISSING}
    problem = _what_is_wrong(stored, wanted)
    if problem:
        raise RunError(problem, where=str(path), next_step="luthier doctor measures this machine again")
    rates = {name: float(stored[name]) for name in ("bf16_gflops", "fp32_gflops")} | {"fp16_gflops": float(stored.get("fp16_gflops", 0))}
    known = {name: stored[name] for name in wanted} | rates
    return Machine(**known, attention=str(stored.get("attention", "")), host_bytes=int(stored.get("host_bytes", 0)))


def store_machine(home: Path, machine: Machine) -> Path:
    """Keep what was measured, for the plans of later runs."""
    path = files.make_folder(home) / MACHINE_FILE
    files.write_json(path, dataclasses.asdict(machine))
    return path


def _what_is_wrong(stored: Any, wanted: set[str]) -> str:
    if not isinstance(stored, dict):
        return f"holds a {type(stored).__name__} where a machine's numbers are expected"
    if missing := sorted(wanted - stored.keys()):
        return f"lacks {', '.join(missing)}"
    for name in ("cores", "memory_bytes", "bf16_gflops", "fp32_gflops"):
        value = stored[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            return f"{name} is {value!r} and must be a number above 0"
    return ""


def this_machine_without_torch() -> Machine:
    """This machine's cores and memory, and rates on the low side of what such a machine reaches; its name says that they are not measured."""
    rate = rules()["unmeasured_gflops"]
    name, flags = processor()
    cores = usable_cores()
    bf16 = rate["bf16_units"] if flags & BF16_FLAGS else rate["bf16_emulated"]
    return Machine("cpu", f"{name} (rates not measured)", cores, memory_bytes(), float(bf16 * cores), float(rate["fp32"] * cores))


def planned_machine(home: Path, device: str) -> Machine:
    """The machine that a plan for this `device` (a setting) counts with. Raises ConfigError for a device that is not here or was never measured."""
    stored = stored_machine(home)
    if stored and device in ("auto", stored.device):
        return stored
    if device in ("auto", "cpu"):
        return this_machine_without_torch()
    if not _has_device(device):
        raise ConfigError(f"{device} is not on this machine", where="device", next_step="device: auto, or luthier doctor")
    raise ConfigError(f"{device} was never measured on this machine", where="device", next_step="luthier doctor measures it")


def _has_device(device: str) -> bool:
    """Whether the system shows a driver: NVIDIA's (in WSL too) or AMD's for cuda, Apple's for mps. torch may still not see the card."""
    if device == "mps":
        return platform.system() == "Darwin"
    return any(Path(sign).exists() for sign in ("/proc/driver/nvidia/version", "/dev/dxg", "/dev/kfd"))


def gpu_count() -> int:
    """GPUs that this process may use: those of CUDA_VISIBLE_DEVICES, else those that NVIDIA's driver shows; 1 where it shows none."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return max(1, len([one for one in named.split(",") if one.strip()]))
    return max(1, len(list(Path("/proc/driver/nvidia/gpus").glob("*"))))


def process_seconds() -> float:
    """How long this process has been running: since the system started it where that is told (Linux), else since this module was loaded."""
    try:
        # The 22nd field, in ticks since the machine started; the second is a name in parentheses, which may hold blanks.
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError):
        return time.monotonic() - LOADED


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes(root: Path = Path("/")) -> int:
    """All memory of this machine, or the limit of the control group that this process runs in, if that is less.

    Never what happens to be free: the same run must be planned alike tomorrow.
    """
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([total, *_group_limits(root)])


def _group_limits(root: Path) -> list[int]:
    """Memory limits of this process's control group and of those above it, in both versions of the kernel's interface."""
    listing = root / "proc" / "self" / "cgroup"
    if not listing.is_file():
        return []
    limits = []
    for line in listing.read_text().splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers in ("", "memory"):
            top, file = ("sys/fs/cgroup", "memory.max") if not controllers else ("sys/fs/cgroup/memory", "memory.limit_in_bytes")
            folder = root / top / group.lstrip("/")
            limits += [_limit(parent / file) for parent in (folder, *folder.parents) if parent.is_relative_to(root / top)]
    return [limit for limit in limits if limit]


def _limit(path: Path) -> int:
    """The limit that a file holds; 0 where there is none ("max", or no such file)."""
    text = path.read_text().strip() if path.is_file() else ""
    return int(text) if text.isdigit() else 0


def processor() -> tuple[str, set[str]]:
    """The processor's name and its feature flags, as far as the system tells."""
    listing = Path("/proc/cpuinfo")
    rows = [line.partition(":") for line in listing.read_text().splitlines()] if listing.is_file() else []
    facts = {key.strip(): value.strip() for key, _, value in rows}
    name = facts.get("model name") or platform.processor() or platform.machine()
    return name, set((facts.get("flags") or facts.get("Features") or "").split())
