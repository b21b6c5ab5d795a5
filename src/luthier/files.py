"""The filesystem seam: what a run and its checkpoints keep is written, renamed and synced here, so that a test can fail every single call.

Writing is atomic: a reader sees the old file or the new one, never half of one. Past it write run_lock, whose file is its lock and is written
through the descriptor that holds it, and libraries that fill a staging folder by themselves, which is synced and named here.
"""

import errno
import hashlib
import json
import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from luthier.disk import Buffer, Disk
from luthier.errors import CallError, LuthierError, RunError

disk = Disk()
# An fsync that the file system does not offer is no loss; a full or broken disk is.
NO_FSYNC = {errno.EINVAL, errno.EPERM, errno.ENOTSUP}
CANNOT_BE_MADE = {errno.ENOENT, errno.ENAMETOOLONG, errno.ELOOP, errno.EIO, errno.EFBIG}
OF_RUST = re.compile(r"\(os error (\d+)\)")
# Small pieces are gathered to so many bytes before they are written, and large ones cut.
CHUNK_BYTES = 1 << 20
# What is being made or taken away, by the process of that number on that host.
UNFINISHED = re.compile(r"\.(?P<name>.+)\.(?P<process>\d+)(@(?P<host>[\w-]+))?\.(?P<kind>tmp|staging|trash|old)")
# Processes of another host cannot be looked at: what they began is left alone until nothing of it changed for so long.
ABANDONED_AFTER_S = 24 * 3600.0


