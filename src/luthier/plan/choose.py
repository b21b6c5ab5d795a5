"""The plan of a run: every `auto` with a value and a reason, how many updates, how much memory, and about how long."""

import dataclasses
import itertools
import math
from dataclasses import dataclass
from typing import Any

from luthier.config.settings import Settings
from luthier.errors import ConfigError
from luthier.models.facts import ModelFacts
from luthier.plan import memory, time
from luthier.plan.machine import rules
from luthier.records import Machine, Resolved

SCHEMA = 1
# The rest is for the system and what else runs.
USABLE_SHARE = 0.9
# Compiling takes about ten seconds the first time on a machine, and saves some hundredths of the time after it.
COMPILING_PAYS_SECONDS = 600
# Below this a micro-batch is too small for fast matrix products.
LEAST_MICRO_BATCH_TOKENS = 256


@dataclass(frozen=True, slots=True)
class DataShape:
    """The rows of a run in numbers, all in tokens but the first.

    `shared_prefix_tokens`: what every training row begins with; `answer_p99`: the 99th percentile of the training answers' lengths.
    """

    train_rows: int
    train_tokens: int
    trained_tokens: int
    longest: int
    shared_prefix_tokens: int
    answer_p99: int


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

    def lines(self) -> list[str]:
        """The plan for people."""
        need, there = sum(self.memory_bytes.values()), self.machine.memory_bytes
        parts = ", ".join(f"{name} {_size(size)}" for name, size in self.memory_bytes.items() if size)
        lines = [f"{choice.name}: {choice.value} ({choice.why})" for choice in self.resolved]
        lines.append(f"updates: {self.updates:,} of {self.settings.training.batch_size} examples")
        lines.append(f"memory: about {_size(need)} of {_size(there)} ({parts})")
        lines.append(f"time: about {_duration(self.seconds)} of training on {self.machine.name} (an estimate)")
        if not self.fits:
            lines.append(f"does not fit in {USABLE_SHARE:.0%} of the memory. Try: {self.next_step}")
        return lines + self.notes

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
        }


def resolve(settings: Settings, facts: ModelFacts, machine: Machine, rows: DataShape) -> Plan:
    """Fill every `auto` and count the cost. Raises ConfigError where a setting is impossible with this model."""
    check_max_length(settings, facts)
    choices = [
        max_length(settings, facts),
        batch_size(settings, facts, rows),
        learning_rate(facts, settings.method),
        precision(machine),
        max_new_tokens(facts, rows),
    ]
    resolved = [choice for choice in choices if _value(settings, choice.name) == "auto"]
    filled = _fill(settings, resolved)
    if settings.training.gradient_checkpointing == "auto":
        resolved.append(gradient_checkpointing(filled, facts, machine, rows))
        filled = _fill(settings, resolved)
    if settings.training.compile == "auto":
        resolved.append(compiling(_seconds(filled, facts, machine, rows, count_updates(filled, rows.train_rows))))
        filled = _fill(settings, resolved)
    updates = count_updates(filled, rows.train_rows)
    cost = _memory(filled, facts, rows)
    fits = _fits(cost, machine)
    return Plan(
        settings=filled,
        resolved=resolved,
        machine=machine,
        updates=updates,
        memory_bytes=cost,
        seconds=_seconds(filled, facts, machine, rows, updates),
        fits=fits,
        next_step="" if fits else cheapest_change(filled, facts, machine, rows),
        notes=_notes(filled, machine, rows, updates),
        saved_bytes=sum(_memory(_replace(filled, {"training.gradient_checkpointing": "off"}), facts, rows).values()) - sum(cost.values()),
    )


def check_max_length(settings: Settings, facts: ModelFacts) -> None:
    """Raises ConfigError where data.max_length asks for more than the model can read."""
    asked = settings.data.max_length
    if asked != "auto" and asked > facts.context:
        raise ConfigError(
            f"{asked:,} tokens are more than this model's context of {facts.context:,}",
            where="data.max_length",
            next_step=f"data.max_length: {facts.context}",
        )


