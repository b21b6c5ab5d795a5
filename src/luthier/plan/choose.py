"""The plan of a run: every `auto` with a value and a reason, how many updates, how much memory, and about how long."""

import dataclasses
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from luthier.config.launch import LaunchSettings, bounds_of
from luthier.config.launch_rules import one_process
from luthier.config.methods import METHODS
from luthier.config.settings import Settings
from luthier.errors import MachineError
from luthier.models.facts import ModelFacts, check_layers
from luthier.plan import cost, hyperparameters, in_words, levers, limits, ranges, ranks, scaling, wishes
from luthier.plan.cost import USABLE_SHARE, DataShape
from luthier.plan.hyperparameters import max_length as max_length
from luthier.plan.levers import LEAST_MICRO_BATCH_TOKENS, MICRO_BATCHES
from luthier.plan.machine import rules
from luthier.records import Machine, Resolved

SCHEMA = 1
# Compiling takes about ten seconds the first time on a machine, and saves some hundredths of the time after it.
COMPILING_PAYS_SECONDS = 600


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be done: settings without any `auto` that a plan can fill, and what they cost.

    `memory_bytes` is by what needs it; `seconds` is an estimate of the training alone. `next_step` is "" where the run fits.
    """

    settings: Settings
    resolved: list[Resolved]
    machine: Machine
    updates: int
    memory_bytes: dict[str, int]
    seconds: float
    fits: bool
    next_step: str
    notes: list[str]
    saved_bytes: int  # by gradient checkpointing, of activations
    facts: ModelFacts
    rows: DataShape

    def lines(self) -> list[str]:
        """The plan for people."""
        need, there = sum(self.memory_bytes.values()), cost.memory_limit(self.settings, self.machine)
        parts = ", ".join(f"{name} {in_words.size(size)}" for name, size in self.memory_bytes.items() if size)
        lines = [f"{choice.name}: {choice.value} ({choice.why})" for choice in self.resolved]
        lines.append(f"updates: {self.updates:,} of {self.settings.training.batch_size} examples")
        lines += self.device_lines
        lines.append(f"memory: about {in_words.size(need)} of {in_words.size(there)} ({parts})")
        lines += self.host_lines
        lines.append(f"time: about {in_words.duration(self.seconds)} of training on {self.machine.name} (an estimate)")
        if not self.fits:
            lines.append(f"does not fit in {self.room}. Try: {self.next_step}")
        return lines + self.notes

    @property
    def device_lines(self) -> list[str]:
        """How several devices share the run; nothing for one."""
        return [] if one_process(self.settings) else [scaling.line(self.settings, self.facts, self.machine, self.rows)]

    @property
    def host_lines(self) -> list[str]:
        """What a host's main memory holds for its devices; nothing where it holds nothing for them."""
        if not self.host_memory:
            return []
        there = f" of {in_words.size(self.machine.host_bytes)}" if self.machine.host_bytes else ""
        why = "its devices' parts of the weights, whose way to the devices is not counted as time"
        return [f"main memory of each host: about {in_words.size(self.host_memory)}{there} ({why})"]

    @property
    def host_memory(self) -> int:
        """The same in bytes."""
        return cost.host_memory(self.settings, self.facts, self.machine, self.rows)

    @property
    def lacks_host_memory(self) -> bool:
        return not cost.fits_host(self.settings, self.facts, self.machine, self.rows)

    @property
    def room(self) -> str:
        """What the run may take, in words."""
        if self.lacks_host_memory:
            return f"{USABLE_SHARE:.0%} of {in_words.size(self.machine.host_bytes)} of main memory"
        if self.settings.max_memory:
            return f"{cost.LIMITED_SHARE:.0%} of max_memory: {self.settings.max_memory}"
        return f"{USABLE_SHARE:.0%} of {in_words.size(cost.memory_limit(self.settings, self.machine))}"

    def require_room(self) -> None:
        """Raises MachineError where the run does not fit: it is not begun."""
        if self.lacks_host_memory:
            problem = f"the run needs about {in_words.size(self.host_memory)} of main memory on each host, and may take {self.room}"
            raise MachineError(problem, where="launch.cpu_offload", next_step=self.next_step)
        if not self.fits:
            raise MachineError(
                f"the run needs about {in_words.size(sum(self.memory_bytes.values()))} of memory, and may take {self.room}",
                where="max_memory" if self.settings.max_memory else self.machine.name,
                next_step=f"{self.next_step}   (max_memory: SIZE lets it begin where you know better)",
            )

    def with_budget(self, micro_batch_tokens: int) -> "Plan":
        """The same run with other micro-batches: what it needs then."""
        settings = cost.changed(self.settings, {"training.micro_batch_tokens": micro_batch_tokens})
        parts = cost.memory_parts(settings, self.facts, self.machine, self.rows)
        seconds = cost.training_seconds(settings, self.facts, self.machine, self.rows, self.updates)
        return dataclasses.replace(self, settings=settings, memory_bytes=parts, seconds=seconds)

    def as_json(self) -> dict[str, Any]:
        """The plan as plan.json holds it."""
        return {
            "schema": SCHEMA,
            "settings": self.settings.model_dump(),
            "resolved": [dataclasses.asdict(choice) for choice in self.resolved],
            "machine": dataclasses.asdict(self.machine),
            "updates": self.updates,
            "memory_bytes": self.memory_bytes,
            "seconds_estimated": self.seconds,
            "fits": self.fits,
            "next_step": self.next_step,
            "notes": self.notes,
            **({"host_memory_bytes": self.host_memory} if self.host_memory else {}),
        }


