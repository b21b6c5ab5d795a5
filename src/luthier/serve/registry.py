"""The names that a server answers to: its base, and adapters by name, loaded when they are first asked for.

The folders are those of the command line and those in the registry folder; a name has no character that leads out of it. An adapter is known by
its content: a folder that has changed is another adapter, and requests that began with the old one end with it. What was loaded keeps serving
while its folder is written anew, is broken, or is gone: only `unload` ends it, or the others that were asked for since.
"""

import logging
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from luthier.engine.by_row import RowAdapter
from luthier.errors import CallError, LuthierError
from luthier.models.adapters import CONFIG, WEIGHTS
from luthier.serve import contract
from luthier.serve.faults import Fault, unknown_model

LOG = logging.getLogger("luthier.serve")
MOST_READS = 4
SETTLED_S = 1.0  # what has not changed for so long is not about to become whole
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
Load = Callable[[Path], RowAdapter]
Promised = Callable[[Path], str | None]


@dataclass(frozen=True, slots=True)
class Served:
    """One name: where its adapter lies (None: the base), and the system message of requests that have none."""

    name: str
    folder: Path | None = None
    system: str | None = None
    created: int = 0


@dataclass(frozen=True, slots=True)
class _Loaded:
    served: Served
    adapter: RowAdapter
    seen: tuple[int, ...]  # sizes and times of its files when it was read
    refused: tuple[int, ...] = ()  # those of files that came after it and could not be read


class Registry:
    """Names and the adapters behind them. `load` reads one; at most `most_loaded` are kept, those that were asked for last.

    `promised` gives the system message of the contract beside an adapter, or raises RunError where that does not hold.
    """

    def __init__(
        self, base: Served, adapters: list[Served], folder: Path | None, load: Load, most_loaded: int, promised: Promised = lambda _: None
    ) -> None:
        self.base, self.folder, self._load, self.most_loaded, self._promised = base, folder, load, most_loaded, promised
        self._given = {one.name: one for one in adapters}
        for name in [base.name, *(one.name for one in adapters)]:
            check_name(name)
        if len(self._given) < len(adapters) or base.name in self._given:
            twice = next(name for name in [base.name, *self._given] if [base.name, *(one.name for one in adapters)].count(name) > 1)
            raise CallError(f"two models would be called {twice}", where="serve", next_step="name them: NAME=FOLDER")
        self._loaded: OrderedDict[str, _Loaded] = OrderedDict()
        self._unloaded: set[str] = set()
        self._lock = threading.Lock()

    def all(self) -> list[Served]:
        """Every name that is answered to: the base first."""
        found = self._adapters()
        with self._lock:
            found |= {name: kept.served for name, kept in self._loaded.items() if name not in found}
        return [self.base, *(one for one in found.values() if one.name not in self._unloaded)]

    def served(self, name: str) -> Served:
        """What a name stands for; its system message is known once its adapter is loaded. Raises a Fault (404) for one that is not served."""
        if name == self.base.name:
            return self.base
        found = None if name in self._unloaded else self._found(name)
        if found is None:
            raise unknown_model(name)
        with self._lock:
            kept = self._loaded.get(name)
        return kept.served if kept else found

    def ready(self, name: str) -> RowAdapter | None:
        """The adapter of a name where it is loaded and its files are as they were, are gone, or could not be read; else None."""
        with self._lock:
            kept = self._loaded.get(name)
            if kept is None or name in self._unloaded:
                return None
            self._loaded.move_to_end(name)
        assert kept.served.folder is not None
        seen = _seen(kept.served.folder)
        return kept.adapter if seen in (kept.seen, kept.refused, ()) else None

    def load(self, name: str, *, anew: bool = False) -> RowAdapter:
        """Read the adapter of a name, again if need be.

        Where it cannot be served, the one that is loaded goes on to be; where there is none, or (`anew`) nothing else was asked for, a Fault is
        raised with the reason.
        """
        if not anew and (ready := self.ready(name)):  # another request was faster
            return ready
        served = self.served(name)
        assert served.folder is not None
        try:
            adapter, system, seen = self._read(name, served.folder)
        except Fault as fault:
            with self._lock:
                kept = self._loaded.get(name)
                if kept is None or anew:
                    raise
                self._loaded[name] = replace(kept, refused=_seen(served.folder))
            LOG.warning("%s; the one that is loaded goes on", fault.message)
            return kept.adapter
        with self._lock:
            self._loaded[name] = _Loaded(replace(served, system=system), adapter, seen)
            self._loaded.move_to_end(name)
            while len(self._loaded) > self.most_loaded:
                self._loaded.popitem(last=False)
        return adapter

    def _read(self, name: str, folder: Path) -> tuple[RowAdapter, str | None, tuple[int, ...]]:
        """The adapter in a folder, its system message, and how its files were seen before and after: what is replaced meanwhile is read again."""
        for _ in range(MOST_READS):
            seen = _seen(folder)
            try:
                adapter, system = self._load(folder), self._promised(folder)
            except (LuthierError, OSError) as error:
                if _seen(folder) == seen:
                    raise Fault(422, "adapter_unusable", f"adapter {name} cannot be loaded: {_without_places(error, folder)}", "model") from error
                continue
            if _seen(folder) == seen:
                return adapter, system, seen
        raise Fault(503, "adapter_changes", f"adapter {name} is being written. Try again", "model", 1)

    def just_changed(self, name: str) -> bool:
        """Whether the files of a name changed a moment ago: two files cannot be replaced at once, and between them they fit nothing."""
        folder = self.served(name).folder
        try:
            newest = max(path.stat().st_ctime for path in _files(folder)) if folder else 0.0
        except OSError:  # one of them is away for this moment
            return True
        return time.time() - newest < SETTLED_S

    def keep(self, name: str, adapter: RowAdapter) -> None:
        """An adapter that was read already."""
        served = self.served(name)
        assert served.folder is not None
        self._loaded[name] = _Loaded(served, adapter, _seen(served.folder))

    def take_in(self, name: str) -> None:
        """Answer to a name again that was unloaded. Raises a Fault (404) for one without a folder."""
        if self._found(name) is None:
            raise unknown_model(name)
        self._unloaded.discard(name)

    def unload(self, name: str) -> RowAdapter | None:
        """Answer to a name no more; requests that are being answered are. Gives what was loaded."""
        if name == self.base.name:
            raise Fault(400, "base_model", "the base cannot be unloaded", "lora_name")
        self.served(name)
        self._unloaded.add(name)
        with self._lock:
            kept = self._loaded.pop(name, None)
        return kept.adapter if kept else None

    @property
    def loaded(self) -> list[str]:
        with self._lock:
            return list(self._loaded)

    def _found(self, name: str) -> Served | None:
        """What a name stands for; however many adapters lie in the registry folder, only this one is looked at."""
        if name in self._given:
            return self._given[name]
        if not NAME.fullmatch(name) or name == self.base.name:
            return None
        if self.folder is not None and _is_adapter(self.folder / name, self.folder):
            return _of_folder(self.folder / name)
        with self._lock:
            kept = self._loaded.get(name)
        return kept.served if kept else None

    def _adapters(self) -> dict[str, Served]:
        """Those of the command line, and the folders of the registry folder as they are now."""
        found = dict(self._given)
        if self.folder is not None and self.folder.is_dir():
            for place in sorted(self.folder.iterdir()):
                if NAME.fullmatch(place.name) and place.name not in found and place.name != self.base.name and _is_adapter(place, self.folder):
                    found[place.name] = _of_folder(place)
        return found


