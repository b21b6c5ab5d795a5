"""Numbers that are none, or that no run can have: refused where settings are read, with the setting's name."""

from pathlib import Path

import pytest

from luthier.config.load import load_config
from luthier.errors import ConfigError

HUGE = "9999999999999999999999"
POSITIVE = [
    "training.learning_rate",
    "training.batch_size",
    "training.num_train_epochs",
    "training.max_steps",
    "training.micro_batch_tokens",
    "lora.r",
]
POSITIVE += [
    "lora.lora_alpha",
    "training.save_steps",
    "training.save_total_limit",
    "training.logging_steps",
    "training.max_grad_norm",
    "data.max_length",
]
COUNTS = [
    "training.batch_size",
    "training.num_train_epochs",
    "training.max_steps",
    "training.micro_batch_tokens",
    "lora.r",
    "data.max_length",
    "seed",
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "luthier.yaml"
    path.write_text("model: m\ndata: {train: a.jsonl}\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("name", [*POSITIVE, "seed", "training.warmup_ratio", "training.weight_decay", "lora.lora_dropout"])
@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf", "nan", "-1", "1e400", "''", "[1]"])
def test_what_is_no_number_or_below_zero_is_refused_by_name(name: str, value: str, file: Path) -> None:
    if (name, value) == ("training.max_steps", "-1"):
        return  # Transformers' way to say null
    with pytest.raises(ConfigError, match=rf"^command line: {name}={value}".replace("[", r"\[")):
        load_config(file, [f"{name}={value}"])


@pytest.mark.parametrize("name", POSITIVE)
def test_zero_is_refused_where_it_means_nothing(name: str, file: Path) -> None:
    with pytest.raises(ConfigError, match=rf"{name} is 0: should be greater than"):
        load_config(file, [f"{name}=0"])


@pytest.mark.parametrize("name", COUNTS)
def test_a_number_that_no_run_can_have_is_refused(name: str, file: Path) -> None:
    with pytest.raises(ConfigError, match=rf"{name} is {HUGE}: should be less than"):
        load_config(file, [f"{name}={HUGE}"])


@pytest.mark.parametrize(
    ("name", "value"), [("training.learning_rate", "1.5"), ("training.warmup_ratio", "1"), ("lora.lora_dropout", "1"), ("lora.r", "2000")]
)
def test_a_share_or_a_rate_above_what_can_be_is_refused(name: str, value: str, file: Path) -> None:
    with pytest.raises(ConfigError, match=rf"{name} is {value}: should be less than"):
        load_config(file, [f"{name}={value}"])


def test_a_number_with_quotes_is_refused_with_what_it_should_be(file: Path) -> None:
    file.write_text('model: m\ndata: {train: a.jsonl}\ntraining: {learning_rate: "1e-4"}\n', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"luthier.yaml:3: training.learning_rate is .1e-4.: should be a valid number or should be .auto.\n  Try: "):
        load_config(file)


def test_a_tag_of_python_runs_nothing(file: Path, tmp_path: Path) -> None:
    text = f"model: m\ndata: {{train: a.jsonl}}\nseed: !!python/object/apply:os.system ['touch {tmp_path}/ran']\n"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"luthier.yaml:3: seed is "):
        load_config(file)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model: m\ndata:\n\ttrain: a\n", r"luthier.yaml:3: is not YAML"),
        ("model: m\nmodel: n\n", r"luthier.yaml:2: a key stands twice"),
        ("model: &a m\ndata: &d {train: a}\ntraining: {<<: *d}\n", r"luthier.yaml:3: training.train comes from a merge \(<<\), which is not read"),
        ("", r"luthier.yaml: settings are expected as `name: value` lines, and it is empty"),
        ("- model\n", r"luthier.yaml: settings are expected as `name: value` lines, and it holds a list"),
        ("model: m\n---\nmodel: n\n", r"luthier.yaml:2: is not YAML"),
        (
            "model: m\ndata: {train: a}\nlearning_rate: 1e-4\n",
            r"luthier.yaml:3: unknown setting 'learning_rate'\n  Try: did you mean training.learning_rate",
        ),
        ("a: " + "[" * 5000, r"luthier.yaml: is nested too deep to be read"),
    ],
    ids=["tab", "twice", "merge", "empty", "list", "two", "wrong section", "deep"],
)
def test_a_file_that_is_no_settings_file_is_named_with_its_line(text: str, said: str, file: Path) -> None:
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=said):
        load_config(file)


def test_a_mark_at_the_beginning_and_ends_of_lines_of_windows_are_read(file: Path) -> None:
    file.write_bytes("\ufeffmodel: m\r\ndata: {train: a.jsonl}\r\n".encode())
    assert load_config(file).settings.model == "m"
