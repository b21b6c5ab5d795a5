"""Reading luthier.yaml: what is understood, and what a user is told about every mistake."""

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as rules
from hypothesis import strategies as st

from luthier.config.load import Config, all_settings, config_of_rows, load_config, settings_to_yaml
from luthier.config.methods import METHODS
from luthier.config.settings import Settings
from luthier.errors import ConfigError


def test_the_least_file_gives_every_other_setting_its_default(load: Any) -> None:
    config = load()
    assert config.settings == Settings.model_validate({"model": "m", "data": {"train": "rows.jsonl"}})
    assert config.given == {"model": "luthier.yaml:1", "data.train": "luthier.yaml:2"}
    assert config.notes == []


def test_values_have_the_kind_that_yaml_1_2_gives_them(load: Any) -> None:
    settings = load("training: {learning_rate: 1e-4, num_train_epochs: 2, share_prefixes: false}\nseed: 7\n").settings
    assert (settings.training.learning_rate, settings.training.num_train_epochs) == (1e-4, 2.0)
    assert settings.training.share_prefixes is False
    assert settings.seed == 7


def test_a_mark_at_the_beginning_of_the_file_is_no_part_of_the_first_name(load: Any) -> None:
    assert load(b"\xef\xbb\xbfmodel: m\r\ndata: {train: rows.jsonl}\r\n").settings.model == "m"


@pytest.mark.parametrize(
    "name", ["training.batch_size", "training.learning_rate", "training.precision", "data.max_length", "evaluation.max_new_tokens"]
)
def test_auto_may_be_written(load: Any, name: str) -> None:
    section, key = name.split(".")
    assert getattr(getattr(load("", f"{name}=auto").settings, section), key) == "auto"


@pytest.mark.parametrize("section", ["lora", "training", "evaluation"])
def test_a_section_whose_lines_are_all_commented_out_is_an_empty_one(load: Any, section: str) -> None:
    assert load(f"{section}:\n  # nothing here\n").settings == load().settings


def test_relative_paths_belong_to_the_file(load: Any, tmp_path: Path) -> None:
    config = load()
    elsewhere = Config(config.settings, tmp_path / "project" / "luthier.yaml", {}, [])
    assert elsewhere.beside("data/train.jsonl") == str(tmp_path / "project" / "data" / "train.jsonl")
    assert elsewhere.beside("/data/train.jsonl") == "/data/train.jsonl"


UNREADABLE = {
    # what              content                             where             what is said
    "empty": (b"", "luthier.yaml", "it is empty"),
    "only comments": (b"# model: m\n", "luthier.yaml", "it is empty"),
    "a list": (b"- model\n- data\n", "luthier.yaml", "it holds a list"),
    "a text": (b"hello\n", "luthier.yaml", "it holds a line of text"),
    "a number": (b"3\n", "luthier.yaml", "it holds a single value"),
    "a tab": (b"data:\n\ttrain: rows.jsonl\n", "luthier.yaml:2", "is not YAML (found character '\\t' that cannot start any token)"),
    "cut off": (b"model: m\ndata: [\n", "luthier.yaml:3", "is not YAML"),
    "two documents": (b"model: m\n---\nmodel: n\n", "luthier.yaml:2", "is not YAML (but found another document)"),
    "nested too deep": (b"[" * 1000, "luthier.yaml", "is nested too deep to be read"),
    "not UTF-8": (b"model: caf\xe9\n", "luthier.yaml", "byte 10 is not UTF-8"),
    "a key twice": (b"model: m\nseed: 1\nmodel: n\n", "luthier.yaml:3", 'a key stands twice (found duplicate key "model"'),
    "a key twice below": (b"training:\n  save_steps: 1\n  save_steps: 2\n", "luthier.yaml:3", 'found duplicate key "save_steps"'),
    "a merge": (b"a: &a {r: 8}\nlora:\n  <<: *a\n", "luthier.yaml:3", "lora.r comes from a merge (<<), which is not read"),
}


@pytest.mark.parametrize(("content", "where", "said"), UNREADABLE.values(), ids=UNREADABLE)
def test_a_file_that_cannot_be_read_is_named_with_its_line(refuse: Any, content: bytes, where: str, said: str) -> None:
    error = refuse(content)
    assert error.where == where
    assert said in error.problem
    assert error.next_step


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: no such file\n  Try: luthier init DIR"):
        load_config(tmp_path / "none.yaml")


def test_a_folder_leads_to_the_file_in_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"{tmp_path}: is a folder\n  Try: luthier train {tmp_path}/luthier.yaml")):
        load_config(tmp_path)


