"""The same run on more devices, before there are any: memory of each, what it sends, and how much faster it gets. Arithmetic and the links of
data sheets (links.toml); nothing of it is measured, and what is assumed is said."""

import functools
import math
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from luthier.config.settings import Settings
from luthier.models.facts import ModelFacts
from luthier.plan import cost, in_words, levers, limits, ranks
from luthier.plan.cost import DataShape
from luthier.plan.ranks import Group, Traffic
from luthier.plan.trained import trained_parameters
from luthier.records import Machine


@dataclass(frozen=True, slots=True)
class Links:
    """How fast a device speaks: bytes a second to the others of its host and to other hosts, and seconds that a step of a collective waits."""

    inside: float
    between: float
    wait_s: float
    per_host: int


@dataclass(frozen=True, slots=True)
class Scaled:
    """The run on so many devices: how they share the weights, the peak of one, what one sends for an update, and how long an update takes.

    `speedup` is against one device, `efficiency` that by their number; `seconds` are those of the whole run.
    """

    devices: int
    hosts: int
    wrapping: str
    needs_bytes: int
    fits: bool
    sent_bytes: int
    update_seconds: float
    speedup: float
    efficiency: float
    seconds: float


@functools.cache
def rules() -> dict[str, Any]:
    """The tables of links.toml."""
    return tomllib.loads(resources.files("luthier.plan").joinpath("links.toml").read_text(encoding="utf-8"))


def links_of(machine: Machine) -> Links:
    """The links of a device by its name in devices.toml; of a GPU that is not listed, PCIe and Ethernet."""
    known, share = rules(), rules()["share"]
    name = "this" if machine.device == "cpu" else machine.name
    inside, between = (table.get(name, table["other"]) * 1e9 * share for table in (known["inside"], known["between"]))
    return Links(inside, between, known["latency_us"] / 1e6, known["devices_per_host"])


def simulate(settings: Settings, facts: ModelFacts, machine: Machine, rows: DataShape, updates: int, counts: Sequence[int]) -> list[Scaled]:
    """The run on each number of devices, hosts filled one after the other. `settings` are a plan's; their own devices and nodes do not count."""
    alone = _with(settings, Group(1, 1), "ddp")
    alone_s = cost.training_seconds(alone, facts, machine, rows, updates) / updates
    return [_on(settings, facts, machine, rows, updates, count, alone_s) for count in counts]


def _on(settings: Settings, facts: ModelFacts, machine: Machine, rows: DataShape, updates: int, count: int, alone_s: float) -> Scaled:
    links = links_of(machine)
    group = _group(count, links.per_host)
    tried = [_fitted(_with(settings, group, wrapping), facts, machine, rows) for wrapping in _wanted(settings.wrapping, group, facts)]
    filled, needs, fits = next((one for one in tried if one[2]), tried[-1])
    sent = traffic_of(filled, facts, machine, rows)
    computing_s = alone_s / ranks.at_work(filled, _like_gpus(machine))
    update_s = (
        computing_s + sending_seconds(sent, group, links)
        if filled.wrapping in ("ddp", "tp")
        else max(computing_s, sending_seconds(sent, group, links))
    )
    speedup = alone_s / update_s
    total = sent.inside + sent.between
    return Scaled(group.total, group.hosts, filled.wrapping, needs, fits, total, update_s, speedup, speedup / group.total, update_s * updates)


def _wanted(asked: str, group: Group, facts: ModelFacts) -> list[str]:
    """The ways to share the weights that come into question, the preferred first; where devices cannot run each a part of every layer (tp),
    they have parts of the weights."""
    if group.total == 1:
        return ["ddp"]
    cut = ["hsdp", "fsdp"] if group.hosts > 1 else ["fsdp"]
    if asked == "tp":
        return ["tp"] if group.hosts == 1 and limits.shares_evenly(facts, group.total, columns=True) else cut
    return ["ddp", *cut] if asked == "auto" else [asked]


