"""The plan of a run: every `auto` with a value and a reason, how many updates, how much memory, and about how long."""

import dataclasses
import itertools
import math
from dataclasses import dataclass
from typing import Any

from luthier.config.adapters import FreezeSettings
from luthier.config.methods import METHODS
from luthier.config.preference import BETA, REFERENCED
from luthier.config.section import bytes_of
from luthier.config.settings import Settings
from luthier.errors import ConfigError
from luthier.models.facts import ModelFacts, check_layers
from luthier.plan import memory, time
from luthier.plan.machine import rules
from luthier.plan.trained import trained_parameters
from luthier.records import Machine, Resolved

SCHEMA = 1
# The rest is for the system and what else runs.
USABLE_SHARE = 0.9
# Compiling takes about ten seconds the first time on a machine, and saves some hundredths of the time after it.
COMPILING_PAYS_SECONDS = 600
# Tokens of a micro-batch: the usual number, and what is tried where it does not fit. Below the last, products are slow.
MICRO_BATCHES = (4096, 2048, 1024, 512, 256)
LEAST_MICRO_BATCH_TOKENS = MICRO_BATCHES[-1]


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
    examples_per_row: int = 1  # a pair is two examples
    held_out_rows: int = 0  # known where they cost time: the reference of dpo and kto is computed for them too

    @property
    def examples(self) -> int:
        return self.train_rows * self.examples_per_row


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
        need, there = sum(self.memory_bytes.values()), memory_limit(self.settings, self.machine)
        parts = ", ".join(f"{name} {_size(size)}" for name, size in self.memory_bytes.items() if size)
        lines = [f"{choice.name}: {choice.value} ({choice.why})" for choice in self.resolved]
        lines.append(f"updates: {self.updates:,} of {self.settings.training.batch_size} examples")
        lines.append(f"memory: about {_size(need)} of {_size(there)} ({parts})")
        lines.append(f"time: about {_duration(self.seconds)} of training on {self.machine.name} (an estimate)")
        if not self.fits:
            lines.append(f"does not fit in {self.room}. Try: {self.next_step}")
        return lines + self.notes

    @property
    def room(self) -> str:
        """What the run may take, in words."""
        if self.settings.max_memory:
            return f"max_memory: {self.settings.max_memory}"
        return f"{USABLE_SHARE:.0%} of {_size(self.machine.memory_bytes)}"

    def require_room(self) -> None:
        """Raises ConfigError where the run does not fit: it is not begun."""
        if not self.fits:
            raise ConfigError(
                f"the run needs about {_size(sum(self.memory_bytes.values()))} of memory, and may take {self.room}",
                where="max_memory" if self.settings.max_memory else self.machine.name,
                next_step=f"{self.next_step}   (max_memory: SIZE lets it begin where you know better)",
            )

    def with_budget(self, micro_batch_tokens: int) -> "Plan":
        """The same run with other micro-batches: what it needs then."""
        settings = _replace(self.settings, {"training.micro_batch_tokens": micro_batch_tokens})
        cost = _memory(settings, self.facts, self.rows)
        seconds = _seconds(settings, self.facts, self.machine, self.rows, self.updates)
        return dataclasses.replace(self, settings=settings, memory_bytes=cost, seconds=seconds)

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
    check_layers(settings.lora.layers_to_transform, facts.layers, "lora.layers_to_transform")
    check_layers(settings.freeze.numbers(), facts.layers, "freeze.layers")
    check_rank(settings, facts)
    choices = [
        max_length(settings, facts),
        batch_size(settings, facts, rows),
        learning_rate(facts, settings.method, settings.training.optim, settings.objective),
        precision(machine),
        max_new_tokens(facts, rows),
        *([Resolved("preference.beta", BETA[settings.objective], f"usual for {settings.objective}")] if settings.objective in BETA else []),
    ]
    resolved = [choice for choice in choices if _value(settings, choice.name) == "auto"]
    filled = _fill(settings, resolved)
    resolved += memory_choices(filled, facts, machine, rows)
    filled = _fill(settings, resolved)
    if settings.training.compile == "auto":
        resolved.append(compiling(_seconds(filled, facts, machine, rows, count_updates(filled, rows.train_rows))))
        filled = _fill(settings, resolved)
    updates = count_updates(filled, rows.train_rows)
    _check_warmup(settings, updates)
    cost = _memory(filled, facts, rows)
    fits = _fits(filled, facts, machine, rows)
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
        facts=facts,
        rows=rows,
    )


