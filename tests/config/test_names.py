"""A TrainingArguments block from a guide, pasted below `training:`."""

from typing import Any

import pytest

from luthier.config import names
from luthier.config.load import all_settings

BLOCK = """\
training:
  output_dir: ./results
  num_train_epochs: 1
  per_device_train_batch_size: 4
  gradient_accumulation_steps: 2
  optim: adamw_torch
  save_steps: 25
  logging_steps: 5
  learning_rate: 2e-4
  weight_decay: 0.001
  fp16: false
  bf16: true
  max_grad_norm: 0.3
  max_steps: -1
  warmup_ratio: 0.05
  group_by_length: true
  lr_scheduler_type: constant
  report_to: none
  eval_strategy: steps
  eval_steps: 20
  save_strategy: steps
  save_total_limit: 3
  seed: 42
"""


def test_the_block_of_the_guides_is_understood(load: Any) -> None:
    settings = load(BLOCK).settings
    expected = {
        "batch_size": 8,
        "num_train_epochs": 1.0,
        "save_steps": 25,
        "logging_steps": 5,
        "learning_rate": 2e-4,
        "weight_decay": 0.001,
        "precision": "bf16",
        "max_grad_norm": 0.3,
        "max_steps": None,
        "warmup_ratio": 0.05,
        "lr_scheduler_type": "constant",
        "save_strategy": "steps",
        "save_total_limit": 3,
    }
    assert {name: getattr(settings.training, name) for name in expected} == expected
    assert (settings.output_dir, settings.report_to, settings.seed, settings.evaluation.every_steps) == ("./results", [], 42, 20)


def test_what_was_read_otherwise_than_written_is_said(load: Any) -> None:
    config = load(BLOCK)
    assert config.notes == [
        "training.batch_size: 8 examples per update = 4 per device x 2 accumulated x 1 device",
        "training.output_dir -> output_dir: ./results",
        "training.bf16 -> training.precision: bf16",
        "training.group_by_length is not needed here: the engine never pads, so rows need no grouping",
        "training.report_to -> report_to: []",
        "training.eval_steps -> evaluation.every_steps: 20",
        "training.seed -> seed: 42",
    ]
    places = {"training.batch_size": "luthier.yaml:6", "output_dir": "luthier.yaml:4", "evaluation.every_steps": "luthier.yaml:22"}
    assert {name: config.given[name] for name in places} == places
    assert set(config.given) <= set(all_settings())


@pytest.mark.parametrize(
    ("block", "batch_size", "line"),
    [
        ("per_device_train_batch_size: 3", 3, "3 examples per update = 3 per device x 1 accumulated x 1 device"),
        ("gradient_accumulation_steps: 4", 32, "32 examples per update = 8 per device (Transformers' default) x 4 accumulated x 1 device"),
    ],
)
def test_half_a_batch_is_filled_with_what_transformers_would_take(load: Any, block: str, batch_size: int, line: str) -> None:
    config = load(f"training: {{{block}}}\n")
    assert config.settings.training.batch_size == batch_size
    assert config.notes == [f"training.batch_size: {line}"]


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "true", "auto", "null", "[4]"])
def test_a_batch_that_is_no_number_is_refused(refuse: Any, value: str) -> None:
    error = refuse(f"training:\n  per_device_train_batch_size: {value}\n")
    assert error.where == "luthier.yaml:4"
    assert "per_device_train_batch_size is" in error.problem
    assert "a whole number from 1 is needed" in error.problem


@pytest.mark.parametrize(
    ("block", "precision"),
    [
        ("bf16: true", "bf16"),
        ("bf16: false", "fp32"),
        ("fp16: false", "auto"),
        ("fp16: false, bf16: false", "fp32"),
        ("bf16: true, fp16: false", "bf16"),
        ("fp16: true", "fp16"),
        ("bf16: false, fp16: true", "fp16"),
    ],
)
def test_the_number_format_is_the_one_that_transformers_would_take(load: Any, block: str, precision: str) -> None:
    assert load(f"training: {{{block}}}\n").settings.training.precision == precision