def _group(count: int, per_host: int) -> Group:
    """So many devices on as few hosts as they fit on, each with as many as the others: 12 on hosts of 8 are twice 6."""
    hosts = next(hosts for hosts in range(math.ceil(count / per_host), count + 1) if count % hosts == 0)
    return Group(count // hosts, hosts)


def _like_gpus(machine: Machine) -> Machine:
    """A simulated device is one of its own, on a CPU too: each process has a processor."""
    return Machine("cuda", machine.name, 1, machine.memory_bytes, machine.bf16_gflops, machine.fp32_gflops)


def _with(settings: Settings, group: Group, wrapping: str) -> Settings:
    team = math.gcd(settings.sequence_parallel, group.per_host)
    return settings.model_copy(update={"devices": group.per_host, "nodes": group.hosts, "wrapping": wrapping, "sequence_parallel": team})


def _fitted(settings: Settings, facts: ModelFacts, machine: Machine, rows: DataShape) -> tuple[Settings, int, bool]:
    """The run with the largest micro-batches and the least recomputation that fit in a device, its peak, and whether it fits."""
    found = levers.within(settings, facts, machine, rows, machine.memory_bytes)
    chosen = {"training.micro_batch_tokens": found.micro_batch_tokens, "training.gradient_checkpointing": found.gradient_checkpointing}
    return cost.changed(settings, chosen), found.needs_bytes, found.fits


def traffic_of(settings: Settings, facts: ModelFacts, machine: Machine, rows: DataShape) -> Traffic:
    """What one device of a run sends for an update. All settings are filled."""
    group = ranks.group_of(settings)
    weights = cost.memory_parts(settings.model_copy(update={"wrapping": "ddp"}), facts, machine, rows)["weights"]
    tokens = int(settings.training.batch_size) * rows.train_tokens / rows.train_rows
    here = tokens / group.total
    micro_batches = max(1, math.ceil(here * settings.sequence_parallel / int(settings.training.micro_batch_tokens)))
    sent = ranks.traffic(settings.wrapping, group, trained_parameters(settings, facts), weights, facts.layers, micro_batches)
    swapped = ranks.swaps(settings, facts, here, micro_batches)
    summed = ranks.layer_sums(settings, facts, tokens, int(settings.training.batch_size))
    return Traffic(sent.inside + swapped.inside + summed.inside, sent.between, sent.collectives + swapped.collectives + summed.collectives)


def sending_seconds(sent: Traffic, group: Group, links: Links) -> float:
    """How long the collectives of an update take: bytes over the links, and 2 log2(devices) steps of waiting for each."""
    steps = 2 * math.ceil(math.log2(group.total)) if group.total > 1 else 0
    return sent.inside / links.inside + sent.between / links.between + sent.collectives * steps * links.wait_s


def line(settings: Settings, facts: ModelFacts, machine: Machine, rows: DataShape) -> str:
    """The devices of a run for people: how they share it, and what each sends."""
    group, sent = ranks.group_of(settings), traffic_of(settings, facts, machine, rows)
    where = f"{group.per_host} on each of {group.hosts} hosts" if group.hosts > 1 else f"{group.per_host}"
    return f"devices: {where} ({settings.wrapping}); each sends about {in_words.size(sent.inside + sent.between)} for an update"


def assumptions(machine: Machine, settings: Settings) -> list[str]:
    """What the numbers of `simulate` stand on, a line each."""
    links, known = links_of(machine), rules()
    tp = "wrapping: tp is for one host whose devices divide heads, key heads and columns of the MLP: other numbers are shown with fsdp or hsdp"
    return [
        *([tp] if settings.wrapping == "tp" else []),
        f"one device computes as {machine.name} is estimated to; an update has {settings.training.batch_size} rows, dealt out whole",
        f"links of data sheets ({known['checked']}), of which {known['share']:.0%} are reached: {links.inside / 1e9:.3g} GB/s inside a host, "
        f"{links.between / 1e9:.3g} GB/s to another, and {known['latency_us']} us for a step",
        f"hosts of {links.per_host} devices; ddp sends after computing, fsdp and hsdp while they compute",
        "loading, evaluating and saving are not counted; nothing of this is measured",
    ]