def max_length(settings: Settings, facts: ModelFacts) -> Resolved:
    """The longest row, in tokens. The only choice that is needed before rows can be counted in tokens."""
    asked = settings.data.max_length
    if asked != "auto":
        return Resolved("data.max_length", asked, "as given")
    most = rules()["max_length"]["most"]
    why = f"the model's context is {facts.context:,}; auto takes at most {most:,}" if facts.context > most else "the model's context"
    return Resolved("data.max_length", min(facts.context, most), why)


def learning_rate(facts: ModelFacts, method: str = "lora") -> Resolved:
    """The peak rate for a model of this size: straight between the points of the method's table, in the logarithms, to one digit."""
    points = rules()["learning_rate" if method == "lora" else "learning_rate_full"]["points"]
    size = min(max(facts.parameters, points[0][0]), points[-1][0])
    (small, high), (large, low) = next(pair for pair in itertools.pairwise(points) if size <= pair[1][0])
    share = math.log(size / small) / math.log(large / small)
    rate = high * (low / high) ** share
    what = "LoRA on {}: about ten times the rate of full training" if method == "lora" else "full training of {}: about a tenth of LoRA's rate"
    why = f"{what.format(f'{_count(facts.parameters)} parameters')}, lower for larger models"
    return Resolved("training.learning_rate", float(f"{rate:.0e}"), why)


def batch_size(settings: Settings, facts: ModelFacts, rows: DataShape) -> Resolved:
    """Examples per update: the table's number for this model and these rows, less where the run would have too few updates."""
    table = rules()["batch_size"]
    usual = next(size for below, few, size in table["bands"] if facts.parameters < (below or math.inf) and rows.train_rows < (few or math.inf))
    why = f"usual for {_count(facts.parameters)} parameters and {rows.train_rows:,} rows"
    seen = rows.train_rows * settings.training.num_train_epochs
    if settings.training.max_steps:
        return Resolved("training.batch_size", min(usual, rows.train_rows), why)
    most = max(1, math.floor(seen / table["least_updates"]))
    if most < usual:
        why = f"{usual} is {why}; fewer, so that few rows make more updates ({table['least_updates']} where they can)"
    return Resolved("training.batch_size", min(usual, most), why)


def precision(machine: Machine) -> Resolved:
    """The faster number format on this machine."""
    fp16 = f"{machine.fp16_gflops:,.0f} in fp16, " if machine.fp16_gflops else ""
    why = f"{machine.bf16_gflops:,.0f} GFLOP/s in bf16, {fp16}{machine.fp32_gflops:,.0f} in fp32 on {machine.name}"
    return Resolved("training.precision", machine.faster_precision, why)


def max_new_tokens(facts: ModelFacts, rows: DataShape) -> Resolved:
    """The longest answer that evaluation waits for, in tokens."""
    rule = rules()["max_new_tokens"]
    cap = max(rule["least"], math.ceil(rule["factor"] * rows.answer_p99))
    why = f"99 % of the training answers have at most {rows.answer_p99:,} tokens"
    return Resolved("evaluation.max_new_tokens", min(cap, facts.context), why)


def gradient_checkpointing(settings: Settings, facts: ModelFacts, machine: Machine, rows: DataShape) -> Resolved:
    """What is computed again in the backward pass: nothing where the run fits, be it in smaller micro-batches, which cost less."""

    def fits(**changes: object) -> bool:
        return _fits(_memory(_replace(settings, {f"training.{name}": value for name, value in changes.items()}), facts, rows), machine)

    name = "training.gradient_checkpointing"
    least = min(max(LEAST_MICRO_BATCH_TOKENS, rows.longest), settings.training.micro_batch_tokens)
    if fits(gradient_checkpointing="off"):
        return Resolved(name, "off", "the run fits without")
    if fits(gradient_checkpointing="off", micro_batch_tokens=least):
        return Resolved(name, "off", "smaller micro-batches cost less")
    for mode in ("selective", "full"):
        if fits(gradient_checkpointing=mode):
            return Resolved(name, mode, f"without it {_size(sum(_memory(_replace(settings, {name: 'off'}), facts, rows).values()))} are needed")
    return Resolved(name, "full", "the run does not fit without")


