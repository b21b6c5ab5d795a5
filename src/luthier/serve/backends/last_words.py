"""What an engine's process says, as far as anyone may want to read it: its newest lines."""

import threading
from collections import deque
from typing import Any

MOST_LINES = 400
LONGEST_LINE = 2000
END_S = 2.0


class LastWords:
    """The newest lines of a process, read as they come: the pipe never fills up, and an engine that runs for months takes no more room."""

    def __init__(self, said: Any) -> None:
        """`said` is a pipe in text mode, which is closed at its end (no IO[str]: a pipe has no `mode`)."""
        self._lines: deque[str] = deque(maxlen=MOST_LINES)
        self._reading = threading.Thread(target=self._read, args=(said,), name="last words", daemon=True)
        self._reading.start()

    def _read(self, said: Any) -> None:
        with said:
            while piece := said.readline(LONGEST_LINE):
                if line := piece.strip():
                    self._lines.append(line)

    def lines(self) -> list[str]:
        """What there is, the newest last; of a process that has ended, to its end."""
        self._reading.join(END_S)
        return list(self._lines)
