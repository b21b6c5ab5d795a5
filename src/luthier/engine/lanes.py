"""Micro-batches side by side: two that run at once, each on its own cores, take less time than one after the other on all of them.

The products of a few hundred rows do not fill several cores, and what stands between them hardly uses a second one. Each lane gathers its
own gradients, and they are added in the order of the lanes: the sum does not depend on which lane was faster.
"""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait

import torch

from luthier.engine import heap

# Lanes pay where at most this share of the weights is trained.
TRAINED_SHARE = 0.1
_here = threading.local()


def here() -> int:
    """The lane that calls: 1, 2 ...; 0 outside of all lanes."""
    return int(getattr(_here, "lane", 0))


def sharing() -> int:
    """How many share what the caller uses: all lanes, or the caller alone."""
    return int(getattr(_here, "lanes", 1))


def usual_count(device: torch.device) -> int:
    """How many lanes pay: two on a CPU of several cores. A GPU has its own way of doing two things at once."""
    return 2 if device.type == "cpu" and torch.get_num_threads() > 1 else 1


def that_pay(model: torch.nn.Module, device: torch.device) -> "Lanes | None":
    """As many lanes as pay for a model with adapters; None where that is one. Each lane keeps gradients of its own."""
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    small = trained <= TRAINED_SHARE * sum(parameter.numel() for parameter in model.parameters())
    count = usual_count(device)
    return Lanes(count) if count > 1 and small else None


class Lanes:
    """`count` threads which share the threads that torch was given."""

    def __init__(self, count: int) -> None:
        self.count = count
        heap.share_one()
        threads = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(count, "lane", lambda: torch.set_num_threads(max(1, threads // count)))
        for _ in range(count):
            wait([self._pool.submit(lambda: None)])
        torch.set_num_threads(threads)

    def run(self, work: Callable[[int], None]) -> None:
        """Call `work` with 0, 1 ... side by side, in the caller's gradient mode. The first error is raised when all have ended."""
        graded = torch.is_grad_enabled()

        def one(place: int) -> None:
            _here.lane, _here.lanes = place + 1, self.count
            with torch.set_grad_enabled(graded):
                work(place)

        asked = [self._pool.submit(one, place) for place in range(self.count)]
        wait(asked)
        for done in asked:
            done.result()
