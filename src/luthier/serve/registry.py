"""The names that a server answers to: its base, and adapters by name, loaded when they are first asked for.

A name is looked up and never made into a path: the folders are those of the command line and those found in the registry folder. An adapter
is known by its content: a folder that has changed is another adapter, and requests that began with the old one end with it.
"""

import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from luthier.engine.by_row import RowAdapter
from luthier.errors import CallError, LuthierError
from luthier.models.adapters import CONFIG, WEIGHTS
from luthier.serve.faults import Fault, unknown_model

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
Load = Callable[[Path], RowAdapter]


@dataclass(frozen=True, slots=True)
class Served:
    """One name: where its adapter lies (None: the base), and the system message of requests that have none."""

    name: str
    folder: Path | None = None
    system: str | None = None
    created: int = 0


@dataclass(frozen=True, slots=True)
class _Loaded:
    adapter: RowAdapter
    seen: tuple[int, ...]  # sizes and times of its files when it was read


class Registry:
    """Names and the adapters behind them. `load` reads one; at most `most_loaded` are kept, those that were asked for last."""

    def __init__(self, base: Served, adapters: list[Served], folder: Path | None, load: Load, most_loaded: int) -> None:
        self.base, self.folder, self._load, self.most_loaded = base, folder, load, most_loaded
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
        return [self.base, *(one for one in self._adapters().values() if one.name not in self._unloaded)]

    def served(self, name: str) -> Served:
        """What a name stands for. Raises a Fault (404) for one that is not served."""
        if name == self.base.name:
            return self.base
        found = self._adapters().get(name)
        if found is None or name in self._unloaded:
            raise unknown_model(name)
        return found

    def ready(self, name: str) -> RowAdapter | None:
        """The adapter of a name where it is loaded and its files are as they were; else None."""
        folder = self.served(name).folder
        with self._lock:
            kept = self._loaded.get(name)
            if kept is None or folder is None or kept.seen != _seen(folder):
                return None
            self._loaded.move_to_end(name)
            return kept.adapter

    def load(self, name: str) -> RowAdapter:
        """Read the adapter of a name, again if need be. Raises a Fault with the reason where it cannot be served; the old one then stays."""
        if ready := self.ready(name):  # another request was faster
            return ready
        folder = self.served(name).folder
        assert folder is not None
        seen = _seen(folder)
        try:
            adapter = self._load(folder)
        except (LuthierError, OSError) as error:
            raise Fault(422, "adapter_unusable", f"adapter {name} cannot be loaded: {_without_places(error, folder)}", "model") from error
        if _seen(folder) != seen:
            raise Fault(503, "adapter_changes", f"adapter {name} is being written. Try again", "model", 1)
        with self._lock:
            self._loaded[name] = _Loaded(adapter, seen)
            self._loaded.move_to_end(name)
            while len(self._loaded) > self.most_loaded:
                self._loaded.popitem(last=False)
        return adapter

    def keep(self, name: str, adapter: RowAdapter) -> None:
        """An adapter that was read already."""
        folder = self.served(name).folder
        assert folder is not None
        self._loaded[name] = _Loaded(adapter, _seen(folder))

    def take_in(self, name: str) -> None:
        """Answer to a name again that was unloaded. Raises a Fault (404) for one without a folder."""
        if name not in self._adapters():
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

    def _adapters(self) -> dict[str, Served]:
        """Those of the command line, and the folders of the registry folder as they are now."""
        found = dict(self._given)
        if self.folder is not None and self.folder.is_dir():
            for place in sorted(self.folder.iterdir()):
                if NAME.fullmatch(place.name) and place.name not in found and place.name != self.base.name and _is_adapter(place, self.folder):
                    found[place.name] = Served(place.name, place, created=int(place.stat().st_mtime))
        return found


def _is_adapter(place: Path, root: Path) -> bool:
    """A whole adapter that lies in the registry folder itself, and not behind a link that leads out of it."""
    return (place / CONFIG).is_file() and (place / WEIGHTS).is_file() and place.resolve().is_relative_to(root.resolve())


def _seen(folder: Path) -> tuple[int, ...]:
    try:
        found = [(folder / name).stat() for name in (CONFIG, WEIGHTS)]
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
