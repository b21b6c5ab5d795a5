"""Names that users bring along from Transformers' TrainingArguments and the guides, and what becomes of each.

A block pasted under `training:` is understood: batch sizes are multiplied out, other spellings are put in their place, and
what does not exist here is refused with the nearest thing that does.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps")
TRAINER_DEFAULT = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}


@dataclass(frozen=True, slots=True)
class Move:
    """A known name: the setting it becomes, and how its value is read. `to=""`: read and dropped, because it asks for what is always so."""

    to: str
    read: Callable[[Any], Any] = lambda value: value


class Unusable(Exception):
    """The value asks for something that does not exist here; the text says what comes nearest."""


def _precision(name: str) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        if not isinstance(value, bool):
            raise Unusable(f"{value!r} is neither true nor false")
        if value:
            return name
        return "fp32" if name == "bf16" else None

    return read


def _recomputed(value: Any) -> Any:
    return {True: "full", False: "off"}.get(value, value) if isinstance(value, bool) else value


def _optimizer(value: Any) -> Any:
    if value not in OPTIMIZERS:
        raise Unusable(f"{value} is not here; nearest: training.optim: {'adamw_8bit' if '8bit' in str(value) else 'adamw'}")
    return OPTIMIZERS[value]


def _schedule(value: Any) -> Any:
    return SCHEDULES.get(value, value) if isinstance(value, str) else value


def _only(allowed: tuple[Any, ...], nearest: str) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        if value not in allowed:
            raise Unusable(nearest)
        return None

    return read


def _trackers(value: Any) -> Any:
    return [] if value in (None, "none", "None", []) else ([value] if isinstance(value, str) else value)


def _steps_or_none(value: Any) -> Any:
    return None if value == -1 else value


def _wrapping(value: Any) -> Any:
    """Transformers' fsdp: a text or list of words (full_shard auto_wrap), true or false."""
    words = set(value.split() if isinstance(value, str) else value if isinstance(value, list) else [])
    if value in (None, False, "", []):
        return None
    if "hybrid_shard" in words:
        return "hsdp"
    if value is True or "full_shard" in words:
        return "fsdp"
    raise Unusable(f"{value!r} is not here; nearest: wrapping: fsdp")


def _absent(nearest: str) -> Callable[[Any], Any]:
    return _only((None, False), nearest)


def _strategy_of_evaluation(value: Any) -> Any:
    if value in ("no", "steps"):
        return None
    raise Unusable("evaluation is timed in updates; nearest: evaluation.every_steps: 50")


OPTIMIZERS = {
    # Transformers' name    ours
    "adamw": "adamw",
    "adamw_torch": "adamw",
    "adamw_torch_fused": "adamw",
    "adamw_hf": "adamw",
    "adamw_8bit": "adamw_8bit",
    "adamw_bnb_8bit": "adamw_8bit",
    "adamw_torch_8bit": "adamw_8bit",
    "adafactor": "adafactor",
    "lion": "lion",
    "lion_32bit": "lion",
    "lion_8bit": "lion_8bit",
    "muon": "muon",
    "schedule_free": "schedule_free",
    "schedule_free_adamw": "schedule_free",
}
SCHEDULES = {
    # Transformers' name    ours
    "constant_with_warmup": "constant",  # ours rises too
    "cosine_with_hard_restarts": "cosine_with_restarts",
    "wsd": "warmup_stable_decay",
}
# What lr_scheduler_kwargs may say; of the last ones only what is so here anyway.
SCHEDULE_ARGUMENTS = {"num_cycles": "num_cycles", "num_decay_steps": "decay_steps"}
SCHEDULE_CONSTANTS = {"min_lr_ratio": 0, "warmup_type": "linear", "decay_type": "cosine"}


