"""Examine this machine: Python, libraries, driver, devices, memory, disk, and how fast it multiplies. Each line is ok, a warning with its mend,
or an error. What needs torch comes last, so that all else is said where torch is missing or broken."""

import os
import platform
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

from luthier import files
from luthier.config.load import Config
from luthier.errors import LuthierError, RunError
from luthier.plan import cuda, room, tested
from luthier.plan.cuda import Build, Card
from luthier.plan.machine import memory_bytes, store_machine
from luthier.recipes.planning import make_plan
from luthier.records import Finding, Machine

# The default model unpacked, its download, a run and a merged model.
WANTED_FREE_BYTES = 2_000_000_000
# The demo stood at 2.0 GB after 224 updates.
WANTED_MEMORY_BYTES = 3_000_000_000
# Beyond it a product in 4 bits (nf4) computes something else: numbers drawn from a bell curve are off by 0.09.
LARGEST_NF4_ERROR = 0.2
HUB = "https://huggingface.co"


def examine(config: Config | None = None, *, network: bool = False) -> list[Finding]:
    """All findings; with a `config` also whether its run fits into the memory and onto the disk. The network is asked only if `network` is set.
    Stores machine.json in the cache folder for the plans."""
    findings = [_python(), _system(), *filter(None, map(_library, tested.libraries())), _memory(), _disk(), _writable()]
    driver, cards, broken = _cards()
    build, loads = _build()
    findings += [*broken, *loads]
    if driver:
        findings += [cuda.judge_driver(driver, cards, build), *map(cuda.judge_card, cards)]
    findings.append(cuda.judge_flash_attention(build, cards, tested.installed("flash_attn")))
    findings += _devices() if build else []
    findings += _for_run(config) if config else []
    return findings + ([_network()] if network else [])


def _python() -> Finding:
    version, (least, newest, _) = platform.python_version(), tested.python_versions()
    seen = f"{version} ({sys.executable})"
    if tested.is_older(newest, ".".join(version.split(".")[:2])):
        return Finding("warning", "Python", seen, f"Luthier is tried on Python {least} to {newest}; python{newest} -m venv .venv makes such a one")
    return Finding("ok", "Python", seen)


def _system() -> Finding:
    name = f"{platform.system()} {platform.machine()}"
    if platform.system() == "Windows":
        return Finding("warning", "system", name, "use WSL (wsl --install): Luthier runs on Linux and macOS")
    if platform.system() == "Darwin":
        return Finding("ok", "system", f"{name}: the CPU is used; Apple's GPU has not been tried (device: mps chooses it)")
    return Finding("ok", "system", name)


def _library(library: tested.Library) -> Finding | None:
    """A library beside the tested matrix; None for one that is not here and not always needed."""
    version, name = tested.installed(library.name), library.name
    if not version:
        mend = f'pip install "luthier[{library.extra}]"' if library.extra else "pip install luthier"
        return Finding("error", name, f"not installed (needed for {library.need})", mend) if library.required else None
    mend = f'pip install "{name}=={library.tested}"'
    if tested.is_older(version, library.least):
        return Finding("error", name, f"{version}, and Luthier needs {library.least} or newer (for {library.need})", mend)
    if tested.is_older(library.tested, version):
        return Finding("ok", name, f"{version} (newer than {library.tested}, which is tested)")
    if tested.is_older(version, library.tested):
        return Finding("ok", name, f"{version} (works; {library.tested} is tested)")
    return Finding("ok", name, version)


def _memory() -> Finding:
    allowed, there = memory_bytes(), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limited = f", the limit of this control group (the machine has {there / 1e9:.1f} GB)" if allowed < there else ""
    seen = f"{allowed / 1e9:.1f} GB{limited}"
    if allowed < WANTED_MEMORY_BYTES:
        mend = "give the container more memory" if limited else "a machine with more memory"
        return Finding("warning", "memory", seen, f"{mend}: the default model takes {WANTED_MEMORY_BYTES / 1e9:.0f} GB")
    return Finding("ok", "memory", seen)


def _disk() -> Finding:
    home = files.home()
    free = files.free_bytes(home)
    seen = f"{free / 1e9:.1f} GB free for {home}"
    if free < WANTED_FREE_BYTES:
        return Finding("warning", "disk", seen, f"free {WANTED_FREE_BYTES / 1e9:.0f} GB, or set LUTHIER_HOME to another disk")
    return Finding("ok", "disk", seen)


def _writable() -> Finding:
    for folder, name in ((files.existing_parent(files.home()), "cache folder"), (files.existing_parent(Path.cwd()), "this folder")):
        if not os.access(folder, os.W_OK):
            return Finding("error", name, f"{folder} is not writable", "set LUTHIER_HOME, or go to a folder of your own")
    return Finding("ok", "write access", "the cache folder and this folder are writable")