def check_rank(settings: Settings, facts: ModelFacts) -> None:
    """Raises ConfigError where an adapter is asked for that is wider than the model."""
    if "lora" in METHODS[settings.method].blocks and settings.lora.r > facts.hidden:
        raise ConfigError(
            f"lora.r is {settings.lora.r}, and the model's vectors have {facts.hidden} numbers: more is not in them",
            where="lora.r",
            next_step=f"lora.r: 16 is usual; {facts.hidden} at most",
        )


def _check_warmup(settings: Settings, updates: int) -> None:
    if (warmup := settings.training.warmup_steps or 0) > updates:
        raise ConfigError(
            f"training.warmup_steps is {warmup}, and the run has {updates} updates: the rate would never reach its peak",
            where="training.warmup_steps",
            next_step=f"fewer than {updates}, or training.warmup_ratio: 0.03",
        )


def check_max_length(settings: Settings, facts: ModelFacts) -> None:
    """Raises ConfigError where data.max_length asks for more than the model can read."""
    asked, room = settings.data.max_length, room_for_rows(settings, facts)
    if asked != "auto" and asked > room:
        before = f", of which {settings.virtual_tokens:,} are virtual" if settings.virtual_tokens else ""
        raise ConfigError(
            f"{asked:,} tokens are more than this model's context of {facts.context:,}{before}",
            where="data.max_length",
            next_step=f"data.max_length: {room}",
        )


def room_for_rows(settings: Settings, facts: ModelFacts) -> int:
    """Tokens of the model's context that are left for a row. Raises ConfigError where virtual tokens leave none."""
    room = facts.context - settings.virtual_tokens
    if room < 2:
        raise ConfigError(
            f"{settings.virtual_tokens:,} virtual tokens leave no room in this model's context of {facts.context:,}",
            where=f"{settings.method}.num_virtual_tokens",
            next_step=f"{settings.method}.num_virtual_tokens: 20",
        )
    return room


def max_length(settings: Settings, facts: ModelFacts) -> Resolved:
    """The longest row, in tokens. The only choice that is needed before rows can be counted in tokens."""
    asked = settings.data.max_length
    if asked != "auto":
        return Resolved("data.max_length", asked, "as given")
    most, room = rules()["max_length"]["most"], room_for_rows(settings, facts)
    context = f"the model's context less {settings.virtual_tokens:,} virtual tokens" if settings.virtual_tokens else "the model's context"
    why = f"{context} is {room:,}; auto takes at most {most:,}" if room > most else context
    return Resolved("data.max_length", min(room, most), why)


def learning_rate(facts: ModelFacts, method: str = "lora", optim: str = "adamw", objective: str = "sft") -> Resolved:
    """The peak rate for a model of this size: straight between the points of the method's table, in the logarithms, to one digit; times
    the optimizer's and the objective's factors."""
    points = (rules().get(f"learning_rate_{method}") or rules()["learning_rate"])["points"]
    size = min(max(facts.parameters, points[0][0]), points[-1][0])
    (small, high), (large, low) = next(pair for pair in itertools.pairwise(points) if size <= pair[1][0])
    share = math.log(size / small) / math.log(large / small)
    factor, of_objective = rules()["optimizer_rates"].get(optim, 1.0), rules()["objective_rates"].get(objective, 1.0)
    rate = factor * of_objective * high * (low / high) ** share
    why = f"usual for {method} on {_count(facts.parameters)} parameters, lower for larger models"
    why += f"; times {factor} for {optim}" if factor != 1.0 else ""
    why += f"; times {of_objective} for {objective}" if of_objective != 1.0 else ""
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