def of_schedule(arguments: Any) -> dict[str, Any]:
    """Our settings for Transformers' lr_scheduler_kwargs. Raises Unusable for what does not exist here."""
    if not isinstance(arguments, dict):
        raise Unusable("a map is expected; nearest: training.num_cycles: 2")
    settings = {}
    for name, value in arguments.items():
        if name in SCHEDULE_ARGUMENTS:
            settings[SCHEDULE_ARGUMENTS[name]] = value
        elif name not in SCHEDULE_CONSTANTS or SCHEDULE_CONSTANTS[name] != value:
            raise Unusable(f"{name}: {value} does not exist here; nearest: training.lr_scheduler_type: cosine")
    return settings


PUSH = "a training run sends nothing anywhere; nearest: luthier export RUN --to hub --repo NAME/MODEL"

MOVES = {
    # TrainingArguments             becomes                     how its value is read
    "output_dir": Move("output_dir"),
    "seed": Move("seed"),
    "report_to": Move("report_to", _trackers),
    "epochs": Move("training.num_train_epochs"),
    "max_steps": Move("training.max_steps", _steps_or_none),
    "bf16": Move("training.precision", _precision("bf16")),
    "fp16": Move("training.precision", _precision("fp16")),
    "save_limit": Move("training.save_total_limit"),
    "optim": Move("training.optim", _optimizer),
    "lr_scheduler_type": Move("training.lr_scheduler_type", _schedule),
    "neftune_noise_alpha": Move("training.neftune_noise_alpha"),
    "eval_steps": Move("evaluation.every_steps"),
    "eval_strategy": Move("", _strategy_of_evaluation),
    "evaluation_strategy": Move("", _strategy_of_evaluation),
    "logging_strategy": Move("", _only(("steps",), "lines are printed by updates; nearest: training.logging_steps")),
    "max_seq_length": Move("data.max_length"),
    "max_length": Move("data.max_length"),
    "group_by_length": Move("", _only((True, False), "the engine never pads, so rows need no grouping; leave it out")),
    "packing": Move("", _only((True, False), "the engine never pads and never lets rows see each other; leave it out")),
    "remove_unused_columns": Move("", _only((True, False), "columns are read by data.format; leave it out")),
    "gradient_checkpointing": Move("training.gradient_checkpointing", _recomputed),
    "per_device_eval_batch_size": Move("", lambda _: None),
    "overwrite_output_dir": Move("", _only((False,), "a run never overwrites another: leave it out, each run makes its own folder")),
    "dataloader_num_workers": Move("", lambda _: None),
    "dataloader_pin_memory": Move("", lambda _: None),
    "tf32": Move("", _only((False,), "tf32 does not exist here; nearest: training.precision: bf16")),
    "torch_compile": Move("", _only((False,), "compilation does not exist here; leave it out")),
    "metric_for_best_model": Move("training.metric_for_best_model", lambda name: str(name).removeprefix("eval_")),
    "push_to_hub": Move("", _absent(PUSH)),
    "hub_model_id": Move("", _absent(PUSH)),
    "hub_token": Move("", _absent(PUSH)),
    "hub_strategy": Move("", _absent(PUSH)),
    "deepspeed": Move("", _absent("DeepSpeed is not used here; nearest: wrapping: fsdp (with devices: 2), which splits weights like its ZeRO-3")),
    "fsdp": Move("wrapping", _wrapping),
    "fsdp_config": Move("", _absent("blocks are split by themselves; nearest: wrapping: fsdp")),
    "resume_from_checkpoint": Move("", _absent("a stopped run goes on by a call; nearest: luthier train --resume RUN")),
    "run_name": Move("", _absent("a run is named by its model and the time; nearest: output_dir: runs/NAME")),
    "logging_dir": Move("", _absent("metrics.jsonl lies in the run folder; nearest: output_dir: runs/NAME")),
}
# Said to the user because the value itself is gone, not only its spelling.
NO_EFFECT = {
    "dataloader_num_workers": "rows are tokenized before the training begins",
    "dataloader_pin_memory": "rows are tokenized before the training begins",
    "per_device_eval_batch_size": "evaluation cuts its own batches; the result does not depend on it",
    "group_by_length": "the engine never pads, so rows need no grouping",
    "packing": "the engine never pads and never lets rows see each other",
    "remove_unused_columns": "columns are read by data.format",
}
