"""What `luthier init DIR` writes."""

import json
import runpy
from pathlib import Path
from typing import get_args

import pytest

from luthier.config.data import DataSettings
from luthier.config.load import all_settings, load_config
from luthier.config.settings import Settings
from luthier.data.prepare import load_rows
from luthier.errors import CallError, LuthierError
from luthier.recipes.new_project import OF_OTHERS, RowFormat, settings_file, write_project
from luthier.reporting import Silent

FORMATS = get_args(RowFormat)
# Refused beside the default lr_scheduler_type.
OF_OTHER_SCHEDULES = {"training.num_cycles", "training.decay_ratio", "training.decay_steps"}


def uncommented(text: str) -> str:
    """The file with every commented setting switched on."""
    names = {name.rpartition(".")[2] for name in all_settings() if name not in OF_OTHER_SCHEDULES}
    lines = []
    for line in text.split("\n"):
        bare = line.lstrip().removeprefix("# ")
        is_setting = bare != line.lstrip() and bare.partition(": ")[0] in names and not bare.startswith("scale")
        lines.append(line.replace("# ", "", 1) if is_setting else line)
    return "\n".join(lines)


@pytest.mark.parametrize("format", FORMATS)
def test_a_new_project_can_be_trained_as_it_is(format: RowFormat, tmp_path: Path) -> None:
    config = load_config(write_project(tmp_path / "project", format=format, reporter=Silent()) / "luthier.yaml")
    rows = load_rows(config.settings.data, config.file.parent, seed=0)
    assert (len(rows.train), len(rows.held_out), len(rows.rejected)) == (12, 4, 0)
    assert config.notes == []


@pytest.mark.parametrize("format", FORMATS)
def test_the_rows_have_the_format_that_was_asked_for(format: RowFormat, tmp_path: Path) -> None:
    folder = write_project(tmp_path, format=format, reporter=Silent())
    columns = {"instruction": ["instruction", "input", "output"], "chat": ["messages"], "completion": ["prompt", "completion"]}
    for name in ("train", "test"):
        rows = [json.loads(line) for line in (folder / "data" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
        assert all(list(row) == columns[format] for row in rows)


def test_the_layout_is_the_guides(tmp_path: Path) -> None:
    write_project(tmp_path, reporter=Silent())
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()) == [
        ".gitignore",
        "README.md",
        "data/test.jsonl",
        "data/train.jsonl",
        "logs/.gitkeep",
        "luthier.yaml",
        "models/.gitkeep",
        "requirements.txt",
        "scripts/inference.py",
        "scripts/train.py",
    ]


def test_the_training_script_is_short_and_shows_the_four_calls(tmp_path: Path) -> None:
    script = (write_project(tmp_path, reporter=Silent()) / "scripts" / "train.py").read_text(encoding="utf-8")
    assert len(script.splitlines()) < 60
    for call in ("forward_backward", "optimizer_step", "save_state", "sample"):
        assert f"engine.{call}(" in script


def test_every_setting_stands_there_with_its_default(tmp_path: Path) -> None:
    (tmp_path / "luthier.yaml").write_text(uncommented(settings_file()), encoding="utf-8")
    config = load_config(tmp_path / "luthier.yaml")
    sections = {"data", "tokenizer", "checks", "plan", "lora", "training", "evaluation", "launch"}
    # max_steps: null is read as not given, as Transformers' -1 is.
    shown = {name for name in all_settings() if name.partition(".")[0] not in OF_OTHERS}
    assert set(config.given) == shown - sections - OF_OTHER_SCHEDULES - {"training.max_steps"}
    assert config.settings == Settings(model="smollm2-135m-instruct", data=DataSettings(train="data/train.jsonl", eval="data/test.jsonl"))


def test_a_folder_that_holds_something_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work", encoding="utf-8")
    with pytest.raises(CallError, match=r"is not empty: it holds thesis\.tex; nothing was written") as caught:
        write_project(tmp_path, reporter=Silent())
    assert caught.value.exit_code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "project").write_text("", encoding="utf-8")
    with pytest.raises(LuthierError, match="project: is a file"):
        write_project(tmp_path / "project", reporter=Silent())


@pytest.mark.parametrize("format", [FORMATS[0], *(pytest.param(one, marks=pytest.mark.slow) for one in FORMATS[1:])])
def test_both_scripts_work_at_once(format: RowFormat, tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_project(tmp_path / "project", format=format, reporter=Silent())
    for name in ("train.py", "inference.py"):
        script = folder / "scripts" / name
        script.write_text(script.read_text(encoding="utf-8").replace("smollm2-135m-instruct", str(tiny_model)), encoding="utf-8")

    runpy.run_path(str(folder / "scripts" / "train.py"), run_name="__main__")
    losses = [float(line.split("loss ")[1].split()[0]) for line in capsys.readouterr().out.splitlines() if line.startswith("update")]
    assert len(losses) == 9
    assert losses[-1] < losses[0]
    assert (folder / "models" / "adapter" / "adapter_model.safetensors").is_file()

    with pytest.MonkeyPatch.context() as call:
        call.setattr("sys.argv", ["inference.py"])
        runpy.run_path(str(folder / "scripts" / "inference.py"), run_name="__main__")
        assert capsys.readouterr().out.count("\n  -> ") == 4
        call.setattr("sys.argv", ["inference.py", "Where is my parcel?"])
        runpy.run_path(str(folder / "scripts" / "inference.py"), run_name="__main__")
        assert capsys.readouterr().out.startswith("Where is my parcel?\n  -> ")