def resolve(settings: Settings, facts: ModelFacts, machine: Machine, rows: DataShape) -> Plan:
    """Fill every `auto` and count the cost. Raises ConfigError where a setting is impossible with this model."""
    limits.check_max_length(settings, facts)
    check_layers(settings.lora.layers_to_transform, facts.layers, "lora.layers_to_transform")
    check_layers(settings.freeze.numbers(), facts.layers, "freeze.layers")
    limits.check_rank(settings, facts)
    limits.check_heads(settings, facts)
    resolved, filled = _filled(settings, facts, machine, rows)
    resolved += device_choices(filled, facts, machine, rows)
    filled = _fill(settings, resolved)
    limits.check_team(filled)
    resolved += memory_choices(filled, facts, machine, rows)
    filled = _fill(settings, resolved)
    if settings.training.compile == "auto":
        resolved.append(compiling(cost.training_seconds(filled, facts, machine, rows, count_updates(filled, rows.train_rows))))
        filled = _fill(settings, resolved)
    updates = count_updates(filled, rows.train_rows)
    limits.check_warmup(settings, updates)
    parts = cost.memory_parts(filled, facts, machine, rows)
    fits = cost.fits(filled, facts, machine, rows)
    return Plan(
        settings=filled,
        resolved=resolved,
        machine=machine,
        updates=updates,
        memory_bytes=parts,
        seconds=cost.training_seconds(filled, facts, machine, rows, updates),
        fits=fits,
        next_step="" if fits else levers.cheapest_change(filled, facts, machine, rows),
        notes=_notes(filled, machine, rows, updates) + ranges.warnings(filled, facts, rows, updates),
        saved_bytes=sum(cost.memory_parts(cost.changed(filled, {"training.gradient_checkpointing": "off"}), facts, machine, rows).values())
        - sum(parts.values()),
        facts=facts,
        rows=rows,
    )


def _filled(settings: Settings, facts: ModelFacts, machine: Machine, rows: DataShape) -> tuple[list[Resolved], Settings]:
    """What every `auto` becomes but for those that go by memory and time, and the settings with all of it. A later one may read an earlier one."""
    filled, resolved = settings, list[Resolved]()

    def fill(*choices: Resolved) -> None:
        nonlocal filled
        autos = [choice for choice in choices if value_of(filled, choice.name) == "auto"]
        resolved.extend(autos)
        filled = _fill(filled, autos)

    fill(max_length(settings, facts), hyperparameters.epochs(settings, rows))
    fill(hyperparameters.batch_size(filled, rows))
    fill(hyperparameters.learning_rate(facts, settings.method, settings.training.optim, settings.objective), hyperparameters.warmup(settings))
    if "lora" in METHODS[settings.method].blocks:
        fill(hyperparameters.rank(settings, facts, rows))
        fill(hyperparameters.alpha(filled), hyperparameters.dropout(filled, rows))
    fill(hyperparameters.precision(machine), hyperparameters.max_new_tokens(facts, rows), *hyperparameters.beta(settings))
    return resolved, filled


def device_choices(settings: Settings, facts: ModelFacts, machine: Machine, rows: DataShape) -> list[Resolved]:
    """How many devices there are and how they share the weights, where that is `auto`; nothing for one process."""
    resolved = [ranks.devices(machine)] if settings.devices == "auto" else []
    settings = _fill(settings, resolved)

    def fits(other: Settings) -> bool:
        return cost.fits(_fill(other, memory_choices(other, facts, machine, rows)), facts, machine, rows)

    if settings.wrapping == "auto" and not one_process(settings):
        resolved.append(ranks.wrapping(settings, fits))
        settings = _fill(settings, resolved[-1:])
    return resolved + ranks.cpu_offload(settings, machine, fits)


