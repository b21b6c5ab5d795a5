"""docs/data.md: its commands work, and its tables name what is there."""

import itertools
import re
import shlex
from pathlib import Path
from typing import Any, get_args

import pytest

from luthier.config.data import DataSettings, FormatName
from luthier.config.load import all_settings
from luthier.data.quality.table import CHECKS

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")


def commands() -> list[list[str]]:
    return [shlex.split(line)[1:] for block in re.findall(r"```sh\n(.*?)```", GUIDE, re.DOTALL) for line in block.strip().split("\n")]


def table(head: str) -> set[str]:
    """The names in code type in the first column of the table that begins with `head`."""
    rows = GUIDE.partition(f"| {head} |")[2].partition("\n\n")[0].split("\n")[2:]
    return {name for row in rows for name in re.findall(r"`(.*?)`", row.split("|")[1])}


def test_every_format_and_way_of_too_long_is_in_its_table() -> None:
    assert table("format") == set(get_args(FormatName))
    assert table("`too_long`") == set(get_args(DataSettings.model_fields["too_long"].annotation))


def test_settings_and_checks_that_are_named_exist() -> None:
    settings = set(all_settings())
    named = re.findall(r"\b((?:data|checks)\.[a-z_]+)[=:]", GUIDE)
    assert named
    assert set(named) <= settings
    checks = {name for words in commands() for flag, names in itertools.pairwise(words) if flag in ("--only", "--skip") for name in names.split(",")}
    assert checks
    assert checks <= set(CHECKS)


def test_links_lead_somewhere() -> None:
    assert [target for target in re.findall(r"\]\(([^)]+)\)", GUIDE) if not (ROOT / "docs" / target.partition("#")[0]).exists()] == []


@pytest.mark.slow
@pytest.mark.real_model
def test_the_commands_work_one_after_the_other(
    tmp_path: Path, default_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from luthier.cli.app import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LUTHIER_HOME", str(default_model.parents[1]))
    for words in commands():
        monkeypatch.setattr("sys.argv", ["luthier", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        printed: Any = capsys.readouterr()
        # 3 is "do not train": twelve rows may well be too few.
        assert ended.value.code in (0, None, 3 if words[:2] == ["data", "check"] else 0), printed.err
    assert (tmp_path / "check.html").is_file()
    assert len((tmp_path / "clean.jsonl").read_text(encoding="utf-8").splitlines()) == 12