def memory_choices(settings: Settings, facts: ModelFacts, machine: Machine, rows: DataShape) -> list[Resolved]:
    """What makes the run fit where it is `auto`: smaller micro-batches first, which cost less than computing activations again."""
    cut, again = "training.micro_batch_tokens", "training.gradient_checkpointing"
    tokens, mode = settings.training.micro_batch_tokens, settings.training.gradient_checkpointing
    cuts = MICRO_BATCHES if tokens == "auto" else (tokens,)
    modes = ("off", "selective", "full") if mode == "auto" else (mode,)

    def fits(mode: str, tokens: int) -> bool:
        return _fits(_replace(settings, {cut: tokens, again: mode}), facts, machine, rows)

    tried = itertools.product(modes, cuts)
    chosen_mode, chosen_cut = next((way for way in tried if fits(*way)), (modes[-1], cuts[-1]))
    usual = sum(_memory(_replace(settings, {cut: cuts[0], again: modes[0]}), facts, rows).values())
    otherwise = f"{_size(usual)} would be needed otherwise"
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
    least: dict[str, Any] = {"training.micro_batch_tokens": min(smallest, int(settings.training.micro_batch_tokens))}
    spelled = f"training.micro_batch_tokens: {least['training.micro_batch_tokens']}"
    if settings.training.precision == "fp32":
        changes.append((f"training.precision: bf16 and {spelled}", {**least, "training.precision": "bf16"}))
    for mode in ("selective", "full"):
        changes.append((f"training.gradient_checkpointing: {mode} and {spelled}", {**least, "training.gradient_checkpointing": mode}))
    least["training.gradient_checkpointing"] = "full"
    if settings.method == "full":
        spelled = f"training.gradient_checkpointing: full and {spelled}"
        changes.append((f"training.optim: adamw_8bit, {spelled}", {**least, "training.optim": "adamw_8bit"}))
        text, change = _to_lora(settings)
        changes.append((f"{text}, {spelled}", {**least, **change}))
    elif settings.lora.r > 8:
        changes.append((f"lora.r: 8 and {spelled}", {**least, "lora.r": 8}))
    if settings.method == "lora":
        fp8 = settings.training.frozen_base == "fp8"  # which is another way to make a frozen base small
        text = "method: qlora, training.frozen_base: bf16" if fp8 else "method: qlora"
        changes.append((f"{text} and {spelled}", {**least, "method": "qlora", "training.frozen_base": "bf16"}))
    for text, change in changes:
        if _fits(_replace(settings, change), facts, machine, rows):
            return text
    needed = _least_bytes(settings, least, facts, rows)
    if settings.max_memory:
        return f"a smaller model, or max_memory: {math.ceil(needed / 1e8) / 10}GB"
    return f"a smaller model, or a machine with at least {_size(int(needed / USABLE_SHARE))}"


def levers(plan: Plan) -> list[tuple[str, int]]:
    """Changes that make the largest single row of a run need less, with the bytes that the run would then need; the strongest first."""
    settings, rows = _replace(plan.settings, {"training.micro_batch_tokens": 1}), plan.rows
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
        changes.append(("lora.r: 8", {"lora.r": min(8, settings.lora.r)}, rows))
    now = sum(_memory(settings, plan.facts, rows).values())
    costs = [(text, sum(_memory(_replace(settings, change), plan.facts, shape).values())) for text, change, shape in changes]
    return sorted(((text, cost) for text, cost in costs if cost < now), key=lambda lever: lever[1])


def _to_lora(settings: Settings) -> tuple[str, dict[str, Any]]:
    """`method: lora` in place of full, with all that only full reads: in words, and as a change."""
    text, change = "method: lora", {"method": "lora", "freeze": FreezeSettings()}
    if settings.training.optim == "muon":
        text, change = f"{text}, training.optim: adamw", {**change, "training.optim": "adamw"}
    return (f"{text}, no freeze" if "freeze" in settings.model_fields_set else text), change


def _least_bytes(settings: Settings, least: dict[str, Any], facts: ModelFacts, rows: DataShape) -> int:
    return sum(_memory(_replace(settings, least), facts, rows).values())


def memory_limit(settings: Settings, machine: Machine) -> int:
    """Bytes that there are: what max_memory grants, else all of the machine's."""
    return bytes_of(settings.max_memory) if settings.max_memory else machine.memory_bytes


def _fits(settings: Settings, facts: ModelFacts, machine: Machine, rows: DataShape) -> bool:
    usable = 1.0 if settings.max_memory else USABLE_SHARE
    return sum(_memory(settings, facts, rows).values()) <= usable * memory_limit(settings, machine)


def _micro_batch(settings: Settings, rows: DataShape) -> int:
    """Tokens at once in the worst update: no more than it holds, and never less than one whole row."""
    size = settings.training.batch_size
    assert size != "auto"
    prefix = _prefix(settings, rows)
    return max(min(int(settings.training.micro_batch_tokens), size * (rows.longest - prefix)), rows.longest - prefix)


def _prefix(settings: Settings, rows: DataShape) -> int:
    """Tokens that are really shared: dropout and noise are drawn for each example, so nothing is shared beside them.

    (Dropout in the encoder of virtual tokens is drawn once an update, for all rows.)
    """
    of_peft = any(value for name, value in settings.peft.items() if name.endswith("dropout") and name != "encoder_dropout")
    drawn = settings.lora.lora_dropout or settings.training.neftune_noise_alpha or of_peft
    return rows.shared_prefix_tokens if settings.training.share_prefixes and not drawn else 0


