"""Disks that fail, end the process or lose the power at a call that the test names. Torch-free, so that every case can be run."""

import errno
import functools
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luthier import files
from luthier.disk import Disk

CALLS = [name for name in vars(Disk) if not name.startswith("_")]


@contextmanager
def using(disk: Disk) -> Iterator[Disk]:
    """Every call of luthier.files goes to `disk` while this lasts."""
    before, files.disk = files.disk, disk
    try:
        yield disk
    finally:
        files.disk = before


class Intercepted(Disk):
    """Counts the calls and hands each to `meet(name, method, arguments)`."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def __getattribute__(self, name: str) -> Any:
        value = object.__getattribute__(self, name)
        return functools.partial(self._called, name, value) if name in CALLS else value

    def _called(self, name: str, method: Callable[..., Any], *arguments: Any) -> Any:
        self.calls.append((name, arguments))
        return self.meet(name, method, arguments)

    def meet(self, name: str, method: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        return method(*arguments)


class Killed(Intercepted):
    """Ends the process at call number `at` (from 0): `before` it, `after` it, or `half`-way through what it writes."""

    def __init__(self, at: int, mode: str) -> None:
        super().__init__()
        self.at, self.mode = at, mode

    def meet(self, name: str, method: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        if len(self.calls) - 1 != self.at:
            return method(*arguments)
        if name == "write" and self.mode == "half":
            os.write(arguments[0], memoryview(arguments[1])[: len(arguments[1]) // 2])
        elif self.mode == "after":
            method(*arguments)
        os._exit(9)


class Failing(Intercepted):
    """From call number `at` (from 0) on, `count` calls that need the disk fail with `number`; a write may take a part first, as a full disk does."""

    def __init__(self, at: int, number: int, count: int = 10**9) -> None:
        super().__init__()
        self.at, self.number, self.count = at, number, count

    def meet(self, name: str, method: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        here = len(self.calls) - 1
        # Closing, and taking away what was not finished, work on a full disk.
        works = name in ("close", "open_to_read") or (self.number in (errno.ENOSPC, errno.EDQUOT) and name in ("remove", "remove_folder", "truncate"))
        if works or not self.at <= here < self.at + self.count:
            return method(*arguments)
        if name == "write" and here == self.at:
            return os.write(arguments[0], memoryview(arguments[1])[: len(arguments[1]) // 2 + 1])
        raise OSError(self.number, os.strerror(self.number))


# The power goes: a disk that remembers what was synced


@dataclass
class Node:
    """A file or a folder, with what was done to it, in order: (number of the call, what, arguments)."""

    is_folder: bool
    done: list[tuple[int, str, tuple[Any, ...]]] = field(default_factory=list)
    entries: dict[str, "Node"] = field(default_factory=dict)  # as a running system sees them
    size: int = 0


class Remembering(Intercepted):
    """Does everything below `root`, and remembers it, so that `after_power_cut` can say what a disk may hold that lost its power."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root, self.top = root, Node(is_folder=True)
        self.open: dict[int, Node] = {}

    def _node(self, path: Path) -> Node:
        node = self.top
        for part in path.relative_to(self.root).parts:
            node = node.entries[part]
        return node

    def _did(self, node: Node, what: str, *arguments: Any) -> None:
        node.done.append((len(self.calls), what, arguments))

    def meet(self, name: str, method: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        result = method(*arguments)
        remember = getattr(self, f"_{name}", None)
        if remember:
            remember(result, *arguments)
        return result

    def _open_new(self, descriptor: int, path: Path) -> None:
        folder = self._node(path.parent)
        if path.name not in folder.entries:
            self._make(path, is_folder=False)
        self.open[descriptor] = node = folder.entries[path.name]
        self._did(node, "truncate", 0)
        node.size = 0

    def _make(self, path: Path, *, is_folder: bool) -> None:
        folder, node = self._node(path.parent), Node(is_folder)
        folder.entries[path.name] = node
        self._did(folder, "add", path.name, node)

    def _make_folder(self, _: None, path: Path) -> None:
        self._make(path, is_folder=True)

    def _open_written(self, descriptor: int, path: Path) -> None:
        self.open[descriptor] = self._node(path)

    def _write(self, taken: int, descriptor: int, data: Any) -> None:
        node = self.open[descriptor]
        self._did(node, "write", node.size, bytes(memoryview(data)[:taken]))
        node.size += taken

    def _sync(self, _: None, descriptor: int) -> None:
        self._did(self.open[descriptor], "sync")

    def _rename(self, _: None, old: Path, new: Path) -> None:
        folder = self._node(old.parent)
        folder.entries[new.name] = node = folder.entries.pop(old.name)
        self._did(folder, "rename", old.name, new.name, node)

    def _remove(self, _: None, path: Path) -> None:
        folder = self._node(path.parent)
        self._did(folder, "remove", path.name, folder.entries.pop(path.name))

    _remove_folder = _remove

    def after_power_cut(self, at: int, to: Path, draw: random.Random) -> None:
        """Make in the folder `to` what may be left when the power goes after call number `at`: what was synced, and of the rest any part."""
        _left(self.top, at, to, draw)


def _left(node: Node, at: int, to: Path, draw: random.Random) -> None:
    done = [(what, arguments) for number, what, arguments in node.done if number <= at]
    synced = max((place for place, (what, _) in enumerate(done) if what == "sync"), default=-1)
    sure, loose = done[:synced], done[synced + 1 :]
    if not node.is_folder:
        to.write_bytes(_content(sure, loose, draw))
        return
    to.mkdir()
    # Some file systems keep the order of names and lose the last ones, some lose any.
    kept = loose[: draw.randint(0, len(loose))] if draw.random() < 0.5 else [one for one in loose if draw.random() < 0.5]
    entries: dict[str, Node] = {}
    for what, arguments in [*sure, *kept]:
        if what == "rename":
            old, new, moved = arguments
            if entries.get(old) is moved:
                del entries[old]
            entries[new] = moved
        elif what == "add":
            entries[arguments[0]] = arguments[1]
        elif what == "remove" and entries.get(arguments[0]) is arguments[1]:
            del entries[arguments[0]]
    for name, child in entries.items():
        _left(child, at, to / name, draw)


def _content(sure: list[Any], loose: list[Any], draw: random.Random) -> bytes:
    """What was synced, and sectors or pages of what was not: some lost, with zeros before those that are there."""
    content = bytearray()
    for what, arguments in sure:
        _apply(content, what, arguments)
    block = draw.choice([512, 4096])
    pieces: list[tuple[str, Any]] = []
    for what, arguments in loose:
        if what == "write":
            start, data = arguments
            pieces += [("write", (start + place, data[place : place + block])) for place in range(0, len(data), block)]
        else:
            pieces.append((what, arguments))
    share = draw.random()
    kept = [piece for piece in pieces if draw.random() < share]
    if draw.random() < 0.5:
        draw.shuffle(kept)
    for what, arguments in kept:
        _apply(content, what, arguments)
    if draw.random() < 0.2 and loose:  # the length is kept and the bytes are not
        end = max((arguments[0] + len(arguments[1]) for what, arguments in loose if what == "write"), default=len(content))
        content.extend(bytes(max(0, end - len(content))))
    return bytes(content)


def _apply(content: bytearray, what: str, arguments: tuple[Any, ...]) -> None:
    if what == "truncate":
        del content[arguments[0] :]
    elif what == "write":
        start, data = arguments
        content.extend(bytes(max(0, start + len(data) - len(content))))
        content[start : start + len(data)] = data
