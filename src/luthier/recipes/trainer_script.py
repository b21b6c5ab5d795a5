"""`luthier init --script trainer`: the same run as plain Transformers Trainer and PEFT, for those who want to compare or to leave."""

import importlib.resources
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from luthier.config.load import Config
from luthier.config.settings import Settings
from luthier.data.prepare import load_rows, tokenize_rows
from luthier.engine import opening, probe
from luthier.errors import CallError, ConfigError, DataError
from luthier.files import make_folder, write_lines, write_text
from luthier.models import facts
from luthier.models.find import find
from luthier.plan import choose, shape
from luthier.records import Conversation
from luthier.reporting import Reporter, Silent

TEMPLATE = importlib.resources.files("luthier.recipes") / "templates" / "trainer_script.py"
MARK = "# <settings>"
# Settings of `lora:` that are not PEFT's; the script refuses them.
OF_OURS = {"loraplus_lr_ratio", "init_lora_weights", "modules_to_save"}


def write_trainer_script(config: Config, to: Path, reporter: Reporter | None = None) -> Path:
    """Write the script `to`, and beside it the rows as the run trains them (`NAME.rows.jsonl`). Gives the script's path.

    What is `auto` becomes what `luthier train` would take here. Raises ConfigError where a setting has no counterpart there,
    CallError where one of the two files exists.
    """
    say = reporter or Silent()
    rows_file = to.with_name(f"{to.stem}.rows.jsonl")
    _check_settings(config)
    _check_absent(to, rows_file)
    rows = load_rows(config.settings.data, config.file.parent, config.settings.seed, say)
    folder = find(config.settings.model, say, config.file.parent)
    model_facts = facts.from_folder(folder)
    max_length = int(str(choose.max_length(config.settings, model_facts).value))
    prepared = tokenize_rows(rows, opening.tokenizer_of(config, folder, say), max_length, config.settings.data, say)
    machine = probe.known_machine(opening.device_of(config.settings))
    in_numbers = shape.of_tokens(prepared.lengths, prepared.trained_tokens, prepared.shared_prefix_tokens)
    settings = choose.resolve(config.settings, model_facts, machine, in_numbers).settings
    _check_rows(prepared.rows.train)
    values = {"MODEL": str(folder.resolve()), "ROWS": rows_file.name, "OUTPUT": f"{to.stem}-output", **_values(settings)}
    make_folder(to.parent)
    write_lines(rows_file, [_row(row) for row in prepared.rows.train])
    write_text(to, TEMPLATE.read_text(encoding="utf-8").replace(MARK, "\n".join(f"{name} = {value!r}" for name, value in values.items())))
    say.say(f"{to}: the run of {config.file} as plain Transformers and PEFT, with its {len(prepared.rows.train):,} rows in {rows_file.name}")
    return to


def _check_settings(config: Config) -> None:
    settings, data, training = config.settings, config.settings.data, config.settings.training
    unknown = {
        "objective": settings.objective != "sft",
        "method": settings.method not in ("lora", "dora"),
        "training.optim": training.optim != "adamw",
        "training.learning_rates": bool(training.learning_rates),
        "training.lr_scheduler_type": training.lr_scheduler_type not in ("linear", "cosine", "constant"),
        "training.neftune_noise_alpha": training.neftune_noise_alpha > 0,
        "training.rows_together": training.rows_together > 1,
        "training.label_smoothing_factor": training.label_smoothing_factor > 0,
        "init_from": settings.init_from is not None,
        "template": settings.template != "auto",
        "tokenizer.path": settings.tokenizer.path is not None,
        "tokenizer.add_special_tokens": bool(settings.tokenizer.add_special_tokens),
        **{f"lora.{name}": value not in (None, [], "default") for name, value in settings.lora.model_dump(include=OF_OURS).items()},
        "data.loss_on": data.loss_on != "assistant",
        "data.too_long": data.too_long in ("split", "truncate"),
    }
    for name in (name for name, given in unknown.items() if given):
        raise ConfigError(
            f"the plain script knows nothing of {name}",
            where=config.given.get(name, str(config.file)),
            next_step=f"take {name} out, or train with luthier train",
        )


def _check_rows(rows: Sequence[Conversation]) -> None:
    for row in rows:
        if row.tools or any(turn.extra or turn.trained is not None for turn in row.turns):
            raise DataError(
                "holds tools, or messages with more than a role and a text: the plain script reads neither",
                where=str(row.source),
                next_step="train with luthier train",
            )


def _check_absent(*paths: Path) -> None:
    for path in paths:
        if path.exists():
            raise CallError("exists already; nothing was written", where=str(path), next_step="choose another name, or move it away")


def _values(settings: Settings) -> dict[str, Any]:
    """The constants of the script."""
    training = settings.training
    return {
        "DEVICE": settings.device,
        "SEED": settings.seed,
        "LORA": {name: value for name, value in settings.lora.model_dump(exclude=OF_OURS).items() if value},
        "PRECISION": training.precision,
        "BATCH_SIZE": training.batch_size,
        "EPOCHS": training.num_train_epochs,
        "MAX_STEPS": training.max_steps,
        "LEARNING_RATE": training.learning_rate,
        "SCHEDULE": training.lr_scheduler_type,
        "WARMUP_RATIO": training.warmup_ratio,
        "WARMUP_STEPS": training.warmup_steps,
        "WEIGHT_DECAY": training.weight_decay,
        "ADAM_BETAS": (training.adam_beta1, training.adam_beta2),
        "ADAM_EPSILON": training.adam_epsilon,
        "MAX_GRAD_NORM": training.max_grad_norm,
    }


def _row(row: Conversation) -> dict[str, Any]:
    if row.templated:
        return {"messages": [{"role": turn.role, "content": turn.content} for turn in row.turns]}
    return {turn.role: turn.content for turn in row.turns}  # prompt and completion, or text
