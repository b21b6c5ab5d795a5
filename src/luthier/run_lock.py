"""Who works in a run folder: one process at a time, which holds the folder's lock file.

RUN/lock.json names the host, the process, when it started and what it does. Where the file system has flock, it is held too, so that the
lock ends with the process, however that ends. A lock whose process is gone is taken, and that is said:

the same host     its number is free, belongs to a process that started at another time, or the machine was started again since
another host      the file was not touched for SILENT_SECONDS, by the file system's own clock (its holder touches it every BEAT_SECONDS)
"""

import contextlib
import datetime
import errno
import fcntl
import json
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from luthier import files
from luthier.errors import RunInUse

NAME = "lock.json"
BEAT_SECONDS = 20.0
# Network file systems show another host's times up to a minute late.
SILENT_SECONDS = 300.0
# Without flock two processes may write at the same moment; after this long each reads whose name stayed.
SETTLE_SECONDS = 0.2
# Whoever finds a lock that is just being written, taken away, or let go by a process that is ending looks again.
TRIES, PAUSE_SECONDS = 50, 0.02


@dataclass(frozen=True, slots=True)
class Holder:
    """The process that works in a run. `started` and `boot` tell it from another one that was given its number later."""

    host: str
    pid: int
    started: str
    boot: str
    doing: str
    since: str

    def __str__(self) -> str:
        return f"pid {self.pid} on {self.host} ({self.doing}) since {self.since}"


@contextmanager
def held(folder: Path, doing: str, say: Callable[[str], None] = lambda line: None) -> Iterator[None]:
    """Hold the lock of the run in `folder` while the block runs. Raises RunInUse where another process has it."""
    path, me = folder / NAME, _this_process(doing)
    descriptor = _take(path, me, say)
    done = threading.Event()
    threading.Thread(target=_beat, args=(descriptor, done), daemon=True).start()
    try:
        yield
    finally:
        done.set()
        if _read(path) == me:
            path.unlink(missing_ok=True)
        os.close(descriptor)


def holder(folder: Path) -> Holder | None:
    """The living process that works in the run, or None."""
    found = _read(folder / NAME)
    return found if found and not _gone(found, folder / NAME) else None


def require_free(folder: Path) -> None:
    """Raises RunInUse where a process works in the run."""
    if found := holder(folder):
        raise _in_use(folder, found)


def require_not_taken(folder: Path) -> None:
    """Raises RunInUse where another process has the run that this one works in: it was asleep for long, or its lock was deleted."""
    if (found := _read(folder / NAME)) and (found.pid, found.started, found.boot) != (os.getpid(), _started(os.getpid()), _boot()):
        raise RunInUse(f"this process no longer has the run, which is held by {found}", where=str(folder), next_step="nothing more is written here")


def _take(path: Path, me: Holder, say: Callable[[str], None]) -> int:
    """A descriptor of the lock file, which is now ours."""
    for _ in range(TRIES):
        with files.readable_errors(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            if _take_file(path, descriptor, me, say):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        time.sleep(PAUSE_SECONDS)
    raise _in_use(path.parent, _read(path))


def _take_file(path: Path, descriptor: int, me: Holder, say: Callable[[str], None]) -> bool:
    """Whether the file that is open is now our lock; else the caller looks again."""
    has_flock = True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            if (found := _read(path)) and not _gone(found, path):
                raise _in_use(path.parent, found) from error
            return False
        has_flock = False  # ENOLCK, ENOTSUP, ENOSYS ...
    if not _is_at(descriptor, path):
        return False
    if left := _read(path):
        reason = _gone(left, path)
        if not reason:
            raise _in_use(path.parent, left)
        say(f"the lock of {left} is taken: {reason}")
        path.unlink(missing_ok=True)  # a new file, so that a process that was only asleep sees that the run is no longer its own
        return False
    with files.readable_errors(path):
        os.pwrite(descriptor, (json.dumps(asdict(me)) + "\n").encode(), 0)
        os.fsync(descriptor)
    if not has_flock:
        time.sleep(SETTLE_SECONDS)
    found = _read(path)
    if found != me:
        raise _in_use(path.parent, found)
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        there = os.stat(path)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (os.fstat(descriptor).st_dev, os.fstat(descriptor).st_ino)


def _in_use(folder: Path, found: Holder | None) -> RunInUse:
    way_out = "wait until it has ended, or stop it"
    if found and found.host != platform.node():
        way_out = f"wait until it has ended; where it has ended for certain, delete {folder / NAME}"
    return RunInUse(f"run in use by {found or 'a process that is just beginning'}", where=str(folder), next_step=way_out)


def _read(path: Path) -> Holder | None:
    """Who wrote the lock; None where there is none, or nothing whole in it."""
    try:
        return Holder(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _gone(left: Holder, path: Path) -> str:
    """How it is known that the process of a lock has ended, or "" where it lives or nobody can tell."""
    if left.host != platform.node():
        with contextlib.suppress(FileNotFoundError):  # let go just now
            silent = _file_system_now(path.parent) - path.stat().st_mtime
        return f"it is of another host, and was not touched for {silent:.0f} s" if silent > SILENT_SECONDS else ""
    if left.boot != _boot():
        return "the machine was started again since"
    started = _started(left.pid)
    if started is None:
        return "that process has ended"
    return "" if started == left.started else "that process has ended, and another one has its number"


def _beat(descriptor: int, done: threading.Event) -> None:
    while not done.wait(BEAT_SECONDS):
        with contextlib.suppress(OSError):
            os.utime(descriptor)


def _file_system_now(folder: Path) -> float:
    """The time by the clock of the file system, which stamps the locks of all hosts."""
    probe = files.unfinished_name(folder / "now", "tmp")
    try:
        probe.touch()
        now = probe.stat().st_mtime
        probe.unlink()
    except OSError:  # a folder that one may only read
        return time.time()
    return now


def _this_process(doing: str) -> Holder:
    since = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%dT%H:%M:%SZ}"
    return Holder(platform.node(), os.getpid(), _started(os.getpid()) or "", _boot(), doing, since)


def _started(pid: int) -> str | None:
    """When a process started, in ticks since the machine did ("" where the system does not tell); None where there is none."""
    try:
        # After the name, which may hold blanks and parentheses: the state, and 19 fields later the start.
        state, *fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None if Path("/proc/self/stat").exists() or not files.answers(pid) else ""
    return None if state in "ZX" else fields[18]


def _boot() -> str:
    """Which start of the machine this is; "" where the system does not tell."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""
