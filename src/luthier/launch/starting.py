"""From settings to the line that starts a run on this host, and running that line. One process needs no line: it is run where it is called."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from luthier.config.launch import bounds_of
from luthier.config.settings import Settings
from luthier.errors import CallError, LuthierError, MachineError
from luthier.launch.lines import Line, Meeting, on_each_host, on_one_host
from luthier.plan.machine import usable_cores
from luthier.stopping import ENDING

# A worker that ends by an error of ours writes its exit code into the file that this variable names: torchrun's own is always 1.
EXIT_CODE_FILE = "LUTHIER_EXIT_CODE_FILE"
# Where the leader is on this host, it writes the folder of its run into the file that this one names.
RUN_FILE = "LUTHIER_RUN_FILE"
# What saving may take once a signal has come; torchrun's own 30 s end a worker in the midst of it.
SAVING_S = 110
PORTS_TRIED = 100
# Linux's request for the address of a network card (SIOCGIFADDR in bits/ioctls.h).
GET_ADDRESS = 0x8915
# Becomes the program that follows, which gets SIGTERM (15) where the process that started it is gone (1: Linux's PR_SET_PDEATHSIG).
HELD = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 15); os.execvp(sys.argv[1], sys.argv[1:])"


@dataclass(frozen=True, slots=True)
class Here:
    """What a call says of this host: its `number` among the hosts of a run (0 is where they meet; None: seen from its addresses), its
    `address` where the others cannot reach it by its name, and a `port` that replaces launch.port."""

    number: int | None = None
    address: str = ""
    port: int | None = None


class WorkersEnded(LuthierError):
    """The processes of a run ended otherwise than well. The exit code is that of the first worker that said one."""

    def __init__(self, exit_code: int) -> None:
        problem = "a signal ended the run" if exit_code > 128 else "a process of the run ended with an error, which stands above"
        super().__init__(problem, where="luthier train", next_step="luthier train CONFIG --resume goes on from the newest checkpoint")
        self.exit_code = exit_code


def processes_of(settings: Settings) -> int:
    """How many processes this host runs. Raises MachineError where it has not so many GPUs."""
    if settings.devices == 1:
        return 1
    gpus = _gpus() if settings.device in ("auto", "cuda") else 0
    if settings.devices == "auto":
        return max(1, gpus)
    if gpus and settings.devices > gpus:
        raise MachineError(
            f"devices is {settings.devices}, and this host has {gpus} GPU{'s' * (gpus > 1)}",
            where="devices",
            next_step=f"devices: {gpus}, devices: auto, or device: cpu",
        )
    return settings.devices


def _gpus() -> int:
    import torch

    return int(torch.cuda.device_count())


def line_of(settings: Settings, worker: Sequence[str], here: Here) -> Line | None:
    """The line of this host for a run of these settings, with `worker`'s arguments; None where one process is enough.

    Raises CallError where the hosts have nowhere to meet, or the port is taken on the host where they do.
    """
    processes, hosts = processes_of(settings), bounds_of(settings.nodes)
    threads = max(1, usable_cores() // processes)
    if hosts[1] == 1:
        return None if processes == 1 else on_one_host(worker, processes, restarts=settings.launch.max_restarts, threads=threads)
    meeting = meeting_of(settings, here)
    if meeting.is_head:
        require_free(meeting.port)
    return on_each_host(worker, processes, hosts, meeting, restarts=settings.launch.max_restarts, threads=threads, interface=card_of(here.address))


def meeting_of(settings: Settings, here: Here) -> Meeting:
    """Where the hosts of a run that is started by hand meet. Raises CallError where no host is named for it."""
    head = settings.launch.head
    if head is None:
        raise CallError(
            f"nodes is {settings.nodes}, and the hosts do not know where to meet",
            where="launch.head",
            next_step="launch.head=ADDRESS of one of the hosts, the same call on each; or luthier launch CONFIG --on slurm",
        )
    is_head = here.number == 0 if here.number is not None else here.address == head or _is_here(head)
    return Meeting(head, here.port or settings.launch.port, is_head, here.address)


def _is_here(host: str) -> bool:
    """Whether a name or address is this host's: only then can a socket be bound to it."""
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        with closing(socket.socket(family, kind, protocol)) as probe:
            probe.bind(place)
    except OSError:
        return False
    return True


def card_of(address: str) -> str:
    """The network card that has an address of this host; "" where no address is given, or the system is not asked for it (it is on Linux)."""
    if not address or sys.platform != "linux":
        return ""
    import fcntl

    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as probe:
        for _, card in socket.if_nameindex():
            try:
                found = fcntl.ioctl(probe.fileno(), GET_ADDRESS, card.encode().ljust(256, b"\0"))
            except OSError:
                continue  # a card without an address
            if socket.inet_ntoa(found[20:24]) == address:
                return card
    return ""


def require_free(port: int) -> None:
    """Raises CallError where another process listens on a port of this host; one that is free is named."""
    if _is_free(port):
        return
    free = next((other for other in range(port + 1, min(port + PORTS_TRIED, 65536)) if _is_free(other)), None)
    raise CallError(
        f"port {port} is in use on {socket.gethostname()}, and the hosts of the run are to meet there",
        where="launch.port",
        next_step=f"--port {free or 'ANOTHER'} on every host; or end the run that holds it",
    )


def _is_free(port: int) -> bool:
    with closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port that was left a moment ago can be taken again
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def run(line: Line, *, quiet: bool = False) -> Path | None:
    """Run a line to its end. Gives the folder of the run, where its leader was on this host. A signal that ends is passed on, so that the run
    saves and leaves. `quiet`: what the processes say goes to stderr. Raises WorkersEnded where it ended badly.
    """
    with tempfile.TemporaryDirectory() as folder:
        told, trained = Path(folder, "exit-code"), Path(folder, "run")
        own = {EXIT_CODE_FILE: str(told), RUN_FILE: str(trained), "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(SAVING_S)}
        held = (sys.executable, "-I", "-c", HELD) if sys.platform == "linux" else ()
        # A session of its own: Ctrl-C reaches this process only, and the workers are told once, by torchrun.
        process = subprocess.Popen(
            [*held, *line.arguments],
            env={**os.environ, **line.environment, **own},
            start_new_session=True,
            stdout=sys.__stderr__ if quiet else None,
        )
        with _passed_on(process) as signals:
            code = process.wait()
        if signals:
            raise WorkersEnded(128 + signals[0])
        code = int(told.read_text(encoding="ascii")) if told.is_file() else code  # an end in good order is none that torchrun starts again
        if code:
            raise WorkersEnded(code)
        return Path(trained.read_text(encoding="utf-8")) if trained.is_file() else None


@contextmanager
def _passed_on(process: "subprocess.Popen[bytes]") -> Iterator[list[int]]:
    """While it lasts, signals that end this process reach the workers as SIGTERM; those that came are given, in order.

    The workers and not torchrun: batch systems signal it as well, and a second signal breaks off how it ends them. Workers take several within
    a moment as one wish.
    """
    came: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        came.append(number)
        for pid in _children(process.pid) or [process.pid]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    before = {}
    if threading.current_thread() is threading.main_thread():  # elsewhere whoever runs the thread has the signals
        before = {number: signal.signal(number, pass_on) for number in ENDING if signal.getsignal(number) != signal.SIG_IGN}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _children(pid: int) -> list[int]:
    """The processes that a process has started; none where the system does not tell (it does on Linux)."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
