"""What a run of these settings costs: memory by what needs it, and time. The arithmetic is memory.py's and time.py's."""

import math
from dataclasses import dataclass
from typing import Any

from luthier.config.preference import REFERENCED
from luthier.config.section import bytes_of
from luthier.config.settings import Settings
from luthier.models.facts import ModelFacts
from luthier.plan import memory, ranks, time
from luthier.plan.trained import trained_parameters
from luthier.records import Machine

# The rest is for the system and what else runs.
USABLE_SHARE = 0.9
# Of max_memory, which is a promise: the estimate may be too low by so much.
LIMITED_SHARE = 0.85
# As the engine has them: fewer tokens are not worth two lanes (engine/batches.py), and answers are made for so many kept tokens at once
# (engine/generate.py).
LEAST_SIDE_BY_SIDE_TOKENS = 256
ANSWERED_TOKENS = 16_384


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


def memory_limit(settings: Settings, machine: Machine) -> int:
    """Bytes that there are for one process: what max_memory grants, else all of the device's; processes on one CPU have their part of it."""
    there = machine.memory_bytes // (ranks.group_of(settings).per_host if machine.device == "cpu" else 1)
    return bytes_of(settings.max_memory) if settings.max_memory else there


def fits(settings: Settings, facts: ModelFacts, machine: Machine, rows: DataShape) -> bool:
    """Whether the run's peak stays in what it may take."""
    usable = LIMITED_SHARE if settings.max_memory else USABLE_SHARE
    fits_device = sum(memory_parts(settings, facts, machine, rows).values()) <= usable * memory_limit(settings, machine)
    return fits_device and fits_host(settings, facts, machine, rows)


def fits_host(settings: Settings, facts: ModelFacts, machine: Machine, rows: DataShape) -> bool:
    """Whether the devices' parts of the weights fit in main memory, where they lie there and it is known."""
    return not machine.host_bytes or host_memory(settings, facts, machine, rows) <= USABLE_SHARE * machine.host_bytes


def host_memory(settings: Settings, facts: ModelFacts, machine: Machine, rows: DataShape) -> int:
    """Bytes of a host's main memory where its devices' parts lie there (0 where they do not): those parts or, before they are cut, the whole
    weights, which each process loads."""
    if not ranks.offloads(settings, machine):
        return 0
    inside, outside, whole = (
        memory_parts(changed(settings, {"launch.cpu_offload": offload, "wrapping": wrapping}), facts, machine, rows)
        for offload, wrapping in ((False, settings.wrapping), (True, settings.wrapping), (False, "ddp"))
    )
    parts = sum(inside[name] - outside[name] for name in ranks.CUT if name in inside)
    return ranks.group_of(settings).per_host * (memory.PROCESS_BYTES + max(parts, whole["weights"]))


def micro_batch_of(settings: Settings, rows: DataShape) -> int:
    """Tokens at once in the worst update: no more than it holds, and never less than one whole row."""
    size = settings.training.batch_size
    assert size != "auto"
    prefix = shared_prefix_of(settings, rows)
    return max(min(int(settings.training.micro_batch_tokens), size * (rows.longest - prefix)), rows.longest - prefix)


def shared_prefix_of(settings: Settings, rows: DataShape) -> int:
    """Tokens that are really shared: dropout and noise are drawn for each example, so nothing is shared beside them; nor by a team of ranks.

    (Dropout in the encoder of virtual tokens is drawn once an update, for all rows.)
    """
    of_peft = any(value for name, value in settings.peft.items() if name.endswith("dropout") and name != "encoder_dropout")
    drawn = settings.lora.numbers[2] or settings.training.neftune_noise_alpha or of_peft
    shares = settings.training.share_prefixes and not drawn and settings.sequence_parallel == 1
    return rows.shared_prefix_tokens if shares else 0


def memory_parts(settings: Settings, facts: ModelFacts, machine: Machine, rows: DataShape) -> dict[str, int]:
    """Peak memory of the run in bytes, by what needs it, on one of its devices; the peak is their sum. Every setting that costs memory must
    be filled."""
    training = settings.training
    recomputed = "off" if training.gradient_checkpointing == "auto" else training.gradient_checkpointing
    at_once = math.ceil(micro_batch_of(settings, rows) / settings.sequence_parallel)
    passing = (training.precision, at_once, _usual_row(settings, rows), shared_prefix_of(settings, rows))
    keeps_attention = machine.device != "cuda" or machine.attention == "blocks"
    trained = trained_parameters(settings, facts)
    if settings.method == "full":
        parts = memory.full_run_bytes(
            facts,
            *passing,
            optim=training.optim,
            recomputed=recomputed,
            trained=trained,
            head_is_trained=not (settings.freeze.embeddings and facts.tied),
            idle_layers=settings.freeze.idle_layers(facts.layers),
            device=machine.device,
            keeps_attention=keeps_attention,
        )
    else:
        bits = memory.quantized_bits(settings.qlora.quantization, settings.qlora.double_quant) if settings.method == "qlora" else None
        parts = memory.lora_run_bytes(
            facts,
            trained,
            *passing,
            optim=training.optim,
            recomputed=recomputed,
            frozen_base=training.frozen_base,
            linear_bits=bits,
            device=machine.device,
            keeps_attention=keeps_attention,
        )
        parts |= _virtual_memory(settings, facts, recomputed)
    if _runs_side_by_side(settings, facts, machine, rows):
        parts["side by side"] = memory.side_by_side_bytes(parts, trained)
    return ranks.share(parts | _of_measuring(settings, facts, rows, parts), settings, facts, machine)


