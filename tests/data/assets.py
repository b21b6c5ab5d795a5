"""Real files that lie inside packages of the package index: fetched once with the user's own pip, unpacked, kept between runs.

from assets import asset
folder = asset("llamafactory", "0.9.5", sdist=True)      # the test is skipped where no index answers
"""

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import pytest

QUIET = ["--no-input", "--disable-pip-version-check", "--progress-bar", "off"]


def asset(package: str, version: str, sdist: bool = False) -> Path:
    """The unpacked folder of one package's wheel (or source distribution), below LUTHIER_TEST_HOME/assets."""
    home = Path(os.environ.get("LUTHIER_TEST_HOME") or Path(tempfile.gettempdir()) / "luthier-test-home") / "assets"
    folder = home / f"{package}-{version}{'-sdist' if sdist else ''}"
    if folder.is_dir():
        return folder
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home, prefix=".fetch-") as scratch:
        unpacked = Path(scratch) / "unpacked"
        _unpack(_download(package, version, sdist, Path(scratch)), unpacked)
        try:
            unpacked.rename(folder)
        except OSError:  # another test run was faster
            assert folder.is_dir()
    return folder


def _download(package: str, version: str, sdist: bool, scratch: Path) -> Path:
    kind = ["--no-binary", package] if sdist else ["--only-binary", ":all:"]
    pip = [sys.executable, "-m", "pip", "download", *QUIET, "--no-deps", *kind, "-d", str(scratch), f"{package}=={version}"]
    done = subprocess.run(pip, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        pytest.skip(f"pip cannot deliver {package}=={version}: {done.stderr.strip()[-300:]}")
    [archive] = [path for path in scratch.iterdir() if path.name.endswith((".whl", ".tar.gz", ".zip"))]
    return archive


def _unpack(archive: Path, folder: Path) -> None:
    if archive.name.endswith(".tar.gz"):
        with tarfile.open(archive) as packed:
            packed.extractall(folder, filter="data")
    else:
        with zipfile.ZipFile(archive) as packed_wheel:  # extractall keeps every name inside the folder
            packed_wheel.extractall(folder)
    _lift(folder)


def _lift(folder: Path) -> None:
    """A source distribution's only folder becomes the folder itself."""
    entries = list(folder.iterdir())
    if len(entries) == 1 and entries[0].is_dir():
        inner = entries[0].rename(folder.with_name("inner"))
        folder.rmdir()
        shutil.move(inner, folder)


def npm_asset(name: str, version: str) -> Path:
    """The `models` folder of one npm package (tokenizer files), kept beside the others. Skipped where npm cannot deliver it."""
    home = Path(os.environ.get("LUTHIER_TEST_HOME") or Path(tempfile.gettempdir()) / "luthier-test-home") / "assets"
    folder = home / f"{name.rpartition('/')[2]}-{version}-npm"
    if folder.is_dir():
        return folder
    if shutil.which("npm") is None:
        pytest.skip(f"npm is not here, which would deliver {name}@{version}")
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home, prefix=".fetch-") as scratch:
        done = subprocess.run(["npm", "pack", "--silent", f"{name}@{version}"], cwd=scratch, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"npm cannot deliver {name}@{version}: {done.stderr.strip()[-300:]}")
        [archive] = Path(scratch).glob("*.tgz")
        with tarfile.open(archive) as packed:
            packed.extractall(scratch, members=[one for one in packed if one.name.startswith("package/models/")], filter="data")
        shutil.copytree(Path(scratch) / "package" / "models", folder)
    return folder
