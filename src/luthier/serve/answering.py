"""The thread that owns the model: requests go in from any thread, tokens come out to each request's own callable.

One request's fault ends that request alone; a fault of a whole forward ends those that were in it, and the next ones find a clean state.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from luthier.engine.continuous import CHUNK_TOKENS, Continuous, Request, Said
from luthier.serve.faults import INTERNAL, OVERLOADED, STOPPING, Fault

LOG = logging.getLogger("luthier.serve")
Result = TypeVar("Result")
# What a request is told: a token, why it ended ("stop", "length", "cancelled"), or what went wrong.
Told = Said | str | Fault


@dataclass(slots=True, eq=False)
class Job:
    """A request and who hears of it. `tell` is called on the answering thread and must return at once."""

    request: Request
    tell: Callable[[Told], None]


class Answering:
    """A model that answers many requests together on a thread of its own."""

    def __init__(self, model: Any, slots: int, queue: int, threads: int) -> None:
        self.model, self.most_waiting, self.slots = model, queue, slots
        self._threads = threads
        self._continuous = Continuous(model, slots)
        self._jobs: dict[Request, Job] = {}
        self._inbox: deque[Callable[[], None]] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self.ready = False
        self.steps = self.tokens = 0
        self._thread = threading.Thread(target=self._run, name="answering", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """Take no more requests, answer those that are there, and end. False where some were not answered in time."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def in_flight(self) -> int:
        return len(self._jobs)

    @property
    def running(self) -> int:
        return len(self._continuous.running)

    def submit(self, jobs: list[Job]) -> None:
        """Answer some requests. Raises a Fault where too many wait already, or the server ends."""
        with self._changed:
            if self._stopping:
                raise STOPPING
            if len(self._jobs) + len(jobs) > self.most_waiting + self.slots:
                raise OVERLOADED
            self._jobs |= {job.request: job for job in jobs}
            self._inbox.extend(lambda job=job: self._continuous.add(job.request) for job in jobs)  # type: ignore[misc]
            self._changed.notify()

    def cancel(self, jobs: list[Job]) -> None:
        """Stop answering requests, wherever they are; those that have ended are left as they are."""

        def drop() -> None:
            for job in jobs:
                if self._jobs.pop(job.request, None):
                    self._continuous.cancel(job.request)

        self._put(drop)

    def call(self, work: Callable[[], Result], then: Callable[[Result | BaseException], None]) -> None:
        """Run `work` between two steps, with the model at rest; `then` gets what it gave or raised."""

        def run() -> None:
            try:
                given: Result | BaseException = work()
            except Exception as error:
                given = error
            then(given)

        self._put(run)

    def forget(self, key: str) -> None:
        """Drop what is kept of an adapter's content."""
        self._put(lambda: self._continuous.by_row.forget(key))

    def _put(self, work: Callable[[], None]) -> None:
        with self._changed:
            self._inbox.append(work)
            self._changed.notify()

    def _run(self) -> None:
        torch.set_num_threads(self._threads)  # of this thread
        self._warm_up()
        self.ready = True
        while True:
            with self._changed:
                while not self._inbox and self._continuous.idle:
                    if self._stopping:
                        return
                    self._changed.wait()
                work = list(self._inbox)
                self._inbox.clear()
            for one in work:
                one()
            self._step()

    def _warm_up(self) -> None:
        """The first products of each shape are made ready once, and not by the first client."""
        self._continuous.add(Request([0] * (CHUNK_TOKENS + 1), 3, frozenset()))
        while not self._continuous.idle:
            self._continuous.step()
        self._continuous = Continuous(self.model, self.slots)

    def _step(self) -> None:
        try:
            said = self._continuous.step()
        except Exception:
            LOG.exception("a forward failed; the requests in it were ended")
            self._start_anew()
            return
        self.steps += 1
        for request, token in said:
            if job := self._jobs.get(request):
                self.tokens += token is not None
                if token is not None:
                    job.tell(token)
                if request.finish:
                    del self._jobs[request]
                    job.tell(request.finish)

    def _start_anew(self) -> None:
        failed = list(self._continuous.running)
        waiting = list(self._continuous.waiting)
        self._continuous.by_row.give_back()
        self._continuous = Continuous(self.model, self.slots)
        for request in failed:
            if job := self._jobs.pop(request, None):
                job.tell(INTERNAL)
        for request in waiting:
            self._continuous.add(request)