def _usual_row(settings: Settings, rows: DataShape) -> int:
    """Tokens of the rows whose attention is kept: the longest, where that is kept at all, else those of the mean."""
    longest = rows.longest if rows.longest <= memory.KEPT_ATTENTION_TOKENS else rows.train_tokens // rows.examples
    return longest + settings.virtual_tokens


def _runs_side_by_side(settings: Settings, facts: ModelFacts, machine: Machine, rows: DataShape) -> bool:
    """Whether micro-batches of the worst update go through the model two at a time: as engine/lanes.py and batches.py decide it."""
    asked = settings.training.side_by_side and settings.max_memory is None and settings.method in ("lora", "dora", "qlora")
    asked = asked and settings.sequence_parallel == 1
    at_once = micro_batch_of(settings, rows)
    rows_fit = int(settings.training.batch_size) > 1 and 2 * rows.longest <= max(int(settings.training.micro_batch_tokens), 1)
    return asked and machine.device == "cpu" and machine.cores > 1 and rows_fit and at_once >= LEAST_SIDE_BY_SIDE_TOKENS


def _of_measuring(settings: Settings, facts: ModelFacts, rows: DataShape, parts: dict[str, int]) -> dict[str, int]:
    """What an evaluation during the run takes beyond what an update does, at another time."""
    asked = settings.evaluation
    answers = max(asked.sample_answers, asked.in_loop_rows)
    answer_tokens = rows.answer_p99 if asked.max_new_tokens == "auto" else asked.max_new_tokens
    precision, at_once = settings.training.precision, micro_batch_of(settings, rows)
    needed = memory.measuring_bytes(facts, precision, at_once, answers, rows.longest, answer_tokens, ANSWERED_TOKENS)
    beyond = needed - sum(parts.get(name, 0) for name in ("activations", "shared prefix", "logits", "side by side"))
    return {"evaluation": beyond} if beyond > 0 else {}


def _virtual_memory(settings: Settings, facts: ModelFacts, recomputed: str) -> dict[str, int]:
    """What tokens before every row take: those of prefix tuning are keys and values alone, others run through the model once an update."""
    number_bytes = memory.PRECISION_BYTES[settings.training.precision]
    if settings.method == "prefix":
        return {"virtual tokens": memory.keys_values_bytes(facts, settings.virtual_tokens, number_bytes)}
    size = memory.shared_prefix_bytes(facts, settings.virtual_tokens, number_bytes, recomputed)
    return {"virtual tokens": size} if size else {}


def training_seconds(settings: Settings, facts: ModelFacts, machine: Machine, rows: DataShape, updates: int) -> float:
    """Estimated seconds of `updates` updates, training alone, at the rates that were measured on the machine. Several devices share the rows
    of an update (a CPU's processes its cores); what they send is not counted here (scaling.py)."""
    training = settings.training
    assert training.batch_size != "auto"
    seen = updates * training.batch_size if training.max_steps else round(rows.train_rows * float(training.num_train_epochs))
    passes = seen / rows.train_rows
    executed = time.executed_tokens(round(passes * rows.train_tokens), seen * rows.examples_per_row, updates, shared_prefix_of(settings, rows))
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
    return time.seconds(flops, rates[training.precision], machine.device) / ranks.at_work(settings, machine)


def update_seconds(settings: Settings, facts: ModelFacts, machine: Machine, rows: DataShape) -> float:
    """Estimated seconds of one update over all of `rows`."""
    once = {"training.num_train_epochs": 1.0, "training.max_steps": None, "training.batch_size": rows.train_rows}
    return training_seconds(changed(settings, once), facts, machine, rows, 1)


def changed(settings: Settings, values: dict[str, Any]) -> Settings:
    """The settings with other values under dotted names ("training.batch_size")."""
    for name, value in values.items():
        section, _, key = name.partition(".")
        changed = getattr(settings, section).model_copy(update={key: value}) if key else value
        settings = settings.model_copy(update={section: changed})
    return settings