def sync(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    descriptor = disk.open_written(path)
    try:
        _sync(descriptor)
    finally:
        disk.close(descriptor)


def _sync(descriptor: int) -> None:
    try:
        disk.sync(descriptor)
    except OSError as error:
        if error.errno not in NO_FSYNC:
            raise


def unfinished_name(path: Path, kind: str) -> Path:
    """Where this process makes (`tmp`, `staging`), takes away (`trash`) or replaces (`old`) what is called `path`; `sweep` knows such names."""
    return path.with_name(f".{path.name}.{os.getpid()}@{_host()}.{kind}")


def _host() -> str:
    """This host's name, as a part of a file's name."""
    return re.sub(r"[^A-Za-z0-9-]", "-", platform.node())[:40] or "nameless"


@contextmanager
def readable_errors(path: Path) -> Iterator[None]:
    """Turn the errors of the operating system that a user can mend into words, those too that a library written in Rust tells in its own."""
    try:
        yield
    except LuthierError:
        raise
    except Exception as error:
        told = error if isinstance(error, OSError) else _told_by_rust(error)
        if told is None or (found := _in_words(told, path)) is None:
            raise
        raise found from error


def _told_by_rust(error: Exception) -> OSError | None:
    """What safetensors and tokenizers make of an error of the operating system is an exception of another class."""
    number = OF_RUST.search(str(error))
    return OSError(int(number[1]), os.strerror(int(number[1]))) if number else None


def _in_words(error: OSError, path: Path) -> RunError | None:
    where = str(error.filename or path)
    elsewhere = "output_dir (for the cache: LUTHIER_HOME)"
    if error.errno == errno.EDQUOT:
        return RunError("your quota on this disk is used up", where=where, next_step=f"free some space or set {elsewhere} to another disk")
    if error.errno == errno.ENOSPC and not has_room_for_a_file(path):
        problem = f"the disk takes no more files: its inodes are used up ({free_bytes(path) / 1e6:.0f} MB free)"
        return RunError(problem, where=where, next_step=f"delete files there that nobody needs, or set {elsewhere} to another disk")
    if error.errno == errno.ENOSPC:
        problem = f"the disk is full ({free_bytes(path) / 1e6:.0f} MB free)"
        return RunError(problem, where=where, next_step=f"free some space or set {elsewhere} to another disk")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return RunError("not writable", where=where, next_step=f"choose another {elsewhere}, or mend its rights")
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return RunError("a file stands where a folder is needed", where=where, next_step=f"move it, or choose another {elsewhere}")
    if error.errno in CANNOT_BE_MADE:
        return RunError(f"cannot be written ({error.strerror})", where=where, next_step=f"choose another {elsewhere}")
    return None


def refuse_existing(path: Path) -> None:
    """Raises CallError where something stands at `path` already (but for an empty folder): a file of the user's is never overwritten."""
    if os.path.lexists(path) and not (path.is_dir() and not any(path.iterdir())):
        raise CallError("exists already, and nothing is overwritten", where=str(path), next_step="choose another name, or move it away")


def existing_parent(path: Path) -> Path:
    """The nearest folder above `path` that exists."""
    while not path.exists():
        path = path.parent
    return path


def free_bytes(path: Path) -> int:
    """What is free where `path` is or will be."""
    return shutil.disk_usage(existing_parent(path)).free


def has_room_for_a_file(path: Path) -> bool:
    """Whether the file system can make one more file; some (btrfs) count none and always can."""
    counted = os.statvfs(existing_parent(path))
    return counted.f_files == 0 or counted.f_favail > 0


def make_folder(path: Path) -> Path:
    """Make a folder and those above it, where they are missing."""
    with readable_errors(path):
        if not path.is_dir():
            if path.parent != path:
                make_folder(path.parent)
            try:
                disk.make_folder(path)
            except FileExistsError:
                if not path.is_dir():  # made by another process just now
                    raise
            sync(path.parent)  # else a power cut may take all of it away
    return path


def write_bytes(path: Path, content: bytes) -> None:
    """Replace `path` with `content`, atomically and durably."""
    write_pieces(path, [content])


def write_pieces(path: Path, pieces: Iterable[Buffer]) -> None:
    """Replace `path` with the pieces one after the other, atomically and durably, however large the whole is."""
    temporary = unfinished_name(path, "tmp")
    try:
        with readable_errors(path):  # looks at the disk before what stands there is taken away
            write_new(temporary, pieces)
            disk.rename(temporary, path)
            sync(path.parent)
    except BaseException:
        with suppress(OSError):
            disk.remove(temporary)
        raise


def write_new(path: Path, pieces: Iterable[Buffer]) -> tuple[int, str]:
    """Write a file that nobody reads yet (in a staging folder), and sync it. Gives its size in bytes and its sha256, made on the way."""
    size, digest = 0, hashlib.sha256()
    descriptor = disk.open_new(path)
    try:
        for chunk in _chunks(pieces):
            digest.update(chunk)
            _write_whole(descriptor, chunk)
            size += len(chunk)
        _sync(descriptor)
    finally:
        disk.close(descriptor)
    return size, digest.hexdigest()


def _chunks(pieces: Iterable[Buffer]) -> Iterator[Buffer]:
    """The same bytes in pieces that are worth a call."""
    gathered = bytearray()
    for piece in pieces:
        if len(gathered) + len(piece) > CHUNK_BYTES and gathered:
            yield bytes(gathered)
            gathered.clear()
        if len(piece) < CHUNK_BYTES:
            gathered += piece
        else:
            view = memoryview(piece)
            yield from (view[start : start + CHUNK_BYTES] for start in range(0, len(view), CHUNK_BYTES))
    if gathered:
        yield bytes(gathered)


def _write_whole(descriptor: int, data: Buffer) -> None:
    view = memoryview(data)
    while view:
        view = view[disk.write(descriptor, view) :]  # a full disk may take a part, and say so at the next call


def write_text(path: Path, text: str) -> None:
    # A lone surrogate, which JSON can spell and UTF-8 cannot, becomes its JSON escape.
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_lines(path: Path, rows: Iterable[Any]) -> None:
    """One JSON value a line."""
    write_pieces(path, ((json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace") for row in rows))


def append_line(path: Path, line: str) -> None:
    """Write a line at the end of a file: the whole line, or (where the disk is full) nothing of it."""
    with readable_errors(path):
        descriptor = disk.open_end(path)
        try:
            before = os.fstat(descriptor).st_size
            try:
                _write_whole(descriptor, (line + "\n").encode("utf-8", "backslashreplace"))
            except OSError:
                with suppress(OSError):
                    disk.truncate(descriptor, before)
                raise
        finally:
            disk.close(descriptor)


def read_json(path: Path) -> Any:
    """The JSON value in `path`. Raises RunError where it is missing or cut."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunError("is missing", where=str(path), next_step="check the folder's name, or run the step that writes it") from error
    except ValueError as error:
        raise RunError(f"is not whole JSON ({error})", where=str(path), next_step="delete it and run the step that writes it") from error


def sha256(path: Path) -> str:
    with disk.open_to_read(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def build_folder(path: Path, fill: Callable[[Path], None]) -> Path:
    """Make the folder `path` whole or not at all: `fill` writes a staging folder, which is synced and renamed into place.

    An older folder of that name is replaced only after the new one is complete.
    """
    staging = unfinished_name(path, "staging")
    with readable_errors(path):
        make_folder(path.parent)
        discard(staging)
        sweep(path.parent, only=path.name)
    try:
        with readable_errors(path):  # looks at the disk before what stands there is taken away
            disk.make_folder(staging)
            fill(staging)
            for file in staging.rglob("*"):
                sync(file)
            sync(staging)
            replace_folder(staging, path)
            sync(path.parent)
    except BaseException:
        discard(staging)
        raise
    return path


def replace_folder(new: Path, path: Path) -> None:
    """Rename `new` to `path`; what stood there is moved away first and deleted last."""
    if not path.exists():
        disk.rename(new, path)
        return
    old = unfinished_name(path, "old")
    disk.rename(path, old)
    disk.rename(new, path)
    discard(old)


def remove_folder(path: Path) -> None:
    """Delete a folder whole or not at all, as its name sees it: renamed first, emptied second."""
    trash = unfinished_name(path, "trash")
    with readable_errors(path):
        disk.rename(path, trash)
        sync(path.parent)  # else a power cut may leave its name with nothing in it
        _remove_tree(trash)


def _remove_tree(path: Path) -> None:
    for entry in sorted(path.iterdir()):
        if entry.is_dir() and not entry.is_symlink():
            _remove_tree(entry)
        else:
            disk.remove(entry)
    disk.remove_folder(path)


def discard(path: Path) -> None:
    """Delete what was not finished, a file or a folder, as far as the disk lets us: `sweep` finds the rest later."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            _remove_tree(path)
        elif os.path.lexists(path):
            disk.remove(path)


def sweep(folder: Path, *, only: str = "", own: bool = False) -> None:
    """Discard what processes that are dead left unfinished in `folder` (`only` what was to be called so).

    With `own` also what this process left, which makes nothing there now; that of another host after ABANDONED_AFTER_S. What was about to be
    replaced, and was not, gets its name back.
    """
    for entry in sorted(folder.iterdir()) if folder.is_dir() else []:
        found = UNFINISHED.fullmatch(entry.name)
        if not found or (only and found["name"] != only) or _may_be_made(entry, int(found["process"]), found["host"], own=own):
            continue
        if found["kind"] == "old" and not os.path.lexists(path := folder / found["name"]):
            disk.rename(entry, path)
        else:
            discard(entry)


def _may_be_made(entry: Path, process: int, host: str | None, *, own: bool) -> bool:
    """Whether the process that began `entry` may still be at it."""
    if host not in (None, _host()):
        with suppress(OSError):  # something of it went away while it was looked at
            return time.time() - max(path.lstat().st_mtime for path in (entry, *entry.rglob("*"))) < ABANDONED_AFTER_S
        return True
    return not own if process == os.getpid() else answers(process)


def answers(process: int) -> bool:
    """Whether there is a process of this number on this host (signal 0 is delivered to nobody)."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True  # another user's
    return True


def folder_bytes(path: Path) -> int:
    return sum(file.lstat().st_size for file in path.rglob("*") if file.is_file())


def home() -> Path:
    """The cache folder: LUTHIER_HOME, else the platform's own place for caches."""
    if chosen := os.environ.get("LUTHIER_HOME"):
        return Path(chosen).expanduser()
    try:
        if sys.platform == "darwin":
            return Path.home() / "Library" / "Caches" / "luthier"
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "luthier"
    except RuntimeError as error:
        raise RunError("no home folder is known for this user", where="HOME", next_step="export LUTHIER_HOME=FOLDER, for the cache") from error