def test_a_path_through_a_file_is_an_error_in_words(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("{}")
    with pytest.raises(ConfigError, match=r"cannot be read \(Not a directory\)"):
        load_config(tmp_path / "rows.jsonl" / "luthier.yaml")


UNKNOWN = {
    # written                                           where                        the nearest
    "training:\n  learing_rate: 1e-4\n": ("luthier.yaml:4", "unknown setting 'training.learing_rate'", "did you mean training.learning_rate?"),
    "trainin: {max_steps: 3}\n": ("luthier.yaml:3", "unknown setting 'trainin'", "did you mean training?"),
    "learning_rate: 1e-4\n": ("luthier.yaml:3", "unknown setting 'learning_rate'", "did you mean training.learning_rate?"),
    "training: {lora_alpha: 8}\n": ("luthier.yaml:3", "unknown setting 'training.lora_alpha'", "did you mean lora.lora_alpha?"),
    "training: {gradient_acumulation_steps: 2}\n": ("luthier.yaml:3", "training.gradient_acum", "did you mean training.gradient_accumulation_steps?"),
    "per_device_train_batch_size: 2\n": ("luthier.yaml:3", "per_device", "write it below training: (training.per_device_train_batch_size)"),
    "training.max_steps: 3\n": ("luthier.yaml:3", "unknown setting 'training.max_steps'", "training:, and below it max_steps: ..."),
    "evaluation: {beam_width: 4}\n": (
        "luthier.yaml:3",
        "unknown setting 'evaluation.beam_width'",
        "known here: base_rows, drift_weight, early_stopping_patience",
    ),
    "1: 2\n": ("luthier.yaml:3", "unknown setting '1'", "known here: bottleneck, checks, data, device"),
}


@pytest.mark.parametrize(("text", "answer"), UNKNOWN.items(), ids=UNKNOWN)
def test_an_unknown_setting_is_named_with_its_line_and_the_nearest(refuse: Any, text: str, answer: tuple[str, str, str]) -> None:
    where, problem, nearest = answer
    error = refuse(text)
    assert error.where == where
    assert problem in error.problem
    assert nearest in error.next_step


def test_an_unknown_setting_is_told_before_what_it_explains(refuse: Any) -> None:
    error = refuse("", head="model: m\ndata: {trian: rows.jsonl}\n")
    assert (error.problem, error.next_step) == ("unknown setting 'data.trian'", "did you mean data.train?")


@pytest.mark.parametrize(
    ("head", "where", "missing"),
    [
        ("seed: 1\n", "luthier.yaml", "model"),
        ("model: m\nseed: 1\n", "luthier.yaml", "data"),
        ("model: m\ndata: {eval: 5%}\n", "luthier.yaml:2", "data.train"),
    ],
)
def test_a_missing_setting_is_named(refuse: Any, head: str, where: str, missing: str) -> None:
    error = refuse("", head=head)
    assert (error.where, error.problem) == (where, f"the setting {missing!r} is missing")


WRONG = {
    # override                              what is said
    "training.learning_rate=fast": "training.learning_rate is 'fast': should be a valid number or should be 'auto'",
    "training.learning_rate=0": "training.learning_rate is 0: should be greater than 0 or should be 'auto'",
    "training.learning_rate=2": "training.learning_rate is 2: should be less than or equal to 1 or should be 'auto'",
    "training.learning_rate='1e-4'": "training.learning_rate is '1e-4': should be a valid number or should be 'auto'",
    "training.batch_size=1.5": "training.batch_size is 1.5: should be a valid integer",
    "training.batch_size=true": "training.batch_size is true: should be a valid integer",
    "training.batch_size=0": "training.batch_size is 0: should be greater than or equal to 1",
    "training.weight_decay=.inf": "should be a finite number",
    "training.num_train_epochs=.nan": "training.num_train_epochs is NaN",
    "training.num_train_epochs=null": "training.num_train_epochs is null: should be a valid number",
    "training.share_prefixes=no": "training.share_prefixes is 'no': should be a valid boolean",
    "training.precision=fp8": "training.precision is 'fp8': should be 'auto', 'bf16', 'fp16' or 'fp32'",
    "prefix.encoder_hidden_size=32": "prefix.encoder_hidden_size is 32: there is no network without prefix_projection: true",
    "p_tuning.encoder_num_layers=3": "p_tuning.encoder_num_layers is 3: only an LSTM reads it",
    "p_tuning.encoder_dropout=0.1": "p_tuning.encoder_dropout is 0.1: only an LSTM reads it",
    "training.max_steps=": "training.max_steps is '': should be a valid integer",
    "evaluation.metrics=[blue]": "evaluation.metrics is 'blue'",
    "evaluation.metrics=[]": "evaluation.metrics is []: should not be empty",
    "data.train=": "data.train is '': should not be empty",
    "data.train=[]": "data.train is []:",
    "data.train=[a.jsonl, 3]": 'data.train is ["a.jsonl", 3]',
    "data.eval=5": "data.eval is 5: should be a valid string",
    "data.eval=x%": "data.eval is 'x%': a share should be above 0% and at most 100%; null holds nothing out",
    "data.eval=0%": "data.eval is '0%': a share should be above 0%",
    "data.eval=-5%": "data.eval is '-5%': a share should be above 0%",
    "data.eval=500%": "data.eval is '500%': a share should be above 0%",
    "data.eval=nan%": "data.eval is 'nan%': a share should be above 0%",
    "lora.r=0": "lora.r is 0: should be greater than or equal to 1",
    "lora.lora_dropout=1": "lora.lora_dropout is 1: should be less than 1",
    "lora.target_modules=[]": "lora.target_modules is []:",
    "model=": "model is '': should not be empty",
    "model=3": "model is 3: should be a valid string",
    "seed=-1": "seed is -1: should be greater than or equal to 0",
    "seed=2026-01-01": 'seed is "2026-01-01": should be a valid integer',
    "device=tpu": "device is 'tpu': should be 'auto', 'cpu', 'cuda' or 'mps'",
    "report_to=none": "report_to is 'none': should be a valid list",
    "report_to=[comet]": "should be 'tensorboard', 'wandb', 'mlflow' or 'trackio'",
}


@pytest.mark.parametrize(("override", "said"), WRONG.items(), ids=WRONG)
def test_a_value_of_the_wrong_kind_or_range_is_shown_with_what_the_setting_means(refuse: Any, override: str, said: str) -> None:
    error = refuse("", override)
    assert error.where == f"command line: {override}"
    assert said in error.problem
    name = override.partition("=")[0]
    assert error.next_step.startswith(f"{name}: ")
    assert len(error.next_step) > len(name) + 10


def test_a_wrong_value_in_the_file_has_the_line(refuse: Any) -> None:
    error = refuse("training:\n  seed: 1\n  max_steps: many\n")
    assert (error.where, error.problem) == ("luthier.yaml:5", "training.max_steps is 'many': should be a valid integer")


def test_a_long_value_is_cut(refuse: Any) -> None:
    assert len(refuse(f"seed: {'1' * 50} {'x' * 5000}\n").problem) < 200


@pytest.mark.parametrize("value", ["3", "[r, 16]", "rank 16"])
def test_a_value_where_a_section_belongs(refuse: Any, value: str) -> None:
    error = refuse(f"lora: {value}\n")
    assert error.where == "luthier.yaml:3"
    assert "a section is expected: lines of `name: value`" in error.problem
    assert error.next_step == "for example lora: {r: ...}"


OVERRIDES = {
    # override                  what is said
    "training.max_steps": "an override is written section.name=value",
    "=3": "an override is written section.name=value",
    "training.=3": "an override is written section.name=value",
    "training..max_steps=3": "an override is written section.name=value",
    "training=3": "an override sets one value, not a section",
    "training={max_steps: 3}": "an override sets one value, not a section",
    "model.name=m": "model is not a section",
    "seed=[": "the value is not YAML",
    "no.such.thing=3": "unknown setting 'no'",
    "training.learing_rate=3": "unknown setting 'training.learing_rate'",
}


@pytest.mark.parametrize(("override", "said"), OVERRIDES.items(), ids=OVERRIDES)
def test_a_mistake_in_the_command_line_is_told_as_one(refuse: Any, override: str, said: str) -> None:
    error = refuse("", override)
    assert (error.where, error.problem) == (f"command line: {override}", said)


def test_overrides_replace_what_the_file_says_and_the_last_one_counts(load: Any) -> None:
    config = load(
        "training: {max_steps: 3}\n", "training.max_steps=4", "training.max_steps=5", "lora.r=8", "data.train=[a.jsonl, b.jsonl]", "model=a=b"
    )
    settings = config.settings
    assert (settings.training.max_steps, settings.lora.r, settings.data.train, settings.model) == (5, 8, ["a.jsonl", "b.jsonl"], "a=b")
    assert config.given["training.max_steps"] == "command line: training.max_steps=5"


def test_an_override_can_take_a_value_back(load: Any) -> None:
    assert load("training: {max_steps: 3}\n", "training.max_steps=null").settings.training.max_steps is None
    assert load("", "data.eval=null").settings.data.eval is None


WITHOUT_EFFECT = {
    # written                                                           said of                        what is said
    "training: {save_strategy: epoch, save_steps: 5}": "save_steps has no effect with save_strategy: epoch",
    "training: {save_strategy: 'no', save_total_limit: 1}": "save_total_limit has no effect with save_strategy: no",
    "training: {save_strategy: 'no', async_save: false}": "async_save has no effect with save_strategy: no",
    "training: {keep_best: 2}": "keep_best has no effect without save_best",
    "training: {greater_is_better: true}": "greater_is_better has no effect without save_best",
    "training: {metric_for_best_model: kl}": "metric_for_best_model has no effect without save_best",
    "training: {save_best: true}": "with evaluation.every_steps: null there are no measurements to choose from",
    "training: {save_best: true, metric_for_best_model: kl}\nevaluation: {every_steps: 1}": "kl is not measured with objective: sft",
    "training: {save_best: true, metric_for_best_model: exact_match}\nevaluation: {every_steps: 1}": "exact_match is not measured while training",
    "evaluation: {early_stopping_patience: 2}": "with evaluation.every_steps: null there are no measurements to choose from",
    "evaluation: {early_stopping_threshold: 0.1}": "early_stopping_threshold has no effect without early_stopping_patience",
    "evaluation: {drift_weight: 0.5, every_steps: 1}": "drift_weight has no effect without save_best or early_stopping_patience",
    "evaluation: {drift_weight: 0.5, every_steps: 1, general: null}\ntraining: {save_best: true}": "has no effect without evaluation.general",
    "training: {warmup_steps: 5, warmup_ratio: 0.1}": "warmup_steps and warmup_ratio both say how long the rate rises",
    "training: {share_prefixes: true}\nlora: {lora_dropout: 0.1}": "nothing is shared beside lora_dropout",
    "preference: {loss_type: ipo, label_smoothing: 0.1}\nobjective: dpo": "preference.label_smoothing has no effect with loss_type: ipo",
    "wrapping: fsdp": "wrapping: fsdp has no effect with devices: 1 and nodes: 1",
    "sequence_parallel: 2\ndevices: 3": "devices: 3 cannot be cut into teams of sequence_parallel: 2",
    "sequence_parallel: 2": "devices: 1 cannot be cut into teams of sequence_parallel: 2",
    "launch: {head: a}": "launch.head has no effect with nodes: 1",
    "devices: 2\ndevice: mps": "mps is one device",
    "nodes: 4:1": "nodes is '4:1': should be a valid integer or '4:1' is not MIN:MAX",
    "training: {per_device_train_batch_size: 4}\ndevices: auto": "how many devices there are is known only when the run starts",
    "method: qlorra": "method 'qlorra' is not in this version",
    "lora: {r: 8}\nmethod: full": "the block lora: has no effect with method: full",
    "training: {batch_size: 8, per_device_train_batch_size: 2}": "batch_size and per_device_train_batch_size both say how large an update is",
    "training: {eval_strategy: 'no', eval_steps: 50}": "training.eval_steps has no effect with eval_strategy: no",
    "training: {eval_strategy: steps}": "eval_strategy: steps needs eval_steps",
}


@pytest.mark.parametrize(("text", "said"), WITHOUT_EFFECT.items(), ids=WITHOUT_EFFECT)
def test_a_setting_without_effect_is_refused(refuse: Any, text: str, said: str) -> None:
    error = refuse(f"{text}\n")
    assert said in error.problem
    assert error.where == "luthier.yaml:3"
    assert error.next_step


def test_evaluating_while_training_needs_rows_held_out(refuse: Any, load: Any) -> None:
    error = refuse("evaluation: {every_steps: 5}\n", "data.eval=null")
    assert (error.where, error.problem) == ("luthier.yaml:3", "every_steps has no effect with data.eval: null")
    # What `luthier eval RUN --data FILE` reads is of use without them.
    load("evaluation: {metrics: [valid_json], shots: 5, base_rows: 60, max_rows: 100}\n", "data.eval=null")


def test_the_best_checkpoint_needs_rows_held_out(refuse: Any) -> None:
    error = refuse("training: {save_best: true}\n", "data.eval=null")
    assert (error.where, error.problem) == ("luthier.yaml:3", "with data.eval: null there are no measurements to choose from")


def test_what_is_of_use_together_is_not_refused(load: Any) -> None:
    load("training: {save_strategy: steps, save_steps: 5, save_total_limit: 1, warmup_steps: 5}\n")
    load("lora: {lora_dropout: 0.1}\ntraining: {share_prefixes: false}\nevaluation: {every_steps: 5, sample_answers: 2}\n")
    load("lora: {lora_dropout: 0.1}\nreport_to: []\nmethod: lora\n")
    load("training: {save_strategy: 'no', save_minutes: 5, save_total_limit: 1, async_save: false}\n")
    best = "load_best_model_at_end: true, keep_best: 2, metric_for_best_model: rewards/margins, greater_is_better: true"
    load(f"objective: dpo\ntraining: {{{best}}}\nevaluation: {{every_steps: 5}}\n")


@pytest.mark.parametrize(
    ("text", "said"),
    {
        "objective: dpo": "sequence_parallel: 2 is for objective: sft, and not for dpo",
        "method: prefix": "method: prefix puts virtual tokens before every row",
        "training: {attn_implementation: sdpa}": "attn_implementation: sdpa runs each row by itself",
        "training: {cache_frozen_layers: true}": "cache_frozen_layers keeps whole rows",
    }.items(),
)
def test_what_ranks_that_share_the_tokens_cannot_do_is_refused(refuse: Any, text: str, said: str) -> None:
    error = refuse(f"sequence_parallel: 2\ndevices: 4\n{text}\n")
    assert said in error.problem
    assert (error.where, "sequence_parallel: 1" in error.next_step) == ("luthier.yaml:3", True)


WORDS = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1).map(str.strip).filter(lambda text: text and not text.endswith("%"))
COUNT = st.integers(1, 20)
NAMES = st.from_regex(r"[a-z_]{1,12}", fullmatch=True)
SHARE = st.floats(1e-12, 0.99)
SOURCES = st.fixed_dictionaries(
    {"path": WORDS},
    optional={"weight": SHARE, "format": st.just("alpaca"), "columns": st.dictionaries(WORDS, WORDS), "license": WORDS, "attribution": WORDS},
)
VALUES = {
    # setting                       values it takes
    "model": WORDS,
    "data.train": WORDS | st.lists(WORDS | SOURCES, min_size=1),
    "data.eval": WORDS
    | st.fixed_dictionaries({"path": WORDS}, optional={"split": WORDS, "columns": st.dictionaries(WORDS, WORDS)})
    | st.floats(0.01, 100).map(lambda share: f"{share}%"),
    "data.max_rows": st.none() | COUNT,
    "data.format": st.sampled_from(["auto", "messages", "text", "kto"]),
    "data.columns": st.dictionaries(WORDS, WORDS),
    "data.strict": st.booleans(),
    "data.encoding": WORDS,
    "data.tree_paths": st.sampled_from(["best", "all"]),
    "data.reserve_for_generation": st.integers(0, 10**4),
    "data.max_length": st.just("auto") | st.integers(8, 10**6),
    "data.too_long": st.sampled_from(["error", "drop", "split", "truncate"]),
    "template": WORDS,
    "tokenizer.path": st.none() | WORDS,
    "tokenizer.add_special_tokens": st.lists(WORDS),
    "checks.off": st.lists(WORDS),
    "checks.on": st.lists(WORDS),
    "checks.languages": st.lists(WORDS),
    "checks.json_schema": st.none() | WORDS,
    "checks.validator": st.none() | WORDS,
    "checks.judge_endpoint": st.none() | WORDS,
    "checks.judge_model": st.none() | WORDS,
    "checks.judge_key_env": st.none() | WORDS,
    "checks.judge_rows": COUNT,
    "checks.near_duplicate_threshold": SHARE,
    "checks.semantic_duplicate_threshold": SHARE,
    "checks.balance_smallest": SHARE,
    "checks.structure_rare": st.floats(0, 0.49),
    "checks.diversity_openings": st.floats(1, 100),
    "checks.domain_description": st.none() | WORDS,
    "checks.domain_similarity": SHARE,
    "checks.toxicity_classifier": st.none() | WORDS,
    "checks.toxicity_threshold": SHARE,
    "checks.purpose": st.sampled_from([None, "style", "task", "domain", "general"]),
    "checks.hard_row_deviations": SHARE,
    "resume": st.sampled_from(["auto", "never"]),
    "objective": st.sampled_from(["sft", "dpo", "kto"]),
    "plan.task": st.none() | st.sampled_from(["classification", "rag", "reasoning"]),
    "plan.domain": st.none() | st.sampled_from(["style", "near", "far"]),
    "plan.mistakes": st.sampled_from(["usual", "costly"]),
    "plan.facts": st.sampled_from(["fixed", "changing"]),
    "method": st.just("lora"),
    "lora.r": st.just("auto") | COUNT,
    "lora.lora_alpha": st.just("auto") | SHARE,
    "lora.lora_dropout": st.just("auto") | SHARE,
    "lora.target_modules": NAMES | st.lists(WORDS, min_size=1),
    "lora.layers_to_transform": st.lists(st.integers(0, 100)),
    "lora.use_rslora": st.booleans(),
    "lora.rank_pattern": st.dictionaries(NAMES, COUNT),
    "lora.alpha_pattern": st.dictionaries(NAMES, COUNT),
    "lora.use_dora": st.booleans(),
    "lora.init_lora_weights": st.sampled_from(["default", "orthogonal"]),
    "lora.loraplus_lr_ratio": st.none() | st.floats(1, 64),
    "lora.modules_to_save": st.lists(WORDS),
    "training.batch_size": st.just("auto") | COUNT,
    "training.num_train_epochs": st.just("auto") | SHARE,
    "training.max_steps": st.none() | COUNT,
    "training.learning_rate": st.just("auto") | SHARE,
    "training.lr_scheduler_type": st.sampled_from(["linear", "cosine", "constant", "cosine_with_restarts", "warmup_stable_decay"]),
    "training.learning_rates": st.dictionaries(NAMES, st.sampled_from([0.1, 0.5, 16.0]), max_size=2),
    "training.warmup_ratio": st.just("auto") | SHARE,
    "training.weight_decay": SHARE,
    "training.adam_beta1": SHARE,
    "training.adam_beta2": SHARE,
    "training.adam_epsilon": SHARE,
    "training.max_grad_norm": SHARE,
    "training.optim": st.sampled_from(["adamw", "adamw_8bit"]),
    "training.precision": st.sampled_from(["auto", "bf16", "fp16", "fp32"]),
    "training.gradient_checkpointing": st.sampled_from(["auto", "off", "selective", "full"]),
    "training.rows_together": st.integers(1, 9),
    "training.share_prefixes": st.booleans(),
    "training.side_by_side": st.booleans(),
    "training.micro_batch_tokens": st.just("auto") | COUNT,
    "training.compile": st.sampled_from(["auto", "on", "off"]),
    "training.frozen_base": st.sampled_from(["bf16", "fp8"]),
    "training.attn_implementation": st.sampled_from(["auto", "sdpa", "flash_attention_2", "eager"]),
    "training.cache_frozen_layers": st.booleans(),
    "training.deterministic": st.booleans(),
    "training.rows_file": st.booleans(),
    "training.async_save": st.booleans(),
    "training.logging_steps": COUNT,
    "training.save_strategy": st.sampled_from(["steps", "epoch"]),
    "training.save_minutes": st.none() | st.floats(0.5, 600),
    "evaluation.every_steps": COUNT,
    "evaluation.metrics": st.lists(st.sampled_from(["exact_match", "valid_json", "field_f1"]), min_size=1),
    "evaluation.max_rows": st.none() | COUNT,
    "evaluation.base_rows": st.none() | COUNT,
    "evaluation.shots": COUNT,
    "evaluation.sample_answers": st.integers(0, 20),
    "evaluation.max_new_tokens": st.just("auto") | COUNT,
    "init_from": st.none() | WORDS,
    "output_dir": WORDS,
    "device": st.sampled_from(["auto", "cpu", "cuda"]),
    "devices": st.just("auto") | COUNT,
    "nodes": COUNT | st.sampled_from(["1:2", "2:2", "3:40"]),
    "launch.port": st.integers(1, 65535),
    "launch.max_restarts": COUNT,
    "launch.timeout_minutes": st.floats(0.5, 600),
    "launch.cpu_offload": st.sampled_from(["auto", False]),
    "max_memory": st.none() | st.sampled_from(["3GB", "2.5 GiB", "900MB"]),
    "report_to": st.lists(st.sampled_from(["tensorboard", "wandb", "mlflow", "trackio"]), unique=True),
    "seed": COUNT,
}
# Allowed beside some values of others only: each stands in a test of its own.
CONDITIONAL = {"data.loss_on", "training.warmup_steps", "training.save_steps", "training.save_total_limit"}
CONDITIONAL |= {"wrapping", "sequence_parallel", "device_map", "launch.head"}
# Which checkpoint is the best is measured, and data.eval may be null here.
CONDITIONAL |= {"evaluation.in_loop_rows", "evaluation.general", "evaluation.drift_weight", "data.replay", "data.replay_from"}
CONDITIONAL |= {"evaluation.early_stopping_patience", "evaluation.early_stopping_threshold"}
CONDITIONAL |= {f"training.{name}" for name in ("save_best", "metric_for_best_model", "greater_is_better", "keep_best", "load_best_model_at_end")}
CONDITIONAL |= {f"training.{name}" for name in ("num_cycles", "decay_ratio", "decay_steps", "neftune_noise_alpha", "label_smoothing_factor")}
# Sections that the method `lora` does not read, with a value for each of their settings.
OF_METHODS: dict[str, dict[str, Any]] = {
    "qlora": {"quantization": "fp4", "double_quant": False, "compute_dtype": "fp32"},
    "bottleneck": {"kind": "houlsby", "reduction_factor": 8.0, "non_linearity": "gelu", "scaling": 2.0},
    "prefix": {"num_virtual_tokens": 5, "prefix_projection": True, "encoder_hidden_size": 32},
    "prompt": {"num_virtual_tokens": 5, "prompt_tuning_init_text": "Answer with JSON."},
    "p_tuning": {
        "num_virtual_tokens": 5,
        "encoder_reparameterization_type": "LSTM",
        "encoder_hidden_size": 32,
        "encoder_num_layers": 3,
        "encoder_dropout": 0.1,
    },
    "ia3": {"target_modules": ["k_proj"], "feedforward_modules": ["down_proj"]},
    "freeze": {"layers": "0-19", "embeddings": True},
}
# Settings that the objective `sft` does not read.
OF_OBJECTIVES: dict[str, dict[str, Any]] = {
    "dpo": {"loss_type": "ipo", "beta": 0.2, "sft_weight": 0.5},
    "orpo": {"orpo_weight": 0.2},
    "simpo": {"beta": 2.5, "label_smoothing": 0.1, "simpo_gamma": 1.2},
    "kto": {"desirable_weight": 1.5, "undesirable_weight": 0.5},
}
NEEDED = ("model", "data.train")


