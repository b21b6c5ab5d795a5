"""The filesystem seam: the only place that writes, renames and syncs, so that a test can fail every single call.

Writing is atomic: a reader sees the old file or the new one, never half of one.
"""

import errno
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from luthier.errors import CallError, RunError

# An fsync that the file system does not offer is no loss; a full or broken disk is.
NO_FSYNC = {errno.EINVAL, errno.EPERM, errno.ENOTSUP}
CANNOT_BE_MADE = {errno.ENOENT, errno.ENAMETOOLONG, errno.ELOOP, errno.EIO}


def sync(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_FSYNC:
            raise
    finally:
        os.close(descriptor)


@contextmanager
def readable_errors(path: Path) -> Iterator[None]:
    """Turn the errors of the operating system that a user can mend into words."""
    try:
        yield
    except OSError as error:
        where = str(error.filename or path)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(path if path.exists() else existing_parent(path)).free
            raise RunError(
                f"the disk is full ({free / 1e6:.0f} MB free)",
                where=where,
                next_step="free some space or set output_dir (for the cache: LUTHIER_HOME) to another disk",
            ) from error
        elsewhere = "choose another output_dir (for the cache: LUTHIER_HOME)"
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise RunError("not writable", where=where, next_step=f"{elsewhere}, or mend its rights") from error
        if error.errno in (errno.ENOTDIR, errno.EEXIST):
            raise RunError("a file stands where a folder is needed", where=where, next_step="move it, or choose another name") from error
        if error.errno in CANNOT_BE_MADE:
            raise RunError(
                f"cannot be written ({error.strerror})", where=where, next_step="choose another output_dir (for the cache: LUTHIER_HOME)"
            ) from error
        raise


def refuse_existing(path: Path) -> None:
    """Raises CallError where something stands at `path` already (but for an empty folder): a file of the user's is never overwritten."""
    if os.path.lexists(path) and not (path.is_dir() and not any(path.iterdir())):
        raise CallError("exists already, and nothing is overwritten", where=str(path), next_step="choose another name, or move it away")


def existing_parent(path: Path) -> Path:
    """The nearest folder above `path` that exists."""
    while not path.exists():
        path = path.parent
    return path


def make_folder(path: Path) -> Path:
    with readable_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


def write_bytes(path: Path, content: bytes) -> None:
    """Replace `path` with `content`, atomically and durably."""
    write_pieces(path, [content])


def write_pieces(path: Path, pieces: Iterable[bytes]) -> None:
    """Replace `path` with the pieces one after the other, atomically and durably, however large the whole is."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with readable_errors(path):
        try:
            with open(temporary, "wb") as file:
                file.writelines(pieces)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        sync(path.parent)


def write_text(path: Path, text: str) -> None:
    # A lone surrogate, which JSON can spell and UTF-8 cannot, becomes its JSON escape.
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_lines(path: Path, rows: Iterable[Any]) -> None:
    """One JSON value a line."""
    write_pieces(path, ((json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace") for row in rows))


def append_line(path: Path, line: str) -> None:
    with readable_errors(path), open(path, "a", encoding="utf-8") as file:
        file.write(line + "\n")


def read_json(path: Path) -> Any:
    """The JSON value in `path`. Raises RunError where it is missing or cut."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunError("is missing", where=str(path), next_step="check the folder's name, or run the step that writes it") from error
    except ValueError as error:
        raise RunError(f"is not whole JSON ({error})", where=str(path), next_step="delete it and run the step that writes it") from error


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def build_folder(path: Path, fill: Callable[[Path], None]) -> Path:
    """Make the folder `path` whole or not at all: `fill` writes a staging folder, which is synced and renamed into place.

    An older folder of that name is replaced only after the new one is complete.
    """
    staging = path.with_name(f".{path.name}.{os.getpid()}.staging")
    with readable_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        try:
            fill(staging)
            for file in staging.rglob("*"):
                sync(file)
            sync(staging)
            replace_folder(staging, path)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        sync(path.parent)
    return path


def replace_folder(new: Path, path: Path) -> None:
    """Rename `new` to `path`; what stood there is moved away first and deleted last."""
    if not path.exists():
        os.rename(new, path)
        return
    trash = path.with_name(f".{path.name}.{os.getpid()}.trash")
    os.rename(path, trash)
    os.rename(new, path)
    shutil.rmtree(trash, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Delete a folder whole or not at all, as its name sees it: renamed first, emptied second."""
    trash = path.with_name(f".{path.name}.{os.getpid()}.trash")
    with readable_errors(path):
        os.rename(path, trash)
        shutil.rmtree(trash)


def folder_bytes(path: Path) -> int:
    return sum(file.lstat().st_size for file in path.rglob("*") if file.is_file())


def home() -> Path:
    """The cache folder: LUTHIER_HOME, else the platform's own place for caches."""
    if chosen := os.environ.get("LUTHIER_HOME"):
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "luthier"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "luthier"