def test_the_best_checkpoint_is_asked_for_as_in_transformers(load: Any) -> None:
    block = "load_best_model_at_end: true, metric_for_best_model: eval_loss, eval_strategy: steps, eval_steps: 5, greater_is_better: false"
    training = load(f"training: {{{block}}}\n").settings.training
    assert (training.load_best_model_at_end, training.metric_for_best_model, training.greater_is_better) == (True, "loss", False)


ABSENT = {
    # written                               the nearest
    "optim: galore_adamw": "training.optim: adamw",
    "lr_scheduler_kwargs: {power: 2.0}": "training.lr_scheduler_type: cosine",
    "lr_scheduler_kwargs: {num_decay_steps: 9, decay_type: 1-sqrt}": "training.lr_scheduler_type: cosine",
    "optim: paged_adamw_8bit": "training.optim: adamw_8bit",
    "deepspeed: ds_config.json": "wrapping: fsdp",
    "fsdp: offload": "wrapping: fsdp",
    "hub_model_id: me/mine": "luthier export RUN",
    "push_to_hub: true": "luthier export RUN",
    "eval_strategy: epoch": "evaluation.every_steps: 50",
    "logging_strategy: epoch": "training.logging_steps",
    "resume_from_checkpoint: true": "luthier train --resume RUN",
}


@pytest.mark.parametrize(("line", "nearest"), ABSENT.items(), ids=ABSENT)
def test_what_does_not_exist_here_is_refused_with_the_nearest(refuse: Any, line: str, nearest: str) -> None:
    error = refuse(f"training:\n  {line}\n")
    assert error.where == "luthier.yaml:4"
    assert error.problem.startswith(f"training.{line.partition(':')[0]}: ")
    assert f"nearest: {nearest}" in error.problem


def test_the_nearest_settings_that_are_named_exist(refuse: Any) -> None:
    known = {*all_settings(), *(f"training.{name}" for name in names.MOVES)}
    for line in ABSENT:
        nearest = refuse(f"training:\n  {line}\n").problem.partition("nearest: ")[2].split(":")[0].split()[0]
        assert nearest == "luthier" or nearest in known, line


def test_trackers_are_understood_wherever_they_are_written(load: Any, refuse: Any) -> None:
    for text in ("training:\n  report_to: tensorboard\n", "training:\n  report_to: [tensorboard]\n", "report_to: [tensorboard]\n"):
        assert load(text).settings.report_to == ["tensorboard"]
    error = refuse("training:\n  report_to: comet_ml\n")
    assert error.where == "luthier.yaml:4"
    assert "'tensorboard', 'wandb', 'mlflow' or 'trackio'" in error.problem


@pytest.mark.parametrize(
    "block",
    [
        "optim: adamw_torch",
        "load_best_model_at_end: false",
        "push_to_hub: false",
        "label_smoothing_factor: 0.0",
        "neftune_noise_alpha: null",
        "deepspeed: null",
    ],
)
def test_what_is_switched_off_needs_no_word(load: Any, block: str) -> None:
    config = load(f"training: {{{block}}}\n")
    assert config.notes == []
    assert config.settings == load().settings


@pytest.mark.parametrize(("written", "read"), [("true", "full"), ("false", "off"), ("selective", "selective"), ("auto", "auto")])
def test_gradient_checkpointing_is_a_switch_in_transformers_and_has_more_places_here(load: Any, written: str, read: str) -> None:
    assert load(f"training: {{gradient_checkpointing: {written}}}\n").settings.training.gradient_checkpointing == read


@pytest.mark.parametrize(
    ("written", "read"), [("adamw_torch_fused", "adamw"), ("adamw_bnb_8bit", "adamw_8bit"), ("adamw_8bit", "adamw_8bit"), ("lion_32bit", "lion")]
)
def test_optimizers_are_known_by_the_names_of_transformers(load: Any, written: str, read: str) -> None:
    config = load(f"training: {{optim: {written}}}\n")
    assert (config.settings.training.optim, config.notes) == (read, [])


