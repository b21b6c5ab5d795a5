"""The engine's process as the doors see it: where it listens now, and another one where it died."""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from luthier.errors import LuthierError, MachineError
from luthier.serve.faults import Fault

LOG = logging.getLogger("luthier.serve")
WATCH_S = 0.5
LAST_WORDS = 30  # lines of a dead engine that the log gets
# An engine that dies so often within so many seconds does so of itself; then it is no accident.
MOST_DEATHS, WITHIN_S = 3, 600.0


@runtime_checkable
class Process(Protocol):
    """An engine in a process of its own.

    `wait` returns once it answers, and raises LuthierError where it ends before. `close` may be called at any time, from another thread too.
    """

    url: str

    @property
    def running(self) -> bool: ...
    def wait(self) -> None: ...
    def last_words(self) -> list[str]: ...
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
    """An engine that is started again where it dies.

    `launch` gives one that need not answer yet, `check` raises LuthierError for one that is not what was trained, and `end` is called where
    none can be.
    """

    def __init__(self, name: str, launch: Callable[[], Backend], check: Callable[[Backend], None], end: Callable[[], None]) -> None:
        self.name, self._launch, self._check, self._end = name, launch, check, end
        self._backend: Backend | None = None
        self._answers = False
        self._stopped = threading.Event()
        self._deaths: list[float] = []
        self.why_ended: LuthierError | None = None

    def begin(self) -> None:
        """Start the engine. Raises LuthierError where it cannot be started, or is not what was trained; a `stop` meanwhile ends it."""
        self._backend = backend = self._launch()
        try:
            if self._stopped.is_set():  # which came too early to see it
                backend.process.close()
            backend.process.wait()
            self._check(backend)
        except BaseException:
            backend.process.close()
            raise
        self._answers = True

    @property
    def ready(self) -> bool:
        return self._backend is not None and self._answers and self._backend.process.running

    @property
    def ended(self) -> bool:
        """No engine is there, and none will be started."""
        return self.why_ended is not None

    def there(self) -> Backend:
        """The engine. Raises a Fault (503) while there is none."""
        if self._backend is None or not self.ready:
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
        """End the engine's process, though it may be starting."""
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
        try:
            self._bury()
            self.begin()
        except Exception as error:  # of any kind: nobody else would hear of it
            if not self._stopped.is_set():
                self._give_up(error)
            return
        LOG.info("%s answers again", self.name)

    def _bury(self) -> None:
        """Say how the engine died. Raises MachineError where it did so too often."""
        now = time.monotonic()
        self._deaths = [one for one in self._deaths if now - one < WITHIN_S] + [now]
        words: list[str] = []
        if self._backend is not None:
            self._answers = False
            self._backend.process.close()
            words = self._backend.process.last_words()[-LAST_WORDS:]
        times = f"{len(self._deaths)} of {MOST_DEATHS} times within {WITHIN_S / 60:.0f} minutes"
        LOG.error("%s has ended by itself (%s). Its last words:\n%s", self.name, times, "\n".join(words) or "none")
        if len(self._deaths) >= MOST_DEATHS:
            problem = f"{self.name} ended by itself {MOST_DEATHS} times; its last words: {words[-1] if words else 'none'}"
            raise MachineError(problem, where="luthier serve", next_step="see its words in the log above")

    def _give_up(self, error: Exception) -> None:
        if not isinstance(error, LuthierError):
            LOG.error("%s cannot be started again", self.name, exc_info=error)
            problem = f"{self.name} cannot be started again ({type(error).__name__}: {error})"
            error = MachineError(problem, where="luthier serve", next_step="start it again, and report the lines in the log above")
        LOG.error("%s", error)
        self.why_ended = error
        self._end()
