"""The thread that owns the model: requests go in from any thread, tokens come out to each request's own callable.

One request's fault ends that request alone; a fault of a whole forward ends those that were in it, and the next ones find a clean state.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch

from luthier.engine.continuous import CHUNK_TOKENS, Continuous, Request, Said
from luthier.engine.slots import PLACES
from luthier.errors import DataError
from luthier.serve.faults import Fault, internal, overloaded, stopping

LOG = logging.getLogger("luthier.serve")
Result = TypeVar("Result")
# Forwards that fail one after the other: then it is the machine.
MOST_FAILED = 5
# What a request is told: a token, why it ended ("stop", "length", "cancelled"), or what went wrong.
Told = Said | str | Fault


@dataclass(slots=True, eq=False)
class Job:
    """A request and who hears of it. `tell` is called on the answering thread and must return at once."""

    request: Request
    tell: Callable[[Told], None]


class Answering:
    """A model that answers many requests together on a thread of its own. Their keys and values take `kept_bytes` at most (None: any number)."""

    def __init__(self, model: Any, slots: int, queue: int, threads: int, context: int | None = None, kept_bytes: int | None = None) -> None:
        self.model, self.most_waiting, self.slots, self.kept_bytes = model, queue, slots, kept_bytes
        self.most_tokens: int | None = None  # of all requests together, and so of one; known once it is ready
        self._threads = threads
        self._warm_tokens = min(CHUNK_TOKENS + 1, (context or CHUNK_TOKENS) - 3)
        self._continuous = Continuous(model, slots)
        self._jobs: dict[Request, Job] = {}
        self._inbox: deque[Callable[[], None]] = deque()
        self._changed = threading.Condition()
        self._stopping = self._broken = False
        self.ready = False
        self._failed = 0  # steps, one after the other
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
        """Answer some requests. Raises a Fault where too many wait already, or none are taken any more."""
        with self._changed:
            if self._stopping:
                raise stopping()
            if len(self._jobs) + len(jobs) > self.most_waiting + self.slots:
                raise overloaded()
            self._jobs |= {job.request: job for job in jobs}
            self._inbox.extend(partial(self._add, job) for job in jobs)
            self._changed.notify()

    def _add(self, job: Job) -> None:
        try:
            self._continuous.add(job.request)
        except DataError as error:  # it came before it was known how much room there is
            del self._jobs[job.request]
            job.tell(Fault(400, "context_length_exceeded", f"{error.problem}. Try: {error.next_step}", "messages"))

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
                given: Result | BaseException = stopping() if self._broken else work()
            except Exception as error:
                given = error
            then(given)

        self._put(run)

    def forget(self, key: str) -> None:
        """Drop what is kept of an adapter's content."""
        self._put(lambda: self._continuous.by_row.forget(key))

    def _put(self, work: Callable[[], None]) -> None:
        with self._changed:
            if self._broken:
                work()
                return
            self._inbox.append(work)
            self._changed.notify()

    def _run(self) -> None:
        torch.set_num_threads(self._threads)  # of this thread
        try:
            self._warm_up()
            self.ready = True
            self._answer()
        except BaseException:
            LOG.exception("the model cannot answer any more")
            self._give_up()

    def _answer(self) -> None:
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

    def _give_up(self) -> None:
        """Nobody waits for a model that will not answer."""
        with self._changed:
            self.ready, self._stopping, self._broken = False, True, True
            jobs, work = list(self._jobs.values()), list(self._inbox)
            self._jobs.clear()
            self._inbox.clear()
        for job in jobs:
            job.tell(internal())
        for one in work:
            one()

    def _warm_up(self) -> None:
        """The first products of each shape are made ready once, and not by the first client."""
        self._continuous.add(Request([0] * self._warm_tokens, 3, frozenset()))
        while not self._continuous.idle:
            self._continuous.step()
        if self.kept_bytes is not None:
            self.most_tokens = max(PLACES, self.kept_bytes // self._continuous.slots.place_bytes)
        self._continuous = self._made()

    def _made(self) -> Continuous:
        return Continuous(self.model, self.slots, most_places=self.most_tokens)

    def _step(self) -> None:
        try:
            said = self._continuous.step()
        except Exception:
            LOG.exception("a forward failed; the requests in it were ended")
            self._failed += 1
            if self._failed == MOST_FAILED:
                raise
            self._start_anew()
            return
        self._failed = 0 if said else self._failed  # a step that had nothing to run shows nothing
        self.steps += 1
        for request, token in said:
            if job := self._jobs.get(request):
                self.tokens += token is not None
                if token is not None:
                    job.tell(token)
                if request.finish:
                    del self._jobs[request]
                    job.tell(internal() if request.finish == "failed" else request.finish)

    def _start_anew(self) -> None:
        failed = list(self._continuous.running)
        waiting = list(self._continuous.waiting)
        self._continuous.by_row.give_back()
        self._continuous = self._made()
        for request in failed:
            if job := self._jobs.pop(request, None):
                job.tell(internal())
        for request in waiting:
            self._continuous.add(request)