def test_every_setting_is_drawn_below() -> None:
    sections = {name.rpartition(".")[0] for name in all_settings()}
    of_methods = {f"{section}.{name}" for section, values in OF_METHODS.items() for name in values}
    of_objectives = {f"preference.{name}" for values in OF_OBJECTIVES.values() for name in values}
    assert set(VALUES) | CONDITIONAL | of_methods | of_objectives | {"peft"} == set(all_settings()) - sections


@pytest.mark.parametrize("objective", OF_OBJECTIVES)
def test_the_settings_of_an_objective_are_written_and_read_again_and_refused_beside_another(load: Any, tmp_path: Path, objective: str) -> None:
    values = OF_OBJECTIVES[objective]
    settings = load(f"objective: {objective}\npreference: {values}\n").settings
    assert settings.preference.model_dump(include=set(values)) == values
    (tmp_path / "config.yaml").write_text(settings_to_yaml(settings), encoding="utf-8")
    assert load_config(tmp_path / "config.yaml").settings == settings
    name = next(iter(values))
    with pytest.raises(ConfigError, match=rf"preference\.{name} has no effect with objective: sft\n  Try: take it out, or objective: .*{objective}"):
        load(f"preference: {values}\n")


def test_dropout_between_the_layers_of_an_lstm_of_one_layer_is_refused(load: Any) -> None:
    with pytest.raises(ConfigError, match="an LSTM of one layer drops nothing"):
        load("method: p_tuning\np_tuning: {encoder_reparameterization_type: LSTM, encoder_num_layers: 1, encoder_dropout: 0.1}\n")


