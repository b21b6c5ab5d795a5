"""One run on several devices: how many, how its weights are shared, what each then holds and sends. Plain arithmetic on a model's facts."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from luthier.config.launch import bounds_of
from luthier.config.launch_rules import PARTS
from luthier.config.settings import Settings
from luthier.models.facts import ModelFacts
from luthier.plan import machine, memory
from luthier.plan.trained import full_tables
from luthier.records import Machine, Resolved

# What is cut where weights are: the rest is of the tokens that are on their way.
CUT = ("weights", "adapter and optimizer", "gradients and optimizer")
# Blocks that are whole at once: the one that computes, and the next, which is on its way.
WHOLE_BLOCKS = 2


@dataclass(frozen=True, slots=True)
class Group:
    """Devices that train together: so many on each host, on so many hosts (of MIN:MAX the fewest, which must be enough)."""

    per_host: int
    hosts: int

    @property
    def total(self) -> int:
        return self.per_host * self.hosts


def group_of(settings: Settings) -> Group:
    """The devices of a run; devices: auto counts as one until it is filled."""
    return Group(1 if settings.devices == "auto" else settings.devices, bounds_of(settings.nodes)[0])


def devices(here: Machine) -> Resolved:
    """What devices: auto becomes on this machine."""
    count = machine.gpu_count() if here.device == "cuda" else 1
    return Resolved("devices", count, f"GPUs of this host: {count}" if here.device == "cuda" else "one process uses all cores of a CPU")


def wrapping(settings: Settings, fits: Callable[[Settings], bool]) -> Resolved:
    """How the weights are shared where that is auto. `fits` says whether a run of other settings fits in a device."""
    whole = settings.model_copy(update={"wrapping": "ddp"})
    if fits(whole):
        return Resolved("wrapping", "ddp", "the weights fit one device, and only what is trained is sent")
    if group_of(settings).hosts > 1:
        return Resolved(
            "wrapping", "hsdp", "the weights do not fit one device: the devices of a host have a part each, and hosts send what is trained"
        )
    return Resolved("wrapping", "fsdp", "the weights do not fit one device: each has a part, and gets the others' as it needs them")


def at_work(settings: Settings, machine: Machine) -> float:
    """How many devices' work is done at once: an update's rows are dealt out whole, to a device or to a team of them, so that more than there
    are rows help nothing."""
    group = group_of(settings)
    count, team = (group.hosts, 1) if machine.device == "cpu" else (group.total, settings.sequence_parallel)
    if settings.wrapping == "tp":  # all devices run each row together
        return count
    rows = settings.training.batch_size
    return count if rows == "auto" else team * rows / math.ceil(rows * team / count)


def parts_of_weights(settings: Settings) -> int:
    """In how many parts the weights are cut: 1 where each device has all of them."""
    group = group_of(settings)
    return {"fsdp": group.total, "hsdp": group.per_host, "tp": group.per_host}.get(settings.wrapping, 1)


def offloads(settings: Settings, machine: Machine) -> bool:
    """Whether the devices' parts lie in main memory. A CPU's always do."""
    return settings.launch.cpu_offload is True and settings.wrapping in PARTS and machine.device != "cpu"


def cpu_offload(settings: Settings, machine: Machine, fits: Callable[[Settings], bool]) -> list[Resolved]:
    """Main memory for the devices' parts, where that is auto and nothing else makes the run fit. `fits` says whether a run of other settings does."""
    here, there = (settings.model_copy(update={"launch": settings.launch.model_copy(update={"cpu_offload": how})}) for how in (False, True))
    if settings.launch.cpu_offload != "auto" or not machine.host_bytes or not offloads(there, machine) or fits(here) or not fits(there):
        return []
    return [Resolved("launch.cpu_offload", True, "the parts do not fit the devices: they lie in main memory, and a block comes when it runs")]