def compiling(seconds: float) -> Resolved:
    """Whether the run is long enough to repay a compiler."""
    long = seconds >= COMPILING_PAYS_SECONDS
    why = f"the run is predicted to take {'more' if long else 'less'} than {_duration(COMPILING_PAYS_SECONDS)}"
    return Resolved("training.compile", "on" if long else "off", why)


def count_updates(settings: Settings, train_rows: int) -> int:
    """Updates of the run: max_steps, or all passes over the rows laid end to end and cut into batches."""
    training = settings.training
    assert training.batch_size != "auto"
    return training.max_steps or max(1, math.ceil(max(1, round(train_rows * training.num_train_epochs)) / training.batch_size))


def cheapest_change(settings: Settings, facts: ModelFacts, machine: Machine, rows: DataShape) -> str:
    """The change that costs least and makes the run fit: smaller micro-batches first (the same result), then bf16, a lower rank, a smaller model."""
    smallest = max(LEAST_MICRO_BATCH_TOKENS, rows.longest)
    changes: list[tuple[str, dict[str, Any]]] = []
    tokens = _micro_batch(settings, rows) // 2
    while tokens >= smallest:
        changes.append((f"training.micro_batch_tokens: {tokens} (the same result, a little slower)", {"training.micro_batch_tokens": tokens}))
        tokens //= 2
    least: dict[str, Any] = {"training.micro_batch_tokens": min(smallest, settings.training.micro_batch_tokens)}
    spelled = f"training.micro_batch_tokens: {least['training.micro_batch_tokens']}"
    if settings.training.precision == "fp32":
        changes.append((f"training.precision: bf16 and {spelled}", {**least, "training.precision": "bf16"}))
    for mode in ("selective", "full"):
        changes.append((f"training.gradient_checkpointing: {mode} and {spelled}", {**least, "training.gradient_checkpointing": mode}))
    least["training.gradient_checkpointing"] = "full"
    if settings.method == "full":
        spelled = f"training.gradient_checkpointing: full and {spelled}"
        changes.append((f"training.optim: adamw_8bit, {spelled}", {**least, "training.optim": "adamw_8bit"}))
        changes.append((f"method: lora, {spelled}", {**least, "method": "lora"}))
    elif settings.lora.r > 8:
        changes.append((f"lora.r: 8 and {spelled}", {**least, "lora.r": 8}))
    for text, change in changes:
        if _fits(_memory(_replace(settings, change), facts, rows), machine):
            return text
    return f"a smaller model, or a machine with at least {_size(int(_least_bytes(settings, least, facts, rows) / USABLE_SHARE))}"


def _least_bytes(settings: Settings, least: dict[str, Any], facts: ModelFacts, rows: DataShape) -> int:
    return sum(_memory(_replace(settings, least), facts, rows).values())


def _fits(cost: dict[str, int], machine: Machine) -> bool:
    return sum(cost.values()) <= USABLE_SHARE * machine.memory_bytes


def _micro_batch(settings: Settings, rows: DataShape) -> int:
    """Tokens at once in the worst update: no more than it holds, and never less than one whole row."""
    size = settings.training.batch_size
    assert size != "auto"
    prefix = _prefix(settings, rows)
    return max(min(settings.training.micro_batch_tokens, size * (rows.longest - prefix)), rows.longest - prefix)


def _prefix(settings: Settings, rows: DataShape) -> int:
    """Tokens that are really shared: dropout draws for each example, so nothing is shared beside it."""
    return rows.shared_prefix_tokens if settings.training.share_prefixes and not settings.lora.lora_dropout else 0