@pytest.mark.parametrize("value", ["no", "off", "'true'", "1"])
def test_a_switch_is_true_or_false(refuse: Any, value: str) -> None:
    # YAML 1.2 reads `no` as a text: taken for true it would do the opposite of what was meant.
    assert "is neither true nor false" in refuse(f"training: {{bf16: {value}}}\n").problem


def test_two_names_of_one_setting_must_agree(load: Any, refuse: Any) -> None:
    assert load("training: {epochs: 3, num_train_epochs: 3}\n").settings.training.num_train_epochs == 3
    assert refuse("training: {epochs: 3, num_train_epochs: 4}\n").problem == "training.epochs is 3 and training.num_train_epochs is 4"
    assert refuse("training: {output_dir: a}\noutput_dir: b\n").problem == "training.output_dir is 'a' and output_dir is 'b'"
    assert refuse("training: {bf16: true, precision: fp32}\n").problem == "training.bf16 is 'bf16' and training.precision is 'fp32'"


def test_pasted_names_work_on_the_command_line_too(load: Any) -> None:
    config = load("", "training.per_device_train_batch_size=2", "training.eval_steps=5")
    assert (config.settings.training.batch_size, config.settings.evaluation.every_steps) == (2, 5)
    assert config.given["evaluation.every_steps"] == "command line: training.eval_steps=5"


@pytest.mark.parametrize("section", ["evaluation: 3", "evaluation: [3]"])
def test_a_pasted_name_beside_a_broken_section_leaves_that_to_be_told(refuse: Any, section: str) -> None:
    assert refuse(f"{section}\ntraining: {{eval_steps: 5}}\n").problem.startswith("evaluation is ")


def test_every_name_leads_to_a_setting() -> None:
    assert {move.to for move in names.MOVES.values()} - {""} <= set(all_settings())


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("lr_scheduler_type: constant_with_warmup", {"lr_scheduler_type": "constant"}),
        (
            "lr_scheduler_type: cosine_with_restarts, lr_scheduler_kwargs: {num_cycles: 3}",
            {"lr_scheduler_type": "cosine_with_restarts", "num_cycles": 3},
        ),
        (
            "lr_scheduler_type: warmup_stable_decay, lr_scheduler_kwargs: {num_decay_steps: 20, min_lr_ratio: 0.0}",
            {"lr_scheduler_type": "warmup_stable_decay", "decay_steps": 20},
        ),
        ("lr_scheduler_kwargs: {}", {"lr_scheduler_type": "cosine"}),
        ("lr_scheduler_kwargs: null", {"lr_scheduler_type": "cosine"}),
    ],
)
def test_schedules_are_known_by_the_names_of_transformers(load: Any, written: str, read: dict[str, Any]) -> None:
    config = load(f"training: {{{written}}}\n")
    assert {name: getattr(config.settings.training, name) for name in read} == read
    assert set(config.given) <= set(all_settings())


def test_two_places_that_say_how_often_the_rate_falls_must_agree(refuse: Any) -> None:
    block = "training: {lr_scheduler_type: cosine_with_restarts, num_cycles: 2, lr_scheduler_kwargs: {num_cycles: 3}}\n"
    assert refuse(block).problem == "training.lr_scheduler_kwargs says 3 and training.num_cycles is 2"


@pytest.mark.parametrize(
    ("asked", "wrapping"), [("full_shard auto_wrap", "fsdp"), ("[hybrid_shard, auto_wrap]", "hsdp"), ("true", "fsdp"), ("''", "auto")]
)
def test_fsdp_is_our_wrapping(load: Any, asked: str, wrapping: str) -> None:
    settings = load(f"devices: 2\ntraining: {{fsdp: {asked}, per_device_train_batch_size: 3}}\n").settings
    assert (settings.wrapping, settings.training.batch_size) == (wrapping, 6)