def share(parts: dict[str, int], settings: Settings, facts: ModelFacts, machine: Machine) -> dict[str, int]:
    """The memory of one device, where `parts` is that of a run on a single one: the weights cut, and the blocks that are whole at the moment."""
    count = parts_of_weights(settings)
    if count == 1:
        return parts
    here = 0.0 if offloads(settings, machine) else 1 / count
    cut = {name: math.ceil(size * here) if name in CUT else size for name, size in parts.items()}
    if settings.method == "full":  # the tables are trained whole on each device, and their gradients and moments with them
        of_number = memory.full_number_bytes(settings.training.precision, settings.training.optim)
        cut["gradients and optimizer"] += round(of_number * full_tables(settings, facts) * (1 - here))
    if settings.wrapping == "tp":  # the tables alone stand whole, and no block ever does
        return {**cut, "gathered": tables_bytes(facts, settings.training.precision)}
    return {**cut, "gathered": whole_at_once_bytes(parts["weights"], facts, settings.training.precision)}


def whole_at_once_bytes(weights_bytes: int, facts: ModelFacts, precision: str) -> int:
    """What stands whole on a device while it computes: the tables throughout, and WHOLE_BLOCKS of the blocks."""
    tables = tables_bytes(facts, precision)
    return tables + WHOLE_BLOCKS * (weights_bytes - tables) // facts.layers


def tables_bytes(facts: ModelFacts, precision: str) -> int:
    """The embedding and the head."""
    return (1 if facts.tied else 2) * facts.vocabulary * facts.hidden * memory.PRECISION_BYTES[precision]


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes that one device sends for one update: to the others of its host, and to other hosts; and in how many collectives."""

    inside: int
    between: int
    collectives: int


def traffic(wrapping: str, group: Group, trained: int, weights_bytes: int, layers: int, micro_batches: int) -> Traffic:
    """What one device sends for an update of `micro_batches` micro-batches each, in rings: an all-reduce of S bytes over n devices sends
    2 (n - 1) / n S, a gather or a scatter half of that.

    ddp: the gradients of the `trained` numbers, in fp32, once. fsdp: the weights, gathered for the forward and for the backward pass of every
    micro-batch, and the gradients, scattered. hsdp: likewise inside the host, and the host's part of the gradients between hosts.
    """
    gradients = 4 * trained
    if wrapping in ("ddp", "tp"):  # of tp at most: what is cut is not sent; what its layers send is added by `layer_sums`
        return _placed(round(2 * _of_ring(group.total) * gradients), group, 1)
    shards = group.total if wrapping == "fsdp" else group.per_host
    gathers = 2 * micro_batches * _of_ring(shards) * weights_bytes
    scattered = _of_ring(shards) * gradients * micro_batches
    sent = round(gathers + scattered)
    collectives = 3 * micro_batches * (layers + 1)
    if wrapping == "fsdp":
        return _placed(sent, group, collectives)
    return Traffic(sent, round(2 * _of_ring(group.hosts) * gradients / shards), collectives + (group.hosts > 1))


def swaps(settings: Settings, facts: ModelFacts, tokens: float, micro_batches: int) -> Traffic:
    """What one device sends to its team, around the attention of every layer, for its `tokens` of an update: queries, keys and values before
    it, one vector of all heads after it; as much backward, and again where a block is computed again."""
    team = settings.sequence_parallel
    if team == 1:
        return Traffic(0, 0, 0)
    passes = 3 if settings.training.gradient_checkpointing == "full" else 2
    numbers = 2 * (facts.heads + facts.kv_heads) * facts.head_dim * facts.layers
    size = passes * _of_ring(team) * tokens * numbers * memory.PRECISION_BYTES[settings.training.precision]
    return Traffic(round(size), 0, 2 * passes * facts.layers * micro_batches)


def layer_sums(settings: Settings, facts: ModelFacts, tokens: float, rows: float) -> Traffic:
    """What one device sends where the layers are cut: a vector of each of an update's `tokens`, added up over all devices after attention and
    MLP, and backward for each of the five matrices that read one; forward again where a block is computed again. A row at a time."""
    if settings.wrapping != "tp":
        return Traffic(0, 0, 0)
    sums = facts.layers * (9 if settings.training.gradient_checkpointing == "full" else 7)
    size = 2 * _of_ring(group_of(settings).per_host) * tokens * facts.hidden * sums * memory.PRECISION_BYTES[settings.training.precision]
    return Traffic(round(size), 0, round(sums * rows))


def _of_ring(devices: int) -> float:
    return (devices - 1) / devices


def _placed(size: int, group: Group, collectives: int) -> Traffic:
    """A ring over all devices is as slow as its slowest step: with several hosts all of it counts as sent between them."""
    return Traffic(0, size, collectives) if group.hosts > 1 else Traffic(size, 0, collectives)
