"""Files of rows that change, shrink or vanish while a run reads them, trains on them, or is looked at afterwards."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest_runs import Listener, Write, chat_row, write_rows

from luthier import files
from luthier.config.load import load_config
from luthier.errors import LuthierError
from luthier.recipes import handover, sft
from luthier.run_folder import RunFolder
from luthier.train import watchers

ROWS = [chat_row(place) for place in range(12)]


def weights_of(run: RunFolder) -> str:
    return files.sha256(run.adapter / "adapter_model.safetensors")


def append(path: Path) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write('{"messages": []}\n')


def other_rows_of_the_same_size(path: Path) -> None:
    path.write_text(path.read_text(encoding="utf-8").replace("Itasca", "Itosca"), encoding="utf-8")


def truncate(path: Path) -> None:
    os.truncate(path, 100)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (append, "train.jsonl has changed since it was read"),
        (other_rows_of_the_same_size, "train.jsonl has changed since it was read"),
        (truncate, "train.jsonl has changed since it was read"),
        (Path.unlink, "train.jsonl was deleted or moved since it was read"),
    ],
    ids=["appended", "same size", "truncated", "deleted"],
)
def test_a_run_trains_on_the_rows_it_has_read_and_says_once_that_the_file_is_another(
    change: Callable[[Path], None], said: str, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchers, "LOOK_SECONDS", 0)
    undisturbed = sft.fit(write(ROWS, name="undisturbed"))
    config = write(ROWS, "training.logging_steps=1")
    data = config.file.parent / "train.jsonl"
    listener = Listener(training=lambda: None, step_1=lambda: change(data))
    run = sft.fit(config, listener)
    assert [line for line in listener.lines if "since it was read" in line] == [f"{said}; training goes on with the rows as they were then"]
    assert said in run.log.read_text(encoding="utf-8")
    assert weights_of(run) == weights_of(undisturbed)
    # What is read again later is compared with what was trained.
    with pytest.raises(LuthierError, match=r"train\.jsonl"):
        handover.export(run, "adapter")


def test_a_file_that_is_exchanged_between_its_hash_and_its_rows_is_refused(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    config = write(ROWS)
    data = config.file.parent / "train.jsonl"
    real = files.sha256

    def exchange(path: Path) -> str:
        found = real(path)
        if path == data:
            other_rows_of_the_same_size(data)
        return found

    monkeypatch.setattr(files, "sha256", exchange)
    with pytest.raises(LuthierError, match=r"train\.jsonl: was changed since it was found\n  Try: wait until the program that writes it has ended"):
        sft.fit(config)
    assert not (config.file.parent / "runs").exists()


def test_an_unchanged_file_is_not_spoken_of(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchers, "LOOK_SECONDS", 0)
    config = write(ROWS, "data.eval=eval.jsonl")
    write_rows(config.file.parent / "eval.jsonl", [chat_row(20)])
    listener = Listener()
    sft.fit(config, listener)
    assert not [line for line in listener.lines if "since it was read" in line]


def test_a_run_that_was_begun_beside_its_settings_finds_its_rows_again(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    config = write(ROWS)
    monkeypatch.chdir(config.file.parent)
    run = sft.fit(load_config(Path("luthier.yaml"), ["training.max_steps=1", "training.batch_size=2", "training.precision=fp32"]))
    handover.export(run, "adapter")