@pytest.mark.parametrize("section", [*OF_METHODS, "peft"])
def test_the_section_of_a_method_is_written_and_read_again(tmp_path: Path, section: str) -> None:
    method = next(method.name for method in METHODS.values() if section in method.blocks)
    values = OF_METHODS.get(section, {"type": "VERA", "r": 64})
    settings = Settings.model_validate({"model": "m", "data": {"train": "rows.jsonl"}, "method": method, section: values})
    (tmp_path / "config.yaml").write_text(settings_to_yaml(settings), encoding="utf-8")
    assert load_config(tmp_path / "config.yaml").settings == settings
    (tmp_path / "config.yaml").write_text(settings_to_yaml(settings).replace(f"method: {method}\n", ""), encoding="utf-8")
    with pytest.raises(ConfigError, match=f"the block {section}: has no effect with method: lora"):
        load_config(tmp_path / "config.yaml")


@rules(max_examples=25, deadline=None)
@given(st.fixed_dictionaries({name: VALUES[name] for name in NEEDED}, optional={name: VALUES[name] for name in VALUES if name not in NEEDED}))
def test_settings_written_and_read_again_are_the_same(tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]) -> None:
    tree: dict[str, Any] = {}
    for name, value in values.items():
        section, _, key = name.rpartition(".")
        (tree.setdefault(section, {}) if section else tree)[key] = value
    settings = Settings.model_validate(tree)
    file = tmp_path_factory.getbasetemp() / "config.yaml"
    file.write_text(settings_to_yaml(settings), encoding="utf-8")
    assert load_config(file).settings == settings


