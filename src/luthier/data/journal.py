"""The journal of a making: one durable line for each request that was sent and each answer that came, so that a killed making goes on.

Lines are only ever added. A line that a kill cut in half stays where it is and is followed by a line of kind "resumed".
"""

import fcntl
import json
from pathlib import Path
from typing import Any, BinaryIO

from luthier import files
from luthier.errors import CallError, DataError

Entry = dict[str, Any]


class Journal:
    """`entries` are all whole lines after the first, which holds the call. Made by `begin` or `resume`; one process at a time."""

    def __init__(self, path: Path, call: Entry, entries: list[Entry], lock: BinaryIO) -> None:
        self.path, self.call, self.entries = path, call, entries
        self._lock = lock  # held until `close`, or as long as this process lives

    def add(self, entry: Entry) -> None:
        """Write one line, and have it on the disk when this returns."""
        _add(self.path, entry)
        self.entries.append(entry)

    def close(self) -> None:
        self._lock.close()


def begin(path: Path, call: Entry) -> Journal:
    """A new journal for this call."""
    files.make_folder(path.parent)
    files.write_text(path, json.dumps({"kind": "call", **call}) + "\n")
    return Journal(path, call, [], _locked(path))


def resume(path: Path, call: Entry, now: str) -> Journal:
    """The journal that an earlier call like this one left. One without any answer binds nobody: it is begun anew if the calls differ.

    Raises CallError where the calls differ in anything but their `id`, and DataError where the journal is damaged or in use.
    """
    lock = _locked(path)
    try:
        content = path.read_bytes()
        first, *entries = _entries(path, content)
        earlier = {name: value for name, value in first.items() if name != "kind"}
        if not any(entry["kind"] == "answered" for entry in entries) and _differing(earlier, call):
            lock.close()
            return begin(path, call)
        _check_same(path, earlier, call)
    except BaseException:
        lock.close()
        raise
    # The line feed ends a line that was cut.
    files.append_line(path, ("" if content.endswith(b"\n") else "\n") + json.dumps({"kind": "resumed", "at": now}))
    files.sync(path)
    return Journal(path, earlier, entries, lock)


def _add(path: Path, entry: Entry) -> None:
    files.append_line(path, json.dumps(entry, ensure_ascii=True))
    files.sync(path)


def _locked(path: Path) -> BinaryIO:
    file = open(path, "rb")  # noqa: SIM115 - the lock lives as long as the file is open
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise DataError("is in use by another process that makes rows", where=str(path), next_step="wait until it has ended, or stop it") from error
    return file


def _entries(path: Path, content: bytes) -> list[Entry]:
    lines = content.split(b"\n")
    entries: list[Entry] = []
    for number, line in enumerate(lines, start=1):
        entry = _entry(line)
        if entry is not None:
            entries.append(entry)
        elif line.strip() and number < len(lines) and (_entry(lines[number]) or {}).get("kind") != "resumed":
            raise _damaged(path, number)
    if not entries or entries[0].get("kind") != "call":
        raise _damaged(path, 1)
    return entries


def _entry(line: bytes) -> Entry | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None


def _damaged(path: Path, line: int) -> DataError:
    return DataError("this line of the journal cannot be read", where=f"{path}:{line}", next_step="choose another --to; what is here stays as it is")


def _check_same(path: Path, earlier: Entry, call: Entry) -> None:
    if name := _differing(earlier, call):
        raise CallError(
            f"was begun with {name} {_short(earlier.get(name))}; this call has {_short(call[name])}",
            where=str(path),
            next_step="the same call as before goes on with it; another one needs another --to",
        )


def _differing(earlier: Entry, call: Entry) -> str:
    """The name of the first thing that the calls differ in but their id, or ""."""
    return next((name for name, value in call.items() if name != "id" and earlier.get(name) != value), "")


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."
