"""What a process finds when it is started, and how it leaves: its streams, their letters, its signals.

None of them is as one expects: a stream may be closed, its reader gone or its disk full, the locale may know no letter beyond ASCII. None of
that ends long work.
"""

import errno
import os
import signal
import sys
from io import TextIOWrapper
from typing import Any, TextIO

NO_ROOM = {errno.ENOSPC, errno.EDQUOT}
# In the environment of a process that was started again by itself.
STARTED_AGAIN = "LUTHIER_STARTED_AGAIN"


def settle() -> None:
    """Give this process streams that write UTF-8 and never fail, and a Ctrl-C without a traceback while modules are imported."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    _open_closed_streams()
    _speak_utf8()
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, TextIOWrapper):  # a program that calls Luthier's may have put anything there
            continue
        # A lone surrogate (a file name that is no text, a broken row) is shown as its escape.
        stream.reconfigure(encoding="utf-8", errors="backslashreplace")
        setattr(sys, name, Lasting(stream))


class Lasting:
    """A stream whose failures end nothing: where it cannot be written, that is said once on standard error, and the work goes on.

    A reader that has gone away (`| head`, a closed terminal) is no failure, and nothing is said.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.lost = False  # whether something could not be written that somebody wanted to read

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._failed(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._failed(error)

    def _failed(self, error: OSError) -> None:
        if error.errno in NO_ROOM:  # what is held is written when there is room again
            self._say(error)
            return
        if error.errno not in (errno.EPIPE, errno.EIO):
            self._say(error)
        self.let_go()

    def let_go(self) -> None:
        """Write to nowhere from now on: what is held would fail again, at the latest when Python ends."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)

    def _say(self, error: OSError) -> None:
        if not self.lost and sys.stderr is not self:
            print(f"luthier: standard output cannot be written ({error.strerror}); the work goes on, and what it says is lost", file=sys.stderr)
        self.lost = True


def leave() -> None:
    """Write what the streams still hold; raises SystemExit with 1 where the one JSON value that was asked for could not be written."""
    lost = False
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        if isinstance(stream, Lasting) and stream.lost:
            stream.let_go()
            lost = lost or stream is sys.stdout
    if lost and "--json" in sys.argv:
        sys.exit(1)


def _open_closed_streams() -> None:
    """A file that is opened while 0, 1 or 2 is free gets that number, and what a library prints would be written into it."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        continue
    os.close(number)
    for name, number in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", encoding="utf-8", closefd=False))


def _speak_utf8() -> None:
    """Start again, once, with UTF-8 where file names are read as something else (LC_ALL=C with PYTHONUTF8=0): paths and rows are UTF-8."""
    again = os.environ.pop(STARTED_AGAIN, "")
    if again or sys.getfilesystemencoding() == "utf-8" or sys.flags.utf8_mode:
        return
    os.environ |= {"PYTHONUTF8": "1", STARTED_AGAIN: "1"}
    # Of several -X utf8 Python takes the first, and with -I or -E none of the environment.
    os.execv(sys.executable, [sys.executable, "-X", "utf8=1", *sys.orig_argv[1:]])