@pytest.mark.parametrize("override", ["lora.r=8", "qlora.quantization=int8", "freeze.layers=0-3", "bottleneck.kind=houlsby", "peft.type=VERA"])
def test_a_setting_of_another_method_is_refused_in_the_call_too(load: Any, override: str) -> None:
    with pytest.raises(ConfigError, match="has no effect with method: prompt") as caught:
        load("data: {train: rows.jsonl}\n", "method=prompt", override, head="model: m\n")
    assert caught.value.where == f"command line: {override}"


@pytest.mark.parametrize(
    ("method", "setting"),
    [
        ("lora", "lora.target_modules=(q_proj"),
        ("lora", "lora.rank_pattern={'(q': 4}"),
        ("lora", "training.learning_rates={'(q': 2.0}"),
        ("ia3", "ia3.target_modules=(k"),
        ("peft", "peft={type: LOHA, target_modules: '(q'}"),
    ],
)
def test_a_broken_regular_expression_is_named(load: Any, method: str, setting: str) -> None:
    with pytest.raises(ConfigError, match="is no regular expression"):
        load("data: {train: rows.jsonl}\n", f"method={method}", setting, head="model: m\n")


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("LoRA", "method: lora"),
        ("prefix_tuning", "method: prefix "),
        ("p-tuning", "method: p_tuning"),
        ("vera", "peft: {type: VERA}"),
        ("qlorra", "method: qlora"),
    ],
)
def test_a_method_by_another_name_is_answered_with_ours(load: Any, asked: str, meant: str) -> None:
    with pytest.raises(ConfigError, match="is not in this version") as caught:
        load("data: {train: rows.jsonl}\n", f"method={asked}", head="model: m\n")
    assert meant in caught.value.next_step


