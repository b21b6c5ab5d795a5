"""The one door to the other processes of a run: which of them this is, what is added up over all, and what the leader says to the others.

A rank is a process with a device; rank 0 leads. Without a group every call returns at once: one process pays nothing. What is said goes
through the group's store, where waiting has no end by itself; what is added up has a time limit, and a rank that stays away is named.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from luthier.errors import RunError

# Numbers that go through one all-reduce: gradients of a large model are not kept twice for it.
BUCKET_NUMBERS = 16_000_000
# A rank that ends waits so long for the others to hear of it.
FAREWELL_S = 20.0
# Looks so often whether something was said.
PATIENCE = timedelta(seconds=60)


@dataclass(slots=True)
class _Group:
    rank: int
    world: int
    store: Any
    limit: timedelta
    said: int = 0  # orders that were given or heard so far
    unread: list[str] = field(default_factory=list)  # keys of orders that not all ranks have read for certain
    meetings: int = 0
    summed_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Team:
    """Ranks that share each micro-batch (engine/sequence.py): how many, and which of them this one is."""

    size: int
    place: int
    group: Any


_group: _Group | None = None


def join(limit_s: float) -> None:
    """Join the group that the variables of torchrun or `accelerate launch` name; without them, or with a single rank, do nothing.

    A rank that is waited for longer than `limit_s` is given up. Each rank of a host takes the GPU of its own number, where there are some.
    """
    global _group
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or _group is not None:
        return
    limit = timedelta(seconds=limit_s)
    store, rank, world = next(rendezvous("env://", timeout=limit))
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        # The agent's store outlives a restart, and holds addresses of the dead (docs/decisions/0012-ranks.md).
        store = PrefixStore(f"try-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
    dist.init_process_group(backend, store=PrefixStore("group", store), rank=rank, world_size=world, timeout=limit)
    _group = _Group(rank, world, PrefixStore("luthier", store), limit)


def leave() -> None:
    """Leave the group. The leader says goodbye first, and waits a moment until the others have heard it: the store ends with it."""
    global _group
    if _group is None:
        return
    group, _group = _group, None
    if group.rank == 0:
        group.store.set(f"order/{group.said}", json.dumps({"do": "end"}))
        _wait_for(group, [f"goodbye/{rank}" for rank in range(1, group.world)])
    else:
        group.store.set(f"goodbye/{group.rank}", "")
    dist.destroy_process_group()


def _wait_for(group: _Group, keys: list[str]) -> None:
    try:
        group.store.wait(keys, timedelta(seconds=FAREWELL_S))
    except (RuntimeError, dist.DistError):  # one that is gone already says nothing
        return


def rank() -> int:
    return _group.rank if _group else 0


def world() -> int:
    """How many ranks there are; 1 without a group."""
    return _group.world if _group else 1


def local_world() -> int:
    """How many ranks this host has."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world())) if _group else 1


def leads() -> bool:
    return rank() == 0


def summed_bytes() -> int:
    """Bytes of the tensors that this rank has put into sums so far."""
    return _group.summed_bytes if _group else 0


def say(order: dict[str, Any]) -> None:
    """Give all others an order (JSON), which each `hear`s. The leader's alone; nothing is waited for."""
    if _group is None:
        return
    key = f"order/{_group.said}"
    _group.store.set(key, json.dumps(order))
    _group.unread.append(key)
    _group.said += 1


def hear() -> dict[str, Any]:
    """The leader's next order, whenever it comes. Raises RunError where the leader is gone; one that only keeps silent is named."""
    group = _joined()
    key = f"order/{group.said}"
    began, told = time.monotonic(), 0
    while True:
        try:
            with _answered(group, PATIENCE + group.limit):
                group.store.wait([key], PATIENCE)
                order: dict[str, Any] = json.loads(group.store.get(key))
            break
        except dist.DistNetworkError as error:
            raise _alone(group) from error
        except dist.DistStoreError:
            # The leader reads, tokenizes, evaluates or saves; it may also hang, while its process still answers: that cannot be told apart.
            silent = int((time.monotonic() - began) / group.limit.total_seconds())
            if group.rank == 1 and silent > told:
                told = silent
                _say_that_it_is_silent(silent * group.limit)
    group.said += 1
    return order


def _say_that_it_is_silent(since: timedelta) -> None:
    words = "it may still read, evaluate or save; where it uses no processor it hangs: end it, and the run goes on from its last checkpoint"
    print(f"luthier: rank 1: rank 0 has given no order for {since.total_seconds() / 60:g} min: {words}", file=sys.stderr, flush=True)


