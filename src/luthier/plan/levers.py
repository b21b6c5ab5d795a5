"""What fits where, and what to change first where a run does not fit: the same arithmetic with other settings, methods and memory."""

import dataclasses
import itertools
import math
from dataclasses import dataclass
from typing import Any

from luthier.config.adapters import FreezeSettings
from luthier.config.launch_rules import PARTS
from luthier.config.methods import METHODS
from luthier.config.settings import Settings
from luthier.models.facts import ModelFacts
from luthier.plan import cost, in_words
from luthier.plan.cost import USABLE_SHARE, DataShape
from luthier.records import Machine

# Tokens of a micro-batch: the usual number, and what is tried where it does not fit. Below the last, products are slow.
MICRO_BATCHES = (4096, 2048, 1024, 512, 256)
LEAST_MICRO_BATCH_TOKENS = MICRO_BATCHES[-1]
MODES = ("off", "selective", "full")
# Memory of usual cards, in bytes, and the methods that are compared on them.
CARDS_BYTES = tuple(size * 10**9 for size in (8, 16, 24, 48, 80))
COMPARED_METHODS = ("qlora", "lora", "full")


@dataclass(frozen=True, slots=True)
class Neighbor:
    """The same run with one method in so much memory.

    `needs_bytes` is its peak as it would run there: with the largest micro-batches and the least recomputation that fit
    (`micro_batch_tokens`, `gradient_checkpointing`); where `fits` is False, with the smallest of both.
    """

    method: str
    card_bytes: int
    fits: bool
    needs_bytes: int
    micro_batch_tokens: int
    gradient_checkpointing: str


def neighbors(settings: Settings, facts: ModelFacts, machine: Machine, rows: DataShape) -> list[Neighbor]:
    """What fits in 8, 16, 24, 48 and 80 GB, of which USABLE_SHARE may be taken, by method: a row for each pair, all sizes of a method together.

    `settings` are a plan's, without any `auto`. The peaks are those of a GPU in bf16, whatever this machine is: cards are GPUs'.
    """
    gpu = dataclasses.replace(machine, device="cuda", attention="")
    asked = cost.changed(settings, {"training.precision": "bf16"})
    return [within(with_method(asked, method), facts, gpu, rows, card) for method in COMPARED_METHODS for card in CARDS_BYTES]


def with_method(settings: Settings, method: str) -> Settings:
    """The same run with another method, and without what only its own method reads."""
    if method == settings.method:
        return settings
    change: dict[str, Any] = {"method": method, "training.frozen_base": "bf16", "freeze": FreezeSettings()}
    if settings.training.optim == "muon":
        change["training.optim"] = "adamw"
    return cost.changed(settings, change)


def within(settings: Settings, facts: ModelFacts, machine: Machine, rows: DataShape, card_bytes: int) -> Neighbor:
    """The run as it would be made to fit in so much memory on the machine's kind of device."""
    tried: list[tuple[str, int, int]] = []
    for mode, tokens in itertools.product(MODES, MICRO_BATCHES):
        one = cost.changed(settings, {"training.micro_batch_tokens": tokens, "training.gradient_checkpointing": mode})
        tried.append((mode, tokens, sum(cost.memory_parts(one, facts, machine, rows).values())))
    room = USABLE_SHARE * card_bytes
    mode, tokens, needs = next((one for one in tried if one[2] <= room), min(tried, key=lambda one: one[2]))
    return Neighbor(settings.method, card_bytes, needs <= room, needs, tokens, mode)