def memory_choices(settings: Settings, facts: ModelFacts, machine: Machine, rows: DataShape) -> list[Resolved]:
    """What makes the run fit where it is `auto`: smaller micro-batches first, which cost less than computing activations again."""
    cut, again = "training.micro_batch_tokens", "training.gradient_checkpointing"
    tokens, mode = settings.training.micro_batch_tokens, settings.training.gradient_checkpointing
    cuts = MICRO_BATCHES if tokens == "auto" else (tokens,)
    modes = ("off", "selective", "full") if mode == "auto" else (mode,)

    def fits(mode: str, tokens: int) -> bool:
        return cost.fits(cost.changed(settings, {cut: tokens, again: mode}), facts, machine, rows)

    tried = itertools.product(modes, cuts)
    chosen_mode, chosen_cut = next((way for way in tried if fits(*way)), (modes[-1], cuts[-1]))
    usual = sum(cost.memory_parts(cost.changed(settings, {cut: cuts[0], again: modes[0]}), facts, machine, rows).values())
    otherwise = f"{in_words.size(usual)} would be needed otherwise"
    if tokens != "auto" and chosen_mode != "off" and fits("off", min(max(LEAST_MICRO_BATCH_TOKENS, rows.longest), tokens)):
        chosen_mode, otherwise = "off", "smaller micro-batches cost less"
    resolved = []
    if tokens == "auto":
        resolved.append(Resolved(cut, chosen_cut, "usual" if chosen_cut == cuts[0] else otherwise))
    if mode == "auto":
        resolved.append(Resolved(again, chosen_mode, "the run fits without" if chosen_mode == "off" and fits("off", chosen_cut) else otherwise))
    return resolved


def compiling(seconds: float) -> Resolved:
    """Whether the run is long enough to repay a compiler."""
    long = seconds >= COMPILING_PAYS_SECONDS
    why = f"the run is predicted to take {'more' if long else 'less'} than {in_words.duration(COMPILING_PAYS_SECONDS)}"
    return Resolved("training.compile", "on" if long else "off", why)


def count_updates(settings: Settings, train_rows: int) -> int:
    """Updates of the run: max_steps, or all passes over the rows laid end to end and cut into batches."""
    training = settings.training
    assert training.batch_size != "auto"
    return training.max_steps or max(1, math.ceil(max(1, round(train_rows * float(training.num_train_epochs))) / training.batch_size))


def _notes(settings: Settings, machine: Machine, rows: DataShape, updates: int) -> list[str]:
    notes = []
    least = rules()["batch_size"]["least_updates"]
    if updates < least:
        notes.append(f"note: {updates} updates are few (below {least} a run rarely learns): more rows, more epochs or a smaller batch_size help")
    if settings.training.precision != "auto" and settings.training.precision != machine.faster_precision:
        notes.append(f"note: {machine.faster_precision} is faster on this machine than {settings.training.precision}")
    notes += [f"note: {name} has no effect {where}" for name, where in _idle(settings, machine)]
    if settings.training.deterministic:
        how = "attention takes no faster kernel" if machine.device == "cuda" else "a CPU gives the same bits every time anyway"
        notes.append(f"note: deterministic: {how}")
    if rows.train_rows < wishes.rules()["usual"]["few_rows"]:
        notes.append(f"note: {rows.train_rows} rows teach a form at best; a few hundred are usual for a task")
    if reserved := settings.data.reserve_for_generation:
        left = int(settings.data.max_length) - reserved
        notes.append(f"note: rows have up to {left:,} tokens, since data.reserve_for_generation keeps {reserved:,} of data.max_length free")
    return notes


def _idle(settings: Settings, machine: Machine) -> Iterator[tuple[str, str]]:
    """Settings of several devices that were written and that nothing reads in this run, and why."""
    written, usual = settings.launch, LaunchSettings()
    if written.port != usual.port and bounds_of(settings.nodes)[1] == 1:
        yield "launch.port", "with nodes: 1, whose processes meet on a free port"
    if written.timeout_minutes != usual.timeout_minutes and one_process(settings):
        yield "launch.timeout_minutes", "with one process, for which no other waits"
    if written.cpu_offload is True and not ranks.offloads(settings, machine):
        yield "launch.cpu_offload", "here: a CPU's parts of the weights are in main memory anyway"


def value_of(settings: Settings, name: str) -> Any:
    """The value of a dotted name ("training.batch_size")."""
    value: Any = settings
    for part in name.split("."):
        value = getattr(value, part)
    return value


def _fill(settings: Settings, resolved: list[Resolved]) -> Settings:
    return cost.changed(settings, {choice.name: choice.value for choice in resolved})