def test_rows_of_added_tokens_cannot_be_frozen(load: Any) -> None:
    with pytest.raises(ConfigError, match="would stay as they were drawn"):
        load("data: {train: rows.jsonl}\n", "method=full", "freeze.embeddings=true", "tokenizer.add_special_tokens=[<x>]", head="model: m\n")


def test_null_and_conditional_settings_are_written_and_read_again(load: Any, tmp_path: Path) -> None:
    settings = load(
        "data: {train: rows.jsonl}\ntraining: {warmup_steps: 5, save_steps: 7, save_total_limit: 1}\n", "data.eval=null", head="model: m\n"
    ).settings
    (tmp_path / "config.yaml").write_text(settings_to_yaml(settings), encoding="utf-8")
    assert load_config(tmp_path / "config.yaml").settings == settings
    assert settings.data.eval is None


def test_rows_alone_are_looked_at_with_all_of_them_to_train_on(tmp_path: Path) -> None:
    config = config_of_rows(tmp_path / "rows.jsonl", "m")
    assert (config.settings.data.train, config.settings.data.eval, config.settings.model) == (str(tmp_path / "rows.jsonl"), None, "m")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{path: a.jsonl, weigt: 2}", "unknown setting 'weigt' in data.train[1]\n  Try: did you mean weight?"),
        ("{weight: 2}", "data.train[1] has no path"),
        ("{path: a.jsonl, weight: -1}", "data.train[1]: weight is -1: should be greater than 0\n  Try: weight: how often"),
        ("{path: a.jsonl, format: alpacca}", "data.train[1]: format is 'alpacca'"),
    ],
)
def test_a_mistake_in_one_source_is_named_with_its_number(load: Any, source: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(f"data:\n  train:\n    - first.jsonl\n    - {source}\n", head="model: m\n")
    assert said in str(error.value)
    assert str(error.value).startswith("luthier.yaml:3: ")


def test_columns_are_a_map_in_the_file_and_in_the_call(load: Any) -> None:
    data = load("data: {train: rows.jsonl, columns: {question: Frage}}\n", head="model: m\n").settings.data
    assert data.columns == {"question": "Frage"}
    data = load("data: {train: rows.jsonl}\n", "data.columns={question: Frage, answer: Antwort}", head="model: m\n").settings.data
    assert data.columns == {"question": "Frage", "answer": "Antwort"}
    sources = load("data:\n  train:\n    - {path: a.csv, weight: 2.5, columns: {answer: Antwort}}\n", head="model: m\n").settings.data.sources
    assert (sources[0].weight, sources[0].columns) == (2.5, {"answer": "Antwort"})


@pytest.mark.parametrize("path", ["-", "*.gz", "data/*.jsonl", "@rows"])
def test_a_path_in_the_call_is_taken_as_it_stands(load: Any, path: str) -> None:
    assert load("data: {train: rows.jsonl}\n", f"data.train={path}", head="model: m\n").settings.data.train == path


def test_a_weight_that_would_fill_the_memory_is_refused(load: Any) -> None:
    with pytest.raises(ConfigError, match=r"weight is 1000000.0: should be less than or equal to 1000"):
        load("data: {train: [{path: a.jsonl, weight: 1e6}]}\n", head="model: m\n")


def test_a_mistake_in_the_source_of_the_held_out_rows_is_named(load: Any) -> None:
    for eval_lines, said in (
        ("{path: t.csv, splitt: a}", "unknown setting 'splitt' in data.eval"),
        ("{path: t.csv, weight: 2}", "a weight has no effect"),
        ("{path: t.csv, license: MIT}", "a license has no effect on rows that are held out"),
    ):
        with pytest.raises(ConfigError, match=said):
            load(f"data:\n  train: rows.jsonl\n  eval: {eval_lines}\n", head="model: m\n")


def test_one_source_may_stand_without_a_list(load: Any) -> None:
    data = load("data:\n  train: {path: a.csv, columns: {question: Frage}}\n", head="model: m\n").settings.data
    assert [(source.path, source.columns) for source in data.sources] == [("a.csv", {"question": "Frage"})]
    with pytest.raises(ConfigError, match=r"unknown setting 'colums' in data.train\n  Try: did you mean columns"):
        load("data:\n  train: {path: a.csv, colums: {}}\n", head="model: m\n")
