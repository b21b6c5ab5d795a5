"""A socket that listens, and an application that answers on it until a signal comes."""

import contextlib
import errno
import logging
import os
import signal
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.errors import CallError, MachineError
from luthier.reporting import Reporter, Silent
from luthier.serve import keys
from luthier.serve.doors import Doors
from luthier.serve.registry import Served

if TYPE_CHECKING:
    import uvicorn

LOOPBACK = ("127.0.0.1", "localhost", "::1")
KEEP_ALIVE_S = 15  # between two requests of one connection
DRAIN_S = 30  # what is being answered may take so long once a signal has come


def listen(host: str, port: int) -> socket.socket:
    """A socket that is bound, and listens once a server runs on it; port 0 is any free one. Raises MachineError where that cannot be.

    Called before a model is loaded, so that a port on which another server listens is told at once.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise _not_there(f"{host}:{port}", error.strerror or str(error)) from error
    return listening


def _not_there(address: str, reason: str) -> MachineError:
    return MachineError(f"cannot listen there ({reason})", where=address, next_step="--port 0 takes a free one")


def allowed_keys(host: str, file: Path | None) -> keys.Keys:
    """Who may ask: the keys of a file and of the environment. Raises CallError where everyone who reaches `host` could."""
    allowed = keys.read(file, os.environ.get(keys.ENVIRONMENT))
    if host not in LOOPBACK and not allowed.keys:
        raise CallError(
            f"would answer everyone who reaches {host}",
            where="luthier serve --host",
            next_step="--keys FILE (luthier serve --new-key NAME --keys FILE makes one), or leave --host out",
        )
    return allowed


def own_names(host: str, allowed: tuple[str, ...]) -> frozenset[str]:
    """The names that requests may call a server on `host` by (Host); none: any."""
    of_this_machine = (*LOOPBACK, "[::1]") if host in LOOPBACK else ()
    return frozenset(name.lower() for name in (*allowed, *of_this_machine))


@dataclass(frozen=True, slots=True)
class Tls:
    """Files of a certificate and its key, in PEM."""

    certificate: Path
    key: Path


def tls(certificate: Path | None, key: Path | None) -> Tls | None:
    """What HTTPS is spoken with; None where neither is given. Raises CallError for files that do not belong together or are none."""
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise CallError("--tls-cert and --tls-key go together", where="luthier serve", next_step="give both, or neither")
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key, password=_no_password)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        said = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        problem, where = f"they cannot be used for TLS ({said})", f"--tls-cert {certificate} --tls-key {key}"
        raise CallError(problem, where=where, next_step="a certificate and its own key as PEM files, the key without a password") from error
    return Tls(certificate, key)


def _no_password() -> str:
    raise ValueError("the key asks for a password")


def server(application: Doors, secured: Tls | None = None, once_it_listens: Callable[[], None] = lambda: None) -> "uvicorn.Server":
    """A uvicorn server for the application, with its limits."""
    import uvicorn

    from luthier.serve.connection import Connection
    from luthier.serve.ending import Server

    settings = uvicorn.Config(
        application,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        h11_max_incomplete_event_size=application.limits.header_bytes,
        timeout_graceful_shutdown=DRAIN_S,
        lifespan="on",
        http=Connection,
        ws="none",
        ssl_certfile=secured.certificate if secured else None,
        ssl_keyfile=secured.key if secured else None,
    )
    return Server(settings, once_it_listens)


@contextlib.contextmanager
def in_background(application: Doors) -> Iterator[str]:
    """Answer on a free port of this machine for as long as the block runs. Gives the URL."""
    listening, background = listen(LOOPBACK[0], 0), server(application)
    thread = threading.Thread(target=background.run, args=([listening],), name="server", daemon=True)
    thread.start()
    try:
        while not background.started and thread.is_alive():
            time.sleep(0.01)
        yield f"http://{LOOPBACK[0]}:{listening.getsockname()[1]}"
    finally:
        background.should_exit = True
        thread.join(DRAIN_S)


def announcement(names: Sequence[Served], host: str, port: int, with_keys: bool, secured: Tls | None = None) -> list[str]:
    """What is said before the first request: the names (the base first), whether keys are asked for, and the address."""
    lines = []
    for place, one in enumerate(names):
        system = f", with its system message where a request has none: {one.system}" if one.system else ""
        lines.append(f"model {one.name}{'' if place else ' (the base)'}{system}")
    lines.append(f"keys: {'asked for' if with_keys else 'none, as only this machine can ask'}")
    address = f"{'https' if secured else 'http'}://{f'[{host}]' if ':' in host else host}:{port}/v1"
    return [*lines, f"serving on {address} (Ctrl-C ends it after what is being answered)"]


def farewell(unanswered: int) -> str:
    """What is said once the server has ended."""
    return f"ended with {unanswered} requests unanswered" if unanswered else "ended; every request was answered"


def answer(
    application: Doors, listening: socket.socket, secured: Tls | None = None, *, announced: Sequence[str] = (), reporter: Reporter | None = None
) -> None:
    """Say what is announced once requests are taken, and answer them until SIGTERM or SIGINT.

    What is being answered then is answered first, unless a second signal comes.
    """

    def say() -> None:
        for line in announced:
            (reporter or Silent()).say(line)

    running = server(application, secured, say)

    def end(*_: Any) -> None:
        """uvicorn takes over once it runs, and sends itself the signal again that ended it: a signal is how a server ends, and no fault."""
        running.should_exit = True

    before: dict[int, Any] = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    address = "{}:{}".format(*listening.getsockname()[:2])
    try:
        running.run(sockets=[listening])
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        # Two may be bound to one port, until the first of them listens.
        raise _not_there(address, os.strerror(errno.EADDRINUSE)) from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def log_to_standard_error() -> None:
    """The log of requests and faults, a line each, on standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    for name in ("luthier.serve", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.propagate = False
    logging.getLogger("luthier.serve").setLevel(logging.INFO)
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
