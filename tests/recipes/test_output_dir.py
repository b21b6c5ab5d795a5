"""Where a run is written: never over another, never among rows or a model's files."""

import os
from pathlib import Path

import pytest
from conftest_runs import Write, chat_row, write_rows

from luthier import files, run_folder
from luthier.errors import ConfigError
from luthier.recipes import sft

ROWS = [chat_row(place) for place in range(4)]


@pytest.mark.parametrize(
    ("output_dir", "said"),
    [
        ("rows/runs", r"rows/runs is in the folder of the rows: runs would stand among other files\n  Try: output_dir: a folder of its own"),
        ("rows/../rows", r"rows is in the folder of the rows"),
        ("linked/runs", r"rows/runs is in the folder of the rows"),
        ("MODEL/runs", r"runs is in the folder of the model"),
        ("/", r": / is the whole disk"),
        ("HOME", r"home is a home folder"),
    ],
    ids=["inside rows", "rows", "through a link", "inside the model", "root", "home"],
)
def test_runs_stand_in_a_folder_of_their_own(
    output_dir: str, said: str, write: Write, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output_dir = output_dir.replace("MODEL", str(tiny_model)).replace("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    folder = tmp_path / "project"
    (folder / "rows").mkdir(parents=True)
    write_rows(folder / "rows" / "some.jsonl", ROWS)
    os.symlink(folder / "rows", folder / "linked")
    config = write(ROWS, "data.train=rows", f"output_dir={output_dir}")
    with pytest.raises(ConfigError, match=said) as error:
        sft.fit(config)
    assert error.value.where == f"command line: output_dir={output_dir}"
    assert not (folder / "rows" / "runs").exists()


def test_a_name_that_is_taken_on_a_disk_that_knows_no_capitals_gets_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a disk says of `Tiny-...` that it exists where `tiny-...` does; mkdir is the only one who is asked."""
    real = files.disk.make_folder

    def known(path: Path) -> bool:
        return path.name.lower() in {other.name.lower() for other in path.parent.iterdir()}

    def without_capitals(path: Path) -> None:
        if known(path):
            raise FileExistsError(17, "File exists", str(path))
        real(path)

    first = run_folder.create(tmp_path, "tiny")
    monkeypatch.setattr(files.disk, "make_folder", without_capitals)
    monkeypatch.setattr(Path, "exists", known)
    second = run_folder.create(tmp_path, "TINY")
    assert second.name.lower() == f"{first.name}-2"