def cheapest_change(settings: Settings, facts: ModelFacts, machine: Machine, rows: DataShape) -> str:
    """The change that costs least and makes the run fit: smaller micro-batches first (the same result), then bf16, a lower rank, a smaller model."""
    if not cost.fits_host(settings, facts, machine, rows):
        there = in_words.size(math.ceil(cost.host_memory(settings, facts, machine, rows) / USABLE_SHARE))
        return f"fewer devices on a host (each loads the whole model), or hosts with at least {there} of main memory"
    smallest = max(LEAST_MICRO_BATCH_TOKENS, rows.longest)
    changes: list[tuple[str, dict[str, Any]]] = []
    if "side by side" in cost.memory_parts(settings, facts, machine, rows):
        changes.append(("training.side_by_side: false (the same result, a little slower)", {"training.side_by_side": False}))
    tokens = cost.micro_batch_of(settings, rows) // 2
    while tokens >= smallest:
        changes.append((f"training.micro_batch_tokens: {tokens} (the same result, a little slower)", {"training.micro_batch_tokens": tokens}))
        tokens //= 2
    least: dict[str, Any] = {"training.micro_batch_tokens": min(smallest, int(settings.training.micro_batch_tokens))}
    spelled = f"training.micro_batch_tokens: {least['training.micro_batch_tokens']}"
    if settings.training.precision == "fp32":
        changes.append((f"training.precision: bf16 and {spelled}", {**least, "training.precision": "bf16"}))
    for mode in ("selective", "full"):
        changes.append((f"training.gradient_checkpointing: {mode} and {spelled}", {**least, "training.gradient_checkpointing": mode}))
    least["training.gradient_checkpointing"] = "full"
    if settings.wrapping in PARTS and machine.device != "cpu":
        offloaded = f"launch.cpu_offload: true, training.gradient_checkpointing: full and {spelled}"
        changes.append((offloaded, {**least, "launch.cpu_offload": True}))
    if settings.method == "full":
        spelled = f"training.gradient_checkpointing: full and {spelled}"
        changes.append((f"training.optim: adamw_8bit, {spelled}", {**least, "training.optim": "adamw_8bit"}))
        text, change = _to_lora(settings)
        changes.append((f"{text}, {spelled}", {**least, **change}))
    elif "lora" in METHODS[settings.method].blocks and settings.lora.numbers[0] > 8:
        changes.append((f"lora.r: 8 and {spelled}", {**least, "lora.r": 8}))
    if settings.method == "lora":
        fp8 = settings.training.frozen_base == "fp8"  # which is another way to make a frozen base small
        text = "method: qlora, training.frozen_base: bf16" if fp8 else "method: qlora"
        changes.append((f"{text} and {spelled}", {**least, "method": "qlora", "training.frozen_base": "bf16"}))
    for text, change in changes:
        if cost.fits(cost.changed(settings, change), facts, machine, rows):
            return text
    needed = _peak(cost.changed(settings, least), facts, machine, rows)
    if settings.max_memory:
        return f"a smaller model, or max_memory: {math.ceil(needed / cost.LIMITED_SHARE / 1e8) / 10}GB"
    return f"a smaller model, or a machine with at least {needed / USABLE_SHARE / 1e9:.3g} GB"


def levers(settings: Settings, facts: ModelFacts, machine: Machine, rows: DataShape) -> list[tuple[str, int]]:
    """Changes that make the largest single row of a run need less, with the bytes that the run would then need; the strongest first."""
    settings = cost.changed(settings, {"training.micro_batch_tokens": 1})
    half = max(1, rows.longest // 2)
    changes: list[tuple[str, dict[str, Any], DataShape]] = [
        ("training.gradient_checkpointing: full", {"training.gradient_checkpointing": "full"}, rows),
        ("training.precision: bf16", {"training.precision": "bf16"}, rows),
        (f"data.max_length: {half}", {}, dataclasses.replace(rows, longest=half, shared_prefix_tokens=min(rows.shared_prefix_tokens, half - 1))),
        ("training.share_prefixes: false", {"training.share_prefixes": False}, rows),
    ]
    if settings.method == "full":
        text, change = _to_lora(settings)
        changes += [("training.optim: adamw_8bit", {"training.optim": "adamw_8bit"}, rows), (text, change, rows)]
    if settings.method == "lora":
        changes.append(("method: qlora", {"method": "qlora", "training.frozen_base": "bf16"}, rows))
        changes.append(("lora.r: 8", {"lora.r": min(8, settings.lora.numbers[0])}, rows))
    now = _peak(settings, facts, machine, rows)
    costs = [(text, _peak(cost.changed(settings, change), facts, machine, shape)) for text, change, shape in changes]
    return sorted(((text, needed) for text, needed in costs if needed < now), key=lambda lever: lever[1])


def _to_lora(settings: Settings) -> tuple[str, dict[str, Any]]:
    """`method: lora` in place of full, with all that only full reads: in words, and as a change."""
    text, change = "method: lora", {"method": "lora", "freeze": FreezeSettings()}
    if settings.training.optim == "muon":
        text, change = f"{text}, training.optim: adamw", {**change, "training.optim": "adamw"}
    return (f"{text}, no freeze" if "freeze" in settings.model_fields_set else text), change


def _peak(settings: Settings, facts: ModelFacts, machine: Machine, rows: DataShape) -> int:
    return sum(cost.memory_parts(settings, facts, machine, rows).values())
