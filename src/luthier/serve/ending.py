"""How a server begins and ends: the first signal lets it finish what is being answered, the next one of any kind ends it at once."""

import signal
import socket
import time
from collections.abc import Callable
from types import FrameType

import uvicorn

from luthier.stopping import ONE_WISH_SECONDS


class Server(uvicorn.Server):
    """uvicorn's server, which by itself goes on to wait through a second SIGTERM."""

    _first_s = 0.0

    def __init__(self, settings: uvicorn.Config, once_it_listens: Callable[[], None] = lambda: None) -> None:
        super().__init__(settings)
        self._once_it_listens = once_it_listens

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen, and only then say so: whoever reads the line may ask at once."""
        await super().startup(sockets)
        if self.started:
            self._once_it_listens()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end; a SIGTERM that comes again within a moment is the same wish."""
        if not self.should_exit:
            self._first_s = time.monotonic()
        again = self.should_exit and time.monotonic() - self._first_s > ONE_WISH_SECONDS
        super().handle_exit(signal.SIGINT if again else sig, frame)