def _memory(settings: Settings, facts: ModelFacts, rows: DataShape) -> dict[str, int]:
    training = settings.training
    recomputed = "off" if training.gradient_checkpointing == "auto" else training.gradient_checkpointing
    row_tokens = rows.train_tokens // rows.examples + settings.virtual_tokens
    passing = (training.precision, _micro_batch(settings, rows), row_tokens, _prefix(settings, rows))
    if settings.method == "full":
        return memory.full_run_bytes(
            facts,
            *passing,
            optim=training.optim,
            recomputed=recomputed,
            trained=trained_parameters(settings, facts),
            head_is_trained=not (settings.freeze.embeddings and facts.tied),
            idle_layers=settings.freeze.idle_layers(facts.layers),
        )
    trained = trained_parameters(settings, facts)
    bits = memory.quantized_bits(settings.qlora.quantization, settings.qlora.double_quant) if settings.method == "qlora" else None
    cost = memory.lora_run_bytes(
        facts, trained, *passing, optim=training.optim, recomputed=recomputed, frozen_base=training.frozen_base, linear_bits=bits
    )
    return cost | _virtual_memory(settings, facts, recomputed)


def _virtual_memory(settings: Settings, facts: ModelFacts, recomputed: str) -> dict[str, int]:
    """What tokens before every row take: those of prefix tuning are keys and values alone, others run through the model once an update."""
    number_bytes = memory.PRECISION_BYTES[settings.training.precision]
    if settings.method == "prefix":
        return {"virtual tokens": memory.keys_values_bytes(facts, settings.virtual_tokens, number_bytes)}
    size = memory.shared_prefix_bytes(facts, settings.virtual_tokens, number_bytes, recomputed)
    return {"virtual tokens": size} if size else {}


def _seconds(settings: Settings, facts: ModelFacts, machine: Machine, rows: DataShape, updates: int) -> float:
    training = settings.training
    assert training.batch_size != "auto"
    seen = updates * training.batch_size if training.max_steps else round(rows.train_rows * training.num_train_epochs)
    passes = seen / rows.train_rows
    executed = time.executed_tokens(round(passes * rows.train_tokens), seen * rows.examples_per_row, updates, _prefix(settings, rows))
    trained_tokens, visible_tokens = round(passes * rows.trained_tokens), rows.train_tokens / rows.examples
    if settings.method == "full":
        flops = time.full_flops(
            facts,
            executed,
            trained_tokens,
            visible_tokens,
            frozen_layers=len(settings.freeze.numbers()),
            idle_layers=settings.freeze.idle_layers(facts.layers),
            head_is_trained=not (settings.freeze.embeddings and facts.tied),
        )
    elif settings.virtual_tokens:
        executed += 0 if settings.method == "prefix" else updates * settings.virtual_tokens
        flops = time.lora_flops(facts, 0, executed, trained_tokens, visible_tokens + 2 * settings.virtual_tokens)  # a row sees all of them
    else:
        flops = time.lora_flops(facts, trained_parameters(settings, facts), executed, trained_tokens, visible_tokens)
    if settings.objective != "sft":
        before = 1 + rows.held_out_rows / rows.train_rows if settings.objective in REFERENCED else 0.0
        of_rows = (before * rows.train_tokens, before * rows.trained_tokens)
        flops += time.judging_flops(facts, executed, trained_tokens, *of_rows, visible_tokens, mismatched=settings.objective == "kto")
    flops += time.recomputed_flops(facts, training.gradient_checkpointing, executed, visible_tokens)
    if settings.method == "qlora":
        flops += time.dequantized_flops(facts, max(updates, math.ceil(executed / int(training.micro_batch_tokens))))
    rates = {"bf16": machine.bf16_gflops, "fp16": machine.fp16_gflops or machine.fp32_gflops, "fp32": machine.fp32_gflops}
    return time.seconds(flops, rates[training.precision])


def _notes(settings: Settings, machine: Machine, rows: DataShape, updates: int) -> list[str]:
    notes = []
    least = rules()["batch_size"]["least_updates"]
    if updates < least:
        notes.append(f"note: {updates} updates are few (below {least} a run rarely learns): more rows, more epochs or a smaller batch_size help")
    if settings.training.precision != "auto" and settings.training.precision != machine.faster_precision:
        notes.append(f"note: {machine.faster_precision} is faster on this machine than {settings.training.precision}")
    if settings.training.deterministic:
        how = "attention takes no faster kernel" if machine.device == "cuda" else "a CPU gives the same bits every time anyway"
        notes.append(f"note: deterministic: {how}")
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