@contextmanager
def _answered(group: _Group, limit: timedelta) -> Iterator[None]:
    """Ends this process where the store does not answer: torch waits for it for ever where rank 0's process stands still (or its host does)
    without being gone. Rank 0 at work answers, whatever it is at."""

    def give_up() -> None:
        error = _alone(group, f"does not answer: it hangs, or its host does, for {limit.total_seconds() / 60:g} min")
        print(f"luthier: {error}", file=sys.stderr, flush=True)
        os._exit(error.exit_code)

    timer = threading.Timer(limit.total_seconds(), give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def answer(name: str, value: dict[str, Any]) -> None:
    """What this rank answers under a name that is used once."""
    group = _joined()
    group.store.set(f"answer/{name}/{group.rank}", json.dumps(value))


def answers(name: str) -> list[dict[str, Any]]:
    """What all others answered under `name`, by rank. Raises RunError for those that did not within the time limit."""
    group = _joined()
    keys = [f"answer/{name}/{rank}" for rank in range(1, group.world)]
    try:
        group.store.wait(keys, group.limit)
    except dist.DistError as error:
        raise _missing([rank for rank, key in enumerate(keys, start=1) if not group.store.check([key])], group.limit) from error
    found = [json.loads(group.store.get(key)) for key in keys]
    for key in keys:
        group.store.delete_key(key)
    return found


def sums(numbers: Sequence[float]) -> list[float]:
    """Each number's sum over all ranks, in fp64. Raises RunError, which names them, where ranks stay away for the time limit."""
    if _group is None:
        return list(numbers)
    tensor = torch.tensor(numbers, dtype=torch.float64)
    _all_reduce(_group, tensor, dist.ReduceOp.SUM)
    for key in _group.unread:  # all ranks came here, so they have read what was said before
        _group.store.delete_key(key)
    _group.unread.clear()
    return tensor.tolist()


def most(number: int) -> int:
    """The largest number of all ranks."""
    if _group is None:
        return number
    tensor = torch.tensor([number])
    _all_reduce(_group, tensor, dist.ReduceOp.MAX)
    return int(tensor)


@torch.no_grad()
def add_up(tensors: Sequence[Tensor]) -> None:
    """Make each tensor its sum over all ranks, the same bits on each. All ranks give tensors of the same shapes in the same order."""
    if _group is None:
        return
    for bucket in _buckets(tensors):
        flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
        _all_reduce(_group, flat, dist.ReduceOp.SUM)
        for tensor, total in zip(bucket, flat.split([one.numel() for one in bucket]), strict=True):
            tensor.copy_(total.view_as(tensor))


@torch.no_grad()
def take_over(tensors: Sequence[Tensor]) -> None:
    """Make each tensor the leader's."""
    if _group is not None:
        for tensor in tensors:
            dist.broadcast(tensor.detach(), 0)


def team_of(size: int) -> Team:
    """The team of this rank, where ranks that follow each other are teams of so many. Every rank of the group calls this at once."""
    group = _joined()
    for first in range(0, group.world, size):
        made = dist.new_group(list(range(first, first + size)), timeout=group.limit)
        if first <= group.rank < first + size:
            found = Team(size, group.rank - first, made)
    return found


@torch.no_grad()
def swap(team: Team, tensor: Tensor) -> Tensor:
    """Give piece i of `tensor`, along its first dimension, to the team's rank i. What came from each, in the same order."""
    received = torch.empty_like(tensor, memory_format=torch.contiguous_format)
    try:
        dist.all_to_all_single(received, tensor.contiguous(), group=team.group)
    except RuntimeError as error:
        raise _not_met(_joined()) from error
    return received


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    for tensor in tensors:
        full = sum(one.numel() for one in bucket) + tensor.numel() > BUCKET_NUMBERS
        if bucket and (full or (tensor.dtype, tensor.device) != (bucket[0].dtype, bucket[0].device)):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


def _all_reduce(group: _Group, tensor: Tensor, how: Any) -> None:
    group.meetings += 1
    group.summed_bytes += tensor.nbytes
    group.store.set(f"at/{group.rank}", str(group.meetings))
    try:
        dist.all_reduce(tensor, how)
    except RuntimeError as error:
        raise _not_met(group) from error


def _not_met(group: _Group) -> RunError:
    """Who did not come to this meeting, as far as the store still tells."""
    try:
        with _answered(group, timedelta(seconds=FAREWELL_S)):
            absent = [
                rank for rank in range(group.world) if not group.store.check([f"at/{rank}"]) or int(group.store.get(f"at/{rank}")) < group.meetings
            ]
    except RuntimeError:
        return _alone(group)
    return _missing(absent, group.limit)


def _missing(absent: list[int], limit: timedelta) -> RunError:
    who = f"rank{'s' * (len(absent) > 1)} {', '.join(map(str, absent))}" if absent else "a rank"
    return RunError(
        f"{who} did not come to where the ranks meet: ended, or not there within {limit.total_seconds() / 60:g} min",
        where=f"rank {rank()}",
        next_step="what it said last, in the log; where it only needs longer: launch.timeout_minutes",
    )


def _alone(group: _Group, why: str = "is gone") -> RunError:
    next_step = "what rank 0 said last, in the log; luthier train --resume goes on from the newest checkpoint"
    return RunError(f"rank 0 {why}", where=f"rank {group.rank}", next_step=next_step)


def _joined() -> _Group:
    assert _group is not None, "this process is in no group"
    return _group