def _memory(settings: Settings, facts: ModelFacts, rows: DataShape) -> dict[str, int]:
    training = settings.training
    recomputed = "off" if training.gradient_checkpointing == "auto" else training.gradient_checkpointing
    passing = (training.precision, _micro_batch(settings, rows), rows.train_tokens // rows.train_rows, _prefix(settings, rows))
    if settings.method == "full":
        return memory.full_run_bytes(facts, *passing, optim=training.optim, recomputed=recomputed)
    trained = memory.lora_parameters(facts, settings.lora.r, settings.lora.target_modules, settings.lora.layers_to_transform)
    trained += memory.table_parameters(facts, bool(settings.lora.modules_to_save), len(settings.tokenizer.add_special_tokens))
    return memory.lora_run_bytes(facts, trained, *passing, optim=training.optim, recomputed=recomputed, frozen_base=training.frozen_base)


def _seconds(settings: Settings, facts: ModelFacts, machine: Machine, rows: DataShape, updates: int) -> float:
    training = settings.training
    assert training.batch_size != "auto"
    seen = updates * training.batch_size if training.max_steps else round(rows.train_rows * training.num_train_epochs)
    passes = seen / rows.train_rows
    executed = time.executed_tokens(round(passes * rows.train_tokens), seen, updates, _prefix(settings, rows))
    trained_tokens, visible_tokens = round(passes * rows.trained_tokens), rows.train_tokens / rows.train_rows
    if settings.method == "full":
        flops = time.full_flops(facts, executed, trained_tokens, visible_tokens)
    else:
        trained = memory.lora_parameters(facts, settings.lora.r, settings.lora.target_modules, settings.lora.layers_to_transform)
        flops = time.lora_flops(facts, trained, executed, trained_tokens, visible_tokens)
    flops += time.recomputed_flops(facts, training.gradient_checkpointing, executed, visible_tokens)
    rates = {"bf16": machine.bf16_gflops, "fp16": machine.fp16_gflops or machine.fp32_gflops, "fp32": machine.fp32_gflops}
    return time.seconds(flops, rates[training.precision])


def _notes(settings: Settings, machine: Machine, rows: DataShape, updates: int) -> list[str]:
    notes = []
    least = rules()["batch_size"]["least_updates"]
    if updates < least:
        notes.append(f"note: {updates} updates are few (below {least} a run rarely learns): more rows, more epochs or a smaller batch_size help")
    if settings.training.precision != "auto" and settings.training.precision != machine.faster_precision:
        notes.append(f"note: {machine.faster_precision} is faster on this machine than {settings.training.precision}")
    if rows.train_rows < 50:
        notes.append(f"note: {rows.train_rows} rows teach a form at best; a few hundred are usual for a task")
    if reserved := settings.data.reserve_for_generation:
        left = int(settings.data.max_length) - reserved
        notes.append(f"note: rows have up to {left:,} tokens, since data.reserve_for_generation keeps {reserved:,} of data.max_length free")
    return notes


def _value(settings: Settings, name: str) -> Any:
    value: Any = settings
    for part in name.split("."):
        value = getattr(value, part)
    return value


def _fill(settings: Settings, resolved: list[Resolved]) -> Settings:
    return _replace(settings, {choice.name: choice.value for choice in resolved})


def _replace(settings: Settings, values: dict[str, Any]) -> Settings:
    """The settings with other values under dotted names ("training.batch_size")."""
    for name, value in values.items():
        section, _, key = name.partition(".")
        changed = getattr(settings, section).model_copy(update={key: value}) if key else value
        settings = settings.model_copy(update={section: changed})
    return settings


def _count(parameters: int) -> str:
    return f"{parameters / 1e9:.3g}B" if parameters >= 1e9 else f"{parameters / 1e6:.3g}M"


def _size(size: int) -> str:
    return f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{max(1.0, seconds):.0f} s"
