"""How a server ends: the first signal lets it finish what is being answered, the next one of any kind ends it at once."""

import signal
import time
from types import FrameType

import uvicorn

from luthier.stopping import ONE_WISH_SECONDS


class Server(uvicorn.Server):
    """uvicorn's server, which by itself goes on to wait through a second SIGTERM."""

    _first_s = 0.0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end; a SIGTERM that comes again within a moment is the same wish."""
        if not self.should_exit:
            self._first_s = time.monotonic()
        again = self.should_exit and time.monotonic() - self._first_s > ONE_WISH_SECONDS
        super().handle_exit(signal.SIGINT if again else sig, frame)
