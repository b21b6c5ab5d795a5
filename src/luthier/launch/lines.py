"""The line that starts a run's processes on one host, as torchrun wants it: arguments and variables, and nothing is started here.

The worker is the same everywhere (`python -m luthier.launch.worker luthier.yaml`); what differs is how its processes find each other.
"""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass

WORKER = "luthier.launch.worker"
# Workers have a store of their own: the one of the agent is used again after a restart in torch 2.13, and holds addresses of the dead
# (3 of 6 killed ranks came back with it, 6 of 6 without).
OWN_STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
# A host that says nothing for 2 s three times is given up; one that comes may take 10 minutes (its model is read from a slow disk).
MEETING = {"join_timeout": 600, "keep_alive_interval": 2, "keep_alive_max_attempt": 3}
# Where hosts may come and go, so many seconds are waited for more of them once the least number is there.
LAST_CALL_S = 5


@dataclass(frozen=True, slots=True)
class Line:
    """What a host runs: a program with its arguments, and the variables that it needs beside those that are there."""

    arguments: tuple[str, ...]
    environment: dict[str, str]

    def __str__(self) -> str:
        """The line as a shell takes it, its variables first."""
        return " ".join([*(f"{name}={shlex.quote(value)}" for name, value in self.environment.items()), shlex.join(self.arguments)])


@dataclass(frozen=True, slots=True)
class Meeting:
    """Where the hosts of a run meet, and which of them this is: `head` and `port`; whether this host is the head; `address` of this host as
    the others reach it, "" where its name is enough."""

    head: str
    port: int
    is_head: bool
    address: str = ""


def on_one_host(worker: Sequence[str], processes: int, *, restarts: int, threads: int, python: str = sys.executable) -> Line:
    """The line for so many processes on this host, with `worker`'s arguments behind. `threads`: those of each process; `restarts`: how often
    all of them are started again where one is lost. They meet on a free port."""
    return _line(["--standalone", "--nnodes=1"], worker, processes, restarts, threads, python)


def on_each_host(
    worker: Sequence[str],
    processes: int,
    hosts: tuple[int, int],
    meeting: Meeting,
    *,
    restarts: int,
    threads: int,
    interface: str = "",
    python: str = sys.executable,
) -> Line:
    """The line that each of several hosts runs, `processes` on each. `hosts`: the least and the most of them; between the two, hosts may come
    and go while the run goes on. `interface`: the network card of the group, where a host has several."""
    least, most = hosts
    conf = {"is_host": int(meeting.is_head), **MEETING, **({} if least == most else {"last_call_timeout": LAST_CALL_S})}
    where = [
        f"--nnodes={most if least == most else f'{least}:{most}'}",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint={meeting.head}:{meeting.port}",
        "--rdzv-id=luthier",
        f"--rdzv-conf={','.join(f'{name}={value}' for name, value in conf.items())}",
        *([f"--local-addr={meeting.address}"] if meeting.address else []),
    ]
    line = _line(where, worker, processes, restarts, threads, python)
    cards = {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": interface} if interface else {}
    return Line(line.arguments, {**line.environment, **cards})


def _line(where: list[str], worker: Sequence[str], processes: int, restarts: int, threads: int, python: str) -> Line:
    started = [python, "-m", "torch.distributed.run", *where, f"--nproc-per-node={processes}", f"--max-restarts={restarts}", "-m", WORKER, *worker]
    return Line(tuple(started), {**OWN_STORE, "OMP_NUM_THREADS": str(threads)})
