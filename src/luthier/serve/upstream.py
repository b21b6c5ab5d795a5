"""The engine's process as the doors see it: where it listens now, and another one where it died."""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from luthier.errors import LuthierError
from luthier.serve.faults import Fault

LOG = logging.getLogger("luthier.serve")
WATCH_S = 0.5
# An engine that dies so often within so many seconds does so of itself; then it is no accident.
MOST_DEATHS, WITHIN_S = 3, 600.0


@runtime_checkable
class Process(Protocol):
    """An engine in a process of its own."""

    url: str

    @property
    def running(self) -> bool: ...
    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Backend:
    """An engine that answers, and the headers that it asks for."""

    process: Process
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return self.process.url.rstrip("/").removesuffix("/v1")


class Upstream:
    """An engine that is started again where it dies. `start` gives one that answers, or raises LuthierError; `end` is called where none can be."""

    def __init__(self, name: str, start: Callable[[], Backend], end: Callable[[], None]) -> None:
        self.name, self._start, self._end = name, start, end
        self._backend: Backend | None = None
        self._stopped = threading.Event()
        self._deaths: list[float] = []
        self.why_ended: LuthierError | None = None

    def begin(self) -> None:
        """Start the engine. Raises LuthierError where it cannot be started, or is not what was trained."""
        self._backend = self._start()

    @property
    def ready(self) -> bool:
        return self._backend is not None and self._backend.process.running

    @property
    def ended(self) -> bool:
        """No engine is there, and none will be started."""
        return self.why_ended is not None

    def there(self) -> Backend:
        """The engine. Raises a Fault (503) while there is none."""
        if self._backend is None or not self._backend.process.running:
            raise self.down()
        return self._backend

    def down(self) -> Fault:
        """What a client is told while there is no engine."""
        return Fault(503, "engine_down", f"{self.name} has ended and is being started again. Try again later", None, 5)

    @contextlib.asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """While this lasts, an engine that dies is started again; the engine is stopped at the end."""
        watching = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            self._stopped.set()
            watching.cancel()
            await asyncio.to_thread(self.stop)

    def stop(self) -> None:
        """End the engine's process."""
        self._stopped.set()
        if self._backend is not None:
            self._backend.process.close()

    async def _watch(self) -> None:
        while not self.ended:
            await asyncio.sleep(WATCH_S)
            if not self.ready:
                await asyncio.to_thread(self._again)

    def _again(self) -> None:
        """Take what is left of the engine away and start another one; end where that is of no use."""
        now = time.monotonic()
        self._deaths = [one for one in self._deaths if now - one < WITHIN_S] + [now]
        LOG.error("%s has ended by itself (%s of %s times within %.0f minutes)", self.name, len(self._deaths), MOST_DEATHS, WITHIN_S / 60)
        if self._backend is not None:
            self._backend.process.close()
            self._backend = None
        if len(self._deaths) >= MOST_DEATHS:
            problem = f"{self.name} ended by itself {MOST_DEATHS} times"
            self._give_up(LuthierError(problem, where="luthier serve", next_step="its own words stand in the log above"))
            return
        try:
            started = self._start()
        except LuthierError as error:
            self._give_up(error)
            return
        if self._stopped.is_set():
            started.process.close()
            return
        self._backend = started
        LOG.info("%s answers again", self.name)

    def _give_up(self, error: LuthierError) -> None:
        LOG.error("%s", error)
        self.why_ended = error
        self._end()
