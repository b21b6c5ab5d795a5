"""`luthier init --script trainer`: the script must be the same run, update by update."""

import ast
import json
import runpy
import warnings
from pathlib import Path

import pytest

from luthier.config.load import Config, load_config
from luthier.data.prepare import load_rows, tokenize_rows
from luthier.errors import CallError, ConfigError
from luthier.models.load import load_tokenizer
from luthier.recipes import sft
from luthier.recipes.new_project import write_project
from luthier.recipes.trainer_script import write_trainer_script
from luthier.reporting import Silent

RESOLVED = ["training.batch_size=4", "training.learning_rate=1e-2", "training.precision=fp32", "data.max_length=256", "device=cpu"]
RESOLVED += ["lora.lora_dropout=0"]
RAGGED = {
    "messages": [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello, which street?"},
        {"role": "user", "content": "150 Pierce Rd, and then some more of it"},
        {"role": "assistant", "content": " Itasca \n"},
    ]
}


def project(folder: Path, model: Path, *overrides: str, format: str = "chat") -> Config:
    write_project(folder, format=format, reporter=Silent())  # type: ignore[arg-type]
    if format == "chat":
        with (folder / "data" / "train.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(RAGGED) + "\n")
    return load_config(folder / "luthier.yaml", [f"model={model}", *RESOLVED, *overrides])


@pytest.mark.parametrize("format", ["chat", "instruction", "completion"])
def test_the_script_trains_the_same_tokens(format: str, tmp_path: Path, tiny_model: Path) -> None:
    config = project(tmp_path / "project", tiny_model, format=format)
    names = runpy.run_path(str(write_trainer_script(config, tmp_path / "leave.py")))
    tokenizer = load_tokenizer(tiny_model)
    data = config.settings.data
    prepared = tokenize_rows(load_rows(data, config.file.parent, 0), tokenizer, 256, data)

    rows = [json.loads(line) for line in (tmp_path / "leave.rows.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == len(prepared.train) >= 12
    for row, ours in zip(rows, prepared.train, strict=True):
        theirs = names["read_example"](row, tokenizer)
        assert theirs["input_ids"] == ours.token_ids
        trained = [label != names["IGNORED"] for label in theirs["labels"]]
        assert [False, *trained[1:]] == ours.trained


def test_the_losses_are_those_of_the_run(tmp_path: Path, tiny_model: Path, luthier_home: Path) -> None:
    """13 rows in batches of 4 over 2 epochs: the fourth update straddles the epochs, the last one has two rows."""
    config = project(tmp_path / "project", tiny_model, "training.num_train_epochs=2", "training.warmup_ratio=0.3", "training.weight_decay=0.1")
    script = write_trainer_script(config, tmp_path / "leave.py")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        runpy.run_path(str(script), run_name="__main__")
    theirs = json.loads((tmp_path / "leave-output" / "losses.json").read_text(encoding="utf-8"))

    ours = [row["loss"] for row in sft.fit(config).read_metrics("train")]
    assert len(ours) == 7
    assert theirs == pytest.approx(ours, abs=1e-3)
    assert ours[-1] < ours[0]


def test_the_script_needs_no_luthier_and_fits_on_two_screens(tmp_path: Path, tiny_model: Path) -> None:
    script = write_trainer_script(project(tmp_path / "project", tiny_model), tmp_path / "leave.py").read_text(encoding="utf-8")
    imported = {name.name for node in ast.walk(ast.parse(script)) if isinstance(node, ast.Import) for name in node.names}
    imported |= {str(node.module) for node in ast.walk(ast.parse(script)) if isinstance(node, ast.ImportFrom)}
    assert not any(name.startswith("luthier") for name in imported)
    assert len(script.splitlines()) < 170
    assert "<settings>" not in script


def test_what_is_auto_becomes_what_training_would_take(tmp_path: Path, tiny_model: Path) -> None:
    config = project(tmp_path / "project", tiny_model, "training.learning_rate=auto", "training.batch_size=auto", "training.max_steps=null")
    script = write_trainer_script(config, tmp_path / "leave.py").read_text(encoding="utf-8")
    taken = load_config(sft.fit(config).config).settings.training
    assert f"\nLEARNING_RATE = {taken.learning_rate!r}\n" in script
    assert f"\nBATCH_SIZE = {taken.batch_size!r}\n" in script


def test_an_existing_script_is_not_overwritten(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "leave.py").write_text("mine", encoding="utf-8")
    with pytest.raises(CallError, match=r"leave\.py: exists already"):
        write_trainer_script(project(tmp_path / "project", tiny_model), tmp_path / "leave.py")
    assert (tmp_path / "leave.py").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize(
    "given",
    ["init_from=runs/one", "template=zephyr", "tokenizer.path=other", "data.loss_on=all", "data.too_long=split", "training.optim=lion"],
)
def test_what_the_script_cannot_do_is_refused(given: str, tmp_path: Path, tiny_model: Path) -> None:
    with pytest.raises(ConfigError, match=f"the plain script knows nothing of {given.partition('=')[0]}"):
        write_trainer_script(project(tmp_path / "project", tiny_model, given), tmp_path / "leave.py")
    assert not (tmp_path / "leave.py").exists()
