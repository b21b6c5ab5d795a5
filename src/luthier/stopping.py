"""Signals as a wish that long work looks at, so that it ends, or saves, where nothing is lost.

SIGINT, SIGTERM, SIGHUP   end: the update at hand is finished, its state is saved; the exit code is 128 + the signal's number
the same once more        end at once: nothing is saved, and nothing half-written counts
SIGUSR1                   save now and go on (batch systems send it some time before they end a job)

A signal that whoever started the program had ignored (`nohup` does that with SIGHUP) stays ignored.
"""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

Handler = Callable[[int, FrameType | None], None] | signal.Handlers
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# A closed terminal and `timeout` send their signal to the process and to its group: twice within a moment is one wish.
ONE_WISH_SECONDS = 1.0


@dataclass(slots=True)
class Stop:
    """Whether a signal asked the work to end once what is at hand is done; `signal` is its number, or 0.

    `save_now`: the state is wanted on the disk, and the work goes on. Who saves it sets it back. `enough`: no signal, but a measurement
    says that more of the work gains nothing.
    """

    signal: int = 0
    save_now: bool = False
    enough: bool = False


class EndedAtOnce(KeyboardInterrupt):
    """Raised in the midst of the work by a signal that does not wait for what is at hand."""

    def __init__(self, number: int) -> None:
        super().__init__(f"ended by {signal.Signals(number).name}")
        self.signal = number


@contextmanager
def stopping_on_signals() -> Iterator[Stop]:
    """Signals that end set the Stop that is given, a second one ends the work at once; SIGUSR1 sets its `save_now`."""
    stop = Stop()
    first_s = 0.0

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal first_s
        if stop.signal and (number == signal.SIGINT or time.monotonic() - first_s > ONE_WISH_SECONDS):
            _end_at_once(number, frame)
        first_s = first_s or time.monotonic()
        stop.signal = stop.signal or number

    def save(number: int, frame: FrameType | None) -> None:
        stop.save_now = True

    with _handling({**dict.fromkeys(ENDING, ask), signal.SIGUSR1: save}):
        yield stop


@contextmanager
def ending_on_signals() -> Iterator[None]:
    """Signals that end raise EndedAtOnce, so that what is half-written is taken away; SIGUSR1 finds nothing to save and is ignored."""
    with _handling({**dict.fromkeys(ENDING, _end_at_once), signal.SIGUSR1: signal.SIG_IGN}):
        yield


def _end_at_once(number: int, frame: FrameType | None) -> None:
    for each in ENDING:
        if signal.getsignal(each) != signal.SIG_IGN:
            # Whoever cannot wait for what is taken away now ends the process with a third one, without a traceback.
            signal.signal(each, signal.SIG_DFL)
    raise EndedAtOnce(number)


@contextmanager
def _handling(handlers: dict[signal.Signals, Handler]) -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in handlers}
    # SIGUSR1 is nobody's to ignore: it would end the process where nobody handles it.
    kept = {number: handler for number, handler in handlers.items() if before[number] != signal.SIG_IGN or number == signal.SIGUSR1}
    try:
        for number, handler in kept.items():
            signal.signal(number, handler)
    except ValueError:  # not in the main thread: whoever runs the thread has the signals
        yield
        return
    try:
        yield
    finally:
        for number in kept:
            signal.signal(number, before[number])