def _cards() -> tuple[str, list[Card], list[Finding]]:
    """The NVIDIA driver and its cards, as nvidia-smi tells them; ("", [], []) where there is none."""
    program = shutil.which("nvidia-smi")
    if not program:
        if not os.path.exists("/proc/driver/nvidia/version"):
            return "", [], []
        seen = "there is a driver, and no nvidia-smi, which says what it is"
        return "", [], [Finding("warning", "NVIDIA driver", seen, "in a container: start it with --gpus all (the NVIDIA Container Toolkit)")]
    answer = ""
    for fields in (cuda.ASKED, cuda.ASKED[:-1]):
        answer = _answer([program, f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"])
        try:
            return *cuda.read_cards(answer), []
        except ValueError:
            continue
    mend = "restart the machine after an update of the driver; else install the driver again"
    return "", [], [Finding("error", "NVIDIA driver", f"nvidia-smi does not see a card: {' '.join(answer.split()) or 'no answer'}", mend)]


def _answer(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return done.stdout or done.stderr


def _build() -> tuple[Build | None, list[Finding]]:
    """This torch; None, with a finding, where it cannot be loaded."""
    if not tested.installed("torch"):
        return None, []
    # Imported here: everything above must work where torch is missing or broken.
    try:
        from luthier.engine import probe
    except (ImportError, OSError) as error:  # OSError: a library of the system that torch needs
        seen = f"torch, or a library beside it, cannot be loaded: {error}"
        return None, [Finding("error", "device", seen, "pip install --force-reinstall torch, then luthier doctor")]
    return probe.this_build(), []


def _devices() -> list[Finding]:
    from luthier.engine import probe

    measured = probe.measure()
    return [_device(measured), _formats(measured), *_bitsandbytes(measured.device), *_keep(measured)]


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


def _bitsandbytes(device: str) -> list[Finding]:
    """Whether a product in 4 bits comes out right: installed is not yet working, since its kernels are chosen for the device when it is used."""
    from luthier.engine import probe

    subject, mend = "bitsandbytes", 'pip install --force-reinstall --no-deps "bitsandbytes=={}"; until then: method: lora'
    matrix = {library.name: library for library in tested.libraries()}
    if not tested.installed(subject):
        return [Finding("ok", subject, f'not installed: {matrix[subject].need} need it (pip install "luthier[quant]")')]
    mend = mend.format(matrix[subject].tested)
    try:
        error = probe.nf4_error(device)
    except Exception as problem:  # its kernels fail with classes of their own
        return [Finding("warning", f"{subject} works", f"no: a product in 4 bits on {device} failed ({str(problem).splitlines()[:1]})", mend)]
    seen = f"a product in 4 bits on {device} is off by {error:.2f}"
    if not error < LARGEST_NF4_ERROR:
        return [Finding("warning", f"{subject} works", f"no: {seen}, and 0.09 is usual", mend)]
    return [Finding("ok", f"{subject} works", seen, details={"nf4_error": round(error, 4)})]


def _for_run(config: Config) -> list[Finding]:
    """Whether the run of these settings fits into the memory and onto the disk."""
    try:
        plan = make_plan(config)
    except LuthierError as error:  # what was found of the machine is shown all the same
        return [Finding("error", "plan of the run", f"{error.where}: {error.problem}", error.next_step)]
    need = sum(plan.memory_bytes.values())
    fits = f"about {need / 1e9:.1f} GB, and may take {plan.room}"
    memory = Finding("ok", "memory of the run", fits) if plan.fits else Finding("error", "memory of the run", fits, plan.next_step)
    return [memory, _disk_of_run(config, room.run_bytes(plan.settings, plan.facts), room.checkpoint_bytes(plan.settings, plan.facts))]


def _disk_of_run(config: Config, wanted: int, least: int) -> Finding:
    folder = Path(config.beside(config.settings.output_dir))
    free = files.free_bytes(folder)
    seen = f"its checkpoints and what it leaves take about {_size(wanted)}, one checkpoint {_size(least)}; {_size(free)} are free for {folder}"
    if free >= wanted:
        return Finding("ok", "disk of the run", seen)
    mend = "free some space, set output_dir to another disk, or keep fewer: training.save_total_limit=1"
    return Finding("warning" if free >= least else "error", "disk of the run", seen, mend)


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.1f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:.1f} MB"


def _network() -> Finding:
    try:
        with urllib.request.urlopen(HUB, timeout=10) as answer:
            return Finding("ok", "model hub", f"{HUB} answers ({answer.status})")
    except OSError as error:
        return Finding("warning", "model hub", f"{HUB} does not answer ({error})", "the default model needs no hub; behind a proxy set HTTPS_PROXY")