def _of_folder(place: Path) -> Served:
    try:
        created = int(place.stat().st_mtime)
    except OSError:  # it has just gone
        created = 0
    return Served(place.name, place, created=created)


def _is_adapter(place: Path, root: Path) -> bool:
    """A whole adapter that lies in the registry folder itself, and not behind a link that leads out of it."""
    return (place / CONFIG).is_file() and (place / WEIGHTS).is_file() and place.resolve().is_relative_to(root.resolve())


def _files(folder: Path) -> list[Path]:
    """What an adapter is read from."""
    beside = contract.beside(folder)
    return [folder / CONFIG, folder / WEIGHTS, *([beside] if beside else [])]


def _seen(folder: Path) -> tuple[int, ...]:
    try:
        found = [path.stat() for path in _files(folder)]
    except OSError:
        return ()
    return tuple(number for one in found for number in (one.st_size, one.st_mtime_ns, one.st_ino))


def _without_places(error: Exception, folder: Path) -> str:
    problem = error.problem if isinstance(error, LuthierError) else type(error).__name__
    return problem.replace(str(folder), "its folder")[:300]


def check_name(name: str) -> None:
    """Raises CallError for a name that could not stand in a request."""
    if not NAME.fullmatch(name):
        problem = f"{name!r} cannot be the name of a model"
        raise CallError(problem, where="serve", next_step="NAME=FOLDER, with a name of letters, digits, dots, dashes (64 at most)")


def now() -> int:
    return int(time.time())
